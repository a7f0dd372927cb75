//! Values of the reclaim source.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{cell::cell, histogram::BUCKETS};

/// Direct reclaim of one slot; one shard, atomic adds.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct ReclaimCell {
    /// Cgroup id of the slot's owner, 0 while untouched.
    pub owner: u64,
    /// Time that tasks spent freeing memory before they got any, ns.
    pub stall_ns: u64,
    /// Stalls by their duration, see [`crate::histogram`].
    pub histogram: [u64; BUCKETS],
    /// Keeps cells within whole cache lines.
    pub reserved: [u64; 6],
}

cell!(ReclaimCell, 256);
