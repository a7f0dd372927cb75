//! The cgroup iterator: copies the kernel's statistics of every cgroup into arrays that the agent has
//! mapped.
//!
//! `iter/cgroup`, pre-order from the cgroup that the agent attached it to. It emits nothing into
//! the iterator's seq file: a cgroup iterator can't be resumed once that buffer is full
//! (kernel/bpf/cgroup_iter.c, EOPNOTSUPP), so the records go into chunks that the agent has mapped.

use core::{ffi::c_void, ptr};

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use collector_common::{
    cgroup_iterator::{
        CgroupRecord, DYING, HAS_CPU, HAS_HUGETLB, HAS_MEMORY, HAS_PIDS, HAS_PRESSURE, HUGE_SIZES,
        IO_RECORDS_PER_CHUNK, IoRecord, IteratorControl, MAX_DEVICES, MemoryRecord, PageCounter,
        RECORDS_PER_CHUNK, UNIFIED,
    },
    field,
};

use crate::{
    kernel::{Cgroup, Css, address, has, read},
    maps::{ChunkMap, Find, MMAPABLE},
    shared::{Shared, member, repeat},
};

#[btf_map]
static RECORDS: ChunkMap<CgroupRecord, { RECORDS_PER_CHUNK as usize }> = ChunkMap::new();

#[btf_map]
static IO_RECORDS: ChunkMap<IoRecord, { IO_RECORDS_PER_CHUNK as usize }> = ChunkMap::new();

/// One entry, mapped by the agent, which resets it before it iterates.
#[btf_map]
static CGROUP_ITERATOR: Array<IteratorControl, 1, MMAPABLE> = Array::new();

/// Iterations exclude each other (cgroup_mutex).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/cgroup")]
pub extern "C" fn cgroup_iterator(ctx: *const c_void) -> i32 {
    let Some(cgroup) = Cgroup::iterated(ctx) else {
        return 0;
    };
    let Some(control) = CGROUP_ITERATOR.find(0) else {
        return 0;
    };
    let Some(record) = RECORDS.find(member!(control.next).get() as u32) else {
        member!(control.missed).add_alone(1);
        return 0;
    };
    fill(record, cgroup);
    member!(control.next).add_alone(1);
    if let Some(io) = cgroup.io() {
        devices(control, cgroup.id(), io);
    }
    0
}

/// Fills in the record of a cgroup.
#[inline(always)]
pub fn fill(record: Shared<CgroupRecord>, cgroup: Cgroup) {
    let mut flags = 0;
    member!(record.id).set(cgroup.id());
    if !cgroup.is_online() {
        flags |= DYING;
    }
    // Only cgroup2's cgroups have base statistics.
    if cgroup.hierarchy() == 0 {
        flags |= UNIFIED;
        let (utime_ns, stime_ns, usage_ns) = cgroup.cpu_time();
        member!(record.utime_ns).set(utime_ns);
        member!(record.stime_ns).set(stime_ns);
        member!(record.usage_ns).set(usage_ns);
        let (prev_utime_ns, prev_stime_ns) = cgroup.shown_cpu_time();
        member!(record.prev_utime_ns).set(prev_utime_ns);
        member!(record.prev_stime_ns).set(prev_stime_ns);
        if let Some(total) = cgroup.pressure() {
            flags |= HAS_PRESSURE;
            member!(record.pressure_ns).copy(total);
        }
    }
    if let Some(group) = cgroup.task_group() {
        flags |= HAS_CPU;
        member!(record.shares).set(group.shares());
        member!(record.quota_ns).set(group.quota_ns());
        member!(record.period_ns).set(group.period_ns());
        member!(record.throttled_ns).set(group.throttled_ns());
        member!(record.burst_ns).set(group.burst_ns());
        member!(record.periods).set(group.periods());
        member!(record.throttled_periods).set(group.throttled_periods());
        member!(record.burst_periods).set(group.burst_periods());
    }
    if let Some(pids) = cgroup.pids() {
        flags |= HAS_PIDS;
        member!(record.pids).set(read(address!(pids.0, field::PIDS_COUNTER)));
        member!(record.pids_limit).set(read(address!(pids.0, field::PIDS_LIMIT)));
    }
    if let Some(hugetlb) = cgroup.hugetlb() {
        flags |= HAS_HUGETLB;
        huge_pages(member!(record.hugetlb), hugetlb);
    }
    if let Some(memory) = cgroup.memory() {
        flags |= HAS_MEMORY;
        fill_memory(member!(record.memory), memory);
    }
    member!(record.flags).set(flags);
}

#[inline(always)]
fn huge_pages(to: Shared<[PageCounter; HUGE_SIZES]>, css: Css) {
    if has!(field::HUGETLB_0) {
        counter(to.wrapped(0), address!(css.0, field::HUGETLB_0));
    }
    if has!(field::HUGETLB_1) {
        counter(to.wrapped(1), address!(css.0, field::HUGETLB_1));
    }
    if has!(field::HUGETLB_2) {
        counter(to.wrapped(2), address!(css.0, field::HUGETLB_2));
    }
    if has!(field::HUGETLB_3) {
        counter(to.wrapped(3), address!(css.0, field::HUGETLB_3));
    }
}

#[inline(always)]
fn fill_memory(record: Shared<MemoryRecord>, css: Css) {
    let memory = address!(css.0, field::MEMCG_MEMORY);
    counter(member!(record.memory), memory);
    member!(record.min).set(read(address!(memory, field::COUNTER_MIN)));
    member!(record.low).set(read(address!(memory, field::COUNTER_LOW)));
    counter(member!(record.swap), address!(css.0, field::MEMCG_SWAP));
    // Since 6.12 a kernel may do without v1 (CONFIG_MEMCG_V1).
    if has!(field::MEMCG_SOFT_LIMIT) {
        member!(record.soft_limit).set(read(address!(css.0, field::MEMCG_SOFT_LIMIT)));
    }
    member!(record.memory_events).copy(address!(css.0, field::MEMCG_EVENTS));
    let vmstats: u64 = read(address!(css.0, field::MEMCG_VMSTATS));
    member!(record.state).copy(address!(vmstats, field::VMSTATS_STATE));
    member!(record.events).copy(address!(vmstats, field::VMSTATS_EVENTS));
    // Since 6.7 (mm/memcontrol.c, memcg_events_local).
    if has!(field::VMSTATS_EVENTS_LOCAL) {
        member!(record.events_local).copy(address!(vmstats, field::VMSTATS_EVENTS_LOCAL));
    }
}

/// Copies a `page_counter` that is part of another structure.
#[inline(always)]
fn counter(to: Shared<PageCounter>, from: *const c_void) {
    member!(to.usage).set(read(address!(from, field::COUNTER_USAGE)));
    member!(to.watermark).set(read(address!(from, field::COUNTER_WATERMARK)));
    member!(to.max).set(read(address!(from, field::COUNTER_MAX)));
    member!(to.failcnt).set(read(address!(from, field::COUNTER_FAILCNT)));
}

/// Writes a record for each device for which the io controller keeps statistics of the cgroup.
#[inline(always)]
fn devices(control: Shared<IteratorControl>, id: u64, io: Css) {
    if !has!(field::BLKCG_LIST) || !has!(field::BLKG_STAT) || !has!(field::QUEUE_DISK) {
        return;
    }
    // struct hlist_head { struct hlist_node *first; }, struct hlist_node { struct hlist_node *next; … }
    member!(control.io_node).set(read(address!(io.0, field::BLKCG_LIST)));
    member!(control.io_cgroup).set(id);
    repeat(MAX_DEVICES, device);
}

/// One device: a callback of [`repeat`].
#[inline(never)]
extern "C" fn device(_index: u64, _: *mut c_void) -> i64 {
    let Some(control) = CGROUP_ITERATOR.find(0) else {
        return 1;
    };
    let node = member!(control.io_node).get();
    if node == 0 {
        return 1;
    }
    let group = node - address!(0, field::BLKG_NODE) as u64;
    let queue: u64 = read(address!(group, field::BLKG_QUEUE));
    let disk: u64 = read(address!(queue, field::QUEUE_DISK));
    let bdev: u64 = read(address!(disk, field::DISK_PART0));
    let device: u32 = read(address!(bdev, field::BDEV_DEVICE));
    if let Some(record) = IO_RECORDS.find(member!(control.io_next).get() as u32) {
        // struct blkg_iostat { u64 bytes[BLKG_IOSTAT_NR]; u64 ios[BLKG_IOSTAT_NR]; }
        let [bytes, ios]: [[u64; 3]; 2] = read(address!(group, field::BLKG_STAT));
        member!(record.id).set(member!(control.io_cgroup).get());
        member!(record.device).set(device.into());
        member!(record.bytes).store(bytes);
        member!(record.ios).store(ios);
        member!(control.io_next).add_alone(1);
    } else {
        member!(control.io_missed).add_alone(1);
    }
    member!(control.io_node).set(read(ptr::with_exposed_provenance(node as usize)));
    0
}
