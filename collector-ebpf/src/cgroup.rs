//! Cgroup lifecycle: born, removed, renamed, told to the agent over a ring buffer.
//!
//! Hooks: `tp_btf/cgroup_mkdir`, `cgroup_rmdir`, `cgroup_rename` (kernel/cgroup/cgroup.c and
//! cgroup-v1.c). Every hierarchy is reported, v1 ones included: the agent joins them by path.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    btf_maps::RingBuf,
    helpers::{bpf_ktime_get_ns, generated::bpf_probe_read_kernel_str},
    macros::{btf_map, btf_tracepoint},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use collector_common::{
    event::{CgroupEvent, CgroupEventKind, NAME_LEN},
    stat::Stat,
};

use crate::{kernel::Cgroup, pass, stat};

/// 512 KiB: some 1,700 events, while the agent is woken by the first.
#[btf_map]
static CGROUP_EVENTS: RingBuf<CgroupEvent, { 512 * 1024 }> = RingBuf::new();

#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    stat::count(Stat::Made);
    report(&ctx, subject(&ctx), CgroupEventKind::Made)
}

#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    stat::count(Stat::Removed);
    // Before the agent is told: it takes the record then.
    pass::keep_last(subject(&ctx));
    report(&ctx, subject(&ctx), CgroupEventKind::Removed)
}

#[btf_tracepoint(function = "cgroup_rename")]
pub fn cgroup_rename(ctx: BtfTracePointContext) -> i32 {
    stat::count(Stat::Renamed);
    report(&ctx, subject(&ctx), CgroupEventKind::Renamed)
}

/// TP_PROTO(struct cgroup *cgrp, const char *path) of all three.
#[inline(always)]
fn subject(ctx: &BtfTracePointContext) -> Cgroup {
    Cgroup(ctx.arg::<*const c_void>(0))
}

/// Tells the agent what happened to a cgroup.
#[inline(always)]
pub fn report(ctx: &BtfTracePointContext, cgroup: Cgroup, kind: CgroupEventKind) -> i32 {
    let Some(mut entry) = CGROUP_EVENTS.reserve(0) else {
        // The agent sees the counter and walks the hierarchy again.
        stat::count(Stat::LostEvents);
        warn!(ctx, "ring buffer full: a cgroup event was lost");
        return 0;
    };
    fill(&mut entry, cgroup, kind);
    entry.submit(0);
    0
}

#[inline(always)]
fn fill(entry: &mut MaybeUninit<CgroupEvent>, cgroup: Cgroup, kind: CgroupEventKind) {
    let event = entry.as_mut_ptr();
    let parent = match cgroup.parent() {
        Some(parent) => parent.id(),
        None => 0,
    };
    // SAFETY: every field of the reserved entry is written before it is submitted; of `name` as
    // many bytes as `name_len` says.
    unsafe {
        (*event).kind = kind as u32;
        (*event).hierarchy = cgroup.hierarchy();
        (*event).id = cgroup.id();
        (*event).parent = parent;
        (*event).time_ns = bpf_ktime_get_ns();
        (*event).reserved = 0;
        let n = bpf_probe_read_kernel_str(
            (&raw mut (*event).name).cast(),
            NAME_LEN as u32,
            cgroup.name().cast(),
        );
        (*event).name_len = if n > 0 { n as u32 - 1 } else { 0 };
    }
}
