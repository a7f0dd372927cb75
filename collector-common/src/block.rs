//! Values of the block source.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{histogram::BUCKETS, keyed::Counters};

/// What a request does, as the number of its part of a [`BlockValue`].
///
/// The kernel's own statistics (`op_stat_group`, block/blk.h; `blk_cgroup_io_type`, block/blk-cgroup.c)
/// know three of them, and so do these: what is neither a discard nor a flush is a read or a write
/// by its lowest bit, so that zones appended to, zeroes written and secure erasures are writes.
pub const READ: usize = 0;
/// A write, see [`READ`].
pub const WRITE: usize = 1;
/// A discard, see [`READ`].
pub const DISCARD: usize = 2;
/// A device's cache written to its medium.
pub const FLUSH: usize = 3;
/// Kinds of requests. A power of two: the kernel side masks.
pub const OPERATIONS: usize = 4;

/// Requests of one kind. A request is counted in `latency`, or in `untimed`: their sum is the
/// number of requests.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct BlockOperation {
    /// Bytes transferred, failed ones included, as in the kernel's own statistics.
    pub bytes: u64,
    /// Requests that carry no time of submission: those of a queue without statistics
    /// (queue/iostats), and bios of drivers that make no requests.
    pub untimed: u64,
    /// Completions with an error.
    pub errors: u64,
    /// Time from submission to completion, ns.
    pub latency_ns: u64,
    /// Time from issue to the device to completion, ns, where the kernel stamps the issue.
    pub device_ns: u64,
    /// Requests by time from submission, in the buckets of [`crate::histogram`].
    pub latency: [u64; BUCKETS],
    /// Requests by time from issue, in the same buckets.
    pub device: [u64; BUCKETS],
}

/// Numbers of one cgroup on one disk, whose `dev_t` is the second part of the key; atomic adds.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct BlockValue {
    /// The cgroup's requests on the disk, by what they do: [`READ`] and so on is the index.
    pub operations: [BlockOperation; OPERATIONS],
}

impl Counters for BlockValue {}

const _: () = assert!(size_of::<BlockOperation>() == 8 * (5 + 2 * BUCKETS));
const _: () = assert!(size_of::<BlockValue>() == OPERATIONS * size_of::<BlockOperation>());
const _: () = assert!(OPERATIONS.is_power_of_two());

/// Who submitted a request, remembered until it is complete.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Submitter {
    /// Cgroup id of the submitter; 0 if another task submitted it for the cgroup that is charged.
    pub cgroup: u64,
    /// If not 0, `start_time_ns` of the request. Requests are used again and entries are not
    /// removed, so an entry with another time is of an earlier use.
    pub start_ns: u64,
}

const _: () = assert!(size_of::<Submitter>() == 16);
