//! Values of the process source.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cell::cell;

/// Process counters of one slot; one shard, atomic adds.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct ProcessCell {
    /// Cgroup id of the slot's owner, 0 while untouched.
    pub owner: u64,
    /// Processes (thread groups) started.
    pub started: u64,
    /// Programs executed.
    pub executed: u64,
    /// Processes that ended by exit(2).
    pub exited: u64,
    /// Processes that a signal ended.
    pub signaled: u64,
    /// Of those, the ones that the OOM killer ended.
    pub oom_killed: u64,
    /// Keeps cells within a cache line.
    pub reserved: [u64; 2],
}

cell!(ProcessCell, 64);
