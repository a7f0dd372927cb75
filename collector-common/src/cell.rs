//! Cells: where a slot's numbers live.
//!
//! A cgroup gets a *slot*; a source keeps one *cell* a slot for each *lane*: one lane a CPU for
//! hot sources (each CPU writes only its own, with plain adds), a single lane for rare ones
//! (atomic adds). Cells of one source are numbered `slot * lanes + lane` and stored in chunks of
//! [`CELLS_PER_CHUNK`], each an mmapable array in an array of maps, so that kernel memory grows
//! with the slots in use and not with the highest number allowed.
//!
//! Every cell value starts with its owner's cgroup id (0: not written yet), so that a cached
//! slot number which has been recycled is noticed by the writer.

/// Cells in a chunk of a source. A power of two: kernel programs shift and mask.
pub const CELLS_PER_CHUNK: u32 = 1 << CHUNK_SHIFT;
/// log2 of [`CELLS_PER_CHUNK`].
pub const CHUNK_SHIFT: u32 = 10;
/// The slot of everything that could not get one of its own.
pub const OVERFLOW_SLOT: u32 = 0;
/// Owner written to the cells of [`OVERFLOW_SLOT`]; no cgroup has this id.
pub const OVERFLOW_OWNER: u64 = u64::MAX;
