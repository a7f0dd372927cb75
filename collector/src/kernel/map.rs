//! Maps with typed keys and values.
//!
//! The kernel copies as many bytes as the map's own key and value sizes. Invariant: the sizes of
//! `K` and `V` equal those of the map. They are compared when the handle is created, and there is
//! no other way to create one.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::bpf::{self, MapInfo, MapType};

/// The reason why a map can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kernel refused the call, or did not report the kind of map.
    #[error(transparent)]
    Kernel(#[from] io::Error),
    /// The map differs from what the agent expects.
    #[error("the map {name} has a {what} of {found}, where the agent expects {expected}")]
    Shape {
        /// The map's name, which the kernel cuts to 15 characters.
        name: String,
        /// What differs: type, key size, value size (bytes) or flags.
        what: &'static str,
        /// The value that the kernel has for the map.
        found: u32,
        /// The value that the agent's types require.
        expected: u32,
    },
}

/// Compares a map with what the agent expects.
pub(super) fn check(
    map: BorrowedFd<'_>,
    kind: MapType,
    key_size: usize,
    value_size: usize,
    flags: u32,
) -> Result<MapInfo, OpenError> {
    let info = bpf::map_info(map)?;
    compare(&info, kind, key_size, value_size, flags)?;
    Ok(info)
}

fn compare(
    info: &MapInfo,
    kind: MapType,
    key_size: usize,
    value_size: usize,
    flags: u32,
) -> Result<(), OpenError> {
    // No key or value of a map is larger than `u32::MAX`.
    let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
    for (what, found, expected) in [
        ("type", info.map_type, kind as u32),
        ("key size", info.key_size, size(key_size)),
        ("value size", info.value_size, size(value_size)),
        ("set of flags", info.flags & flags, flags),
    ] {
        if found != expected {
            return Err(OpenError::Shape {
                name: info.name(),
                what,
                found,
                expected,
            });
        }
    }
    Ok(())
}

/// A map from `K` to `V`, read and written by system calls.
#[derive(Debug)]
pub struct Map<K, V> {
    fd: OwnedFd,
    max_entries: u32,
    kind: PhantomData<fn(K) -> V>,
}

impl<K, V> Map<K, V>
where
    K: FromBytes + IntoBytes + Immutable + Clone,
    V: FromBytes + Clone,
{
    /// Opens a hash map.
    ///
    /// # Errors
    ///
    /// If the map is not a hash map, has other keys or values, or its descriptor can't be
    /// duplicated.
    pub fn hash(map: BorrowedFd<'_>) -> Result<Self, OpenError> {
        Self::open(map, MapType::Hash)
    }

    /// Opens a map of the given type.
    pub(super) fn open(map: BorrowedFd<'_>, kind: MapType) -> Result<Self, OpenError> {
        let info = check(map, kind, size_of::<K>(), size_of::<V>(), 0)?;
        Ok(Self {
            fd: map.try_clone_to_owned()?,
            max_entries: info.max_entries,
            kind: PhantomData,
        })
    }

    /// Maximum number of entries.
    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Arguments of a call about one entry.
    fn entry(&self, key: &K, value: u64) -> bpf::MapEntry {
        bpf::MapEntry {
            map_fd: self.fd.as_raw_fd() as u32,
            pad: 0,
            key: (&raw const *key) as u64,
            value,
            flags: 0,
        }
    }

    /// Sets an entry.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2): E2BIG if the map is full.
    pub fn insert(&self, key: &K, value: &V) -> io::Result<()>
    where
        V: IntoBytes + Immutable,
    {
        let mut entry = self.entry(key, (&raw const *value) as u64);
        // SAFETY: the kernel reads a key and a value; their sizes are those of `K` and `V`, which
        // `open` has checked, and neither has padding (`IntoBytes`).
        unsafe { bpf::call(bpf::MAP_UPDATE_ELEM, &mut entry) }.map(drop)
    }

    /// Returns a value, `None` if there is none. Of an array of maps it is the map's id.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        let mut entry = self.entry(key, (&raw mut value) as u64);
        // SAFETY: the kernel reads a key and writes a value; `open` has checked their sizes, and
        // every bit pattern is a valid `V` (`FromBytes`).
        match unsafe { bpf::call(bpf::MAP_LOOKUP_ELEM, &mut entry) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes an entry.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2): ENOENT if there is no such entry.
    pub fn remove(&self, key: &K) -> io::Result<()> {
        let mut entry = self.entry(key, 0);
        // SAFETY: the kernel reads a key, whose size `open` has checked.
        unsafe { bpf::call(bpf::MAP_DELETE_ELEM, &mut entry) }.map(drop)
    }

    /// Removes an entry and returns its value.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2): ENOENT if there is no such entry.
    pub fn take(&self, key: &K) -> io::Result<V> {
        let mut value = V::new_zeroed();
        let mut entry = self.entry(key, (&raw mut value) as u64);
        // SAFETY: the kernel reads a key and writes a value; `open` has checked their sizes, and
        // every bit pattern is a valid `V` (`FromBytes`).
        unsafe { bpf::call(bpf::MAP_LOOKUP_AND_DELETE_ELEM, &mut entry) }?;
        Ok(value)
    }

    /// Reads a whole hash map in batches. Entries that are added or removed meanwhile may be
    /// missed. No entry is returned twice. After an error both lists are empty.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2): EINVAL before 5.6, which can't read hash maps in batches.
    pub fn read_all(&self, keys: &mut Vec<K>, values: &mut Vec<V>) -> io::Result<()> {
        keys.clear();
        values.clear();
        let result = self.append_all(keys, values);
        if result.is_err() {
            keys.clear();
            values.clear();
        }
        result
    }

    fn append_all(&self, keys: &mut Vec<K>, values: &mut Vec<V>) -> io::Result<()> {
        // For hash maps the cursor is a bucket number (kernel/bpf/hashtab.c).
        let mut cursor = None;
        // A batch has a fixed size in bytes, because its memory is allocated before the call.
        const BYTES: usize = 128 << 10;
        let mut room = (BYTES / (size_of::<K>() + size_of::<V>())).clamp(16, 1024);
        loop {
            let have = keys.len();
            keys.resize(have + room, K::new_zeroed());
            values.resize(have + room, V::new_zeroed());
            let mut next = 0u32;
            let mut batch = bpf::Batch {
                in_batch: cursor.as_ref().map_or(0, |at| (&raw const *at) as u64),
                out_batch: (&raw mut next) as u64,
                keys: keys[have..].as_mut_ptr() as u64,
                values: values[have..].as_mut_ptr() as u64,
                count: room as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the kernel writes at most `count` keys and values, for which there is room:
            // `open` has checked their sizes. Every bit pattern is a valid `K` or `V`
            // (`FromBytes`).
            let result = unsafe { bpf::call(bpf::MAP_LOOKUP_BATCH, &mut batch) };
            let error = result.err();
            // ENOSPC: one bucket holds more entries than fit into the batch.
            let too_small = error.as_ref().and_then(io::Error::raw_os_error) == Some(libc::ENOSPC);
            let got = if too_small { 0 } else { batch.count as usize };
            keys.truncate(have + got);
            values.truncate(have + got);
            match error {
                None => cursor = Some(next),
                // The end of the map. The entries of this last read are valid.
                Some(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                Some(_) if too_small && room < self.max_entries as usize => room *= 2,
                Some(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::bpf::MMAPABLE, *};

    fn info() -> MapInfo {
        let mut info = MapInfo {
            map_type: 1,
            key_size: 16,
            value_size: 8,
            max_entries: 100,
            flags: MMAPABLE | 1,
            ..MapInfo::default()
        };
        info.name[..5].copy_from_slice(b"DROPS");
        info
    }

    #[test]
    fn a_matching_map_is_accepted() {
        compare(&info(), MapType::Hash, 16, 8, 0).unwrap();
        compare(&info(), MapType::Hash, 16, 8, MMAPABLE).unwrap();
    }

    #[test]
    fn the_error_names_the_difference() {
        let text = |kind, key, value| {
            let error = compare(&info(), kind, key, value, 0).unwrap_err();
            error.to_string()
        };
        assert_eq!(
            text(MapType::Hash, 16, 1696),
            "the map DROPS has a value size of 8, where the agent expects 1696"
        );
        assert!(text(MapType::Hash, 8, 8).contains("key size of 16"));
        assert!(text(MapType::Array, 16, 8).contains("type of 1"));
        let mut plain = info();
        plain.flags = 1;
        let error = compare(&plain, MapType::Hash, 16, 8, MMAPABLE).unwrap_err();
        assert!(error.to_string().contains("flags of 0"), "{error}");
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(compare(&info(), MapType::Hash, 16, usize::MAX, 0).is_err());
    }
}
