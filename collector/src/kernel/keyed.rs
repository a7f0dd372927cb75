//! Values keyed by cgroup and a second key, such as a device or a reason.
//!
//! They are used where a cgroup has few second keys, and not always the same ones. The kernel
//! program creates an entry at the first event (collector-ebpf/src/keyed.rs). The agent reads all
//! entries in batches and removes those of removed cgroups. A source may also keep some entries in
//! rows (`rows`). The keys hold cgroup ids, not slots, because ids are never used again.

use std::{io, os::fd::BorrowedFd};

use anyhow::Context;
use collector_common::{
    block::BlockValue, cgroup_iterator::CgroupRecord, drops::Drops, keyed::CgroupKey,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::map::Map;

/// The maps of a source's values in the kernel.
pub trait KeyedValue: FromBytes + IntoBytes + Immutable + Copy + Send {
    /// Name of the hash in the kernel object.
    const MAP: &'static str;
    /// Name of the array of rows, if the source has one.
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
        /// Every such hash of the object. Their maximum number of entries is the maximum number of
        /// slots.
        pub const KEYED_MAPS: &[&str] = &[$($map,)*];
        /// Every array of rows.
        pub const ROW_MAPS: &[Option<&str>] = &[$($rows,)*];
    };
}

keyed! {
    CgroupRecord, "FINAL_RECORDS", None;
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
    /// Opens the values in the hash `map` and creates the overflow entry.
    ///
    /// # Errors
    ///
    /// If the map has other keys or values, or the entry can't be created.
    pub fn new(map: BorrowedFd<'_>) -> anyhow::Result<Self> {
        let map = Map::hash(map)?;
        map.insert(&CgroupKey::OVERFLOW, &T::new_zeroed())
            .context("creating the overflow entry")?;
        Ok(Self {
            map,
            keys: Vec::new(),
            values: Vec::new(),
        })
    }

    /// Reads every entry. The overflow entry is included once something has been counted in it.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn read(&mut self) -> io::Result<impl Iterator<Item = (CgroupKey, &T)>> {
        self.map.read_all(&mut self.keys, &mut self.values)?;
        let entries = self.keys.iter().copied().zip(&self.values);
        Ok(entries.filter(|(key, value)| *key != CgroupKey::OVERFLOW || !is_zero(*value)))
    }

    /// Removes an entry and returns its final value. `None` if it no longer exists.
    pub fn take(&self, key: CgroupKey) -> Option<T> {
        self.map.take(&key).ok()
    }
}

impl<T> Keyed<T> {
    /// Kernel memory used by the entries found in the last read, bytes. Each takes its key and
    /// value, 48 bytes for the hash (`struct htab_elem`) and 8 for the allocator, rounded up to the
    /// size of a slab cache.
    pub fn bytes(&self) -> u64 {
        let entry = 48 + size_of::<CgroupKey>() + size_of::<T>() + 8;
        self.keys.len() as u64 * entry.next_power_of_two() as u64
    }
}

/// Whether every byte of a value is 0.
fn is_zero<T: KeyedValue>(value: &T) -> bool {
    value.as_bytes().iter().all(|&byte| byte == 0)
}
