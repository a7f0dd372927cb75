//! A task's clocks: what the kernel counts of it.

use collector_common::sched::{self, TaskState};

use crate::{
    kernel::{Task, load64},
    shared::{Shared, member},
};

impl Task {
    /// CPU time, ns.
    #[inline(always)]
    pub fn run_ns(self) -> u64 {
        load64!(self.0, sched::TASK_RUNTIME)
    }
    /// Time runnable but not running, up to its last arrival on a CPU, ns.
    #[inline(always)]
    pub fn wait_ns(self) -> u64 {
        load64!(self.0, sched::TASK_RUN_DELAY)
    }
    /// Run periods: times that it got a CPU.
    #[inline(always)]
    pub fn periods(self) -> u64 {
        load64!(self.0, sched::TASK_PCOUNT)
    }
    /// Switches in which it gave the CPU up.
    #[inline(always)]
    pub fn voluntary(self) -> u64 {
        load64!(self.0, sched::TASK_NVCSW)
    }
    /// Switches in which the CPU was taken from it.
    #[inline(always)]
    pub fn involuntary(self) -> u64 {
        load64!(self.0, sched::TASK_NIVCSW)
    }
    /// Moves to another CPU.
    #[inline(always)]
    pub fn migrations(self) -> u64 {
        load64!(self.0, sched::TASK_MIGRATIONS)
    }
    /// When the task last got a CPU, ns of its run queue's clock.
    #[inline(always)]
    pub fn last_arrival(self) -> u64 {
        load64!(self.0, sched::TASK_LAST_ARRIVAL)
    }
    /// Of the running task: now, or up to a tick ago, ns of its run queue's clock.
    #[inline(always)]
    pub fn run_queue_clock(self) -> u64 {
        let since_arrival = self.run_ns() - load64!(self.0, sched::TASK_RUNTIME_AT_ARRIVAL);
        self.last_arrival() + since_arrival
    }
}

/// The clocks of a task that is older than the programs, from which its deltas are counted.
#[inline(always)]
pub fn take_baseline(task: Task, state: Shared<TaskState>) {
    member!(state.run_ns).set(task.run_ns());
    member!(state.wait_ns).set(task.wait_ns());
    member!(state.periods).set(task.periods());
    member!(state.voluntary).set(task.voluntary());
    member!(state.involuntary).set(task.involuntary());
    member!(state.migrations).set(task.migrations());
}
