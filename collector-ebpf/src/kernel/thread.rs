//! What a thread is doing, and what its process may do.

use core::ffi::c_void;

use collector_common::field;

use super::Task;

/// What `__state` says, in /proc's terms (fs/proc/array.c, `get_task_state`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ThreadState {
    /// R: on a CPU or waiting for one; waking up and newly born, too.
    Running,
    /// S, I, P: interruptible sleep, idle kernel threads, parked ones.
    Sleeping,
    /// T, t: stopped or traced.
    Stopped,
    /// D: uninterruptible sleep, frozen tasks included.
    Uninterruptible,
}

// include/linux/sched.h; the same since 5.14 but for TASK_FROZEN, which is of 6.1.
const TASK_INTERRUPTIBLE: u32 = 0x1;
const TASK_UNINTERRUPTIBLE: u32 = 0x2;
const TASK_STOPPED_OR_TRACED: u32 = 0x4 | 0x8;
const TASK_PARKED: u32 = 0x40;
const TASK_NOLOAD: u32 = 0x400;
const TASK_RTLOCK_WAIT: u32 = 0x1000;
const TASK_FROZEN: u32 = 0x8000;

impl Task {
    #[inline(always)]
    pub fn tgid(self) -> u32 {
        load32!(self.0, field::TASK_TGID)
    }
    /// A zombie or dead (`exit_state`), taken from its cgroup just before (kernel/exit.c, `do_exit`).
    #[inline(always)]
    pub fn has_ended(self) -> bool {
        load32!(self.0, field::TASK_EXIT_STATE) != 0
    }
    #[inline(always)]
    pub fn state(self) -> ThreadState {
        let state = load32!(self.0, field::TASK_STATE);
        if state & TASK_STOPPED_OR_TRACED != 0 {
            ThreadState::Stopped
        } else if state & (TASK_INTERRUPTIBLE | TASK_PARKED) != 0 {
            ThreadState::Sleeping
        } else if state & (TASK_UNINTERRUPTIBLE | TASK_RTLOCK_WAIT | TASK_FROZEN) == 0 {
            ThreadState::Running
        } else if state & TASK_NOLOAD != 0 {
            // TASK_IDLE: a kernel thread that waits for work.
            ThreadState::Sleeping
        } else {
            ThreadState::Uninterruptible
        }
    }
    /// The byte that `in_iowait`, a bit field, is in. The loader patches offsets in bytes; the agent
    /// writes the bit's mask into the control block.
    #[inline(always)]
    pub fn byte_of_in_iowait(self) -> u64 {
        u64::from(load8!(self.0, field::TASK_IN_IOWAIT))
    }
    /// CLOCK_BOOTTIME of birth, ns: what /proc/PID/stat shows as starttime.
    #[inline(always)]
    pub fn start_boottime(self) -> u64 {
        load64!(self.0, field::TASK_START_BOOTTIME)
    }
    /// The process's soft RLIMIT_NOFILE.
    #[inline(always)]
    pub fn soft_descriptor_limit(self) -> u64 {
        let signal = load64!(self.0, field::TASK_SIGNAL) as *const c_void;
        load64!(signal, field::SIGNAL_SOFT_NOFILE)
    }
}
