//! The memory of chunks, used again for the next exposition.
//!
//! Invariant: buffers that are free are kept only while others are in use. So a scraper by itself
//! leaves nothing behind, and while clients keep several expositions in memory, the next one is made
//! in the memory of one that has ended. The allocator would leave holes there that nothing fits.

use std::sync::{Mutex, PoisonError};

/// Approximate size of a chunk in bytes. A chunk ends with the line that reaches it.
pub(super) const CHUNK: usize = 64 << 10;
/// Spare room for that line. The buffer grows if a line is longer.
const SLACK: usize = 4 << 10;

/// The buffers of all expositions.
#[derive(Debug)]
struct Buffers {
    free: Vec<Vec<u8>>,
    used: usize,
}

static BUFFERS: Mutex<Buffers> = Mutex::new(Buffers {
    free: Vec::new(),
    used: 0,
});

impl Buffers {
    fn take(&mut self) -> Option<Vec<u8>> {
        self.used += 1;
        self.free.pop()
    }

    /// Gives a buffer back. Returns those that have to be freed.
    fn give(&mut self, mut buffer: Vec<u8>) -> Vec<Vec<u8>> {
        self.used -= 1;
        buffer.clear();
        // Not one that has grown.
        if buffer.capacity() == CHUNK + SLACK {
            self.free.push(buffer);
        }
        match self.used {
            0 => std::mem::take(&mut self.free),
            _ => Vec::new(),
        }
    }
}

/// A buffer of one chunk.
#[derive(Debug)]
pub(super) struct Chunk(pub(super) Vec<u8>);

impl Chunk {
    pub(super) fn new() -> Self {
        let used = BUFFERS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Self(used.unwrap_or_else(|| Vec::with_capacity(CHUNK + SLACK)))
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        let freed = BUFFERS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .give(buffer);
        drop(freed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_buffers_are_kept_while_others_are_in_use() {
        let mut buffers = Buffers {
            free: Vec::new(),
            used: 0,
        };
        let buffer = || Vec::with_capacity(CHUNK + SLACK);
        for _ in 0..3 {
            assert!(buffers.take().is_none());
        }
        let mut full = buffer();
        full.extend_from_slice(b"text");
        let place = full.as_ptr();
        assert!(buffers.give(full).is_empty());
        let again = buffers.take().unwrap();
        assert!(again.is_empty() && again.as_ptr() == place);
        // One that has grown is not kept.
        let large = Vec::with_capacity(2 * CHUNK);
        assert!(buffers.give(large).is_empty() && buffers.free.is_empty());
        assert!(buffers.give(again).is_empty());
        assert_eq!(buffers.give(buffer()).len(), 2);
        assert!(buffers.free.is_empty());
    }
}
