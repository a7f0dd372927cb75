//! Values of the scheduler source, and what it remembers of a task.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    cell::cell,
    field::{COMMON, fields},
    histogram::BUCKETS,
};

fields! {
    FIELDS from COMMON.len();
    TASK_NVCSW = "task_struct.nvcsw";
    TASK_NIVCSW = "task_struct.nivcsw";
    TASK_RUNTIME = "task_struct.se.sum_exec_runtime";
    TASK_MIGRATIONS = "task_struct.se.nr_migrations";
    TASK_RUNTIME_AT_ARRIVAL = "task_struct.se.prev_sum_exec_runtime";
    TASK_LAST_ARRIVAL = "task_struct.sched_info.last_arrival";
    TASK_RUN_DELAY = "task_struct.sched_info.run_delay";
    TASK_PCOUNT = "task_struct.sched_info.pcount";
}

/// Scheduler counters of one slot on one CPU. One writer: the CPU itself, at switch-out.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct SchedCell {
    /// Cgroup id of the slot's owner, 0 while untouched.
    pub owner: u64,
    /// CPU time, ns (`se.sum_exec_runtime`).
    pub run_ns: u64,
    /// Time runnable but not running, ns (`sched_info.run_delay`).
    pub wait_ns: u64,
    /// Switches in which the task gave the CPU up (`nvcsw`).
    pub voluntary: u64,
    /// Switches in which the CPU was taken by a task of the same cgroup (part of `nivcsw`).
    pub preempted_by_self: u64,
    /// Switches in which the CPU was taken by a task of another cgroup (part of `nivcsw`).
    pub preempted_by_other: u64,
    /// Switches in which the CPU was taken by a kernel thread, or by the idle task because a quota
    /// had run out (part of `nivcsw`).
    pub preempted_by_system: u64,
    /// Moves to another CPU (`se.nr_migrations`).
    pub migrations: u64,
    /// Run periods by the wait before each, see [`crate::histogram`]; their sum is the number of
    /// run periods (`sched_info.pcount`).
    pub wait_histogram: [u64; BUCKETS],
}

cell!(SchedCell, 256);

/// State of a task (task storage): its clocks when they were last taken over into a cell, and what
/// tells where it counts.
///
/// The marks are written by the mover, which moves the task to another cgroup; the other members by the
/// CPU that switches the task out. There are two exceptions: the mover sets `css_set` to 0 to have the
/// slot resolved again, and the CPU ends the marks by setting `mark_owner` to 0. Both do so while they
/// hold `settling`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TaskState {
    /// `task->cgroups` when the slot was resolved: as long as it is the same, so is the slot.
    /// 0: not resolved yet, or moved since.
    pub css_set: u64,
    /// Id of the cgroup for which the slot was resolved, 0 before the first time.
    pub cgroup: u64,
    /// Id of the cgroup whose slot it is: that cgroup's, or an ancestor's.
    pub owner: u64,
    /// The slot of that cgroup.
    pub slot: u32,
    /// Index of the slot's cell for CPU 0. Those of the other CPUs follow.
    pub first_cell: u32,
    /// `se.sum_exec_runtime`, ns.
    pub run_ns: u64,
    /// `sched_info.run_delay`, ns.
    pub wait_ns: u64,
    /// `sched_info.pcount`.
    pub periods: u64,
    /// `nvcsw`.
    pub voluntary: u64,
    /// `nivcsw`.
    pub involuntary: u64,
    /// `se.nr_migrations`.
    pub migrations: u64,
    /// `se.sum_exec_runtime` when the task left the cgroup `cgroup`.
    pub run_mark: u64,
    /// `se.sum_exec_runtime` when it entered the cgroup that it is in now: later than `run_mark`
    /// if it passed through others without being switched out there.
    pub run_enter_mark: u64,
    /// `sched_info.run_delay` when the task left the cgroup `cgroup`.
    pub wait_mark: u64,
    /// `sched_info.pcount` at that moment.
    pub periods_mark: u64,
    /// Cgroup id of the cgroup entered at the last move; 0: no marks.
    pub mark_owner: u64,
    /// Not 0 while the mover or the CPU works on marks and slot.
    pub settling: u64,
    /// Of a leader: when its process was last moved, ns of the run queue's clock.
    pub moved_at: u64,
    /// Not 0 once the process that this task leads has been counted as ended.
    pub ended: u64,
    /// How many slots had been retired when the task ended, see [`crate::slot::SlotControl`].
    pub retired: u64,
    /// CLOCK_MONOTONIC at which the task began to free memory, ns; 0 while it does not.
    pub reclaim_since: u64,
}

const _: () = assert!(size_of::<TaskState>() == 160);
