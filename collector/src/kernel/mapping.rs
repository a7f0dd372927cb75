//! An mmapable BPF array in the agent's memory.

use std::{
    io,
    marker::PhantomData,
    mem,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
};

/// Entries of an mmapable array, read and written without a system call.
///
/// Kernel programs write the same memory at any time. Only whole machine words are read, each
/// once, so that every word is a value which the kernel had written; words of one entry may be of
/// different moments.
#[derive(Debug)]
pub struct Mapping<T> {
    base: NonNull<T>,
    entries: usize,
    bytes: usize,
    kind: PhantomData<T>,
}

// SAFETY: the memory is shared with the kernel anyway; access is by volatile words.
unsafe impl<T: Copy + Send> Send for Mapping<T> {}

impl<T: Copy> Mapping<T> {
    /// Maps a whole array. `T` consists of 64-bit words (or pairs of 32-bit ones), as all map
    /// values here do.
    ///
    /// # Errors
    ///
    /// mmap(2)'s.
    pub fn new(map: BorrowedFd<'_>, entries: usize) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let page = 4096;
        let bytes = (entries * size_of::<T>()).next_multiple_of(page);
        // SAFETY: a new mapping of the array's own pages, at an address of the kernel's choice.
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
            return Err(io::Error::last_os_error());
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

    fn word(&self, entry: usize, word: usize) -> *mut u64 {
        assert!(entry < self.entries && word < size_of::<T>() / 8);
        // SAFETY: within the mapping, by the assertion.
        unsafe { self.base.as_ptr().add(entry).cast::<u64>().add(word) }
    }

    /// One word of an entry.
    pub fn load(&self, entry: usize, word: usize) -> u64 {
        // SAFETY: aligned and within the mapping.
        unsafe { ptr::read_volatile(self.word(entry, word)) }
    }

    /// Sets one word of an entry.
    pub fn store(&self, entry: usize, word: usize, value: u64) {
        // SAFETY: as in `load`.
        unsafe { ptr::write_volatile(self.word(entry, word), value) }
    }

    /// An entry, read word by word.
    pub fn read(&self, entry: usize) -> T {
        let mut value = mem::MaybeUninit::<T>::uninit();
        let to = value.as_mut_ptr().cast::<u64>();
        for word in 0..size_of::<T>() / 8 {
            // SAFETY: `value` has room for this word.
            unsafe { to.add(word).write(self.load(entry, word)) };
        }
        // SAFETY: every word is written, and every bit pattern is a value: T is a map value.
        unsafe { value.assume_init() }
    }

    /// Zeroes an entry.
    pub fn clear(&self, entry: usize) {
        for word in 0..size_of::<T>() / 8 {
            self.store(entry, word, 0);
        }
    }

    /// Bytes mapped.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
