//! What both sides of cgmeter share, and nothing else: the layout of map values, histogram
//! buckets, lifecycle events, and the list of kernel structure fields that programs read.
//!
//! Invariant: `no_std`, no `unsafe`, no dependency but `zerocopy`, whose derives check that a type
//! can be read from and written as plain bytes. Every shared type is `repr(C)` with a size that a
//! `const` assertion pins, so that both sides agree by construction.
#![cfg_attr(not(test), no_std)]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

/// The version of what maps contain. Raised when a map that outlives an agent comes to mean something else:
/// an agent with another number doesn't read them. Checked by collector/tests/layout.rs.
pub const LAYOUT: u32 = 5;

pub mod block;
pub mod cell;
pub mod cgroup_iterator;
pub mod drops;
pub mod event;
pub mod field;
pub mod histogram;
pub mod kept;
pub mod keyed;
pub mod net;
pub mod netdev;
pub mod paths;
pub mod process;
pub mod reclaim;
pub mod sched;
pub mod slot;
pub mod stat;
pub mod tasks;
pub mod tcp;
