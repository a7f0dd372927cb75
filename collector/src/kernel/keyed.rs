//! Values keyed by cgroup and a second key, such as a device or a reason.
//!
//! Each slot has a table of such values in each source. The kernel programs make its entries
//! (collector-ebpf/src/keyed.rs) and pass them on when the cgroup is removed. The agent provides the
//! values of the pool, and reads tables and values through memory.

use std::{io, sync::atomic::Ordering::Release};

use aya::maps::{MapData, Stack};
use collector_common::{
    block::BlockValue,
    cell::CELLS_PER_CHUNK,
    drops::Drops,
    keyed::{Counters, KeyTable, OTHER, OTHER_VALUE, VALUES_PER_CHUNK, value_of, what_of},
    slot::{RETIRED, ROOT_SLOT, SlotControl},
};
use zerocopy::FromBytes;

use super::{
    cells::SlotMemory,
    chunks::{MappedChunks, Outer},
    map::OpenError,
    mapping::{Mapping, Word, word},
};

/// Values that are kept free at least: more than retired slots are left for the agent to look at.
const RESERVE: u32 = 192;

/// The highest number of values on a host with at most so many slots.
pub fn max_values(slots: u32) -> u32 {
    slots.saturating_add(RESERVE)
}

const HAS_OTHER: Word<KeyTable> = word!(KeyTable, has_other);

/// Names of a source's maps in the kernel object.
#[derive(Clone, Copy, Debug)]
pub struct KeyedMaps {
    /// The tables, an array of maps.
    pub tables: &'static str,
    /// The pool of values, an array of maps.
    pub values: &'static str,
    /// The stack of free values.
    pub free: &'static str,
    /// Where the number of values is kept.
    made: Word<SlotControl>,
}

/// A value of a keyed source.
pub trait KeyedValue: FromBytes + Counters + Send {
    /// The source's maps.
    const MAPS: KeyedMaps;
}

macro_rules! keyed {
    ($($value:ident: $tables:literal, $values:literal, $free:literal, $made:ident;)*) => {
        $(
            impl KeyedValue for $value {
                const MAPS: KeyedMaps = KeyedMaps {
                    tables: $tables,
                    values: $values,
                    free: $free,
                    made: word!(SlotControl, $made),
                };
            }
        )*
        /// The maps of every such source.
        pub const KEYED_MAPS: &[KeyedMaps] = &[$($value::MAPS,)*];
    };
}

keyed! {
    BlockValue: "BLOCK_TABLES", "BLOCK_VALUES", "FREE_BLOCK_VALUES", block_values;
    Drops: "DROP_TABLES", "DROP_VALUES", "FREE_DROP_VALUES", drop_values;
}

/// The tables and values of a source.
pub struct KeyedCells<T> {
    tables: MappedChunks<KeyTable>,
    values: MappedChunks<T>,
    free: Stack<MapData, u32>,
    /// Where the number of values is kept for a later agent.
    control: Mapping<SlotControl>,
    /// Number of values that exist.
    made: u32,
    /// The highest number of values.
    max: u32,
    /// Values that tables had at the last reading.
    used: u32,
}

/// What a cgroup counts in an ancestor's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lent {
    /// Second keys without a value.
    without: Vec<u64>,
    /// Second keys with a value, if the table is full: any other one is without.
    only: Option<Vec<u64>>,
}

impl Lent {
    /// Whether the cgroup's own value for a second key is less than what it has counted.
    pub fn has(&self, what: u64) -> bool {
        let others = self.only.as_ref();
        self.without.contains(&what) || others.is_some_and(|only| !only.contains(&what))
    }
}

impl<T: KeyedValue> KeyedCells<T> {
    /// Opens the maps, for at most `slots` slots.
    ///
    /// # Errors
    ///
    /// If one of the maps is not what it should be.
    pub fn new(
        tables: &Outer<'_>,
        values: &Outer<'_>,
        free: Stack<MapData, u32>,
        control: Mapping<SlotControl>,
        slots: u32,
    ) -> Result<Self, OpenError> {
        let made = control.load(0, T::MAPS.made);
        Ok(Self {
            tables: MappedChunks::new(tables, CELLS_PER_CHUNK)?,
            values: MappedChunks::new(values, VALUES_PER_CHUNK)?,
            free,
            control,
            made: u32::try_from(made).unwrap_or(u32::MAX),
            max: max_values(slots),
            used: 0,
        })
    }

    fn table(&self, slot: u32) -> Option<KeyTable> {
        let (chunk, entry) = self.tables.place(slot)?;
        Some(chunk.read(entry))
    }

    /// Passes each second key of a slot's cgroup and its value to `each`. Returns their number.
    pub fn read(&self, slot: u32, mut each: impl FnMut(u64, &T)) -> u32 {
        let mut count = 0;
        let Some(table) = self.table(slot) else {
            return count;
        };
        let of_entries = table.entries.iter().take_while(|&&entry| entry != 0);
        let of_entries = of_entries.map(|&entry| (what_of(entry), value_of(entry)));
        let other = (table.has_other != 0).then_some((OTHER, u64::from(OTHER_VALUE) + 1));
        for (what, value) in of_entries.chain(other) {
            let number = value.checked_sub(1);
            let place = number.and_then(|number| self.values.place(u32::try_from(number).ok()?));
            if let Some((chunk, at)) = place {
                each(what, &chunk.read(at));
                count += 1;
            }
        }
        count
    }

    /// What the cgroup of a slot counts in an ancestor's table, and the cgroup's id. `None` if there
    /// is nothing.
    pub fn lent(&self, slot: u32) -> Option<(u64, Lent)> {
        // The root's table has an entry for everything else.
        if slot == ROOT_SLOT {
            return None;
        }
        let table = self.table(slot)?;
        let entries = table.entries.iter().take_while(|&&entry| entry != 0);
        let (with, without): (Vec<_>, Vec<_>) = entries.partition(|&&entry| value_of(entry) != 0);
        let full = table.full != 0;
        if without.is_empty() && !full {
            return None;
        }
        let whats = |entries: Vec<&u64>| entries.into_iter().map(|&entry| what_of(entry)).collect();
        let lent = Lent {
            without: whats(without),
            only: full.then(|| whats(with)),
        };
        Some((table.owner & !RETIRED, lent))
    }

    /// Notes how many values all tables have.
    pub fn set_used(&mut self, used: u32) {
        self.used = used;
    }

    fn set_made(&mut self, made: u32) {
        self.made = made;
        let word = self.control.atomic(0, T::MAPS.made);
        word.store(made.into(), Release);
    }

    /// Makes the value for whatever finds no entry in the root's table.
    fn make_other(&mut self) -> io::Result<()> {
        if self.tables.place(ROOT_SLOT).is_none() {
            return Ok(());
        }
        self.values.grow_to(self.values.needed(1))?;
        self.set_made(OTHER_VALUE + 1);
        if let Some((chunk, at)) = self.tables.place(ROOT_SLOT) {
            chunk.atomic(at, HAS_OTHER).store(1, Release);
        }
        Ok(())
    }
}

impl<T: KeyedValue> SlotMemory for KeyedCells<T> {
    fn has_room(&self, slots: u32) -> bool {
        self.tables.count() >= self.tables.needed(slots.into())
    }

    fn provide(&mut self, slots: u32) -> io::Result<()> {
        self.tables.grow_to(self.tables.needed(slots.into()))
    }

    fn top_up(&mut self) -> io::Result<()> {
        if self.made == 0 {
            self.make_other()?;
        }
        let wanted = self.used.saturating_add(RESERVE.max(self.used / 8));
        while self.made < wanted.min(self.max) {
            self.values
                .grow_to(self.values.needed(u64::from(self.made) + 1))?;
            let value = self.made;
            // First, so that no later agent makes it again.
            self.set_made(value + 1);
            self.free.push(value, 0).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.tables.bytes() + self.values.bytes()
    }
}
