//! Final records: the kernel's statistics of a cgroup at its removal, when the agent can no longer
//! iterate over it.

mod pending;

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use collector_common::{
    cgroup_iterator::{CgroupRecord, FinalRecordKey},
    stat::Stat,
};

use crate::{
    cgroup_iterator,
    kernel::Cgroup,
    maps::{self, Find, NO_PREALLOC},
    stat,
};

/// Final records of removed cgroups, by id and hierarchy, until the agent takes them. The loader sets
/// `max_entries`.
#[btf_map]
static FINAL_RECORDS: HashMap<FinalRecordKey, CgroupRecord, 1, NO_PREALLOC> = HashMap::new();

/// Whether the agent takes final records: 0 where it can't iterate.
#[unsafe(no_mangle)]
static KEEP_FINAL_RECORDS: Global<u32> = Global::new(0);

/// What an entry of [`FINAL_RECORDS`] starts as: a record may be larger than the stack. Nobody writes it.
#[btf_map]
static NO_RECORD: Array<CgroupRecord, 1> = Array::new();

/// Leaves a removed cgroup's final record to the agent. Called at `cgroup_rmdir`, where the
/// controllers' states are still there: they are taken offline later, by a worker that needs the
/// cgroup mutex (kernel/cgroup/cgroup.c, `css_killed_work_fn`).
#[inline(always)]
pub fn save(cgroup: Cgroup) {
    if KEEP_FINAL_RECORDS.load() == 0 {
        return;
    }
    let key = FinalRecordKey {
        cgroup: cgroup.id(),
        hierarchy: cgroup.hierarchy() as u64,
    };
    if let Some(zero) = NO_RECORD.find(0)
        && maps::insert(&FINAL_RECORDS, &key, zero, 0)
        && let Some(record) = FINAL_RECORDS.find(key)
    {
        cgroup_iterator::fill(record, cgroup);
        pending::add(key, cgroup);
    } else {
        stat::count(Stat::LostRecords);
    }
}
