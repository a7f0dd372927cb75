//! State of tasks: storage, creation, baseline.

use core::ffi::c_void;

use aya_ebpf::{Global, macros::btf_map};
use collector_common::{sched::TaskState, stat::Stat};

use crate::{
    cell, clocks,
    kernel::Task,
    maps::TaskStorage,
    shared::{Shared, member},
    slot::Slot,
    stat,
};

#[btf_map]
static TASK_STATE: TaskStorage<TaskState> = TaskStorage::new();

/// CLOCK_MONOTONIC at which the agent loaded the programs, ns. They have seen all that a task born
/// later ever did.
#[unsafe(no_mangle)]
static LOADED_AT: Global<u64> = Global::new(0);

/// A task's state, `None` if it has none.
#[inline(always)]
pub fn state(task: Task) -> Option<Shared<TaskState>> {
    TASK_STATE.find(task)
}

/// A task's state. If it has none, one is made: with zeros for a task born since the programs were
/// loaded, else with its present clocks.
#[inline(always)]
pub fn state_or_new(task: Task) -> Option<Shared<TaskState>> {
    if let Some(state) = state(task) {
        return Some(state);
    }
    let state = TASK_STATE.find_or_make(task)?;
    if task.start_time() <= LOADED_AT.load() {
        clocks::take_baseline(task, state);
    }
    Some(state)
}

/// The slot in which a task counts, as far as its state knows.
#[inline(always)]
pub fn slot(state: Shared<TaskState>) -> Slot {
    Slot {
        number: member!(state.slot).get(),
        owner: member!(state.owner).get(),
    }
}

/// Notes the cgroup that a task is in and the slot in which it counts from now on.
#[inline(always)]
pub fn enter(state: Shared<TaskState>, cgroup: u64, slot: Slot, css_set: u64) {
    member!(state.cgroup).set(cgroup);
    member!(state.slot).set(slot.number);
    member!(state.first_cell).set(cell::first_cell(slot.number));
    member!(state.owner).set(slot.owner);
    member!(state.css_set).set(css_set);
}

/// `iter/task`: gives every task that exists its state, with its present clocks as baseline. Run once,
/// after `sched_process_fork` and before `sched_switch` are attached.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn baseline(ctx: *const c_void) -> i32 {
    if let Some(task) = Task::iterated(ctx)
        && state_or_new(task).is_none()
    {
        stat::count(Stat::NoTaskStorage);
    }
    0
}
