//! Network namespaces and their owners, as an iteration over all tasks finds them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Namespaces that can be noted; those beyond are counted as missed.
pub const NAMESPACES: u32 = 8192;

/// Control block of the iterator.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct NamespaceIterator {
    /// Number of the iteration, set by the agent.
    pub generation: u64,
    /// Cookie of the host's namespace, that of the kernel's threads; 0 until one has been met.
    pub host: u64,
    /// Times that there was no room for a namespace.
    pub missed: u64,
    /// Keeps the layout explicit.
    pub reserved: u64,
}

const _: () = assert!(size_of::<NamespaceIterator>() == 32);

/// A network namespace other than the host's; the key is its cookie (`net.net_cookie`), which is
/// never used again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Namespace {
    /// The iteration that has found a task in it last.
    pub generation: u64,
    /// Cgroup id of its oldest task.
    pub cgroup: u64,
    /// When its oldest task was started, ns of CLOCK_MONOTONIC.
    pub start_time: u64,
    /// Thread id of its oldest task.
    pub pid: u64,
    /// Cgroup id that the agent has given it to, 0 for none: set by the agent.
    pub owner: u64,
    /// The iteration that has found a task of that cgroup in it last.
    pub owner_seen: u64,
}

const _: () = assert!(size_of::<Namespace>() == 48);
