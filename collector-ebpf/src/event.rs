//! Lifecycle events, sent to the agent over a ring buffer.

use aya_ebpf::{
    btf_maps::RingBuf, helpers::bpf_ktime_get_ns, macros::btf_map, programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use collector_common::{
    event::{CgroupEvent, CgroupEventKind},
    stat::Stat,
};

use crate::{
    kernel::Cgroup,
    maps,
    shared::{Shared, member},
    stat,
};

/// 512 KiB hold some 1,700 events. The first one wakes the agent.
#[btf_map]
static CGROUP_EVENTS: RingBuf<CgroupEvent, { 512 * 1024 }> = RingBuf::new();

/// Sends the agent an event.
#[inline(always)]
pub fn report(ctx: &BtfTracePointContext, cgroup: Cgroup, kind: CgroupEventKind) -> i32 {
    if !maps::send(&CGROUP_EVENTS, |event| fill(event, cgroup, kind)) {
        // The agent sees the counter and walks the hierarchy again.
        stat::count(Stat::LostEvents);
        warn!(ctx, "ring buffer full: a cgroup event was lost");
    }
    0
}

/// Of `name`, as many bytes are written as `name_len` says.
#[inline(always)]
fn fill(event: Shared<CgroupEvent>, cgroup: Cgroup, kind: CgroupEventKind) {
    let parent = match cgroup.parent() {
        Some(parent) => parent.id(),
        None => 0,
    };
    member!(event.kind).set(kind as u32);
    member!(event.hierarchy).set(cgroup.hierarchy());
    member!(event.id).set(cgroup.id());
    member!(event.parent).set(parent);
    // SAFETY: always allowed.
    member!(event.time_ns).set(unsafe { bpf_ktime_get_ns() });
    member!(event.reserved).set(0);
    let length = member!(event.name).copy_string(cgroup.name().cast());
    member!(event.name_len).set(length);
}
