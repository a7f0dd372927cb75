//! Direct reclaim: how long a task that wanted memory had to free some first.
//!
//! Hooks: `tp_btf/mm_vmscan_direct_reclaim_begin` and `_end` (mm/vmscan.c, `try_to_free_pages`: the
//! host is short of memory), `mm_vmscan_memcg_reclaim_begin` and `_end`
//! (`try_to_free_mem_cgroup_pages`: a cgroup is at its limit). They run in the context of the task
//! that stalls and never nest, so that one mark in the task's books is enough.
//! Metrics: collector/src/source/reclaim.rs. Oracle: tests/live/memory.rs.

use aya_ebpf::{
    helpers::{bpf_get_current_task_btf, bpf_ktime_get_ns},
    macros::{btf_map, btf_tracepoint},
    programs::BtfTracePointContext,
};
use collector_common::{histogram, reclaim::ReclaimCell};

use crate::{
    cell::{self, Cells},
    kernel::Task,
    slot, task,
};

/// Reclaim cells, one lane.
#[btf_map]
static RECLAIM_CELLS: Cells<ReclaimCell> = Cells::new();

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
pub fn mm_vmscan_direct_reclaim_begin(_ctx: BtfTracePointContext) -> i32 {
    begin()
}

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
pub fn mm_vmscan_direct_reclaim_end(_ctx: BtfTracePointContext) -> i32 {
    end()
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
pub fn mm_vmscan_memcg_reclaim_begin(_ctx: BtfTracePointContext) -> i32 {
    begin()
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
pub fn mm_vmscan_memcg_reclaim_end(_ctx: BtfTracePointContext) -> i32 {
    end()
}

#[inline(always)]
fn current() -> Task {
    // SAFETY: the helper returns the current task.
    Task(unsafe { bpf_get_current_task_btf() }.cast_const().cast())
}

#[inline(always)]
fn begin() -> i32 {
    // Memory is short: no books are made now for a task that has none.
    if let Some(books) = task::books(current()) {
        // SAFETY: always allowed.
        books.reclaim_since = unsafe { bpf_ktime_get_ns() };
    }
    0
}

#[inline(always)]
fn end() -> i32 {
    let task = current();
    let Some(books) = task::books(task) else {
        return 0;
    };
    let since = books.reclaim_since;
    if since == 0 {
        return 0;
    }
    books.reclaim_since = 0;
    // SAFETY: always allowed.
    let stall_ns = unsafe { bpf_ktime_get_ns() } - since;
    // A task at its end has left its cgroup by name only.
    let slot = slot::resolve(task.cgroup().id());
    let Some(cell) = cell::claimed(&RECLAIM_CELLS, slot.owner, slot.number) else {
        return 0;
    };
    let bucket = histogram::bucket(stall_ns) as usize;
    // SAFETY: fields of a map value.
    unsafe {
        cell::add(&raw mut (*cell).stall_ns, stall_ns);
        if let Some(count) = (*cell).histogram.get_mut(bucket) {
            cell::add(&raw mut *count, 1);
        }
    }
    0
}
