//! Values by cgroup and something else: a device, a reason.
//!
//! A slot's table leads from a thing to the value that counts it, see [`collector_common::keyed`]. The
//! usual way is three array lookups: the slot of the cgroup, its table, the value. A table belongs to its
//! slot's owner as a cell does, and is passed on to the heir with all of its values.

use aya_ebpf::btf_maps::Stack;
use collector_common::{
    keyed::{Counters, KeyTable, OTHER_VALUE, THINGS, VALUES_PER_CHUNK, entry, value_of, what_of},
    slot::{Claimed, ROOT_SLOT},
    stat::Stat,
};

use crate::{
    cell::{self, Cells},
    kernel::AnyCgroup,
    maps::{ChunkMap, Find},
    shared::{Shared, Words, member, number, repeat_on},
    slot::{self, DEPTH, Slot},
    stat,
};

/// The pool of a source's values.
pub type Values<T> = ChunkMap<T, { VALUES_PER_CHUNK as usize }>;
/// Numbers of those that no table has. The agent makes their chunks before it puts them here.
pub type FreeValues = Stack<u32, 1>;

/// A source of such values: its maps.
pub trait Keyed {
    type Value: Counters + 'static;
    /// The tables' bit in `SlotMeta::claimed`.
    const CLAIMED: Claimed;
    fn tables() -> &'static Cells<KeyTable>;
    fn values() -> &'static Values<Self::Value>;
    fn free() -> &'static FreeValues;
    /// [`find`] as a global function, which the verifier looks at once for each program.
    fn find_global(id: u64, address: u64, what: u64) -> u64;
    /// [`hand_over`] as a global function.
    fn hand_over_global(heir: u64, entry: u64);
}

/// Makes the maps of a source, and [`Keyed`] for the type that stands for it. The loader sets
/// `max_entries`.
macro_rules! keyed {
    ($source:ident, $value:ty, $claimed:ident, $tables:ident, $values:ident, $free:ident, $find:ident, $hand_over:ident) => {
        #[aya_ebpf::macros::btf_map]
        static $tables: $crate::cell::Cells<collector_common::keyed::KeyTable> =
            $crate::cell::Cells::new();
        #[aya_ebpf::macros::btf_map]
        static $values: $crate::keyed::Values<$value> = $crate::keyed::Values::new();
        #[aya_ebpf::macros::btf_map]
        static $free: $crate::keyed::FreeValues = $crate::keyed::FreeValues::new();

        /// Stands for the source.
        pub enum $source {}

        impl $crate::keyed::Keyed for $source {
            type Value = $value;
            const CLAIMED: collector_common::slot::Claimed =
                collector_common::slot::Claimed::$claimed;
            #[inline(always)]
            fn tables() -> &'static $crate::cell::Cells<collector_common::keyed::KeyTable> {
                &$tables
            }
            #[inline(always)]
            fn values() -> &'static $crate::keyed::Values<$value> {
                &$values
            }
            #[inline(always)]
            fn free() -> &'static $crate::keyed::FreeValues {
                &$free
            }
            #[inline(always)]
            fn find_global(id: u64, address: u64, what: u64) -> u64 {
                $find(id, address, what)
            }
            #[inline(always)]
            fn hand_over_global(heir: u64, entry: u64) {
                $hand_over(heir, entry);
            }
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $find(id: u64, address: u64, what: u64) -> u64 {
            $crate::keyed::find::<$source>(id, address, what)
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $hand_over(heir: u64, entry: u64) -> u64 {
            $crate::keyed::hand_over::<$source>(heir, entry);
            0
        }
    };
}
pub(crate) use keyed;

/// The value of a cgroup and a thing, made if there is none. The cgroup's address may be unknown (0) if
/// the cgroup has had a slot. Every CPU and context adds to the same value.
#[inline(always)]
pub fn value<S: Keyed>(id: u64, cgroup: AnyCgroup, what: u64) -> Option<Shared<S::Value>> {
    let found = match known::<S>(id, what) {
        Some(found) => found,
        None => S::find_global(id, number(cgroup.0), what),
    };
    if found == 0 {
        stat::count(Stat::Overflow);
        return None;
    }
    S::values().find(found as u32 - 1)
}

/// The number of a cgroup's value plus one, if its slot was looked up lately and has it.
#[inline(always)]
fn known<S: Keyed>(id: u64, what: u64) -> Option<u64> {
    let table = S::tables().find(slot::recent(id)?)?;
    if table.owner().get() != id {
        return None;
    }
    for at in 0..THINGS {
        let entry = member!(table.entries).at(at)?.get();
        if entry == 0 {
            return None;
        }
        if what_of(entry) == what && value_of(entry) != 0 {
            return Some(value_of(entry));
        }
    }
    None
}

/// The same, whatever it takes. 0: there is no value for it, not even the root's.
///
/// Rare beside [`known`].
#[inline(always)]
pub fn find<S: Keyed>(id: u64, address: u64, what: u64) -> u64 {
    let slot = slot::resolve_known(id, AnyCgroup(address));
    slot::note_recent(id, slot);
    let words = [slot.number.into(), slot.owner, what, 0];
    let [_, _, _, number] = repeat_on(DEPTH, find_at::<S>, words);
    if number != 0 { number } else { other::<S>() }
}

/// Looks for a slot's value, then for that above. The words: the slot, its owner, the thing, the number of
/// the value plus one.
#[inline(never)]
extern "C" fn find_at<S: Keyed>(_: u64, words: Words<4>) -> i64 {
    let mut slot = Slot {
        number: words.get::<0>() as u32,
        owner: words.get::<1>(),
    };
    // The source is off.
    let Some(table) = S::tables().find(slot.number) else {
        return 1;
    };
    if cell::claim(table, slot, S::CLAIMED as u32) {
        let number = own::<S>(slot.number, words.get::<2>());
        words.set::<3>(number);
        if number != 0 || slot.number == ROOT_SLOT {
            return 1;
        }
        slot = slot::above(slot.number);
    } else {
        // Retired meanwhile.
        slot = slot::of_id(slot.owner);
    }
    words.set::<0>(slot.number.into());
    words.set::<1>(slot.owner);
    0
}

/// The number of the value that a slot's table has for a thing plus one, made if there is room. 0: it
/// counts above.
#[inline(always)]
fn own<S: Keyed>(slot: u32, what: u64) -> u64 {
    let words = [slot.into(), what, FULL];
    let [_, _, number] = repeat_on(THINGS as u32, own_at::<S>, words);
    if number != FULL {
        return number;
    }
    if let Some(table) = S::tables().find(slot) {
        member!(table.full).set(1);
    }
    0
}

/// Stands for the number of a value in a table that has no room.
const FULL: u64 = u64::MAX;

/// Looks at an entry. The words: the slot, the thing, the number of its value plus one.
#[inline(never)]
extern "C" fn own_at<S: Keyed>(at: u64, words: Words<3>) -> i64 {
    let Some(table) = S::tables().find(words.get::<0>() as u32) else {
        return 1;
    };
    let Some(place) = member!(table.entries).at(at as usize) else {
        return 1;
    };
    let what = words.get::<1>();
    let mut found = place.get();
    if found == 0 {
        let number = match S::free().pop() {
            Ok(Some(number)) => u64::from(number) + 1,
            _ => 0,
        };
        let made = entry(what, number);
        found = place.exchange(0, made);
        if found == 0 {
            found = made;
        } else if number != 0 {
            // Another CPU was faster.
            let _ = S::free().push(number as u32 - 1, 0);
        }
    }
    if what_of(found) == what {
        words.set::<2>(value_of(found));
        return 1;
    }
    0
}

/// The number of the root's value for everything else plus one.
#[inline(always)]
fn other<S: Keyed>() -> u64 {
    match S::tables().find(ROOT_SLOT) {
        Some(table) if member!(table.has_other).get() != 0 => u64::from(OTHER_VALUE) + 1,
        _ => 0,
    }
}

/// Gives an entry of a retired slot to its heir: the value as it is if the heir has none for the thing,
/// else what it has counted. If the heir's table is full, to the next above.
#[inline(always)]
pub fn hand_over<S: Keyed>(heir: u64, entry: u64) {
    let from = value_of(entry);
    if from == 0 {
        return;
    }
    let [_, _, moved, mut to] = repeat_on(DEPTH, hand_over_at::<S>, [heir, entry, 0, 0]);
    if moved != 0 {
        return;
    }
    if to == 0 {
        to = other::<S>();
    }
    if to == 0 {
        return;
    }
    let (Some(counted), Some(sum)) = (
        S::values().find(from as u32 - 1),
        S::values().find(to as u32 - 1),
    ) else {
        return;
    };
    counted.pour_counters(sum);
    let _ = S::free().push(from as u32 - 1, 0);
}

/// Offers an entry to a slot, then to that above. The words: the slot, the entry, whether it was taken as it
/// is, the number of the value to add it to plus one.
#[inline(never)]
extern "C" fn hand_over_at<S: Keyed>(_: u64, words: Words<4>) -> i64 {
    let (slot, entry) = (words.get::<0>(), words.get::<1>());
    let [_, _, taken, value] = repeat_on(THINGS as u32, take_at::<S>, [slot, entry, NOT_TAKEN, 0]);
    match taken {
        MOVED => {
            words.set::<2>(1);
            return 1;
        }
        SAME_THING if value != 0 => {
            words.set::<3>(value);
            return 1;
        }
        // It counts the thing above itself.
        SAME_THING => {}
        _ => {
            if let Some(table) = S::tables().find(slot as u32) {
                member!(table.full).set(1);
            }
        }
    }
    if slot == u64::from(ROOT_SLOT) {
        return 1;
    }
    words.set::<0>(slot::above(slot as u32).number.into());
    0
}

// What a table does with an entry: it has no room, it has the entry now, it has one for the same thing.
const NOT_TAKEN: u64 = 0;
const MOVED: u64 = 1;
const SAME_THING: u64 = 2;

/// Offers an entry to a place in a table. The words: the slot, the entry, what became of it, the number of
/// the table's value for the thing plus one.
#[inline(never)]
extern "C" fn take_at<S: Keyed>(at: u64, words: Words<4>) -> i64 {
    let Some(table) = S::tables().find(words.get::<0>() as u32) else {
        return 1;
    };
    let Some(place) = member!(table.entries).at(at as usize) else {
        return 1;
    };
    let entry = words.get::<1>();
    let mut found = place.get();
    if found == 0 {
        found = place.exchange(0, entry);
        if found == 0 {
            slot::note_claim(words.get::<0>(), 0, S::CLAIMED as u64);
            words.set::<2>(MOVED);
            return 1;
        }
    }
    if what_of(found) == what_of(entry) {
        words.set::<2>(SAME_THING);
        words.set::<3>(value_of(found));
        return 1;
    }
    0
}
