//! Processes that were started, that executed a program, and that ended, by how they ended.
//!
//! Hooks: `tp_btf/sched_process_fork` (kernel/fork.c, `kernel_clone`, after the child has its
//! cgroup and before it runs), `sched_process_exec` (fs/exec.c), `sched_process_exit`
//! (kernel/exit.c, `do_exit`).
//! Metrics: collector/src/source/process.rs. Oracle: tests/live/process.rs.

use core::ffi::c_void;

use aya_ebpf::{
    macros::{btf_map, btf_tracepoint},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use collector_common::{process::ProcessCell, sched::TaskState, slot::Claimed, stat::Stat};

use crate::{
    cell::{self, Cells},
    generation, grace,
    kernel::Task,
    shared::{Shared, member},
    slot, stat, task,
};

/// Cells, one a slot.
#[btf_map]
pub static PROCESS_CELLS: Cells<ProcessCell> = Cells::new();

/// Gives the child its state, with everything at 0, and counts it if it is a process.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    // TP_PROTO(struct task_struct *parent, struct task_struct *child)
    let child = Task(ctx.arg::<*const c_void>(1));
    stat::count(Stat::Forks);
    let Some(state) = task::state_or_new(child) else {
        stat::count(Stat::NoTaskStorage);
        warn!(&ctx, "no task storage: the kernel is short of memory");
        return 0;
    };
    let cgroup = child.cgroup();
    task::enter(state, cgroup.id(), slot::resolve(cgroup), child.css_set());
    if child.is_thread_group_leader()
        && let Some(cell) = process_cell(child, state)
    {
        member!(cell.started).add(1);
    }
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    // TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
    stat::count(Stat::Execs);
    if let Some(cell) = cell_of(Task(ctx.arg::<*const c_void>(0))) {
        member!(cell.executed).add(1);
    }
    0
}

/// Counts a process when its last thread goes. `signal->live` has been decremented by then, and
/// two threads that end together may both find it 0: the leader's state says who was first. The
/// leader's task_struct is there until the process has been reaped.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    let task = Task(ctx.arg::<*const c_void>(0));
    stat::count(Stat::Exits);
    if let Some(state) = task::state(task) {
        grace::note_end(state);
    }
    if task.live_threads() != 0 {
        return 0;
    }
    let Some(leader) = task::state_or_new(task.group_leader()) else {
        return 0;
    };
    if member!(leader.ended).swap(1) != 0 {
        return 0;
    }
    let Some(cell) = cell_of(task) else {
        return 0;
    };
    // The low seven bits are the signal's number (wait(2)); a fatal signal sets the code of
    // every thread of the group.
    const SIGNAL: u32 = 0x7f;
    if task.exit_code() & SIGNAL == 0 {
        member!(cell.exited).add(1);
        return 0;
    }
    member!(cell.signaled).add(1);
    // The OOM killer marks its victim before it kills it (mm/oom_kill.c, mark_oom_victim). It is
    // counted here, because before 6.8 the tracepoint of the mark has only a pid.
    if task.is_oom_victim() {
        member!(cell.oom_killed).add(1);
    }
    0
}

#[inline(always)]
fn cell_of(task: Task) -> Option<Shared<ProcessCell>> {
    let state = task::state_or_new(task)?;
    if member!(state.css_set).get() == task.css_set() {
        return process_cell(task, state);
    }
    // Moved since. The state stays as it is: the scheduler settles it at the next switch-out.
    cell::of_cgroup(&PROCESS_CELLS, Claimed::Process, task.cgroup())
}

#[inline(always)]
fn process_cell(task: Task, state: Shared<TaskState>) -> Option<Shared<ProcessCell>> {
    cell::of_slot(
        &PROCESS_CELLS,
        Claimed::Process,
        task::slot(state),
        task.cgroup(),
    )
}
