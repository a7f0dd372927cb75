//! Values that are counted for each cgroup and something else: a device, a reason.
//!
//! A source of such values has a *table* for each slot. Its entries say for which thing they are, and
//! which value of the source's pool counts it. So a removal costs what the cgroup has, and no event looks
//! anything up in a hash.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cell::cell;

/// Things that a cgroup has values of at most, in one source. Further ones count in an ancestor's table,
/// those of the root as [`OTHER`].
pub const THINGS: usize = 16;
/// Values in a chunk of a source's pool. A power of two: kernel programs shift and mask.
pub const VALUES_PER_CHUNK: u32 = 256;
/// Stands for everything that found no entry in the root's table. No device and no reason is 0.
pub const OTHER: u64 = 0;
/// The value of the pool that counts [`OTHER`].
pub const OTHER_VALUE: u32 = 0;

/// The table of a slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct KeyTable {
    /// Cgroup id of the slot's owner, as in a cell.
    pub owner: u64,
    /// Not 0: something found no entry. It counts in an ancestor's table.
    pub full: u64,
    /// Of the root: not 0 once [`OTHER_VALUE`] is there.
    pub has_other: u64,
    /// See [`entry`]. Those in use come first, and stay what they are as long as the slot has its owner.
    pub entries: [u64; THINGS],
}

cell!(KeyTable, 152);

/// An entry: a thing, below 2^32, and its value's number plus one. Without a value (0) the thing counts
/// in an ancestor's table, because the pool was empty at its first event. An entry that is 0 is free.
pub const fn entry(what: u64, value: u64) -> u64 {
    what << 32 | value
}

/// The thing that an entry is for.
pub const fn what_of(entry: u64) -> u64 {
    entry >> 32
}

/// The number of an entry's value plus one, 0 if it has none.
pub const fn value_of(entry: u64) -> u64 {
    entry & 0xffff_ffff
}

/// Values that consist of 64-bit counters alone.
pub trait Counters: Copy {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_its_parts() {
        for (what, value) in [
            (8 << 20 | 3, 1),
            (u64::from(u32::MAX), 10_000),
            (7, 0),
            (OTHER, 1),
        ] {
            let entry = entry(what, value);
            assert_eq!((what_of(entry), value_of(entry)), (what, value));
            assert_ne!(entry, 0);
        }
    }
}
