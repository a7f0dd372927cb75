//! Slots: what both sides know of each, and the ring of those whose cgroups were removed.
//!
//! A cgroup's slot is *retired* when the cgroup is removed, by the program at `cgroup_rmdir`. From then
//! on its values belong to its *heir*, the parent's slot. They are added to the heir's, and the slot is
//! free again, once no program can still be adding to it: after an RCU grace period.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The slot of cgroup2's root, which is there from the start and is never retired.
pub const ROOT_SLOT: u32 = 0;
/// Id of cgroup2's root.
pub const ROOT_ID: u64 = 1;
/// Set in the owner's id of a retired slot's cells, so that they are nobody's any more and can't be
/// claimed either. No cgroup id has this bit.
pub const RETIRED: u64 = 1 << 63;
/// Set in an entry of the hash of slots, beside the slot's number: the cgroup has no slot of its own,
/// and counts in this one of an ancestor.
pub const BORROWED: u32 = 1 << 31;

/// Most such entries. They are beside those of slots, so that the last free slots are for whom they are kept.
pub const BORROWERS: u32 = 4096;

/// What is known of a slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct SlotMeta {
    /// Cgroup id of the owner, also of a retired slot; 0: the slot is free.
    pub owner: u64,
    /// Cgroup id of the parent; of a retired slot, the owner of the heir's slot.
    pub heir: u64,
    /// The heir's slot, if this one is retired.
    pub heir_slot: u64,
    /// Not 0: retired. One more than the slot's place in the sequence of retired slots.
    pub retired: u64,
    /// Number of the owner's children that have slots and count here, see `counted_at`.
    pub children: u64,
    /// One more than the slot of the parent in whose `children` this one is; 0: in none, because the
    /// parent had no slot yet.
    pub counted_at: u64,
    /// Which of the slot's cells somebody has claimed, a bit each: see [`lane_bit`], [`shard_bit`] and
    /// [`Claimed`]. What none has claimed is neither marked nor swept.
    pub claimed: [u64; 2],
}

const _: () = assert!(size_of::<SlotMeta>() == 64);

/// The bit in [`SlotMeta::claimed`] of a CPU's cell. Of more than 64 CPUs some share a bit.
#[must_use]
pub const fn lane_bit(cpu: u32) -> u32 {
    cpu % 64
}

/// The same for a cell that several CPUs share.
#[must_use]
pub const fn shard_bit(shard: u32) -> u32 {
    64 + shard % 32
}

/// The same for sources with one cell or table a slot: each its bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Claimed {
    /// Processes.
    Process = 96,
    /// Direct reclaim.
    Reclaim,
    /// TCP.
    Tcp,
    /// Block I/O by device.
    Block,
    /// Dropped packets by reason.
    Drops,
}

/// The sequence of retired slots. Its members only grow, but for the lock.
///
/// Slots from `tail` to `head` are retired and not yet swept; the ring has an entry for each at its
/// place, modulo the ring's length.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct SlotControl {
    /// Slots retired so far. Written by `cgroup_rmdir` alone, which the cgroup mutex serialises.
    pub head: u64,
    /// Slots swept so far. Written under the lock.
    pub tail: u64,
    /// No program that runs now can have found any of the slots before this one in use.
    pub graced: u64,
    /// The agent has taken the last values of all slots before this one.
    pub seen: u64,
    /// 0: nobody sweeps or reads. [`SWEEPING`]: a program sweeps. Otherwise the agent reads, at most
    /// until that CLOCK_MONOTONIC, ns.
    pub lock: u64,
    /// Retired slots that are left for the agent to look at first.
    pub kept: u64,
    /// Not 0 once the agent has made slots. Before that a cgroup without a slot is nothing to be noted.
    pub open: u64,
    /// Slots that exist, the root's included. Of the agent, which may be another one later: a slot is counted
    /// here before it can be taken.
    pub made: u64,
    /// Values of block I/O that exist, likewise.
    pub block_values: u64,
    /// Values of dropped packets that exist, likewise.
    pub drop_values: u64,
    /// CLOCK_MONOTONIC at which the first agent loaded its programs, ns.
    pub loaded_at: u64,
    /// Slots that are not free: of cgroups, and retired ones; the root's is not among them.
    pub taken: u64,
    /// Where so many are taken, the rest is for cgroups that have precedence.
    pub common: u64,
    /// How many children of one parent have slots at most, unless they have precedence.
    pub siblings: u64,
    /// How many cgroups took a slot just when they were removed, which the next removal retires.
    pub orphans: u64,
    /// Removals in the ring buffer of which the agent has not been woken.
    pub untold: u64,
    /// Entries of cgroups without a slot, see [`BORROWED`].
    pub borrowers: u64,
    /// The highest id of a cgroup that has counted in an ancestor's slot and for which there was no entry; 0: none.
    /// Cgroups up to there get no slot any more: nobody knows which of them would be served too small.
    pub unnoted: u64,
}

const _: () = assert!(size_of::<SlotControl>() == 144);

/// An entry of the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RingEntry {
    /// The slot.
    pub slot: u64,
    /// Id of the removed cgroup. It is still here when the slot has been swept.
    pub owner: u64,
}

const _: () = assert!(size_of::<RingEntry>() == 16);

/// The lock of a program that sweeps. It needs no deadline: a program always ends.
pub const SWEEPING: u64 = 1;

/// To whom a removed cgroup's values went.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Heir {
    /// Id of the removed cgroup; 0: none, or just being written.
    pub removed: u64,
    /// Cgroup id of the heir.
    pub cgroup: u64,
    /// The removed slot's place in the sequence of retired slots.
    pub place: u64,
    /// Two of them are a cache line.
    pub reserved: u64,
}

const _: () = assert!(size_of::<Heir>() == 32);
