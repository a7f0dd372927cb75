//! What a cgroup's CPUs have counted and the kernel has not yet added up.
//!
//! The kernel adds them up (a flush) when somebody reads, or when the cgroup is freed: too late for
//! the final record of one that has just been removed. So its counts are added up here, CPU by CPU:
//! once in a cgroup's life.
//!
//! Helpers read a CPU's variables only by typed symbols, for which the kernel would need all of its
//! symbol table. Instead a CPU's offset is taken from a per-CPU array of our own: where an element is
//! on that CPU, less where the kernel keeps it (kernel/bpf/arraymap.c, `bpf_array.pptrs`).
//!
//! A cgroup is removed once, under the cgroup mutex: nobody else writes its record or [`SCRATCH`].

use core::ffi::c_void;

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use collector_common::{
    cgroup_iterator::{CgroupRecord, EVENTS, FinalRecordKey, MemoryRecord},
    field,
};

use super::FINAL_RECORDS;
use crate::{
    cell::cpus,
    kernel::{Cgroup, address, has, read},
    maps::{self, Find},
    shared::{Shared, member, repeat},
};

/// What the callback works on, and room for what doesn't fit on the stack.
#[repr(C)]
struct Scratch {
    /// Key of the removed cgroup's record.
    key: FinalRecordKey,
    /// Where the kernel keeps [`PROBE`]'s element.
    base: u64,
    /// Per-CPU addresses of the cgroup's CPU time and of its memory statistics; 0 is none.
    times: u64,
    statistics: u64,
    /// An address that [`number`] turns into a number.
    address: u64,
    /// `memcg_vmstats_percpu.events`: what one CPU has counted.
    events: [u64; EVENTS],
    /// `memcg_vmstats_percpu.events_prev`: how much of `events` the kernel has flushed.
    flushed: [u64; EVENTS],
}

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Its only element is never used, but for its address.
#[btf_map]
static PROBE: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Adds what is pending to a removed cgroup's record.
#[inline(always)]
pub fn add(key: FinalRecordKey, cgroup: Cgroup) {
    if !has!(field::ARRAY_POINTERS) {
        return;
    }
    let Some(scratch) = SCRATCH.find(0) else {
        return;
    };
    // `pptrs[0]` of the map's structure.
    let map = number(scratch, maps::address_of(&PROBE));
    member!(scratch.base).set(read(address!(map, field::ARRAY_POINTERS)));
    member!(scratch.key.cgroup).set(key.cgroup);
    member!(scratch.key.hierarchy).set(key.hierarchy);
    let mut times = 0;
    if cgroup.hierarchy() == 0
        && has!(field::CGROUP_RSTAT)
        && has!(field::RSTAT_NOW)
        && has!(field::RSTAT_FLUSHED)
    {
        times = cgroup.rstat();
    }
    member!(scratch.times).set(times);
    let mut statistics = 0;
    if has!(field::MEMCG_PERCPU)
        && has!(field::PERCPU_EVENTS)
        && has!(field::PERCPU_EVENTS_FLUSHED)
        && let Some(css) = cgroup.memory()
    {
        statistics = read(address!(css.0, field::MEMCG_PERCPU));
    }
    member!(scratch.statistics).set(statistics);
    repeat(cpus(), add_of_cpu);
}

/// One CPU: a callback of [`repeat`].
#[inline(never)]
extern "C" fn add_of_cpu(cpu: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = SCRATCH.find(0) else {
        return 1;
    };
    let key = FinalRecordKey {
        cgroup: member!(scratch.key.cgroup).get(),
        hierarchy: member!(scratch.key.hierarchy).get(),
    };
    let Some(record) = FINAL_RECORDS.find(key) else {
        return 1;
    };
    let element = maps::address_on_cpu(&PROBE, cpu as u32);
    if element.is_null() {
        return 1;
    }
    let offset = number(scratch, element) - member!(scratch.base).get();
    let times = member!(scratch.times).get();
    if times != 0 {
        cpu_time(record, times.wrapping_add(offset));
    }
    let statistics = member!(scratch.statistics).get();
    if statistics != 0 {
        events(
            member!(record.memory),
            statistics.wrapping_add(offset),
            scratch,
        );
    }
    0
}

/// An address as a number. Through memory, because the verifier lets no program calculate with some
/// of the pointers that it knows.
#[inline(always)]
fn number(scratch: Shared<Scratch>, address: *const c_void) -> u64 {
    let through = member!(scratch.address);
    through.set(address as u64);
    through.get()
}

/// Adds a CPU's `cgroup_rstat_base_cpu`, at `of_cpu`.
#[inline(always)]
fn cpu_time(record: Shared<CgroupRecord>, of_cpu: u64) {
    let now = address!(of_cpu, field::RSTAT_NOW);
    let flushed = address!(of_cpu, field::RSTAT_FLUSHED);
    let since = |now: *const c_void, flushed: *const c_void| {
        read::<u64>(now).wrapping_sub(read::<u64>(flushed))
    };
    member!(record.utime_ns).add_alone(since(
        address!(now, field::CPUTIME_UTIME),
        address!(flushed, field::CPUTIME_UTIME),
    ));
    member!(record.stime_ns).add_alone(since(
        address!(now, field::CPUTIME_STIME),
        address!(flushed, field::CPUTIME_STIME),
    ));
    member!(record.usage_ns).add_alone(since(
        address!(now, field::CPUTIME_RUNTIME),
        address!(flushed, field::CPUTIME_RUNTIME),
    ));
}

/// Adds a CPU's `memcg_vmstats_percpu`, at `of_cpu`.
#[inline(always)]
fn events(record: Shared<MemoryRecord>, of_cpu: u64, scratch: Shared<Scratch>) {
    let (events, flushed) = (member!(scratch.events), member!(scratch.flushed));
    events.copy(address!(of_cpu, field::PERCPU_EVENTS));
    flushed.copy(address!(of_cpu, field::PERCPU_EVENTS_FLUSHED));
    for at in 0..EVENTS {
        let (Some(now), Some(flushed)) = (events.at(at), flushed.at(at)) else {
            return;
        };
        let since = now.get().wrapping_sub(flushed.get());
        if let Some(count) = member!(record.events).at(at) {
            count.add_alone(since);
        }
        // Before 6.7 the kernel has no such array: there is nothing to add to.
        if has!(field::VMSTATS_EVENTS_LOCAL)
            && let Some(count) = member!(record.events_local).at(at)
        {
            count.add_alone(since);
        }
    }
}
