//! Cgroup lifecycle: made, removed and renamed cgroups, sent to the agent over a ring buffer.
//!
//! Hooks: `tp_btf/cgroup_mkdir`, `cgroup_rmdir`, `cgroup_rename` (kernel/cgroup/cgroup.c and
//! cgroup-v1.c). Every hierarchy is reported, v1 ones included: the agent joins them by path.

use core::ffi::c_void;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use collector_common::{event::CgroupEventKind, stat::Stat};

use crate::{event::report, final_record, generation, grace, kernel::Cgroup, race, removal, stat};

#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    stat::count(Stat::Made);
    removal::sweep();
    report(&ctx, subject(&ctx), CgroupEventKind::Made)
}

#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    stat::count(Stat::Removed);
    if subject(&ctx).hierarchy() == 0 {
        removal::retire(subject(&ctx));
        if race::no_grace() {
            removal::sweep();
        }
    }
    final_record::report(&ctx, subject(&ctx))
}

/// Nothing refers to a removed cgroup any more. (kernel/cgroup/cgroup.c, `css_release_work_fn`)
#[btf_tracepoint(function = "cgroup_release")]
pub fn cgroup_release(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    let cgroup = subject(&ctx);
    if cgroup.hierarchy() == 0 {
        grace::note_released(cgroup.id());
    }
    0
}

#[btf_tracepoint(function = "cgroup_rename")]
pub fn cgroup_rename(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    stat::count(Stat::Renamed);
    report(&ctx, subject(&ctx), CgroupEventKind::Renamed)
}

/// TP_PROTO(struct cgroup *cgrp, const char *path) of all four.
#[inline(always)]
fn subject(ctx: &BtfTracePointContext) -> Cgroup {
    Cgroup(ctx.arg::<*const c_void>(0))
}
