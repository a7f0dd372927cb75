//! An encoded exposition, as bytes in chunks.

use std::sync::Arc;

use bytes::Bytes;

/// Approximate size of a chunk in bytes. A chunk ends with the line that reaches it.
const CHUNK: usize = 64 << 10;
/// Spare room for that line. The buffer grows if a line is longer.
const SLACK: usize = 4 << 10;

/// An encoded exposition. A clone costs a pointer: it shares the bytes and the list of chunks.
#[derive(Clone, Debug, Default)]
pub struct Body {
    chunks: Arc<[Bytes]>,
    len: usize,
}

impl Body {
    /// Total length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the exposition is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the chunks in order.
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// Whether both are clones of one body.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }

    /// Returns the bytes in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        self.chunks.concat()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self {
            len: bytes.len(),
            chunks: Arc::new([bytes]),
        }
    }
}

/// The buffer that an encoder writes to.
#[derive(Debug)]
pub(super) struct ChunkWriter {
    pub(super) buffer: Vec<u8>,
    done: Vec<Bytes>,
}

impl ChunkWriter {
    pub(super) fn new() -> Self {
        Self {
            buffer: Vec::with_capacity(CHUNK + SLACK),
            done: Vec::new(),
        }
    }

    /// Ends a line. A chunk may end here.
    #[inline]
    pub(super) fn end_line(&mut self) {
        if self.buffer.len() >= CHUNK {
            self.cut();
        }
    }

    #[cold]
    fn cut(&mut self) {
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK + SLACK));
        self.done.push(full.into());
    }

    pub(super) fn finish(mut self) -> Body {
        if !self.buffer.is_empty() {
            // The last chunk is copied, so that it is no larger than its contents.
            let last = Bytes::copy_from_slice(&self.buffer);
            self.done.push(last);
        }
        Body {
            len: self.done.iter().map(Bytes::len).sum(),
            chunks: self.done.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_at_lines_and_keep_every_byte() {
        let mut chunks = ChunkWriter::new();
        let mut expected = Vec::new();
        for number in 0..50_000 {
            let line = format!("line {number}\n");
            chunks.buffer.extend_from_slice(line.as_bytes());
            expected.extend_from_slice(line.as_bytes());
            chunks.end_line();
        }
        let body = chunks.finish();
        assert_eq!(body.len(), expected.len());
        assert!(body.chunks().len() > 5);
        assert!(body.chunks().iter().all(|chunk| chunk.ends_with(b"\n")));
        assert!(body.chunks().iter().all(|chunk| chunk.len() < CHUNK + 64));
        assert_eq!(body.to_vec(), expected);
        assert!(body.is_same(&body.clone()));
        let copy = Body::from(Bytes::from(expected));
        assert!(!body.is_same(&copy));
    }
}
