//! Context switches: who ran, for how long, how long it had waited, and who took the CPU.
//!
//! Hooks: `tp_btf/sched_switch` at switch-out (kernel/sched/core.c, `__schedule`);
//! `tp_btf/cgroup_attach_task` when a task changes cgroup; a raw tracepoint program that the agent
//! runs on every CPU before a scrape.
//! Metrics: collector/src/source/sched.rs. Oracle: tests/live/sched.rs.
//!
//! Only the outgoing task is looked at, and only at clocks that the kernel keeps for it anyway:
//! by the time of the tracepoint `update_curr` has brought `se.sum_exec_runtime` up to date,
//! `sched_info.run_delay` contains the wait before this run period, and `nvcsw` or `nivcsw` has
//! been incremented. The deltas since the task's last switch-out go to its cgroup's cell. What is
//! missed for whatever reason is caught up at the next switch-out.
//!
//! A cell is of one CPU. Its counters are added to by plain loads and stores, by `sched_switch` with
//! interrupts off and by `in_flight` in one; what adds to them elsewhere does so atomically, because
//! `in_flight` may interrupt it.
//!
//! To count another of a task's clocks: its field, a member of `SchedCell` and one of `TaskState` in
//! collector-common/src/sched.rs; its method and a line in `take_baseline` in clocks.rs; here a line in
//! `account`.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::bpf_get_smp_processor_id,
    macros::{btf_map, btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use aya_log_ebpf::warn;
use collector_common::{
    event::CgroupEventKind,
    histogram,
    sched::{SchedCell, TaskState},
    slot::lane_bit,
    stat::Stat,
};

use crate::{
    cell::{self, Cells},
    event, generation,
    kernel::{Cgroup, Task},
    maps::Find,
    race,
    shared::{Shared, member},
    slot::{self, Slot},
    stat, task,
};

/// How often a mover tries to hold a task's state: longer than settling takes.
const HOLD_ATTEMPTS: u32 = 64;

/// Cells, one a slot and CPU.
#[btf_map]
pub static SCHED_CELLS: Cells<SchedCell> = Cells::new();

#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    // TP_PROTO(bool preempt, struct task_struct *prev, struct task_struct *next, …)
    let prev = Task(ctx.arg(1));
    let Some(state) = task::state(prev) else {
        return without_state(&ctx, prev);
    };
    let Some(cell) = current_cell(prev, state) else {
        return 0;
    };
    race::pause(prev);
    account(prev, state, cell);
    take(
        prev.voluntary(),
        member!(state.voluntary),
        member!(cell.voluntary),
    );
    let involuntary = gained(prev.involuntary(), member!(state.involuntary));
    if involuntary != 0 {
        let next = Task(ctx.arg(2));
        let counter = if next.is_kernel() {
            member!(cell.preempted_by_system)
        } else if next.css_set() == member!(state.css_set).get()
            || next.cgroup().0 == prev.cgroup().0
        {
            member!(cell.preempted_by_self)
        } else {
            member!(cell.preempted_by_other)
        };
        counter.add_alone(involuntary);
    }
    0
}

/// Takes over what the task running on this CPU has done so far. The agent runs this on every CPU
/// (BPF_PROG_TEST_RUN with a CPU: an interrupt there), so that a task that never switches is seen;
/// the clocks are at most one tick old.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn in_flight(_ctx: RawTracePointContext) -> i32 {
    let current = Task::current();
    if let Some(state) = task::state(current)
        && let Some(cell) = current_cell(current, state)
    {
        account(current, state, cell);
    }
    0
}

/// Adds what the task's clocks have gained since they were last taken over.
#[inline(always)]
fn account(task: Task, state: Shared<TaskState>, cell: Shared<SchedCell>) {
    let run_ns = task.run_ns();
    member!(cell.run_ns).add_alone(run_ns - member!(state.run_ns).get());
    member!(state.run_ns).set(run_ns);

    // A run period has begun since the last reading: it counts once, at the switch-out or at an
    // in-flight reading.
    let periods = task.periods();
    if periods != member!(state.periods).get() {
        member!(state.periods).set(periods);
        let total = task.wait_ns();
        let wait = total - member!(state.wait_ns).get();
        member!(state.wait_ns).set(total);
        add_period(cell, wait);
    }
    take(
        task.migrations(),
        member!(state.migrations),
        member!(cell.migrations),
    );
}

/// Adds what one of the task's clocks has gained since it was last taken over.
#[inline(always)]
fn take(clock: u64, taken: Shared<u64>, counter: Shared<u64>) {
    let gained = gained(clock, taken);
    if gained != 0 {
        counter.add_alone(gained);
    }
}

/// What one of the task's clocks has gained since it was last taken over; takes it over.
#[inline(always)]
fn gained(clock: u64, taken: Shared<u64>) -> u64 {
    let before = taken.get();
    if clock == before {
        return 0;
    }
    taken.set(clock);
    clock - before
}

#[inline(always)]
fn add_period(cell: Shared<SchedCell>, wait_ns: u64) {
    member!(cell.wait_ns).add_alone(wait_ns);
    let bucket = histogram::bucket(wait_ns) as usize;
    // The verifier has to see the bound next to the access.
    if let Some(count) = member!(cell.wait_histogram).at(bucket) {
        count.add_alone(1);
    }
}

/// The cell on this CPU of the task's cgroup. The usual way is two comparisons; everything else
/// is in [`settle`].
#[inline(always)]
fn current_cell(task: Task, state: Shared<TaskState>) -> Option<Shared<SchedCell>> {
    if member!(state.css_set).get() == task.css_set()
        && let Some(cell) = cell_on_this_cpu(member!(state.first_cell).get())
        && cell.owner().get() == member!(state.owner).get()
    {
        return Some(cell);
    }
    if settle(task, state) == 0 {
        return None;
    }
    cell_on_this_cpu(member!(state.first_cell).get())
}

#[inline(always)]
fn cell_on_this_cpu(first_cell: u32) -> Option<Shared<SchedCell>> {
    // SAFETY: always allowed.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    SCHED_CELLS.find(first_cell + cpu)
}

/// Brings a task's state to the cgroup that the task is in now: charges what belongs to the one it
/// left, resolves the slot, claims the cell. Run for a task's first switch-out, after a move, on a CPU
/// where the slot is new, and after the cgroup was removed. Returns 0 if the task is just being moved:
/// then its next switch-out does all of this.
///
/// Not inlined, so that the hot way stays one straight line.
#[inline(never)]
fn settle(task: Task, state: Shared<TaskState>) -> i32 {
    if !try_hold(state) {
        return 0;
    }
    let css_set = task.css_set();
    let cgroup = task.cgroup();
    let id = cgroup.id();
    let before = member!(state.cgroup).get();
    let marked = member!(state.css_set).get() == 0 && member!(state.mark_owner).get() != 0;
    // Marked and still (or again) in the same cgroup: it was away in between.
    if before != 0 && (marked || id != before) {
        charge_left(task, state, before, marked);
    }
    member!(state.mark_owner).set(0);
    let mut slot = slot::resolve(cgroup);
    if claimed_cell(slot).is_none() {
        // Retired meanwhile.
        slot = slot::resolve(cgroup);
        if claimed_cell(slot).is_none() {
            stat::count(Stat::Overflow);
            slot = Slot::ROOT;
            claimed_cell(slot);
        }
    }
    task::enter(state, id, slot, css_set);
    release(state);
    1
}

/// Begins to work on the marks and the slot of a task. Of the CPU that switches it out and its mover,
/// one can: both would count the same time.
#[inline(always)]
fn try_hold(state: Shared<TaskState>) -> bool {
    member!(state.settling).exchange(0, 1) == 0
}

/// Waits for a CPU that switches the task out now, as long as that usually takes.
#[inline(always)]
fn hold(state: Shared<TaskState>) -> bool {
    (0..HOLD_ATTEMPTS).any(|_| try_hold(state))
}

#[inline(always)]
fn release(state: Shared<TaskState>) {
    member!(state.settling).swap(0);
}

/// Charges the cgroup that a task has left for what the task did there, up to the mover's mark. A
/// thread that was moved with its leader has no mark. If it has been running since before the move,
/// it is charged up to now; the agent's `in_flight` keeps that short. If it got its CPU after the
/// move, nothing is charged.
#[inline(always)]
fn charge_left(task: Task, state: Shared<TaskState>, left: u64, marked: bool) {
    let run_ns = member!(state.run_ns).get();
    let (until, enter) = if marked {
        let until = member!(state.run_mark).get().max(run_ns);
        (until, member!(state.run_enter_mark).get().max(until))
    } else if arrived_after_move(task) {
        (run_ns, run_ns)
    } else {
        let now = task.run_ns();
        (now, now)
    };
    if let Some(cell) = cell_of_id(left) {
        member!(cell.run_ns).add_alone(until - run_ns);
        let periods_mark = member!(state.periods_mark).get();
        if marked && periods_mark > member!(state.periods).get() {
            let before = member!(state.wait_ns).get();
            let wait_ns = member!(state.wait_mark).get().max(before);
            member!(state.wait_ns).set(wait_ns);
            member!(state.periods).set(periods_mark);
            add_period(cell, wait_ns - before);
        }
    }
    member!(state.run_ns).set(enter);
}

/// Whether a task got its CPU after its process was last moved to another cgroup.
#[inline(always)]
fn arrived_after_move(task: Task) -> bool {
    // Perhaps the task itself.
    let Some(leader) = task::state(task.group_leader()) else {
        return false;
    };
    let moved_at = member!(leader.moved_at).get();
    moved_at != 0 && task.last_arrival() >= moved_at
}

/// The slot's cell on this CPU if it is the slot's owner's, or nobody's yet.
#[inline(always)]
fn claimed_cell(slot: Slot) -> Option<Shared<SchedCell>> {
    // SAFETY: always allowed.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let cell = SCHED_CELLS.find(cell::first_cell(slot.number) + cpu)?;
    cell::claim(cell, slot, lane_bit(cpu)).then_some(cell)
}

/// The cell on this CPU of a cgroup that a task has been in, or of its heir if it was removed since.
#[inline(always)]
fn cell_of_id(id: u64) -> Option<Shared<SchedCell>> {
    claimed_cell(slot::of_id(id))
        // Removed meanwhile.
        .or_else(|| claimed_cell(slot::of_id(id)))
        .or_else(|| claimed_cell(Slot::ROOT))
}

/// A switch-out of a task that has no state: the idle task, or one for which storage could not be
/// had when it was born.
#[inline(never)]
fn without_state(ctx: &BtfTracePointContext, task: Task) -> i32 {
    if task.is_idle() {
        return 0;
    }
    stat::count(Stat::NoTaskStorage);
    let Some(state) = task::state_or_new(task) else {
        warn!(ctx, "no task storage: the kernel is short of memory");
        return 0;
    };
    if let Some(cell) = current_cell(task, state) {
        account(task, state, cell);
        take(
            task.voluntary(),
            member!(state.voluntary),
            member!(cell.voluntary),
        );
    }
    0
}

/// A task has been moved to another cgroup: notes its clocks, so that its next switch-out can tell
/// the two cgroups' parts apart.
///
/// TP_PROTO(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup),
/// fired once a move, for the leader (kernel/cgroup/cgroup.c, `cgroup_attach_task`). The move of the
/// leader's other threads is reported to the agent, which takes over their running time at once.
///
/// The task may be switched out on its CPU meanwhile: see [`try_hold`]. Movers exclude each other
/// (cgroup_mutex).
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    let entered = Cgroup(ctx.arg::<*const c_void>(0));
    let moved = Task(ctx.arg::<*const c_void>(2));
    stat::count(Stat::Moves);
    // Moves within a v1 hierarchy don't concern cgroup2.
    if entered.hierarchy() != 0 {
        return 0;
    }
    let Some(state) = task::state(moved) else {
        return 0;
    };
    // The current task is the mover.
    member!(state.moved_at).set(Task::current().run_queue_clock());
    // So that it has a slot, in case the task leaves again before it is switched out.
    slot::resolve(entered);
    if hold(state) {
        mark(moved, state, entered.id());
        release(state);
    }
    // Otherwise the CPU that switches it out has found the task's cgroup from before the move or after
    // it. In the first case it sees another one next time, as for a thread that was moved with its
    // leader.
    let threadgroup = ctx.arg::<u8>(3) != 0;
    if threadgroup && moved.live_threads() > 1 {
        event::report(&ctx, entered, CgroupEventKind::ThreadsMoved);
    }
    0
}

/// Notes the clocks of a task that has just entered a cgroup.
#[inline(always)]
fn mark(moved: Task, state: Shared<TaskState>, entered: u64) {
    let run_ns = moved.run_ns();
    let mark_owner = member!(state.mark_owner).get();
    if member!(state.css_set).get() == 0 && mark_owner != 0 {
        // Moved again before it was switched out: the cgroup in between is charged here.
        if let Some(cell) = cell_of_id(mark_owner) {
            let enter = member!(state.run_enter_mark).get().min(run_ns);
            member!(cell.run_ns).add(run_ns - enter);
        }
    } else {
        member!(state.wait_mark).set(moved.wait_ns());
        member!(state.periods_mark).set(moved.periods());
        member!(state.run_mark).set(run_ns);
    }
    member!(state.mark_owner).set(entered);
    member!(state.run_enter_mark).set(run_ns);
    member!(state.css_set).set(0);
}
