//! Slots: the small number that stands for a cgroup.
//!
//! A cgroup gets its slot at its first event, by whichever program sees it first. Every later
//! event takes it from the task's storage; the hash is looked up only when a task is new or moved.
//! Where no slot is free, a cgroup counts in the slot of its nearest ancestor that has one.
//!
//! What becomes of the slot of a removed cgroup is in [`removal`](crate::removal).

use aya_ebpf::{
    btf_maps::{Array, HashMap, Queue, Stack},
    macros::btf_map,
};
use collector_common::{
    cell::CELLS_PER_CHUNK,
    slot::{BORROWED, BORROWERS, ROOT_ID, ROOT_SLOT, RingEntry, SlotControl, SlotMeta},
    stat::Stat,
};

use crate::{
    heir,
    kernel::{AnyCgroup, Cgroup},
    maps::{ChunkMap, Find, MMAPABLE, NO_PREALLOC, NOEXIST},
    shared::{Shared, Words, member, number, repeat_on},
    stat,
};

/// Cgroup id to slot, with [`BORROWED`] for a cgroup that has none of its own. The loader sets
/// `max_entries`.
#[btf_map]
pub static SLOTS: HashMap<u64, u32, 1> = HashMap::new();

/// Unused slots. The agent makes their chunks before it puts them here; swept slots come back, and are used
/// again first: their memory is in the caches.
#[btf_map]
pub static FREE_SLOTS: Stack<u32, 1> = Stack::new();

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

/// Ids of cgroups whose children have precedence: slices, pods, folders of container runtimes. The agent
/// knows them. The loader sets `max_entries`.
#[btf_map]
static FAVOURED_PARENTS: HashMap<u64, u64, 1, NO_PREALLOC> = HashMap::new();

/// Ids of cgroups that took a slot just when they were removed. The next removal retires the slots.
#[btf_map]
pub static ORPHANS: Queue<u64, 1024> = Queue::new();

/// A cgroup and its slot.
#[repr(C)]
struct Recent {
    cgroup: u64,
    slot: u64,
}

/// Slots that were looked up lately, by some bits of the cgroup's id. Two CPUs may write an entry at the
/// same time, so that it has the slot of another cgroup: whoever uses it compares the owner of the slot's
/// cell.
#[btf_map]
static RECENT_SLOTS: Array<Recent, RECENT> = Array::new();

/// Number of those: a power of two.
const RECENT: usize = 256;

/// Most ancestors that are asked for a slot. Deeper trees are rare: the root counts for what is below.
pub const DEPTH: u32 = 24;
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
    Slot::numbered(find_slot(number(cgroup.0)) as u32)
}

/// The slot of a cgroup of which the id alone is known, and which has had a slot: its own, or that of
/// its heir if it was removed. Never makes one.
#[inline(always)]
pub fn of_id(id: u64) -> Slot {
    Slot::numbered(find_slot_by_id(id) as u32)
}

/// The slot of a cgroup of which the address may be unknown (0).
#[inline(always)]
pub fn resolve_known(id: u64, cgroup: AnyCgroup) -> Slot {
    if cgroup.0 == 0 {
        of_id(id)
    } else {
        resolve_any(id, cgroup)
    }
}

/// Makes sure that a cgroup has a slot, so that its id is enough later.
#[inline(always)]
pub fn prepare(cgroup: Cgroup) {
    let id = cgroup.id();
    if recent(id).is_none() {
        note_recent(id, resolve(cgroup));
    }
}

/// The slot that a cgroup had when it was looked up lately. It may be another cgroup's.
#[inline(always)]
pub fn recent(id: u64) -> Option<u32> {
    let entry = RECENT_SLOTS.find(recent_index(id))?;
    (member!(entry.cgroup).get() == id).then(|| member!(entry.slot).get() as u32)
}

/// Notes a slot that was looked up, unless it is that of an ancestor.
#[inline(always)]
pub fn note_recent(id: u64, slot: Slot) {
    if slot.owner == id
        && let Some(entry) = RECENT_SLOTS.find(recent_index(id))
    {
        member!(entry.slot).set(slot.number.into());
        member!(entry.cgroup).set(id);
    }
}

/// Ids are mostly consecutive.
#[inline(always)]
fn recent_index(id: u64) -> u32 {
    id as u32 & (RECENT as u32 - 1)
}

/// Notes that one of a slot's cells has been claimed. Returns 0 if the slot is not the owner's any more.
/// Global, like [`find_slot`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn note_claim(number: u64, owner: u64, bit: u64) -> u64 {
    let Some(meta) = meta(number as u32) else {
        return 0;
    };
    let word = member!(meta.claimed).wrapped((bit >> 6) as usize);
    // A barrier: either the removal sees the bit, or this sees the removal.
    word.set_bits(1 << (bit & 63));
    let is_live = member!(meta.retired).get() == 0 && member!(meta.owner).get() == owner;
    is_live.into()
}

/// The slot above: of a retired slot the heir's, else the parent's.
#[inline(always)]
pub fn above(number: u32) -> Slot {
    let Some(meta) = meta(number) else {
        return Slot::ROOT;
    };
    if member!(meta.retired).get() != 0 {
        return Slot::numbered(member!(meta.heir_slot).get() as u32);
    }
    of_id(member!(meta.heir).get())
}

/// An entry is removed only after its cgroup is gone. A number that is read just before is noticed
/// when the id is compared with the cell's owner.
#[inline(always)]
pub fn lookup(id: u64) -> Option<u32> {
    Some(SLOTS.find(id)?.get())
}

/// Number of the slot of a cgroup, given by its address.
///
/// Not inlined, so that the usual ways stay short; global, as are its parts, so that the verifier looks at
/// each once for each program, and not once for each call and each way to it. A cgroup is online from its
/// creation until `cgroup_rmdir`; after that, whoever still has its address counts at the parent.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn find_slot(address: u64) -> u64 {
    let [cgroup, found, without] = repeat_on(DEPTH, find_at, [address, 0, 0]);
    let number = number_of(found);
    if without != 0 {
        borrow_slot(without, if found != 0 { cgroup } else { 0 }, number);
    }
    if found & TAKEN != 0 {
        give_slots(cgroup);
    }
    number
}

// A slot that was found, as one word: its number plus one, and whether it was taken just now. 0: none.
const TAKEN: u64 = 1 << 32;

#[inline(always)]
fn word_of(number: u32) -> u64 {
    u64::from(number & !BORROWED) + 1
}

#[inline(always)]
fn number_of(found: u64) -> u64 {
    match found as u32 {
        0 => ROOT_SLOT.into(),
        plus_one => u64::from(plus_one - 1),
    }
}

/// Looks for the slot of a cgroup, then of its ancestors. The words: the cgroup, what was found, the first
/// cgroup that got none although it is online.
#[inline(never)]
extern "C" fn find_at(_: u64, words: Words<3>) -> i64 {
    let cgroup = AnyCgroup(words.get::<0>());
    if cgroup.0 == 0 {
        return 1;
    }
    let slot = own_slot(cgroup.0);
    if slot != NONE && slot != NONE_FREE {
        words.set::<1>(slot);
        return 1;
    }
    if slot == NONE_FREE && words.get::<2>() == 0 {
        words.set::<2>(cgroup.0);
    }
    words.set::<0>(cgroup.parent().0);
    0
}

// A cgroup has no slot: it is not online; no slot is free.
const NONE: u64 = 0;
const NONE_FREE: u64 = 1 << 33;

/// The slot of a cgroup itself, taken if it has none and is online. Global, like [`find_slot`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn own_slot(address: u64) -> u64 {
    let cgroup = AnyCgroup(address);
    let id = cgroup.id();
    if let Some(number) = lookup(id) {
        return word_of(number);
    }
    if !cgroup.is_online() {
        return NONE;
    }
    let Some(number) = take(id, cgroup) else {
        return NONE_FREE;
    };
    if !cgroup.is_online() {
        // Removed meanwhile, perhaps before there was anything to be retired.
        if ORPHANS.push(id, 0).is_ok()
            && let Some(control) = SLOT_CONTROL.find(0)
        {
            member!(control.orphans).add(1);
        }
    }
    word_of(number) | TAKEN
}

/// Gives slots to the ancestors of a cgroup that has got one, so that they are found by their ids. Global,
/// like [`find_slot`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn give_slots(cgroup: u64) -> u64 {
    let parent = AnyCgroup(cgroup).parent().0;
    let [end, without, number] = repeat_on(DEPTH, give_at, [parent, 0, ROOT_SLOT.into()]);
    if without != 0 {
        borrow_slot(without, end, number);
    }
    0
}

/// Gives a cgroup a slot, up to the first that has one. The words: the cgroup, the first one that got none,
/// the slot of the one that has one.
#[inline(never)]
extern "C" fn give_at(_: u64, words: Words<3>) -> i64 {
    let cgroup = AnyCgroup(words.get::<0>());
    if cgroup.0 == 0 {
        return 1;
    }
    let id = cgroup.id();
    if let Some(number) = lookup(id) {
        words.set::<2>((number & !BORROWED).into());
        return 1;
    }
    if words.get::<1>() == 0 && take(id, cgroup).is_none() {
        words.set::<1>(cgroup.0);
    }
    words.set::<0>(cgroup.parent().0);
    0
}

/// Takes a free slot for a cgroup.
#[inline(always)]
fn take(id: u64, cgroup: AnyCgroup) -> Option<u32> {
    match take_slot(id, cgroup.parent().id()) {
        0 => None,
        number => Some(number as u32 - 1),
    }
}

/// Takes a free slot for a cgroup. Returns its number plus one, 0 if it can have none. Global, like
/// [`find_slot`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn take_slot(id: u64, parent: u64) -> u64 {
    let Some(control) = SLOT_CONTROL.find(0) else {
        return 0;
    };
    if id <= member!(control.unnoted).get() {
        return 0;
    }
    let siblings = siblings_of(parent);
    if !may_take(control, parent, siblings) {
        return 0;
    }
    let Ok(Some(number)) = FREE_SLOTS.pop() else {
        return 0;
    };
    let Some(meta) = meta(number) else {
        return 0;
    };
    member!(meta.heir).set(parent);
    member!(meta.owner).set(id);
    member!(meta.children).set(0);
    member!(meta.counted_at).set(0);
    if SLOTS.insert(id, number, NOEXIST).is_ok() {
        member!(control.taken).add(1);
        if let Some((at, siblings)) = siblings {
            member!(siblings.children).add(1);
            member!(meta.counted_at).set(u64::from(at) + 1);
        }
        return u64::from(number) + 1;
    }
    // Another CPU was faster, or the hash is full: the slot is still free.
    member!(meta.owner).set(0);
    let _ = FREE_SLOTS.push(number, 0);
    match lookup(id) {
        Some(number) => u64::from(number) + 1,
        None => 0,
    }
}

/// The slot of a parent, where its children are counted. `None` if it has none of its own: children get their
/// slots before their parents do, so the first of each is not counted.
#[inline(always)]
fn siblings_of(parent: u64) -> Option<(u32, Shared<SlotMeta>)> {
    let number = lookup(parent)?;
    if number & BORROWED != 0 {
        return None;
    }
    Some((number, meta(number)?))
}

/// Whether a child of that cgroup may have a slot. A part of them all is kept for cgroups that have
/// precedence, and the others of one parent may have only so many. Two CPUs at the same time may go beyond.
#[inline(always)]
fn may_take(
    control: Shared<SlotControl>,
    parent: u64,
    siblings: Option<(u32, Shared<SlotMeta>)>,
) -> bool {
    let within = member!(control.taken).get() < member!(control.common).get()
        && siblings.is_none_or(|(_, siblings)| {
            member!(siblings.children).get() < member!(control.siblings).get()
        });
    within || FAVOURED_PARENTS.find(parent).is_some()
}

/// The slot in which a slot is counted as a child, with the owner that it has now.
#[inline(always)]
pub fn counted_at(number: u32) -> Option<Slot> {
    let child = meta(number)?;
    let number = (member!(child.counted_at).get() as u32).checked_sub(1)?;
    let parent = meta(number)?;
    Some(Slot {
        number,
        owner: member!(parent.owner).get(),
    })
}

/// Ends the counting of a slot among its parent's children. To be called while `heir` is the parent.
#[inline(always)]
pub fn leave_siblings(meta: Shared<SlotMeta>) {
    let at = member!(meta.counted_at).get();
    if at != 0
        && let Some(siblings) = self::meta(at as u32 - 1)
        // An orphan may come late: then somebody else may have that slot.
        && member!(siblings.owner).get() == member!(meta.heir).get()
    {
        member!(siblings.children).add(u64::MAX);
    }
}

/// Notes that the cgroups from `first` up to `end`, which has the slot, count there. For good, because
/// a cgroup of which only the later part is counted would be served too small; so would one of whose
/// children only the later ones count there. Global, like [`find_slot`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn borrow_slot(first: u64, end: u64, number: u64) -> u64 {
    let open = SLOT_CONTROL
        .find(0)
        .map(|control| member!(control.open).get());
    if open.is_none_or(|open| open == 0) {
        return 0;
    }
    repeat_on(DEPTH, borrow_at, [first, end, number]);
    0
}

/// Notes one of those cgroups. The words: the cgroup, the one that has the slot, the slot.
#[inline(never)]
extern "C" fn borrow_at(_: u64, words: Words<3>) -> i64 {
    let cgroup = AnyCgroup(words.get::<0>());
    if cgroup.0 == words.get::<1>() || cgroup.0 == 0 {
        return 1;
    }
    note_borrower(cgroup.id(), cgroup, words.get::<2>() as u32 | BORROWED);
    words.set::<0>(cgroup.parent().0);
    0
}

/// Notes that a cgroup counts in this slot of an ancestor; where there is no room, that cgroups up to this one may do
/// so.
#[inline(always)]
fn note_borrower(id: u64, cgroup: AnyCgroup, entry: u32) {
    let Some(control) = SLOT_CONTROL.find(0) else {
        return;
    };
    let borrowers = member!(control.borrowers);
    if (borrowers.get() as i64) < i64::from(BORROWERS) {
        // Before there is the entry: whoever takes it out counts it back.
        borrowers.add(1);
        if SLOTS.insert(id, entry, NOEXIST).is_ok() {
            stat::count(Stat::Borrowed);
            if !cgroup.is_online() {
                forget_borrower(id);
            }
            return;
        }
        borrowers.add(u64::MAX);
        // Another CPU was faster, or the cgroup was removed. Else the hash was busy.
        if lookup(id).is_some() || !cgroup.is_online() {
            return;
        }
    }
    let unnoted = member!(control.unnoted);
    for _ in 0..UNNOTED_TRIES {
        let highest = unnoted.get();
        if highest >= id {
            return;
        }
        if unnoted.exchange(highest, id) == highest {
            stat::count(Stat::Borrowed);
            return;
        }
    }
}

/// How often a CPU tries to raise a word that others raise as well. Each time that it fails another one has raised it.
const UNNOTED_TRIES: u32 = 8;

/// Takes out the entry of a cgroup without a slot: it was removed.
#[inline(always)]
pub fn forget_borrower(id: u64) {
    let Some(control) = SLOT_CONTROL.find(0) else {
        return;
    };
    // The second time if the hash was busy. Who comes later finds nothing.
    for _ in 0..2 {
        if lookup(id).is_none_or(|found| found & BORROWED == 0) {
            return;
        }
        if SLOTS.remove(id).is_ok() {
            member!(control.borrowers).add(u64::MAX);
            return;
        }
    }
}

/// Number of the slot of a cgroup of which the id alone is known. Global, like [`find_slot`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn find_slot_by_id(id: u64) -> u64 {
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
    let Some((heir, _)) = heir::of(id) else {
        return 1;
    };
    words.set::<0>(heir);
    0
}
