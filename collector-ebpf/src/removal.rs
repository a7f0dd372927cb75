//! Slots of removed cgroups: retired at the removal, swept when no program can use them any more.
//!
//! 1. `cgroup_rmdir` retires the slot: it takes it out of the hash, marks its cells as nobody's, and
//!    appends it to the ring. Whoever has the slot cached sees that the cells' owner has changed, and
//!    resolves again: to the parent's slot, because the cgroup is not online any more.
//! 2. A program that has found the slot before may still be adding to it. So the slot waits for an RCU
//!    grace period ([`grace`]).
//! 3. A sweep adds the values to the heir's cells and frees the slot. Slots are swept in the order in
//!    which they were retired, so an heir that was retired itself passes on what it has got.
//!
//! Removals exclude each other, and exclude creations and moves (cgroup_mutex).

mod cells;

use core::ffi::c_void;

use aya_ebpf::{
    Global, helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use collector_common::slot::{BORROWED, RETIRED, SWEEPING, SlotControl};

use crate::{
    generation, grace, heir,
    kernel::{Cgroup, Task},
    maps::Find,
    race,
    shared::{Shared, member, repeat},
    slot::{
        FREE_SLOTS, ORPHANS, RETIRED_SLOTS, SLOT_CONTROL, SLOTS, Slot, counted_at, forget_borrower,
        leave_siblings, lookup, meta, of_id, resolve,
    },
    task,
};

/// Length of the ring of retired slots, less one.
#[unsafe(no_mangle)]
static RING_MASK: Global<u32> = Global::new(0);

/// Slots that one program sweeps at most. Each birth and each death of a process sweeps, so this is
/// enough to catch up.
const SWEPT_AT_ONCE: u32 = 4;

/// Retires the slot of a removed cgroup, if it has one.
#[inline(always)]
pub fn retire(cgroup: Cgroup) {
    if let Some(control) = SLOT_CONTROL.find(0)
        && member!(control.orphans).get() != 0
        && let Ok(Some(orphan)) = ORPHANS.pop()
    {
        member!(control.orphans).add(u64::MAX);
        retire_orphan(orphan);
    }
    let id = cgroup.id();
    let Some(number) = lookup(id) else {
        return;
    };
    if number & BORROWED != 0 {
        forget_borrower(id);
        return;
    }
    // The root is not removed.
    if let Some(parent) = cgroup.parent() {
        let heir = match counted_at(number) {
            Some(slot) if slot.owner == parent.id() => slot,
            _ => resolve(parent),
        };
        retire_to(number, id, heir);
    }
}

/// Retires the slot of a cgroup that took it just when it was removed. If the removal has found the slot
/// after all, it is not in the hash any more.
#[inline(always)]
fn retire_orphan(id: u64) {
    if let Some(number) = lookup(id)
        && number & BORROWED == 0
        && let Some(meta) = meta(number)
    {
        retire_to(number, id, of_id(member!(meta.heir).get()));
    }
}

#[inline(always)]
fn retire_to(number: u32, id: u64, heir: Slot) {
    let (Some(meta), Some(control)) = (meta(number), SLOT_CONTROL.find(0)) else {
        return;
    };
    let place = member!(control.head).get();
    let Some(entry) = RETIRED_SLOTS.find(place as u32 & RING_MASK.load()) else {
        return;
    };
    leave_siblings(meta);
    member!(meta.heir).set(heir.owner);
    member!(meta.heir_slot).set(heir.number.into());
    heir::note(id, heir.owner, place);
    let _ = SLOTS.remove(id);
    // A barrier: whoever claims a cell now either is seen below, or sees this. Then it looks for the slot again, and
    // does not find it any more.
    member!(meta.retired).swap(place + 1);
    cells::mark(number, meta, id | RETIRED);
    member!(entry.slot).set(number.into());
    member!(entry.owner).set(id);
    // A barrier: whoever sees the new head sees all of the above.
    member!(control.head).swap(place + 1);
}

/// Sweeps some retired slots, unless somebody else does or the agent reads.
#[inline(always)]
pub fn sweep() {
    if let Some(control) = SLOT_CONTROL.find(0)
        && member!(control.tail).get() < limit(control)
        && lock(control)
    {
        repeat(SWEPT_AT_ONCE, sweep_next);
        member!(control.lock).swap(0);
    }
}

/// The slots before this one may be swept: their grace period is over, and the agent has seen them or
/// comes too late.
#[inline(always)]
fn limit(control: Shared<SlotControl>) -> u64 {
    if race::no_grace() {
        return member!(control.head).get();
    }
    let graced = member!(control.graced).get();
    let seen = member!(control.seen).get();
    if seen >= graced {
        return graced;
    }
    let unseen = graced.saturating_sub(kept(control, graced));
    if unseen > seen { unseen } else { seen }
}

/// How many slots whose grace period is over are left for the agent: fewer if many others wait for theirs, so
/// that not more than twice as many wait in all.
#[inline(always)]
fn kept(control: Shared<SlotControl>, graced: u64) -> u64 {
    let kept = member!(control.kept).get();
    let waiting = member!(control.head).get().saturating_sub(graced);
    if waiting <= kept {
        return kept;
    }
    (2 * kept).saturating_sub(waiting)
}

#[inline(always)]
fn lock(control: Shared<SlotControl>) -> bool {
    let lock = member!(control.lock);
    let held = lock.get();
    if held == SWEEPING {
        return false;
    }
    // SAFETY: always allowed.
    if held != 0 && unsafe { bpf_ktime_get_ns() } < held {
        return false;
    }
    lock.exchange(held, SWEEPING) == held
}

/// Sweeps the slot that was retired first: a callback of [`repeat`].
#[inline(never)]
extern "C" fn sweep_next(_: u64, _: *mut c_void) -> i64 {
    let Some(control) = SLOT_CONTROL.find(0) else {
        return 1;
    };
    let place = member!(control.tail).get();
    if place >= limit(control) {
        return 1;
    }
    let Some(entry) = RETIRED_SLOTS.find(place as u32 & RING_MASK.load()) else {
        return 1;
    };
    let number = member!(entry.slot).get() as u32;
    let Some(meta) = meta(number) else {
        return 1;
    };
    cells::pour(number, meta, member!(meta.heir_slot).get() as u32);
    member!(meta.owner).swap(0);
    // A barrier: from here on the slot may be anybody's.
    member!(meta.retired).swap(0);
    let _ = FREE_SLOTS.push(number, 0);
    member!(control.taken).add(u64::MAX);
    member!(control.tail).set(place + 1);
    0
}

/// A task that has ended is freed.
///
/// TP_PROTO(struct task_struct *p)
#[btf_tracepoint(function = "sched_process_free")]
pub fn sched_process_free(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    if let Some(state) = task::state(Task(ctx.arg::<*const c_void>(0))) {
        grace::note_freed(state);
    }
    sweep();
    0
}
