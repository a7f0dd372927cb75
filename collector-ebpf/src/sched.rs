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

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_get_current_task_btf, bpf_get_smp_processor_id},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use aya_log_ebpf::warn;
use collector_common::{
    event::CgroupEventKind,
    histogram,
    sched::{SchedCell, TaskBooks},
    stat::Stat,
};

use crate::{
    cell::{self, SCHED_CELLS, cell},
    cgroup,
    kernel::{Cgroup, Task},
    slot::{self, Slot},
    stat, task,
};

#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    // TP_PROTO(bool preempt, struct task_struct *prev, struct task_struct *next, …)
    let prev = Task(ctx.arg(1));
    let Some(books) = task::books(prev) else {
        return without_books(&ctx, prev);
    };
    let Some(cell) = current_cell(prev, books) else {
        return 0;
    };
    account(prev, books, cell);

    let voluntary = prev.voluntary();
    if voluntary != books.voluntary {
        cell.voluntary += voluntary - books.voluntary;
        books.voluntary = voluntary;
    }
    let involuntary = prev.involuntary();
    if involuntary != books.involuntary {
        let n = involuntary - books.involuntary;
        books.involuntary = involuntary;
        let next = Task(ctx.arg(2));
        if next.is_kernel() {
            cell.preempted_by_system += n;
        } else if next.css_set() == books.css_set || next.cgroup().0 == prev.cgroup().0 {
            cell.preempted_by_self += n;
        } else {
            cell.preempted_by_other += n;
        }
    }
    0
}

/// Takes over what the task running on this CPU has done so far. The agent runs this on every CPU
/// (BPF_PROG_TEST_RUN with a CPU: an interrupt there), so that a task that never switches is seen;
/// the clocks are at most one tick old.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn in_flight(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: the helper returns the current task.
    let current = Task(unsafe { bpf_get_current_task_btf() }.cast_const().cast());
    if let Some(books) = task::books(current)
        && let Some(cell) = current_cell(current, books)
    {
        account(current, books, cell);
    }
    0
}

/// Adds what the task's clocks have gained since the books were last taken over.
#[inline(always)]
fn account(task: Task, books: &mut TaskBooks, cell: &mut SchedCell) {
    let run_ns = task.run_ns();
    cell.run_ns += run_ns - books.run_ns;
    books.run_ns = run_ns;

    // A run period began since: once a switch-out, and never twice for an in-flight reading.
    let periods = task.periods();
    if periods != books.periods {
        books.periods = periods;
        let total = task.wait_ns();
        let wait = total - books.wait_ns;
        books.wait_ns = total;
        add_period(cell, wait);
    }

    let migrations = task.migrations();
    if migrations != books.migrations {
        cell.migrations += migrations - books.migrations;
        books.migrations = migrations;
    }
}

#[inline(always)]
fn add_period(cell: &mut SchedCell, wait_ns: u64) {
    cell.wait_ns += wait_ns;
    let bucket = histogram::bucket(wait_ns) as usize;
    // The verifier has to see the bound next to the access, and so does Rust.
    if let Some(count) = cell.wait_histogram.get_mut(bucket) {
        *count += 1;
    }
}

/// The cell on this CPU of the task's cgroup. The usual way is two comparisons; everything else
/// is in [`settle`].
#[inline(always)]
fn current_cell(task: Task, books: &mut TaskBooks) -> Option<&'static mut SchedCell> {
    if books.css_set == task.css_set()
        && let Some(cell) = cell_on_this_cpu(books.first_cell)
        && cell.owner == books.owner
    {
        return Some(cell);
    }
    settle(task, books);
    cell_on_this_cpu(books.first_cell)
}

#[inline(always)]
fn cell_on_this_cpu(first_cell: u32) -> Option<&'static mut SchedCell> {
    // SAFETY: always allowed.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    // SAFETY: the lookup returns null or a value that outlives the program.
    cell!(SCHED_CELLS, first_cell + cpu).map(|cell| unsafe { &mut *cell })
}

/// Brings `books` to the cgroup that the task is in now: charges what belongs to the one it left,
/// resolves the slot, claims the cell. Run for a task's first switch-out, after a move, on a CPU
/// where the slot is new, and for a slot that was recycled.
///
/// Not inlined, so that the hot way stays one straight line.
#[inline(never)]
fn settle(task: Task, books: &mut TaskBooks) -> i32 {
    let css_set = task.css_set();
    let id = task.cgroup().id();
    let marked = books.css_set == 0 && books.mark_owner != 0;
    // Marked and still (or again) in the same cgroup: it was away in between.
    if books.owner != 0 && (marked || id != books.owner) {
        // What it did before it left: up to the mover's mark. Without one (a thread that was moved
        // with its leader) up to now if it has been running since before the move, which the
        // agent's `in_flight` cuts short; nothing if it got its CPU later.
        let (until, enter) = if marked {
            let until = books.run_mark.max(books.run_ns);
            (until, books.run_enter_mark.max(until))
        } else if arrived_after_move(task) {
            (books.run_ns, books.run_ns)
        } else {
            let now = task.run_ns();
            (now, now)
        };
        // By the hash and not by the cached number: the slot may have been recycled since.
        let left = slot::resolve(books.owner);
        if let Some(cell) = claimed_cell(left.owner, cell::first_cell(left.number)) {
            cell.run_ns += until - books.run_ns;
            if marked && books.periods_mark > books.periods {
                let wait = books.wait_mark.max(books.wait_ns) - books.wait_ns;
                books.wait_ns += wait;
                books.periods = books.periods_mark;
                add_period(cell, wait);
            }
        }
        books.run_ns = enter;
    }
    task::enter(books, slot::resolve(id), css_set);
    books.mark_owner = 0;
    if claimed_cell(books.owner, books.first_cell).is_none() {
        // The slot belongs to somebody else by now; its cells are not ours to touch.
        stat::count(Stat::Overflow);
        task::enter(books, Slot::OVERFLOW, 0);
        claimed_cell(books.owner, books.first_cell);
    }
    0
}

/// Whether a task got its CPU after its process was last moved to another cgroup.
#[inline(always)]
fn arrived_after_move(task: Task) -> bool {
    match task::books(task.group_leader()) {
        Some(leader) => leader.moved_at != 0 && task.last_arrival() >= leader.moved_at,
        None => false,
    }
}

/// The cell on this CPU if it is `owner`'s, or nobody's yet.
#[inline(always)]
fn claimed_cell(owner: u64, first_cell: u32) -> Option<&'static mut SchedCell> {
    let cell = cell_on_this_cpu(first_cell)?;
    if cell.owner == 0 {
        cell.owner = owner;
    }
    if cell.owner == owner {
        Some(cell)
    } else {
        None
    }
}

/// A switch-out of a task that has no books: the idle task, or one for which storage could not be
/// had when it was born.
#[inline(never)]
fn without_books(ctx: &BtfTracePointContext, task: Task) -> i32 {
    if task.is_idle() {
        return 0;
    }
    stat::count(Stat::NoTaskStorage);
    let Some(books) = task::books_or_new(task) else {
        warn!(ctx, "no task storage: the kernel is short of memory");
        return 0;
    };
    if let Some(cell) = current_cell(task, books) {
        account(task, books, cell);
        cell.voluntary += task.voluntary() - books.voluntary;
        books.voluntary = task.voluntary();
    }
    0
}

/// A task has been moved to another cgroup: notes its clocks, so that its next switch-out can tell
/// the two cgroups' parts apart.
///
/// TP_PROTO(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup),
/// fired once a move, for the leader (kernel/cgroup/cgroup.c, `cgroup_attach_task`). The leader's
/// other threads are told to the agent, which takes their running time in at once.
///
/// The task may be switched out on its CPU meanwhile; it only reads the marks, and only after it
/// has seen another css_set. Movers exclude each other (cgroup_mutex).
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    let entered = Cgroup(ctx.arg::<*const c_void>(0));
    let moved = Task(ctx.arg::<*const c_void>(2));
    stat::count(Stat::Moves);
    // Moves within a v1 hierarchy don't concern cgroup2.
    if entered.hierarchy() != 0 {
        return 0;
    }
    let Some(books) = task::books(moved) else {
        return 0;
    };
    let run_ns = moved.run_ns();
    if books.css_set == 0 && books.mark_owner != 0 {
        // Moved again before it was switched out: what it ran in the cgroup between is charged
        // here, atomically, because this may not be the task's CPU.
        let slot = slot::resolve(books.mark_owner);
        if let Some(cell) = claimed_cell(slot.owner, cell::first_cell(slot.number)) {
            let enter = books.run_enter_mark;
            // SAFETY: a field of a map value.
            unsafe { cell::add(&raw mut cell.run_ns, run_ns - enter.min(run_ns)) };
        }
    } else {
        books.wait_mark = moved.wait_ns();
        books.periods_mark = moved.periods();
        books.run_mark = run_ns;
    }
    books.mark_owner = entered.id();
    // SAFETY: the helper returns the current task, the mover.
    books.moved_at =
        Task(unsafe { bpf_get_current_task_btf() }.cast_const().cast()).run_queue_clock();
    books.run_enter_mark = run_ns;
    books.css_set = 0;
    let threadgroup = ctx.arg::<u8>(3) != 0;
    if threadgroup && moved.live_threads() > 1 {
        cgroup::report(&ctx, entered, CgroupEventKind::ThreadsMoved);
    }
    0
}
