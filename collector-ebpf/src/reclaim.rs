//! Direct reclaim: how long a task that wanted memory had to free some first.
//!
//! Hooks: `tp_btf/mm_vmscan_direct_reclaim_begin` and `_end` (mm/vmscan.c, `try_to_free_pages`: the
//! host is short of memory), `mm_vmscan_memcg_reclaim_begin` and `_end`
//! (`try_to_free_mem_cgroup_pages`: a cgroup is at its limit). They run in the context of the task
//! that stalls and never nest, so that one mark in the task's state is enough.
//! Metrics: collector/src/source/reclaim.rs. Oracle: tests/live/memory.rs.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, btf_tracepoint},
    programs::BtfTracePointContext,
};
use collector_common::{histogram, reclaim::ReclaimCell, slot::Claimed};

use crate::{
    cell::{self, Cells},
    kernel::Task,
    shared::member,
    task,
};

/// Cells, one a slot.
#[btf_map]
pub static RECLAIM_CELLS: Cells<ReclaimCell> = Cells::new();

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
fn begin() -> i32 {
    // Memory is short: a task without state gets none now.
    if let Some(state) = task::state(Task::current()) {
        // SAFETY: always allowed.
        member!(state.reclaim_since).set(unsafe { bpf_ktime_get_ns() });
    }
    0
}

#[inline(always)]
fn end() -> i32 {
    let task = Task::current();
    let Some(state) = task::state(task) else {
        return 0;
    };
    let since = member!(state.reclaim_since).get();
    if since == 0 {
        return 0;
    }
    member!(state.reclaim_since).set(0);
    // SAFETY: always allowed.
    let stall_ns = unsafe { bpf_ktime_get_ns() } - since;
    // By the task's cgroup and not by its state: an exiting task is still in its cgroup.
    let Some(cell) = cell::of_cgroup(&RECLAIM_CELLS, Claimed::Reclaim, task.cgroup()) else {
        return 0;
    };
    member!(cell.stall_ns).add(stall_ns);
    let bucket = histogram::bucket(stall_ns) as usize;
    if let Some(count) = member!(cell.histogram).at(bucket) {
        count.add(1);
    }
    0
}
