//! Keys of values that are counted for each cgroup and something else, such as a device or a
//! reason.

use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cell::OVERFLOW_OWNER;

/// The key: a cgroup and what else the value is of.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
)]
pub struct CgroupKey {
    /// Cgroup id.
    pub cgroup: u64,
    /// What else the value is of, as the source numbers it: a device, a reason.
    pub what: u64,
}

impl CgroupKey {
    /// The entry that counts whatever finds no room for an entry of its own. The agent makes it.
    pub const OVERFLOW: Self = Self {
        cgroup: OVERFLOW_OWNER,
        what: 0,
    };
}

const _: () = assert!(size_of::<CgroupKey>() == 16);

/// A value in an array, where finding it costs no hash lookup. Keys that came when there was no
/// room have an entry in the hash instead. A key may have both.
///
/// Aligned, so that no more cache lines are touched than need be.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
pub struct Row<T> {
    /// Cgroup id of the key. 0: the row is free. [`ROW_TAKEN`]: it is being claimed or taken from
    /// its owner.
    pub cgroup: u64,
    /// What the value is of besides the cgroup: the other half of the key.
    pub what: u64,
    /// The counters.
    pub value: T,
}

const _: () = assert!(offset_of!(Row<u64>, value) == size_of::<CgroupKey>());
const _: () = assert!(WAYS.is_power_of_two() && MAX_ROWS.is_power_of_two());

/// Stands for the cgroup id while a row is being claimed, or taken from its owner. No cgroup has
/// this id.
pub const ROW_TAKEN: u64 = OVERFLOW_OWNER - 1;
/// Consecutive rows that a key may be in. A power of two.
pub const WAYS: u32 = 4;
/// Most rows of a source. A power of two.
pub const MAX_ROWS: u32 = 256;

/// The first of the rows that a key may have, of `rows` (a power of two).
#[inline(always)]
pub const fn first_way(key: CgroupKey, rows: u32) -> u32 {
    // Multiplicative hashing: the product's upper bits depend on all of the factors' lower ones.
    // Neither number is large, and both are mostly consecutive.
    let mixed = key
        .cgroup
        .wrapping_add(key.what << 20)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 40) as u32 & (rows - 1) & !(WAYS - 1)
}
