//! Lifecycle events, sent to the agent over a ring buffer.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    btf_maps::RingBuf,
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
    programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use collector_common::{
    event::{CgroupEvent, CgroupEventKind, RemovedEvent},
    stat::Stat,
};

use crate::{
    kernel::Cgroup,
    maps::{self, Find},
    shared::{Shared, member},
    slot::SLOT_CONTROL,
    stat,
};

/// 512 KiB hold some 1,700 creations, 2,200 removals of cgroups without the memory controller, or 350 of others.
#[btf_map]
static CGROUP_EVENTS: RingBuf<CgroupEvent, { 512 * 1024 }> = RingBuf::new();

/// Sends the agent an event.
#[inline(always)]
pub fn report(ctx: &BtfTracePointContext, cgroup: Cgroup, kind: CgroupEventKind) -> i32 {
    if !maps::send(&CGROUP_EVENTS, wakeup(), |event| fill(event, cgroup, kind)) {
        lost(ctx);
    }
    0
}

/// How the agent is woken of something that it must know at once: by the kernel, unless it is awake; the
/// kernel does not see that if the agent has not been woken of what came before.
#[inline(always)]
fn wakeup() -> u64 {
    let Some(control) = SLOT_CONTROL.find(0) else {
        return 0;
    };
    if member!(control.untold).get() == 0 {
        return 0;
    }
    member!(control.untold).set(0);
    BPF_RB_FORCE_WAKEUP.into()
}

/// Sends a removal. The agent looks for those by itself, four times a second: to wake it costs more than all the rest
/// of a removal. It is woken when they are a quarter of the retired slots that are left for it, so that it sees
/// their last values.
///
/// All senders exclude each other (cgroup_mutex).
#[inline(always)]
pub fn send_removal(removed: Shared<RemovedEvent>, length: usize) -> bool {
    let mut flags = BPF_RB_FORCE_WAKEUP;
    if let Some(control) = SLOT_CONTROL.find(0) {
        let mut untold = member!(control.untold).get() + 1;
        if 4 * untold < member!(control.kept).get() {
            flags = BPF_RB_NO_WAKEUP;
        } else {
            untold = 0;
        }
        member!(control.untold).set(untold);
    }
    maps::send_part(&CGROUP_EVENTS, removed, length, flags.into())
}

/// The agent sees the counter and walks the hierarchy again.
#[inline(always)]
pub fn lost(ctx: &BtfTracePointContext) {
    stat::count(Stat::LostEvents);
    warn!(ctx, "ring buffer full: a cgroup event was lost");
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
