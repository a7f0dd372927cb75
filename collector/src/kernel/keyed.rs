//! Values by cgroup and something else: a device, a reason.
//!
//! For what a cgroup has few of and not always the same. The kernel side makes an entry at the
//! first event (collector-ebpf/src/keyed.rs); the agent reads all of them in batches and takes out
//! those of cgroups that have gone. A source may have rows for some of them beside (`rows`). Keys are cgroup ids, not slots: ids are never used again.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use collector_common::keyed::CgroupKey;

use super::bpf;

/// A value as it is in the kernel.
///
/// # Safety
///
/// `repr(C)`, made of 64-bit words only, valid for every bit pattern.
pub unsafe trait KeyedValue: Copy + Send {
    /// Name of the hash in the kernel object.
    const MAP: &'static str;
    /// Name of the array of rows, if the source has any.
    const ROWS: Option<&'static str>;
    /// All zero.
    const ZERO: Self;
}

macro_rules! keyed {
    ($($value:path, $map:literal, $rows:expr;)*) => {
        $(
            // SAFETY: words only.
            unsafe impl KeyedValue for $value {
                const MAP: &'static str = $map;
                const ROWS: Option<&'static str> = $rows;
                // SAFETY: every bit pattern is a value.
                const ZERO: Self = unsafe { std::mem::zeroed() };
            }
        )*
        /// Every such hash of the object; they have as many entries as there may be slots.
        pub const KEYED_MAPS: &[&str] = &[$($map,)*];
        /// Every array of rows, where there is one.
        pub const ROW_MAPS: &[Option<&str>] = &[$($rows,)*];
    };
}

keyed! {
    collector_common::pass::CgroupRecord, "LAST_RECORDS", None;
    collector_common::block::BlockValue, "BLOCK_IO", Some("BLOCK_ROWS");
    collector_common::drops::Drops, "DROPS", None;
}

/// The values of a source.
#[derive(Debug)]
pub struct Keyed<T> {
    map: OwnedFd,
    max: u32,
    keys: Vec<CgroupKey>,
    values: Vec<T>,
}

impl<T: KeyedValue> Keyed<T> {
    /// Over the hash `map` of at most `max` entries; makes the entry of those that find no room.
    ///
    /// # Errors
    ///
    /// When the descriptor can't be duplicated or the entry can't be made.
    pub fn new(map: impl AsFd, max: u32) -> io::Result<Self> {
        bpf::update(map.as_fd(), &CgroupKey::OVERFLOW, &T::ZERO)?;
        Ok(Self {
            map: map.as_fd().try_clone_to_owned()?,
            max,
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
        bpf::lookup_all(
            self.map.as_fd(),
            self.max,
            &mut self.keys,
            &mut self.values,
            T::ZERO,
        )?;
        let entries = self.keys.iter().copied().zip(&self.values);
        Ok(entries.filter(|(key, value)| *key != CgroupKey::OVERFLOW || !is_zero(*value)))
    }

    /// Takes an entry out and returns its last value, `None` if it is gone already.
    pub fn take(&self, key: CgroupKey) -> Option<T> {
        bpf::lookup_and_delete(self.map.as_fd(), &key, T::ZERO).ok()
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

/// Whether every word of a value is 0.
fn is_zero<T: KeyedValue>(value: &T) -> bool {
    let words = size_of::<T>() / size_of::<u64>();
    // SAFETY: a value is made of so many words.
    let words = unsafe { std::slice::from_raw_parts((&raw const *value).cast::<u64>(), words) };
    words.iter().all(|&word| word == 0)
}
