//! Values of the process source.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cell::cell;

/// Process counters of one slot, which has one cell. All CPUs write it, with atomic adds.
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
    /// Processes that the OOM killer ended, which are counted in `signaled` too.
    pub oom_killed: u64,
    /// Keeps cells within a cache line.
    pub reserved: [u64; 2],
}

cell!(ProcessCell, 64);
