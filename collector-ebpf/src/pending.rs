//! What a cgroup's CPUs have counted and the kernel has not yet folded into its books.
//!
//! The kernel folds when somebody reads, or when the cgroup is freed: too late for the last record
//! of one that has just been removed. So its counts are summed up here, CPU by CPU: once in a
//! cgroup's life.
//!
//! Helpers read a CPU's variables only by typed symbols, for which the kernel would need all of its
//! symbol table. A CPU's offset is told by a per-CPU array of our own instead: where an element is
//! on that CPU, less where the kernel keeps it (kernel/bpf/arraymap.c, `bpf_array.pptrs`).

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_loop, bpf_map_lookup_percpu_elem, bpf_probe_read_kernel},
    macros::btf_map,
};
use collector_common::{
    field,
    keyed::CgroupKey,
    pass::{CgroupRecord, EVENTS, MemoryRecord},
};

use crate::{
    cell::lanes,
    kernel::{Cgroup, address, copy, has, read},
    pass::LAST_RECORDS,
};

/// Longer than `struct bpf_array` (344 bytes in 6.18).
const MAP_HEAD: usize = 512;

/// What the callback works on, and room for what doesn't fit on the stack.
#[repr(C)]
struct Scratch {
    /// Whose record it is.
    key: CgroupKey,
    /// Where the kernel keeps [`PROBE`]'s element.
    base: u64,
    /// Per-CPU addresses of the cgroup's CPU time and of its memory statistics; 0 is none.
    times: u64,
    statistics: u64,
    element: u64,
    map: [u8; MAP_HEAD],
    events: [u64; EVENTS],
    folded: [u64; EVENTS],
}

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Its only element is never used, but for its address.
#[btf_map]
static PROBE: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Adds what is pending to a removed cgroup's record.
#[inline(always)]
pub fn add(key: CgroupKey, cgroup: Cgroup) {
    if !has!(field::ARRAY_POINTERS) {
        return;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's value; the program isn't interrupted by itself, since removals are under the
    // cgroup mutex.
    let scratch = unsafe { &mut *scratch };
    // SAFETY: the helper reads the map's own structure, and checks.
    unsafe { bpf_probe_read_kernel(scratch.map.as_mut_ptr().cast(), MAP_HEAD as u32, probe()) };
    let Some(base) = pointer_in(&scratch.map) else {
        return;
    };
    scratch.base = base;
    scratch.key = key;
    scratch.times = 0;
    if cgroup.hierarchy() == 0
        && has!(field::CGROUP_RSTAT)
        && has!(field::RSTAT_NOW)
        && has!(field::RSTAT_FOLDED)
    {
        scratch.times = cgroup.rstat();
    }
    scratch.statistics = 0;
    if has!(field::MEMCG_PERCPU)
        && has!(field::PERCPU_EVENTS)
        && has!(field::PERCPU_FOLDED)
        && let Some(css) = cgroup.memory()
    {
        scratch.statistics = read(address!(css.0, field::MEMCG_PERCPU));
    }
    let callback: extern "C" fn(u64, *mut c_void) -> i64 = cpu;
    // SAFETY: the callback is a function of this object and is given no context.
    unsafe { bpf_loop(lanes(), callback as *mut c_void, ptr::null_mut(), 0) };
}

fn probe() -> *mut c_void {
    ptr::from_ref(&PROBE).cast_mut().cast()
}

/// One CPU: a callback of bpf_loop, which ends it by a 1.
#[inline(never)]
extern "C" fn cpu(number: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: as in `add`.
    let scratch = unsafe { &mut *scratch };
    let Some(record) = LAST_RECORDS.get_ptr_mut(scratch.key) else {
        return 1;
    };
    // SAFETY: a map value; a cgroup is removed once.
    let record = unsafe { &mut *record };
    let key = 0u32;
    // SAFETY: the map and a key of its.
    let element =
        unsafe { bpf_map_lookup_percpu_elem(probe(), (&raw const key).cast(), number as u32) };
    if element.is_null() {
        return 1;
    }
    // Through memory, so that the verifier takes it for a number: it lets nobody subtract an
    // unknown one from a pointer.
    // SAFETY: a field of a map value.
    let element = unsafe {
        (&raw mut scratch.element).write_volatile(element as u64);
        (&raw const scratch.element).read_volatile()
    };
    let offset = element - scratch.base;
    if scratch.times != 0 {
        cpu_time(record, scratch.times.wrapping_add(offset));
    }
    if scratch.statistics != 0 {
        events(
            &mut record.memory,
            scratch.statistics.wrapping_add(offset),
            scratch,
        );
    }
    0
}

/// `pptrs[0]` of the map's structure.
#[inline(always)]
fn pointer_in(map: &[u8; MAP_HEAD]) -> Option<u64> {
    let at = address!(0, field::ARRAY_POINTERS) as usize;
    if at > MAP_HEAD - 8 {
        return None;
    }
    // SAFETY: eight bytes within the array; the offset of a pointer is aligned.
    Some(unsafe { map.as_ptr().add(at).cast::<u64>().read() })
}

#[inline(always)]
fn cpu_time(record: &mut CgroupRecord, books: u64) {
    let now = address!(books, field::RSTAT_NOW);
    let folded = address!(books, field::RSTAT_FOLDED);
    let since = |now: *const c_void, folded: *const c_void| {
        read::<u64>(now).wrapping_sub(read::<u64>(folded))
    };
    record.utime_ns += since(
        address!(now, field::CPUTIME_UTIME),
        address!(folded, field::CPUTIME_UTIME),
    );
    record.stime_ns += since(
        address!(now, field::CPUTIME_STIME),
        address!(folded, field::CPUTIME_STIME),
    );
    record.usage_ns += since(
        address!(now, field::CPUTIME_RUNTIME),
        address!(folded, field::CPUTIME_RUNTIME),
    );
}

#[inline(always)]
fn events(record: &mut MemoryRecord, books: u64, scratch: &mut Scratch) {
    copy(&mut scratch.events, address!(books, field::PERCPU_EVENTS));
    copy(&mut scratch.folded, address!(books, field::PERCPU_FOLDED));
    for at in 0..EVENTS {
        let since = scratch.events[at].wrapping_sub(scratch.folded[at]);
        record.events[at] = record.events[at].wrapping_add(since);
        record.events_local[at] = record.events_local[at].wrapping_add(since);
    }
}
