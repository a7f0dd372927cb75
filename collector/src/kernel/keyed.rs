//! Values by cgroup and something else: a device, a reason.
//!
//! For what a cgroup has few of and not always the same. The kernel side makes an entry at the
//! first event (collector-ebpf/src/keyed.rs); the agent reads all of them in batches and takes out
//! those of removed cgroups. A source may have rows for some of them beside (`rows`). Keys are
//! cgroup ids, not slots: ids are never used again.

use std::{io, os::fd::BorrowedFd};

use anyhow::Context;
use collector_common::{block::BlockValue, drops::Drops, keyed::CgroupKey, pass::CgroupRecord};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::map::Map;

/// A value as it is in the kernel.
pub trait KeyedValue: FromBytes + IntoBytes + Immutable + Copy + Send {
    /// Name of the hash in the kernel object.
    const MAP: &'static str;
    /// Name of the array of rows, if the source has any.
    const ROWS: Option<&'static str>;
}

macro_rules! keyed {
    ($($value:ident, $map:literal, $rows:expr;)*) => {
        $(
            impl KeyedValue for $value {
                const MAP: &'static str = $map;
                const ROWS: Option<&'static str> = $rows;
            }
        )*
        /// Every such hash of the object; they have as many entries as there may be slots.
        pub const KEYED_MAPS: &[&str] = &[$($map,)*];
        /// Every array of rows, where there is one.
        pub const ROW_MAPS: &[Option<&str>] = &[$($rows,)*];
    };
}

keyed! {
    CgroupRecord, "LAST_RECORDS", None;
    BlockValue, "BLOCK_IO", Some("BLOCK_ROWS");
    Drops, "DROPS", None;
}

/// The values of a source.
#[derive(Debug)]
pub struct Keyed<T> {
    map: Map<CgroupKey, T>,
    keys: Vec<CgroupKey>,
    values: Vec<T>,
}

impl<T: KeyedValue> Keyed<T> {
    /// Over the hash `map`; makes the entry of those that find no room.
    ///
    /// # Errors
    ///
    /// When the map is of other keys or values, and when the entry can't be made.
    pub fn new(map: BorrowedFd<'_>) -> anyhow::Result<Self> {
        let map = Map::hash(map)?;
        map.insert(&CgroupKey::OVERFLOW, &T::new_zeroed())
            .context("making the entry for overflow")?;
        Ok(Self {
            map,
            keys: Vec::new(),
            values: Vec::new(),
        })
    }

    /// Reads every entry; that of those that found no room once there is something in it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn read(&mut self) -> io::Result<impl Iterator<Item = (CgroupKey, &T)>> {
        self.map.read_all(&mut self.keys, &mut self.values)?;
        let entries = self.keys.iter().copied().zip(&self.values);
        Ok(entries.filter(|(key, value)| *key != CgroupKey::OVERFLOW || !is_zero(*value)))
    }

    /// Takes an entry out and returns its last value, `None` if it is gone already.
    pub fn take(&self, key: CgroupKey) -> Option<T> {
        self.map.take(&key).ok()
    }
}

impl<T> Keyed<T> {
    /// Kernel memory of the entries that were there at the last reading, bytes: a value with its
    /// key, 48 bytes of the hash's own (`struct htab_elem`) and 8 of the allocator's, as slab caches
    /// round it up.
    pub fn bytes(&self) -> u64 {
        let entry = 48 + size_of::<CgroupKey>() + size_of::<T>() + 8;
        self.keys.len() as u64 * entry.next_power_of_two() as u64
    }
}

/// Whether every byte of a value is 0.
fn is_zero<T: KeyedValue>(value: &T) -> bool {
    value.as_bytes().iter().all(|&byte| byte == 0)
}
