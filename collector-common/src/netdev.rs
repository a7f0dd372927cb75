//! Network namespaces: the processes in them, and the processes by which they are watched.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Namespaces that can be watched at a time.
pub const NAMESPACES: u32 = 8192;

/// Control block of the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct NamespaceControl {
    /// Cookie of the host's namespace, that of the kernel's threads; 0 until one has been met.
    pub host: u64,
    /// Number of entries that are watched, set by the agent.
    pub watched: u64,
    /// Number of those whose process has left, as of the last look.
    pub left: u64,
    /// Keeps the layout explicit.
    pub reserved: u64,
}

const _: () = assert!(size_of::<NamespaceControl>() == 32);

/// A process in a network namespace other than the host's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Inhabitant {
    /// The namespace's cookie (`net.net_cookie`), which is never used again.
    pub namespace: u64,
    /// Cgroup id of the process.
    pub cgroup: u64,
    /// When the process was started, ns of CLOCK_MONOTONIC.
    pub start_time: u64,
    /// Its process id; the thread id of a thread whose leader has ended.
    pub pid: u64,
    /// Kernel address of the task.
    pub task: u64,
    /// Kernel address of the namespace.
    pub address: u64,
}

const _: () = assert!(size_of::<Inhabitant>() == 48);

/// A process in a namespace that the agent reads. As long as it is there, so is the namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Witness {
    /// Kernel address of the task. The task may be gone: what is there is read with care.
    pub task: u64,
    /// Kernel address of the namespace, which the agent's socket keeps in being.
    pub address: u64,
}

const _: () = assert!(size_of::<Witness>() == 16);
