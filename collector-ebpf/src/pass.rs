//! The one pass: reads every cgroup's own books into an mmapable array.
//!
//! `iter/cgroup`, pre-order from the cgroup that the agent attached it to. It emits nothing into
//! the iterator's seq file: a cgroup iterator can't be resumed once that buffer is full
//! (kernel/bpf/cgroup_iter.c, EOPNOTSUPP), so the records go into chunks that the agent has mapped.

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps},
    macros::btf_map,
};
use collector_common::pass::{
    CgroupRecord, DYING, HAS_CPU_CONTROLLER, HAS_CPU_TIME, PassControl, RECORD_SHIFT,
    RECORDS_PER_CHUNK,
};

use crate::kernel::Cgroup;

/// BPF_F_MMAPABLE
const MMAPABLE: usize = 1 << 10;

/// Chunks of records. The loader sets `max_entries`.
#[btf_map]
static RECORDS: ArrayOfMaps<Array<CgroupRecord, { RECORDS_PER_CHUNK as usize }, MMAPABLE>, 1> =
    ArrayOfMaps::new();

/// One entry, mapped by the agent, which resets it before a pass.
#[btf_map]
static PASS: Array<PassControl, 1, MMAPABLE> = Array::new();

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/cgroup")]
pub extern "C" fn pass(ctx: *const c_void) -> i32 {
    // struct bpf_iter__cgroup { struct bpf_iter_meta *meta; struct cgroup *cgroup; }
    // SAFETY: the verifier knows the context's layout.
    let cgroup = unsafe { *ctx.cast::<*const c_void>().add(1) };
    if cgroup.is_null() {
        return 0;
    }
    let Some(control) = PASS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a map value; passes are run one at a time, under the cgroup mutex.
    let next = unsafe { (*control).next };
    let number = next as u32;
    let record =
        RECORDS.get_value_ptr_mut(number >> RECORD_SHIFT, &(number & (RECORDS_PER_CHUNK - 1)));
    let Some(record) = record else {
        // SAFETY: as above.
        unsafe { (*control).missed += 1 };
        return 0;
    };
    // SAFETY: a map value.
    fill(unsafe { &mut *record }, Cgroup(cgroup));
    // SAFETY: as above.
    unsafe { (*control).next = next + 1 };
    0
}

#[inline(always)]
fn fill(record: &mut CgroupRecord, cgroup: Cgroup) {
    let mut flags = HAS_CPU_TIME;
    if !cgroup.is_online() {
        flags |= DYING;
    }
    record.id = cgroup.id();
    let (utime_ns, stime_ns, usage_ns) = cgroup.cpu_time();
    record.utime_ns = utime_ns;
    record.stime_ns = stime_ns;
    record.usage_ns = usage_ns;
    let (prev_utime_ns, prev_stime_ns) = cgroup.shown_cpu_time();
    record.prev_utime_ns = prev_utime_ns;
    record.prev_stime_ns = prev_stime_ns;
    if let Some(group) = cgroup.task_group() {
        flags |= HAS_CPU_CONTROLLER;
        record.shares = group.shares();
        record.quota_ns = group.quota_ns();
        record.period_ns = group.period_ns();
        record.throttled_ns = group.throttled_ns();
        record.burst_ns = group.burst_ns();
        record.periods = group.periods();
        record.throttled_periods = group.throttled_periods();
        record.burst_periods = group.burst_periods();
    }
    record.flags = flags;
}
