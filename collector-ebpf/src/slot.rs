//! Slots: the small number that stands for a cgroup.
//!
//! A cgroup gets its slot at its first event, by whichever program sees it first. Every later
//! event takes it from the task's storage; the hash is looked up only when a task is new or moved.
//! Where no slot is free, a cgroup counts in the slot of its nearest ancestor that has one.
//!
//! What becomes of the slot of a removed cgroup is in [`removal`](crate::removal).

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap, Queue},
    macros::btf_map,
};
use collector_common::{
    cell::CELLS_PER_CHUNK,
    slot::{BORROWED, Heir, ROOT_ID, ROOT_SLOT, RingEntry, SlotControl, SlotMeta},
    stat::Stat,
};

use crate::{
    kernel::{AnyCgroup, Cgroup},
    maps::{ChunkMap, Find, MMAPABLE, NOEXIST},
    shared::{Shared, Words, member, repeat_on},
    stat,
};

/// Cgroup id to slot, with [`BORROWED`] for a cgroup that has none of its own. The loader sets
/// `max_entries`.
#[btf_map]
pub static SLOTS: HashMap<u64, u32, 1> = HashMap::new();

/// Unused slots. The agent makes their chunks before it puts them here; swept slots come back.
#[btf_map]
pub static FREE_SLOTS: Queue<u32, 1> = Queue::new();

/// What is known of each slot.
#[btf_map]
static SLOT_META: ChunkMap<SlotMeta, { CELLS_PER_CHUNK as usize }> = ChunkMap::new();

/// Retired slots in their sequence: a ring. The loader sets `max_entries`, a power of two
/// above the highest number of slots.
#[btf_map]
pub static RETIRED_SLOTS: Array<RingEntry, 1, MMAPABLE> = Array::new();

/// One entry, mapped by the agent.
#[btf_map]
pub static SLOT_CONTROL: Array<SlotControl, 1, MMAPABLE> = Array::new();

/// Heirs of removed cgroups, for events that have a cgroup's id alone.
#[btf_map]
pub static HEIRS: LruHashMap<u64, Heir, 8192> = LruHashMap::new();

/// Ids of cgroups that took a slot just when they were removed. The next removal retires the slots.
#[btf_map]
pub static ORPHANS: Queue<u64, 1024> = Queue::new();

/// Most ancestors that are asked for a slot. Deeper trees are rare: the root counts for what is below.
const DEPTH: u32 = 24;
/// Most heirs that are followed by id.
const HEIRS_FOLLOWED: u32 = 8;

/// A slot and the id that its cells carry as owner.
#[derive(Clone, Copy)]
pub struct Slot {
    pub number: u32,
    pub owner: u64,
}

impl Slot {
    pub const ROOT: Self = Self {
        number: ROOT_SLOT,
        owner: ROOT_ID,
    };

    /// With the owner that the slot has now.
    #[inline(always)]
    fn numbered(number: u32) -> Self {
        match meta(number) {
            Some(meta) => Self {
                number,
                owner: member!(meta.owner).get(),
            },
            None => Self::ROOT,
        }
    }
}

/// What is known of a slot.
#[inline(always)]
pub fn meta(number: u32) -> Option<Shared<SlotMeta>> {
    SLOT_META.find(number)
}

/// The slot of a cgroup, a new one if it has none, that of an ancestor if it can have none.
#[inline(always)]
pub fn resolve(cgroup: Cgroup) -> Slot {
    resolve_any(cgroup.id(), AnyCgroup(cgroup.0 as u64))
}

/// The same, by id and address.
#[inline(always)]
pub fn resolve_any(id: u64, cgroup: AnyCgroup) -> Slot {
    if let Some(number) = lookup(id) {
        if number & BORROWED == 0 {
            return Slot { number, owner: id };
        }
        return Slot::numbered(number & !BORROWED);
    }
    Slot::numbered(find(cgroup.0) as u32)
}

/// The slot of a cgroup of which the id alone is known, and which has had a slot: its own, or that of
/// its heir if it was removed. Never makes one.
#[inline(always)]
pub fn of_id(id: u64) -> Slot {
    Slot::numbered(find_by_id(id) as u32)
}

/// An entry is removed only after its cgroup is gone. A number that is read just before is noticed
/// when the id is compared with the cell's owner.
#[inline(always)]
pub fn lookup(id: u64) -> Option<u32> {
    Some(SLOTS.find(id)?.get())
}

/// Number of the slot of a cgroup, given by its address.
///
/// Not inlined, so that the usual ways stay short. A cgroup is online from its creation until
/// `cgroup_rmdir`; after that, whoever still has its address counts at the parent.
#[inline(never)]
fn find(address: u64) -> u64 {
    let [cgroup, found, number, without] =
        repeat_on(DEPTH, find_at, [address, 0, ROOT_SLOT.into(), 0]);
    if without != 0 {
        borrow(without, if found != 0 { cgroup } else { 0 }, number as u32);
    }
    number
}

/// Looks for the slot of a cgroup, then of its ancestors. The words: the cgroup, whether a slot was found,
/// its number, the first cgroup that got none.
#[inline(never)]
extern "C" fn find_at(_: u64, words: Words<4>) -> i64 {
    let cgroup = AnyCgroup(words.get::<0>());
    if cgroup.0 == 0 {
        return 1;
    }
    let id = cgroup.id();
    let mut found = lookup(id);
    if found.is_none() && cgroup.is_online() {
        found = take(id, cgroup.parent().id());
        if found.is_some() && !cgroup.is_online() {
            // Removed meanwhile, perhaps before there was anything to be retired.
            let _ = ORPHANS.push(id, 0);
        }
        if found.is_none() && words.get::<3>() == 0 {
            words.set::<3>(cgroup.0);
        }
    }
    if let Some(number) = found {
        words.set::<1>(1);
        words.set::<2>((number & !BORROWED).into());
        return 1;
    }
    words.set::<0>(cgroup.parent().0);
    0
}

/// Takes a free slot for a cgroup.
#[inline(always)]
fn take(id: u64, parent: u64) -> Option<u32> {
    let Ok(Some(number)) = FREE_SLOTS.pop() else {
        return None;
    };
    let meta = meta(number)?;
    member!(meta.heir).set(parent);
    member!(meta.owner).set(id);
    if SLOTS.insert(id, number, NOEXIST).is_ok() {
        return Some(number);
    }
    // Another CPU was faster, or the hash is full: the slot is still free.
    member!(meta.owner).set(0);
    let _ = FREE_SLOTS.push(number, 0);
    lookup(id)
}

/// Notes that the cgroups from `first` up to `end`, which has the slot, count there. For good, because
/// a cgroup of which only the later part is counted would be served too small; so would one of whose
/// children only the later ones count there.
#[inline(always)]
fn borrow(first: u64, end: u64, number: u32) {
    let open = SLOT_CONTROL
        .find(0)
        .map(|control| member!(control.open).get());
    if open.is_none_or(|open| open == 0) {
        return;
    }
    stat::count(Stat::Borrowed);
    repeat_on(DEPTH, borrow_at, [first, end, number.into()]);
}

/// Notes one of those cgroups. The words: the cgroup, the one that has the slot, the slot.
#[inline(never)]
extern "C" fn borrow_at(_: u64, words: Words<3>) -> i64 {
    let cgroup = AnyCgroup(words.get::<0>());
    if cgroup.0 == words.get::<1>() || cgroup.0 == 0 {
        return 1;
    }
    let id = cgroup.id();
    let _ = SLOTS.insert(id, words.get::<2>() as u32 | BORROWED, NOEXIST);
    if !cgroup.is_online() {
        let _ = SLOTS.remove(id);
    }
    words.set::<0>(cgroup.parent().0);
    0
}

#[inline(never)]
fn find_by_id(id: u64) -> u64 {
    let [_, number] = repeat_on(HEIRS_FOLLOWED, find_heir, [id, ROOT_SLOT.into()]);
    number
}

/// Looks for the slot of a cgroup, then of its heirs. The words: the id, the number of the slot.
#[inline(never)]
extern "C" fn find_heir(_: u64, words: Words<2>) -> i64 {
    let id = words.get::<0>();
    if let Some(number) = lookup(id) {
        words.set::<1>((number & !BORROWED).into());
        return 1;
    }
    let Some(heir) = HEIRS.find(id) else {
        return 1;
    };
    words.set::<0>(member!(heir.cgroup).get());
    0
}
