//! A BPF array mapped into the agent's memory.

use std::{
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use zerocopy::FromBytes;

use super::{
    bpf::{MMAPABLE, MapType},
    map::{self, OpenError},
    page_size,
};

/// Entries of an mmapable array, read and written without a system call.
///
/// Kernel programs may write the same memory at any time, so every access is an atomic access to
/// one 64-bit word. The words of an entry may have been written at different times.
#[derive(Debug)]
pub struct Mapping<T> {
    base: NonNull<u64>,
    entries: usize,
    bytes: usize,
    kind: PhantomData<T>,
}

// SAFETY: nothing in a `Mapping` is bound to a thread, and the memory is accessed only with
// atomics.
unsafe impl<T> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapping<T> {}

/// A field of `T` that is a 64-bit word. Created by `word!`.
#[derive(Debug)]
pub struct Word<T> {
    /// Offset, in words.
    at: usize,
    kind: PhantomData<fn(T)>,
}

impl<T> Clone for Word<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Word<T> {}

impl<T> PartialEq for Word<T> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl<T> Word<T> {
    /// The field at `offset` bytes from the start. The type of `field` makes sure that it is a
    /// `u64`.
    ///
    /// # Panics
    ///
    /// If there is no whole word at that offset. In a constant this is an error at compile time.
    pub const fn new(offset: usize, field: fn(&T) -> &u64) -> Self {
        assert!(offset.is_multiple_of(8) && offset + 8 <= size_of::<T>());
        let _ = field;
        Self {
            at: offset / 8,
            kind: PhantomData,
        }
    }
}

/// A field of a map value: `word!(IteratorControl, next)`.
macro_rules! word {
    ($value:ty, $field:ident) => {
        $crate::kernel::mapping::Word::<$value>::new(
            ::std::mem::offset_of!($value, $field),
            |value| &value.$field,
        )
    };
}
pub(crate) use word;

impl<T: FromBytes> Mapping<T> {
    const WORDS: usize = {
        assert!(size_of::<T>().is_multiple_of(8));
        size_of::<T>() / 8
    };

    /// Maps a whole array.
    ///
    /// # Errors
    ///
    /// If the map is not an mmapable array with values of the size of `T`, or mmap(2) fails.
    pub fn open(map: BorrowedFd<'_>) -> Result<Self, OpenError> {
        let info = map::check(
            map,
            MapType::Array,
            size_of::<u32>(),
            8 * Self::WORDS,
            MMAPABLE,
        )?;
        let entries = info.max_entries as usize;
        let page = usize::try_from(page_size()).unwrap_or(4096);
        let bytes = (entries * size_of::<T>()).next_multiple_of(page);
        // SAFETY: this creates a new mapping at an address that the kernel chooses.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(OpenError::Kernel(io::Error::last_os_error()));
        }
        let base = NonNull::new(address.cast())
            .ok_or_else(|| io::Error::other("mmap returned a null address"))?;
        Ok(Self {
            base,
            entries,
            bytes,
            kind: PhantomData,
        })
    }

    /// Number of entries.
    pub fn entries(&self) -> usize {
        self.entries
    }

    fn words(&self, entry: usize) -> &[AtomicU64] {
        assert!(entry < self.entries, "entry {entry} of {}", self.entries);
        // SAFETY: the mapping has `entries` values of `WORDS` words, the kernel stores them without
        // gaps (kernel/bpf/arraymap.c, `elem_size`: the value size rounded up to 8), and it lives
        // as long as `self`. Both sides use only atomic or single-word accesses.
        unsafe {
            let start = self.base.as_ptr().add(entry * Self::WORDS);
            std::slice::from_raw_parts(start.cast(), Self::WORDS)
        }
    }

    /// One word of an entry, for accesses with a memory order that the caller chooses.
    ///
    /// # Panics
    ///
    /// If there is no such entry.
    pub fn atomic(&self, entry: usize, word: Word<T>) -> &AtomicU64 {
        &self.words(entry)[word.at]
    }

    /// One word of an entry.
    ///
    /// # Panics
    ///
    /// If there is no such entry.
    pub fn load(&self, entry: usize, word: Word<T>) -> u64 {
        self.atomic(entry, word).load(Relaxed)
    }

    /// Sets one word of an entry.
    ///
    /// # Panics
    ///
    /// If there is no such entry.
    pub fn store(&self, entry: usize, word: Word<T>, value: u64) {
        self.atomic(entry, word).store(value, Relaxed);
    }

    /// An entry, read word by word.
    ///
    /// # Panics
    ///
    /// If there is no such entry.
    pub fn read(&self, entry: usize) -> T {
        let mut value = MaybeUninit::<T>::uninit();
        let to = value.as_mut_ptr().cast::<u64>();
        for (at, word) in self.words(entry).iter().enumerate() {
            // SAFETY: `value` has room for `WORDS` words.
            unsafe { to.add(at).write_unaligned(word.load(Relaxed)) };
        }
        // SAFETY: every byte is written, and every bit pattern is a valid `T` (`FromBytes`).
        unsafe { value.assume_init() }
    }

    /// Zeroes an entry.
    ///
    /// # Panics
    ///
    /// If there is no such entry.
    pub fn clear(&self, entry: usize) {
        for word in self.words(entry) {
            word.store(0, Relaxed);
        }
    }

    /// Zeroes an entry except for one word.
    ///
    /// # Panics
    ///
    /// If there is no such entry.
    pub fn clear_except(&self, entry: usize, kept: Word<T>) {
        for (at, word) in self.words(entry).iter().enumerate() {
            if at != kept.at {
                word.store(0, Relaxed);
            }
        }
    }

    /// Size of the mapping, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to `self`, and every reference into it borrows `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use collector_common::{cgroup_iterator::IteratorControl, sched::SchedCell};

    use super::*;

    #[test]
    fn a_word_is_at_the_offset_of_its_field() {
        const MISSED: Word<IteratorControl> = word!(IteratorControl, missed);
        assert_eq!(MISSED.at, 1);
        assert_eq!(word!(SchedCell, owner).at, 0);
        assert_eq!(word!(SchedCell, migrations).at, 7);
    }

    #[test]
    #[should_panic(expected = "offset")]
    fn a_word_beyond_the_value_is_refused() {
        let _ = Word::<IteratorControl>::new(size_of::<IteratorControl>(), |value| &value.next);
    }

    #[test]
    #[should_panic(expected = "offset")]
    fn a_word_that_is_not_aligned_is_refused() {
        let _ = Word::<IteratorControl>::new(4, |value| &value.next);
    }
}
