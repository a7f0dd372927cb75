//! Final records: the kernel's statistics of a cgroup at its removal, when the agent can no longer
//! iterate over it.

mod pending;

use aya_ebpf::{
    Global,
    btf_maps::{HashMap, PerCpuArray},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
    programs::BtfTracePointContext,
};
use collector_common::{
    cgroup_iterator::{CgroupRecord, FinalRecordKey, HAS_CPU, HAS_HUGETLB, HAS_MEMORY, HAS_PIDS},
    event::{CgroupEventKind, REMOVED_ALONE, REMOVED_BASE, REMOVED_SHORT, RemovedEvent},
    stat::Stat,
};

use crate::{
    cgroup_iterator, event,
    kernel::Cgroup,
    maps::{self, Find, NO_PREALLOC},
    shared::member,
    stat,
};

/// Final records that the ring buffer had no room for, by id and hierarchy, until the agent takes them. The
/// loader sets `max_entries`.
#[btf_map]
static FINAL_RECORDS: HashMap<FinalRecordKey, CgroupRecord, 1, NO_PREALLOC> = HashMap::new();

/// Whether the agent takes final records: 0 where it can't iterate.
#[unsafe(no_mangle)]
static KEEP_FINAL_RECORDS: Global<u32> = Global::new(0);

/// The message is made here: it is larger than the stack, and how much of it is sent depends on the cgroup.
/// Removals exclude each other (cgroup_mutex).
#[btf_map]
static REMOVED: PerCpuArray<RemovedEvent, 1> = PerCpuArray::new();

/// Tells the agent of a removal, with the cgroup's final record. Called at `cgroup_rmdir`, where the
/// controllers' states are still there: they are taken offline later, by a worker that needs the
/// cgroup mutex (kernel/cgroup/cgroup.c, `css_killed_work_fn`). If there is no room for it, the record is kept for
/// when the agent finds that it has lost an event.
#[inline(always)]
pub fn report(ctx: &BtfTracePointContext, cgroup: Cgroup) -> i32 {
    if !send(cgroup) {
        event::lost(ctx);
    }
    0
}

/// Returns false if there was no room.
#[inline(always)]
fn send(cgroup: Cgroup) -> bool {
    let Some(removed) = REMOVED.find(0) else {
        return false;
    };
    let (id, hierarchy) = (cgroup.id(), cgroup.hierarchy());
    member!(removed.kind).set(CgroupEventKind::Removed as u32);
    member!(removed.hierarchy).set(hierarchy);
    member!(removed.id).set(id);
    // SAFETY: always allowed.
    member!(removed.time_ns).set(unsafe { bpf_ktime_get_ns() });
    if KEEP_FINAL_RECORDS.load() == 0 {
        return event::send_removal(removed, REMOVED_ALONE);
    }
    let record = member!(removed.record);
    cgroup_iterator::fill(record, cgroup);
    pending::add(record, cgroup);
    let flags = member!(record.flags).get();
    let length = if flags & (HAS_MEMORY | HAS_HUGETLB) != 0 {
        size_of::<RemovedEvent>()
    } else if flags & (HAS_CPU | HAS_PIDS) != 0 {
        REMOVED_SHORT
    } else {
        REMOVED_BASE
    };
    if event::send_removal(removed, length) {
        return true;
    }
    let key = FinalRecordKey {
        cgroup: id,
        hierarchy: hierarchy.into(),
    };
    if !maps::insert(&FINAL_RECORDS, &key, record, 0) {
        stat::count(Stat::LostRecords);
    }
    false
}
