//! Cells: looking one up, and claiming it.

use aya_ebpf::{Global, helpers::bpf_get_smp_processor_id};
use collector_common::{
    cell::{CELLS_PER_CHUNK, Cell},
    slot::Claimed,
    stat::Stat,
};

use crate::{
    kernel::Cgroup,
    maps::{ChunkMap, Find},
    shared::Shared,
    slot::{self, Slot},
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

/// Cells of a slot in a source whose shards are for several CPUs each.
#[inline(always)]
pub fn shards() -> u32 {
    SHARDS.load()
}

/// The first cell of a slot in a source whose shards are for several CPUs each.
#[inline(always)]
pub fn first_shard(slot: u32) -> u32 {
    slot * SHARDS.load()
}

/// The cell that this CPU shares with some others, by the slot's first one.
#[inline(always)]
pub fn shard(first: u32) -> u32 {
    first + own_shard()
}

/// Its place among the slot's.
#[inline(always)]
pub fn own_shard() -> u32 {
    // SAFETY: always allowed.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    cpu & (SHARDS.load() - 1)
}

/// The cell of a cgroup in a source with one shard. For counters that are added to atomically.
#[inline(always)]
pub fn of_cgroup<T: Cell>(cells: &Cells<T>, claimed: Claimed, cgroup: Cgroup) -> Option<Shared<T>> {
    of_slot(cells, claimed, slot::resolve(cgroup), cgroup)
}

/// The same, for a slot that was resolved before for the cgroup.
#[inline(always)]
pub fn of_slot<T: Cell>(
    cells: &Cells<T>,
    claimed: Claimed,
    slot: Slot,
    cgroup: Cgroup,
) -> Option<Shared<T>> {
    // The source is off.
    let cell = cells.find(slot.number)?;
    if claim(cell, slot, claimed as u32) {
        return Some(cell);
    }
    // The slot was retired meanwhile.
    if let Some(cell) = own(cells, claimed, slot::resolve(cgroup)) {
        return Some(cell);
    }
    stat::count(Stat::Overflow);
    own(cells, claimed, Slot::ROOT)
}

/// The slot's cell in a source with one shard, if it is the slot's owner's or nobody's yet.
#[inline(always)]
fn own<T: Cell>(cells: &Cells<T>, claimed: Claimed, slot: Slot) -> Option<Shared<T>> {
    let cell = cells.find(slot.number)?;
    claim(cell, slot, claimed as u32).then_some(cell)
}

/// Whether a slot's cell is its owner's; made so if it is nobody's yet, and noted by the cell's bit in
/// `SlotMeta::claimed`. Of two CPUs that claim it for different cgroups, which may happen when a slot has
/// been recycled, one gets it.
///
/// A removal marks the cells that are noted. One that is claimed just then is either noted before the
/// removal looks, or this sees that the slot is retired and gives it up. Whoever has found it claimed
/// meanwhile may add to it: it is noted, so the sweep looks at it.
#[inline(always)]
pub fn claim<T: Cell>(cell: Shared<T>, slot: Slot, bit: u32) -> bool {
    let mut found = cell.owner().get();
    if found == 0 {
        found = cell.owner().exchange(0, slot.owner);
        if found == 0 {
            if slot::note_claim(slot.number.into(), slot.owner, bit.into()) != 0 {
                return true;
            }
            cell.owner().exchange(slot.owner, 0);
            return false;
        }
    }
    found == slot.owner
}
