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
    cgroup_iterator::{CgroupRecord, EVENTS, MemoryRecord},
    field,
};

use crate::{
    cell::cpus,
    kernel::{Cgroup, address, has, read},
    maps::{self, Find},
    shared::{Shared, member, repeat},
};

/// What the callback works on, and room for what doesn't fit on the stack.
#[repr(C)]
struct Scratch {
    /// Where the kernel keeps [`PROBE`]'s element.
    base: u64,
    /// Per-CPU addresses of the cgroup's CPU time and of its memory statistics; 0 is none.
    times: u64,
    statistics: u64,
    /// An address that [`number`] turns into a number.
    address: u64,
    /// What all CPUs together have not flushed, ns.
    utime_ns: u64,
    stime_ns: u64,
    usage_ns: u64,
    /// The same of memory events.
    pending: [u64; EVENTS],
    /// `struct task_cputime` of one CPU: what it has counted, and how much of that the kernel has flushed.
    now: [u64; CPUTIME],
    then: [u64; CPUTIME],
    /// `memcg_vmstats_percpu.events`: what one CPU has counted.
    events: [u64; EVENTS],
    /// `memcg_vmstats_percpu.events_prev`: how much of `events` the kernel has flushed.
    flushed: [u64; EVENTS],
}

/// Words of a `struct task_cputime` (include/linux/sched/types.h, 5.15 to 6.18): stime, utime, sum_exec_runtime.
const CPUTIME: usize = 3;

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Its only element is never used, but for its address.
#[btf_map]
static PROBE: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Adds what is pending to a removed cgroup's record.
#[inline(always)]
pub fn add(record: Shared<CgroupRecord>, cgroup: Cgroup) {
    if !has!(field::ARRAY_POINTERS) {
        return;
    }
    let Some(scratch) = SCRATCH.find(0) else {
        return;
    };
    let mut times = 0;
    if cgroup.hierarchy() == 0
        && has!(field::CGROUP_RSTAT)
        && has!(field::RSTAT_NOW)
        && has!(field::RSTAT_FLUSHED)
    {
        times = cgroup.rstat();
    }
    let mut statistics = 0;
    if has!(field::MEMCG_PERCPU)
        && has!(field::PERCPU_EVENTS)
        && has!(field::PERCPU_EVENTS_FLUSHED)
        && let Some(css) = cgroup.memory()
    {
        statistics = read(address!(css.0, field::MEMCG_PERCPU));
    }
    if times == 0 && statistics == 0 {
        return;
    }
    // `pptrs[0]` of the map's structure.
    let map = number(scratch, maps::address_of(&PROBE));
    member!(scratch.base).set(read(address!(map, field::ARRAY_POINTERS)));
    member!(scratch.times).set(times);
    member!(scratch.statistics).set(statistics);
    member!(scratch.utime_ns).set(0);
    member!(scratch.stime_ns).set(0);
    member!(scratch.usage_ns).set(0);
    if statistics != 0 {
        member!(scratch.pending).store([0; EVENTS]);
    }
    repeat(cpus(), add_of_cpu);
    if times != 0 {
        member!(record.utime_ns).add_alone(member!(scratch.utime_ns).get());
        member!(record.stime_ns).add_alone(member!(scratch.stime_ns).get());
        member!(record.usage_ns).add_alone(member!(scratch.usage_ns).get());
    }
    if statistics != 0 {
        add_events(member!(record.memory), scratch);
    }
}

#[inline(always)]
fn add_events(memory: Shared<MemoryRecord>, scratch: Shared<Scratch>) {
    for at in 0..EVENTS {
        let Some(pending) = member!(scratch.pending).at(at) else {
            return;
        };
        let pending = pending.get();
        if let Some(count) = member!(memory.events).at(at) {
            count.add_alone(pending);
        }
        // Before 6.7 the kernel has no such array: there is nothing to add to.
        if has!(field::VMSTATS_EVENTS_LOCAL)
            && let Some(count) = member!(memory.events_local).at(at)
        {
            count.add_alone(pending);
        }
    }
}

/// One CPU: a callback of [`repeat`].
#[inline(never)]
extern "C" fn add_of_cpu(cpu: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = SCRATCH.find(0) else {
        return 1;
    };
    let element = maps::address_on_cpu(&PROBE, cpu as u32);
    if element.is_null() {
        return 1;
    }
    let offset = number(scratch, element) - member!(scratch.base).get();
    let times = member!(scratch.times).get();
    if times != 0 {
        cpu_time(scratch, times.wrapping_add(offset));
    }
    let statistics = member!(scratch.statistics).get();
    if statistics != 0 {
        events(scratch, statistics.wrapping_add(offset));
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

/// Adds a CPU's `cgroup_rstat_base_cpu`, at `of_cpu`. Two reads: each call of the helper takes as long as an access
/// to memory.
#[inline(always)]
fn cpu_time(scratch: Shared<Scratch>, of_cpu: u64) {
    let (now, flushed) = (member!(scratch.now), member!(scratch.then));
    now.copy(address!(of_cpu, field::RSTAT_NOW));
    flushed.copy(address!(of_cpu, field::RSTAT_FLUSHED));
    let add = |to: Shared<u64>, offset: *const c_void| {
        let at = offset as usize / size_of::<u64>();
        if let (Some(now), Some(flushed)) = (now.at(at), flushed.at(at)) {
            to.add_alone(now.get().wrapping_sub(flushed.get()));
        }
    };
    add(member!(scratch.utime_ns), address!(0, field::CPUTIME_UTIME));
    add(member!(scratch.stime_ns), address!(0, field::CPUTIME_STIME));
    add(
        member!(scratch.usage_ns),
        address!(0, field::CPUTIME_RUNTIME),
    );
}

/// Adds a CPU's `memcg_vmstats_percpu`, at `of_cpu`.
#[inline(always)]
fn events(scratch: Shared<Scratch>, of_cpu: u64) {
    let (events, flushed) = (member!(scratch.events), member!(scratch.flushed));
    events.copy(address!(of_cpu, field::PERCPU_EVENTS));
    flushed.copy(address!(of_cpu, field::PERCPU_EVENTS_FLUSHED));
    for at in 0..EVENTS {
        let (Some(now), Some(flushed), Some(pending)) = (
            events.at(at),
            flushed.at(at),
            member!(scratch.pending).at(at),
        ) else {
            return;
        };
        pending.add_alone(now.get().wrapping_sub(flushed.get()));
    }
}
