//! Slots: the small number that stands for a cgroup.
//!
//! A cgroup gets its slot at its first event, by whichever program sees it first. Every later
//! event takes it from the task's storage; the hash is looked up only when a task is new or moved.

use aya_ebpf::{
    btf_maps::{HashMap, Queue},
    macros::btf_map,
};
use collector_common::{
    cell::{OVERFLOW_OWNER, OVERFLOW_SLOT},
    stat::Stat,
};

use crate::{
    maps::{Find, NOEXIST},
    stat,
};

/// Cgroup id to slot. The loader sets `max_entries` (`--cgroup.max`).
#[btf_map]
static SLOTS: HashMap<u64, u32, 1> = HashMap::new();

/// Unused slots. The agent makes their chunks before it puts them here.
#[btf_map]
static FREE_SLOTS: Queue<u32, 1> = Queue::new();

/// A slot and the id that its cells carry as owner.
#[derive(Clone, Copy)]
pub struct Slot {
    pub number: u32,
    pub owner: u64,
}

impl Slot {
    pub const OVERFLOW: Self = Self {
        number: OVERFLOW_SLOT,
        owner: OVERFLOW_OWNER,
    };

    #[inline(always)]
    pub fn is_overflow(self) -> bool {
        self.number == OVERFLOW_SLOT
    }
}

/// The slot of a cgroup, a new one if it has none, the overflow slot if there is none left.
#[inline(always)]
pub fn resolve(cgroup_id: u64) -> Slot {
    // For a task that leaves the overflow slot.
    if cgroup_id == OVERFLOW_OWNER {
        return Slot::OVERFLOW;
    }
    if let Some(number) = lookup(cgroup_id) {
        return Slot {
            number,
            owner: cgroup_id,
        };
    }
    let Ok(Some(number)) = FREE_SLOTS.pop() else {
        stat::count(Stat::Overflow);
        return Slot::OVERFLOW;
    };
    if SLOTS.insert(cgroup_id, number, NOEXIST).is_ok() {
        return Slot {
            number,
            owner: cgroup_id,
        };
    }
    // Another CPU was faster, or the hash is full: the slot is still free.
    let _ = FREE_SLOTS.push(number, 0);
    match lookup(cgroup_id) {
        Some(number) => Slot {
            number,
            owner: cgroup_id,
        },
        None => {
            stat::count(Stat::Overflow);
            Slot::OVERFLOW
        }
    }
}

/// An entry is removed only after its cgroup is gone. A number that is read just before is noticed
/// when the id is compared with the cell's owner.
#[inline(always)]
fn lookup(cgroup_id: u64) -> Option<u32> {
    Some(SLOTS.find(cgroup_id)?.get())
}
