//! The one pass: reads every cgroup's own books into an mmapable array.
//!
//! `iter/cgroup`, pre-order from the cgroup that the agent attached it to. It emits nothing into
//! the iterator's seq file: a cgroup iterator can't be resumed once that buffer is full
//! (kernel/bpf/cgroup_iter.c, EOPNOTSUPP), so the records go into chunks that the agent has mapped.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    Global,
    btf_maps::{Array, ArrayOfMaps},
    helpers::generated::bpf_loop,
    macros::btf_map,
};
use collector_common::{
    field,
    keyed::CgroupKey,
    pass::{
        CgroupRecord, DYING, HAS_CPU, HAS_HUGETLB, HAS_MEMORY, HAS_PIDS, HAS_PRESSURE,
        IO_RECORD_SHIFT, IO_RECORDS_PER_CHUNK, IoRecord, MAX_DEVICES, MemoryRecord, PageCounter,
        PassControl, RECORD_SHIFT, RECORDS_PER_CHUNK, UNIFIED,
    },
    stat::Stat,
};

use crate::{
    kernel::{Cgroup, Css, address, copy, has, read},
    keyed::{Keyed, Zero},
    pending, stat,
};

/// BPF_F_MMAPABLE
const MMAPABLE: usize = 1 << 10;

/// Chunks of records. The loader sets `max_entries`.
#[btf_map]
static RECORDS: ArrayOfMaps<Array<CgroupRecord, { RECORDS_PER_CHUNK as usize }, MMAPABLE>, 1> =
    ArrayOfMaps::new();

/// Chunks of io records. The loader sets `max_entries`.
#[btf_map]
static IO_RECORDS: ArrayOfMaps<Array<IoRecord, { IO_RECORDS_PER_CHUNK as usize }, MMAPABLE>, 1> =
    ArrayOfMaps::new();

/// One entry, mapped by the agent, which resets it before a pass.
#[btf_map]
static PASS: Array<PassControl, 1, MMAPABLE> = Array::new();

/// Records of removed cgroups, by id and hierarchy, until the agent takes them. The loader sets
/// `max_entries`.
#[btf_map]
pub static LAST_RECORDS: Keyed<CgroupRecord> = Keyed::new();

/// Whether the agent will take last records: 0 where the pass can't run.
#[unsafe(no_mangle)]
static KEEP_LAST: Global<u32> = Global::new(0);

/// What an entry of [`LAST_RECORDS`] starts as.
#[btf_map]
static NO_RECORD: Zero<CgroupRecord> = Zero::new();

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/cgroup")]
pub extern "C" fn pass(ctx: *const c_void) -> i32 {
    // struct bpf_iter__cgroup { struct bpf_iter_meta *meta; struct cgroup *cgroup; }
    // SAFETY: the verifier knows the context's layout.
    let cgroup = unsafe { *ctx.cast::<*const c_void>().add(1) };
    if cgroup.is_null() {
        return 0;
    }
    let cgroup = Cgroup(cgroup);
    let Some(control) = PASS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a map value; passes are run one at a time, under the cgroup mutex.
    let control = unsafe { &mut *control };
    let number = control.next as u32;
    let record =
        RECORDS.get_value_ptr_mut(number >> RECORD_SHIFT, &(number & (RECORDS_PER_CHUNK - 1)));
    let Some(record) = record else {
        control.missed += 1;
        return 0;
    };
    // SAFETY: a map value.
    fill(unsafe { &mut *record }, cgroup);
    control.next += 1;
    if let Some(io) = cgroup.io() {
        devices(control, cgroup.id(), io);
    }
    0
}

/// Leaves a removed cgroup's last record to the agent. Called at `cgroup_rmdir`, where the
/// controllers' states are still there: they are taken offline later, by a worker that needs the
/// cgroup mutex (kernel/cgroup/cgroup.c, `css_killed_work_fn`).
#[inline(always)]
pub fn keep_last(cgroup: Cgroup) {
    if KEEP_LAST.load() == 0 {
        return;
    }
    let key = CgroupKey {
        cgroup: cgroup.id(),
        what: cgroup.hierarchy() as u64,
    };
    if let Some(zero) = NO_RECORD.get(0)
        && LAST_RECORDS.insert(key, zero, 0).is_ok()
        && let Some(record) = LAST_RECORDS.get_ptr_mut(key)
    {
        // SAFETY: a map value; a cgroup is removed once.
        let record = unsafe { &mut *record };
        fill(record, cgroup);
        pending::add(key, cgroup);
    } else {
        stat::count(Stat::LostRecords);
    }
}

#[inline(always)]
fn fill(record: &mut CgroupRecord, cgroup: Cgroup) {
    let mut flags = 0;
    record.id = cgroup.id();
    if !cgroup.is_online() {
        flags |= DYING;
    }
    // Only cgroup2's cgroups have base statistics.
    if cgroup.hierarchy() == 0 {
        flags |= UNIFIED;
        let (utime_ns, stime_ns, usage_ns) = cgroup.cpu_time();
        record.utime_ns = utime_ns;
        record.stime_ns = stime_ns;
        record.usage_ns = usage_ns;
        let (prev_utime_ns, prev_stime_ns) = cgroup.shown_cpu_time();
        record.prev_utime_ns = prev_utime_ns;
        record.prev_stime_ns = prev_stime_ns;
        if let Some(total) = cgroup.pressure() {
            flags |= HAS_PRESSURE;
            copy(&mut record.pressure_ns, total);
        }
    }
    if let Some(group) = cgroup.task_group() {
        flags |= HAS_CPU;
        record.shares = group.shares();
        record.quota_ns = group.quota_ns();
        record.period_ns = group.period_ns();
        record.throttled_ns = group.throttled_ns();
        record.burst_ns = group.burst_ns();
        record.periods = group.periods();
        record.throttled_periods = group.throttled_periods();
        record.burst_periods = group.burst_periods();
    }
    if let Some(pids) = cgroup.pids() {
        flags |= HAS_PIDS;
        record.pids = read(address!(pids.0, field::PIDS_COUNTER));
        record.pids_limit = read(address!(pids.0, field::PIDS_LIMIT));
    }
    if let Some(hugetlb) = cgroup.hugetlb() {
        flags |= HAS_HUGETLB;
        huge_pages(&mut record.hugetlb, hugetlb);
    }
    if let Some(memory) = cgroup.memory() {
        flags |= HAS_MEMORY;
        fill_memory(&mut record.memory, memory);
    }
    record.flags = flags;
}

#[inline(always)]
fn huge_pages(to: &mut [PageCounter], css: Css) {
    let [zero, one, two, three, ..] = to else {
        return;
    };
    if has!(field::HUGETLB_0) {
        counter(zero, address!(css.0, field::HUGETLB_0));
    }
    if has!(field::HUGETLB_1) {
        counter(one, address!(css.0, field::HUGETLB_1));
    }
    if has!(field::HUGETLB_2) {
        counter(two, address!(css.0, field::HUGETLB_2));
    }
    if has!(field::HUGETLB_3) {
        counter(three, address!(css.0, field::HUGETLB_3));
    }
}

#[inline(always)]
fn fill_memory(record: &mut MemoryRecord, css: Css) {
    let memory = address!(css.0, field::MEMCG_MEMORY);
    counter(&mut record.memory, memory);
    record.min = read(address!(memory, field::COUNTER_MIN));
    counter(&mut record.swap, address!(css.0, field::MEMCG_SWAP));
    // Since 6.12 a kernel may do without v1 (CONFIG_MEMCG_V1).
    if has!(field::MEMCG_SOFT_LIMIT) {
        record.soft_limit = read(address!(css.0, field::MEMCG_SOFT_LIMIT));
    }
    copy(
        &mut record.memory_events,
        address!(css.0, field::MEMCG_EVENTS),
    );
    let vmstats: u64 = read(address!(css.0, field::MEMCG_VMSTATS));
    copy(&mut record.state, address!(vmstats, field::VMSTATS_STATE));
    copy(&mut record.events, address!(vmstats, field::VMSTATS_EVENTS));
    // Since 6.7 (mm/memcontrol.c, memcg_events_local).
    if has!(field::VMSTATS_EVENTS_LOCAL) {
        copy(
            &mut record.events_local,
            address!(vmstats, field::VMSTATS_EVENTS_LOCAL),
        );
    }
}

/// Copies a `page_counter` that is part of another structure.
#[inline(always)]
fn counter(to: &mut PageCounter, from: *const c_void) {
    to.usage = read(address!(from, field::COUNTER_USAGE));
    to.watermark = read(address!(from, field::COUNTER_WATERMARK));
    to.max = read(address!(from, field::COUNTER_MAX));
    to.failcnt = read(address!(from, field::COUNTER_FAILCNT));
}

/// Writes a record for each device that the io controller has books of.
///
/// What the callback works on is in the map and not on the stack, so that one look at it satisfies
/// the verifier whatever the number of rounds.
#[inline(always)]
fn devices(control: &mut PassControl, id: u64, io: Css) {
    if !has!(field::BLKCG_LIST) || !has!(field::BLKG_STAT) || !has!(field::QUEUE_DISK) {
        return;
    }
    // struct hlist_head { struct hlist_node *first; }, struct hlist_node { struct hlist_node *next; … }
    control.io_node = read(address!(io.0, field::BLKCG_LIST));
    control.io_cgroup = id;
    let callback: extern "C" fn(u64, *mut c_void) -> i64 = device;
    // SAFETY: the callback is a function of this object and is given no context.
    unsafe { bpf_loop(MAX_DEVICES, callback as *mut c_void, ptr::null_mut(), 0) };
}

/// One device: a callback of bpf_loop, which ends it by a 1.
#[inline(never)]
extern "C" fn device(_index: u64, _: *mut c_void) -> i64 {
    let Some(control) = PASS.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: as in `pass`.
    let control = unsafe { &mut *control };
    let node = control.io_node;
    if node == 0 {
        return 1;
    }
    let group = node - address!(0, field::BLKG_NODE) as u64;
    let queue: u64 = read(address!(group, field::BLKG_QUEUE));
    let disk: u64 = read(address!(queue, field::QUEUE_DISK));
    let bdev: u64 = read(address!(disk, field::DISK_PART0));
    let device: u32 = read(address!(bdev, field::BDEV_DEVICE));
    let number = control.io_next as u32;
    let record = IO_RECORDS.get_value_ptr_mut(
        number >> IO_RECORD_SHIFT,
        &(number & (IO_RECORDS_PER_CHUNK - 1)),
    );
    if let Some(record) = record {
        let mut stat = [0; 6];
        copy(&mut stat, address!(group, field::BLKG_STAT));
        // SAFETY: a map value.
        unsafe {
            *record = IoRecord {
                id: control.io_cgroup,
                device: device as u64,
                bytes: [stat[0], stat[1], stat[2]],
                ios: [stat[3], stat[4], stat[5]],
            };
        }
        control.io_next += 1;
    } else {
        control.io_missed += 1;
    }
    control.io_node = read(ptr::with_exposed_provenance(node as usize));
    0
}
