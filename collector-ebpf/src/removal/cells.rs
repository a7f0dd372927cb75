//! All cells of a slot, of every source.
//!
//! A source with one cell a slot is a line in the list below; one with more has callbacks, so that one
//! look at them satisfies the verifier whatever the number of CPUs.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use collector_common::{
    cell::Cell,
    keyed::THINGS,
    slot::{Claimed, SlotMeta, lane_bit, shard_bit},
};

use crate::{
    block::Block,
    cell::{Cells, cpus, first_cell, first_shard, own_shard, shard, shards},
    drops::Dropped,
    keyed::Keyed,
    maps::Find,
    net::NET_CELLS,
    sched::SCHED_CELLS,
    shared::{Shared, Words, member, repeat_on},
    slot,
    tasks::TASKS_CELLS,
};

macro_rules! one_cell {
    ($($bit:ident: $source:ident::$cells:ident,)*) => {
        #[inline(always)]
        fn mark_each(claims: u64, slot: u32, mark: u64) {
            $(if has(claims, Claimed::$bit) {
                mark_one(&crate::$source::$cells, slot, mark);
            })*
        }

        #[inline(always)]
        fn pour_each(claims: u64, from: u32, to: u32) {
            $(if has(claims, Claimed::$bit) {
                pour_one(&crate::$source::$cells, from, to);
            })*
        }
    };
}

// The sources with one cell a slot.
one_cell! {
    Process: process::PROCESS_CELLS,
    Reclaim: reclaim::RECLAIM_CELLS,
    Tcp: tcp::TCP_CELLS,
}

/// Whether a bit of `SlotMeta::claimed` is set, given the word that it is in.
#[inline(always)]
fn has(claims: u64, bit: Claimed) -> bool {
    claims & 1 << (bit as u32 & 63) != 0
}

/// Makes a slot's cells nobody's: no program finds itself their owner, and none can claim them. Looks only at
/// those that somebody has claimed. To be called after `SlotMeta::retired` was set with a barrier.
#[inline(always)]
pub fn mark(slot: u32, meta: Shared<SlotMeta>, mark: u64) {
    let [lanes, others] = claims_of(meta);
    repeat_on(cpus(), mark_sched, [first_cell(slot).into(), lanes, mark]);
    if others & SHARD_BITS != 0 {
        repeat_on(shards(), mark_net, [first_shard(slot).into(), others, mark]);
    }
    mark_each(others, slot, mark);
    if has(others, Block::CLAIMED) {
        mark_one(Block::tables(), slot, mark);
    }
    if has(others, Dropped::CLAIMED) {
        mark_one(Dropped::tables(), slot, mark);
    }
}

#[inline(always)]
fn claims_of(meta: Shared<SlotMeta>) -> [u64; 2] {
    let claimed = member!(meta.claimed);
    [claimed.wrapped(0).get(), claimed.wrapped(1).get()]
}

/// The bits of `shard_bit` in the second word.
const SHARD_BITS: u64 = u32::MAX as u64;
/// Those of the sources with one cell a slot, from `Claimed::Process` on.
const ONE_CELL: u64 = 0b111;
const _: () = assert!(Claimed::Tcp as u32 - Claimed::Process as u32 == 2);

#[inline(always)]
fn mark_one<T: Cell>(cells: &Cells<T>, number: u32, mark: u64) {
    if let Some(cell) = cells.find(number) {
        cell.owner().swap(mark);
    }
}

/// Marks a CPU's cell if it is claimed. The words: the slot's first cell, the claims, the mark.
#[inline(never)]
extern "C" fn mark_sched(at: u64, words: Words<3>) -> i64 {
    if words.get::<1>() >> lane_bit(at as u32) & 1 != 0 {
        let number = words.get::<0>() + at;
        mark_one(&SCHED_CELLS, number as u32, words.get::<2>());
    }
    0
}

/// The same for a cell of several CPUs.
#[inline(never)]
extern "C" fn mark_net(at: u64, words: Words<3>) -> i64 {
    if words.get::<1>() >> (shard_bit(at as u32) & 63) & 1 != 0 {
        let number = words.get::<0>() + at;
        mark_one(&NET_CELLS, number as u32, words.get::<2>());
    }
    0
}

/// Adds all values of a slot to those of another one, and leaves its cells empty and nobody's.
///
/// Of a source with several cells a slot, those on this CPU get everything. Its own programs may be
/// adding to them at the same time, in an interrupt or on a CPU that shares them: so this adds
/// atomically. It does not claim them: a cell without owner is claimed by whoever comes next.
#[inline(always)]
pub fn pour(slot: u32, meta: Shared<SlotMeta>, to: u32) {
    // SAFETY: always allowed.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let [lanes, others] = claims_of(meta);
    let heir = first_cell(to) + cpu;
    repeat_on(
        cpus(),
        pour_sched,
        [first_cell(slot).into(), lanes, heir.into()],
    );
    if others & SHARD_BITS != 0 {
        let heir = shard(first_shard(to));
        repeat_on(
            shards(),
            pour_net,
            [first_shard(slot).into(), others, heir.into()],
        );
    }
    pour_each(others, slot, to);
    if has(others, Block::CLAIMED) {
        pour_keyed::<Block>(slot, to);
    }
    if has(others, Dropped::CLAIMED) {
        pour_keyed::<Dropped>(slot, to);
    }
    member!(meta.claimed).store([0; 2]);
    note_heir(to, lanes, others, cpu);
    // What the iterator finds is no counter. It marks a cell as somebody's when it comes to it.
    if let Some(cell) = TASKS_CELLS.find(slot) {
        member!(cell.generation).set(0);
        cell.owner().set(0);
    }
}

/// Notes the cells of the heir that have got something: it may be removed before anybody claims them. Of
/// tables, those note it that take entries.
#[inline(always)]
fn note_heir(to: u32, lanes: u64, others: u64, cpu: u32) {
    let Some(heir) = slot::meta(to) else {
        return;
    };
    let claimed = member!(heir.claimed);
    if lanes != 0 {
        claimed.wrapped(0).set_bits(1 << lane_bit(cpu));
    }
    let mut cells = others & (ONE_CELL << (Claimed::Process as u32 & 63));
    if others & SHARD_BITS != 0 {
        cells |= 1 << (shard_bit(own_shard()) & 63);
    }
    if cells != 0 {
        claimed.wrapped(1).set_bits(cells);
    }
}

#[inline(always)]
fn pour_one<T: Cell>(cells: &Cells<T>, from: u32, to: u32) {
    if let (Some(from), Some(to)) = (cells.find(from), cells.find(to)) {
        from.pour(to);
        from.owner().swap(0);
    }
}

/// Adds a CPU's cell to the heir's if it is claimed. The words: the slot's first cell, the claims, the heir's cell.
#[inline(never)]
extern "C" fn pour_sched(at: u64, words: Words<3>) -> i64 {
    if words.get::<1>() >> lane_bit(at as u32) & 1 != 0 {
        pour_sched_cell(words.get::<0>() + at, words.get::<2>());
    }
    0
}

/// Global, so that the verifier looks at its many additions once.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn pour_sched_cell(from: u64, to: u64) -> u64 {
    pour_one(&SCHED_CELLS, from as u32, to as u32);
    0
}

/// The same for a cell of several CPUs.
#[inline(never)]
extern "C" fn pour_net(at: u64, words: Words<3>) -> i64 {
    if words.get::<1>() >> (shard_bit(at as u32) & 63) & 1 != 0 {
        pour_net_cell(words.get::<0>() + at, words.get::<2>());
    }
    0
}

/// Global, so that the verifier looks at its many additions once.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn pour_net_cell(from: u64, to: u64) -> u64 {
    pour_one(&NET_CELLS, from as u32, to as u32);
    0
}

/// Gives a slot's values by device or reason to another one, and leaves its table empty and nobody's.
#[inline(always)]
fn pour_keyed<S: Keyed>(slot: u32, to: u32) {
    let Some(table) = S::tables().find(slot) else {
        return;
    };
    repeat_on(THINGS as u32, pour_entry::<S>, [slot.into(), to.into()]);
    member!(table.full).set(0);
    table.owner().swap(0);
}

/// Gives one of them. The words: the slot, the other one.
#[inline(never)]
extern "C" fn pour_entry<S: Keyed>(at: u64, words: Words<2>) -> i64 {
    let Some(table) = S::tables().find(words.get::<0>() as u32) else {
        return 1;
    };
    let Some(place) = member!(table.entries).at(at as usize) else {
        return 1;
    };
    let entry = place.get();
    if entry == 0 {
        return 1;
    }
    place.set(0);
    S::hand_over_global(words.get::<1>(), entry);
    0
}
