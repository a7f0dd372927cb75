//! Cells: looking one up, and claiming it.

use aya_ebpf::{Global, helpers::bpf_get_smp_processor_id};
use collector_common::{
    cell::{CELLS_PER_CHUNK, Cell},
    stat::Stat,
};

use crate::{
    maps::{ChunkMap, Find},
    shared::Shared,
    slot::Slot,
    stat,
};

/// Cells of a source. The loader makes room for the highest number of slots, times the source's
/// shards.
pub type Cells<T> = ChunkMap<T, { CELLS_PER_CHUNK as usize }>;

/// The number of possible CPUs: cells of a slot in a source with one shard a CPU.
#[unsafe(no_mangle)]
static CPUS: Global<u32> = Global::new(1);

/// Cells of a slot in a source whose shards are for several CPUs each: a power of two.
#[unsafe(no_mangle)]
static SHARDS: Global<u32> = Global::new(1);

/// The number of possible CPUs.
#[inline(always)]
pub fn cpus() -> u32 {
    CPUS.load()
}

/// The cell of CPU 0 of a slot in a source with one shard a CPU.
#[inline(always)]
pub fn first_cell(slot: u32) -> u32 {
    slot * cpus()
}

/// The first cell of a slot in a source whose shards are for several CPUs each.
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

/// The cell of a slot in a source with one shard: the slot's if it is `owner`'s or nobody's yet, else
/// that of the overflow slot. For counters that are added to atomically.
#[inline(always)]
pub fn claimed<T: Cell>(cells: &Cells<T>, owner: u64, slot: u32) -> Option<Shared<T>> {
    let cell = cells.find(slot)?;
    if claim(cell, owner) {
        return Some(cell);
    }
    stat::count(Stat::Overflow);
    cells.find(Slot::OVERFLOW.number)
}

/// Whether a cell is `owner`'s; made so if it is nobody's yet. Of two CPUs that claim it for different
/// cgroups, which may happen when a slot has been recycled, one gets it.
#[inline(always)]
pub fn claim<T: Cell>(cell: Shared<T>, owner: u64) -> bool {
    let mut found = cell.owner().get();
    if found == 0 {
        found = cell.owner().exchange(0, owner);
        if found == 0 {
            return true;
        }
    }
    found == owner
}
