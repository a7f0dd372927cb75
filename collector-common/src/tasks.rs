//! Values of the tasks source: what one iteration over all tasks finds in each cgroup.

use crate::cell::cell;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// 64-bit words of a file table's bitmap that one run of the program looks at: 4,096 descriptors.
pub const WORDS_A_RUN: usize = 64;

/// What an iteration found in one slot's cgroup. A slot has one cell; the iterator alone writes it,
/// with plain adds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct TasksCell {
    /// Cgroup id of the slot's owner, 0 while untouched.
    pub owner: u64,
    /// The iteration that wrote the rest; what an older one wrote no longer counts.
    pub generation: u64,
    /// Processes.
    pub processes: u64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Open descriptors that are sockets.
    pub sockets: u64,
    /// Threads that sleep and can be interrupted. Which states count for which field is in
    /// `collector-ebpf/src/kernel/thread.rs`.
    pub sleeping: u64,
    /// Threads that run or wait for a CPU.
    pub running: u64,
    /// Stopped or traced threads.
    pub stopped: u64,
    /// Threads in uninterruptible sleep, those that wait for I/O apart.
    pub uninterruptible: u64,
    /// Threads in uninterruptible sleep that wait for I/O.
    pub iowaiting: u64,
    /// `start_boottime` of the oldest process, ns; 0 if there is none.
    pub oldest_start_ns: u64,
    /// That process's soft RLIMIT_NOFILE.
    pub oldest_nofile: u64,
    /// Keeps cells to two cache lines.
    pub reserved: [u64; 3],
}

cell!(TasksCell, 128);

/// What the agent asks of an iteration, and what the program notes between its runs. There is one
/// iteration at a time.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct TasksControl {
    /// Number of the iteration, from 1. 0: nothing is counted, but the file operations of sockets are
    /// learnt.
    pub generation: u64,
    /// Which bit of the byte at `task_struct.in_iowait` it is.
    pub iowait_mask: u64,
    /// A descriptor of the agent that is a socket, to learn from.
    pub sample_socket: u64,
    /// `file.f_op` of sockets, learnt from the sample.
    pub socket_ops: u64,
    /// Not 0: sockets are counted in this iteration.
    pub with_sockets: u64,
    /// Cgroup id of the task that was visited last.
    pub last_owner: u64,
    /// Slot of the task that was visited last.
    pub last_slot: u64,
    /// Pid of the task whose file table is looked at in several runs; 0 is none.
    pub walked: u64,
    /// `start_time` of the walked task, because pids are used again.
    pub walked_since: u64,
    /// `files` of the walked task: the address of its file table.
    pub table: u64,
    /// Slot of the walked task.
    pub slot: u64,
    /// Index of the first word of the table's bitmap that has not been looked at yet.
    pub next: u64,
    /// Address of the table's array of pointers to files.
    pub files: u64,
    /// Descriptors found so far in the walked task's table.
    pub descriptors: u64,
    /// Sockets found so far in the walked task's table.
    pub sockets: u64,
    /// Room for words of the bitmap.
    pub bitmap: [u64; WORDS_A_RUN],
    /// Room for the files of one such word.
    pub word: [u64; 64],
}

const _: () = assert!(size_of::<TasksControl>() == 120 + 512 + 512);
