//! Keys of values that a cgroup has one of for each of something: a device, a reason.

use crate::cell::OVERFLOW_OWNER;

/// A cgroup and what the value is of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupKey {
    /// Cgroup id.
    pub cgroup: u64,
    /// The source's own: a device number, a reason.
    pub what: u64,
}

impl CgroupKey {
    /// The entry of everything for which there was no room. The agent makes it.
    pub const OVERFLOW: Self = Self {
        cgroup: OVERFLOW_OWNER,
        what: 0,
    };
}

const _: () = assert!(size_of::<CgroupKey>() == 16);
