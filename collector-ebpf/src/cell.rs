//! Cells: looking one up, and adding to it.

use core::arch::asm;

use aya_ebpf::{
    Global,
    btf_maps::{Array, ArrayOfMaps},
    helpers::bpf_get_smp_processor_id,
    macros::btf_map,
};
use collector_common::{
    cell::{CELLS_PER_CHUNK, CHUNK_SHIFT},
    net::NetCell,
    process::ProcessCell,
    sched::SchedCell,
    stat::Stat,
    tasks::TasksCell,
    tcp::TcpCell,
};

use crate::{slot::Slot, stat};

/// BPF_F_MMAPABLE: the agent reads cells without a system call.
const MMAPABLE: usize = 1 << 10;

/// Chunks of a source. `max_entries` of the outer map is set by the loader from the highest
/// number of slots and the source's lanes.
pub type Cells<T> = ArrayOfMaps<Array<T, { CELLS_PER_CHUNK as usize }, MMAPABLE>, 1>;

/// Scheduler cells, one lane a CPU.
#[btf_map]
pub static SCHED_CELLS: Cells<SchedCell> = Cells::new();

/// Process cells, one lane.
#[btf_map]
pub static PROCESS_CELLS: Cells<ProcessCell> = Cells::new();

/// Socket cells, shards.
#[btf_map]
pub static NET_CELLS: Cells<NetCell> = Cells::new();
/// TCP cells, one lane.
#[btf_map]
pub static TCP_CELLS: Cells<TcpCell> = Cells::new();

/// Cells of the pass over tasks, one lane.
#[btf_map]
pub static TASKS_CELLS: Cells<TasksCell> = Cells::new();

/// Lanes of a per-CPU source: the number of possible CPUs.
#[unsafe(no_mangle)]
static LANES: Global<u32> = Global::new(1);

/// Lanes of a source with shards: a power of two.
#[unsafe(no_mangle)]
static SHARDS: Global<u32> = Global::new(1);

/// The number of possible CPUs.
#[inline(always)]
pub fn lanes() -> u32 {
    LANES.load()
}

/// The first cell of a slot in a source with shards.
#[inline(always)]
pub fn first_shard(slot: u32) -> u32 {
    slot * SHARDS.load()
}

/// The cell that this CPU shares with some others, by the slot's first one.
#[inline(always)]
pub fn shard(first: u32) -> u32 {
    // SAFETY: always allowed.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    first + (cpu & (SHARDS.load() - 1))
}

/// The cell of lane 0 of a slot in a per-CPU source.
#[inline(always)]
pub fn first_cell(slot: u32) -> u32 {
    slot * LANES.load()
}

/// A cell by its number; `None` if its chunk is not there (a slot that the agent never gave out).
macro_rules! cell {
    ($map:expr, $number:expr) => {{
        let number: u32 = $number;
        $map.get_value_ptr_mut(
            number >> collector_common::cell::CHUNK_SHIFT,
            &(number & (collector_common::cell::CELLS_PER_CHUNK - 1)),
        )
    }};
}
pub(crate) use cell;

const _: () = assert!(CELLS_PER_CHUNK == 1 << CHUNK_SHIFT);

/// The cell of a slot in a source of one lane if it is `owner`'s or nobody's yet, else the overflow
/// cell. A cell's first word is its owner.
#[inline(always)]
pub fn claimed<T>(cells: &Cells<T>, owner: u64, slot: u32) -> Option<*mut T> {
    let cell = cell!(cells, slot)?;
    let owned_by = cell.cast::<u64>();
    // SAFETY: a map value; whoever writes the owner of an unused cell writes the same id.
    unsafe {
        if *owned_by == 0 {
            *owned_by = owner;
        }
        if *owned_by == owner {
            return Some(cell);
        }
    }
    stat::count(Stat::Overflow);
    cell!(cells, Slot::OVERFLOW.number)
}

/// Adds to a counter that other CPUs, or other contexts on this CPU, may add to as well.
///
/// Assembly, because core has no atomics for this target.
///
/// # Safety
///
/// `counter` points to an aligned counter of a map value.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, n: u64) {
    // SAFETY: by the caller.
    unsafe {
        asm!(
            "lock *(u64 *)({counter} + 0) += {n}",
            counter = in(reg) counter,
            n = in(reg) n,
            options(nostack),
        );
    }
}

/// Replaces a value atomically and returns what it was.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub unsafe fn swap(value: *mut u64, new: u64) -> u64 {
    let mut old = new;
    // SAFETY: by the caller.
    unsafe {
        asm!(
            "{old} = xchg_64({value} + 0, {old})",
            value = in(reg) value,
            old = inout(reg) old,
            options(nostack),
        );
    }
    old
}

/// Replaces a value atomically if it is `old`; returns what it was.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub unsafe fn exchange(value: *mut u64, old: u64, new: u64) -> u64 {
    let mut was = old;
    // SAFETY: by the caller. The instruction has r0 for what is compared and returned.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({value} + 0, r0, {new})",
            value = in(reg) value,
            new = in(reg) new,
            inout("r0") was,
            options(nostack),
        );
    }
    was
}
