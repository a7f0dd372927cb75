//! Cells: where a slot's numbers live.
//!
//! A cgroup gets a *slot*; a source keeps one or more *cells* for each slot, called *shards*: one for
//! each CPU where events are hot (each CPU writes only its own, with plain adds), one for several CPUs
//! or one for all of them where they are not (atomic adds). Cells of one source are numbered
//! `slot * shards + shard` and stored in chunks of [`CELLS_PER_CHUNK`], each an mmapable array in an
//! array of maps, so that kernel memory grows with the slots in use and not with the highest number
//! allowed.
//!
//! Every cell starts with its owner's cgroup id (0: not written yet). That is how a writer notices
//! that the slot number which it has cached has been recycled.

/// A cell of a source: 64-bit words only, one of which is the owner's cgroup id. Implemented by
/// `cell!`, which checks the layout.
pub trait Cell: Copy {
    /// Offset of the owner's cgroup id, bytes.
    const OWNER: usize;
}

/// Implements [`Cell`] for a type, and pins its size.
macro_rules! cell {
    ($cell:ident, $size:literal) => {
        const _: () = {
            assert!(size_of::<$cell>() == $size);
            assert!(core::mem::offset_of!($cell, owner) == 0);
        };
        impl $crate::cell::Cell for $cell {
            const OWNER: usize = core::mem::offset_of!($cell, owner);
        }
    };
}
pub(crate) use cell;

/// Cells in a chunk of a source. A power of two: kernel programs shift and mask.
pub const CELLS_PER_CHUNK: u32 = 1 << CHUNK_SHIFT;
/// log2 of [`CELLS_PER_CHUNK`].
pub const CHUNK_SHIFT: u32 = 10;
