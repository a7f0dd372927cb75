//! All cells of a slot, of every source.
//!
//! A source with one cell a slot is a line in the list below; one with more has callbacks, so that one
//! look at them satisfies the verifier whatever the number of CPUs.

use core::ffi::c_void;

use aya_ebpf::{btf_maps::Array, helpers::bpf_get_smp_processor_id, macros::btf_map};
use collector_common::{cell::Cell, keyed::THINGS};

use crate::{
    block::Block,
    cell::{Cells, cpus, first_cell, first_shard, shard, shards},
    drops::Dropped,
    keyed::Keyed,
    maps::Find,
    net::NET_CELLS,
    sched::SCHED_CELLS,
    shared::{member, repeat},
    tasks::TASKS_CELLS,
};

macro_rules! one_cell {
    ($($source:ident::$cells:ident,)*) => {
        #[inline(always)]
        fn mark_each(slot: u32, mark: u64) {
            $(mark_one(&crate::$source::$cells, slot, mark);)*
        }

        #[inline(always)]
        fn pour_each(from: u32, to: u32) {
            $(pour_one(&crate::$source::$cells, from, to);)*
        }
    };
}

// The sources with one cell a slot.
one_cell! {
    process::PROCESS_CELLS,
    reclaim::RECLAIM_CELLS,
    tcp::TCP_CELLS,
}

/// What the callbacks work on.
#[repr(C)]
struct Work {
    /// First cell of the slot, in the source that is being worked on; of values by device or reason, the
    /// slot.
    first: u64,
    /// The owner that its cells get.
    mark: u64,
    /// The cell on this CPU of the slot that gets the values; of values by device or reason, the slot.
    to: u64,
}

/// Work of `cgroup_rmdir`, which the cgroup mutex serialises.
#[btf_map]
static MARKING: Array<Work, 1> = Array::new();
/// Work of a sweep, which the lock serialises.
#[btf_map]
static POURING: Array<Work, 1> = Array::new();

/// Makes a slot's cells nobody's: no program finds itself their owner, and none can claim them.
#[inline(always)]
pub fn mark(slot: u32, mark: u64) {
    let Some(work) = MARKING.find(0) else {
        return;
    };
    member!(work.mark).set(mark);
    member!(work.first).set(first_cell(slot).into());
    repeat(cpus(), mark_sched);
    member!(work.first).set(first_shard(slot).into());
    repeat(shards(), mark_net);
    mark_each(slot, mark);
    mark_one(Block::tables(), slot, mark);
    mark_one(Dropped::tables(), slot, mark);
}

#[inline(always)]
fn mark_one<T: Cell>(cells: &Cells<T>, number: u32, mark: u64) {
    if let Some(cell) = cells.find(number) {
        cell.owner().swap(mark);
    }
}

#[inline(never)]
extern "C" fn mark_sched(at: u64, _: *mut c_void) -> i64 {
    let Some(work) = MARKING.find(0) else {
        return 1;
    };
    let number = member!(work.first).get() + at;
    mark_one(&SCHED_CELLS, number as u32, member!(work.mark).get());
    0
}

#[inline(never)]
extern "C" fn mark_net(at: u64, _: *mut c_void) -> i64 {
    let Some(work) = MARKING.find(0) else {
        return 1;
    };
    let number = member!(work.first).get() + at;
    mark_one(&NET_CELLS, number as u32, member!(work.mark).get());
    0
}

/// Adds all values of a slot to those of another one, and leaves its cells empty and nobody's.
///
/// Of a source with several cells a slot, those on this CPU get everything. Its own programs may be
/// adding to them at the same time, in an interrupt or on a CPU that shares them: so this adds
/// atomically. It does not claim them: a cell without owner is claimed by whoever comes next.
#[inline(always)]
pub fn pour(slot: u32, to: u32) {
    let Some(work) = POURING.find(0) else {
        return;
    };
    // SAFETY: always allowed.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    member!(work.first).set(first_cell(slot).into());
    member!(work.to).set((first_cell(to) + cpu).into());
    repeat(cpus(), pour_sched);
    member!(work.first).set(first_shard(slot).into());
    member!(work.to).set(shard(first_shard(to)).into());
    repeat(shards(), pour_net);
    pour_each(slot, to);
    pour_keyed::<Block>(slot, to);
    pour_keyed::<Dropped>(slot, to);
    // What the iterator finds is no counter. It marks a cell as somebody's when it comes to it.
    if let Some(cell) = TASKS_CELLS.find(slot) {
        member!(cell.generation).set(0);
        cell.owner().set(0);
    }
}

#[inline(always)]
fn pour_one<T: Cell>(cells: &Cells<T>, from: u32, to: u32) {
    if let (Some(from), Some(to)) = (cells.find(from), cells.find(to)) {
        from.pour(to);
        from.owner().swap(0);
    }
}

#[inline(never)]
extern "C" fn pour_sched(at: u64, _: *mut c_void) -> i64 {
    let Some(work) = POURING.find(0) else {
        return 1;
    };
    let from = member!(work.first).get() + at;
    pour_sched_cell(from, member!(work.to).get());
    0
}

/// Global, so that the verifier looks at its many additions once.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn pour_sched_cell(from: u64, to: u64) -> u64 {
    pour_one(&SCHED_CELLS, from as u32, to as u32);
    0
}

#[inline(never)]
extern "C" fn pour_net(at: u64, _: *mut c_void) -> i64 {
    let Some(work) = POURING.find(0) else {
        return 1;
    };
    let from = member!(work.first).get() + at;
    pour_net_cell(from, member!(work.to).get());
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
    let (Some(work), Some(table)) = (POURING.find(0), S::tables().find(slot)) else {
        return;
    };
    member!(work.first).set(slot.into());
    member!(work.to).set(to.into());
    repeat(THINGS as u32, pour_entry::<S>);
    member!(table.full).set(0);
    table.owner().swap(0);
}

#[inline(never)]
extern "C" fn pour_entry<S: Keyed>(at: u64, _: *mut c_void) -> i64 {
    let Some(work) = POURING.find(0) else {
        return 1;
    };
    let Some(table) = S::tables().find(member!(work.first).get() as u32) else {
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
    S::hand_over_global(member!(work.to).get(), entry);
    0
}
