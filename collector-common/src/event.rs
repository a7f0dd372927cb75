//! Cgroup lifecycle, as sent over the ring buffer.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Longest name of a cgroup directory (NAME_MAX), with its terminating 0.
pub const NAME_LEN: usize = 256;

/// What happened to a cgroup.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupEventKind {
    /// `cgroup_mkdir`
    Made = 1,
    /// `cgroup_rmdir`
    Removed = 2,
    /// `cgroup_rename` (cgroup v1 only)
    Renamed = 3,
    /// A process with several threads was moved into the cgroup (`cgroup_attach_task`).
    ThreadsMoved = 4,
}

/// One lifecycle event. The path is the parent's and `name`: the tracepoint's own path argument
/// is cut at 1,024 bytes (kernel/cgroup/cgroup.c, TRACE_CGROUP_PATH_LEN).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct CgroupEvent {
    /// A [`CgroupEventKind`].
    pub kind: u32,
    /// `cgroup_root.hierarchy_id`; 0 is cgroup2 (the default hierarchy).
    pub hierarchy: u32,
    /// Cgroup id (`kernfs_node.id`).
    pub id: u64,
    /// The parent's cgroup id.
    pub parent: u64,
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Bytes of `name` that are used, without the terminating 0.
    pub name_len: u32,
    /// Keeps the layout explicit.
    pub reserved: u32,
    /// Directory name, any bytes but 0 and '/'.
    pub name: [u8; NAME_LEN],
}

const _: () = assert!(size_of::<CgroupEvent>() == 40 + NAME_LEN);
