//! An encoded exposition: bytes in chunks.

use bytes::{Bytes, BytesMut};

/// Bytes of a chunk, about: a chunk ends with the line that reaches it.
const CHUNK: usize = 64 << 10;
/// Room for that line. The buffer grows where a line is longer.
const SLACK: usize = 4 << 10;

/// An encoded exposition. A clone shares the bytes.
#[derive(Clone, Debug, Default)]
pub struct Body {
    chunks: Vec<Bytes>,
    len: usize,
}

impl Body {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The chunks in order.
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// The chunks in order, without a copy.
    pub fn into_chunks(self) -> Vec<Bytes> {
        self.chunks
    }

    /// The bytes in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        self.chunks.concat()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self {
            len: bytes.len(),
            chunks: vec![bytes],
        }
    }
}

/// Where an encoder writes.
#[derive(Debug)]
pub(super) struct Chunks {
    pub(super) buffer: BytesMut,
    done: Body,
}

impl Chunks {
    pub(super) fn new() -> Self {
        Self {
            buffer: BytesMut::with_capacity(CHUNK + SLACK),
            done: Body::default(),
        }
    }

    /// Ends a line: the place where a chunk may end.
    #[inline]
    pub(super) fn end_line(&mut self) {
        if self.buffer.len() >= CHUNK {
            self.cut();
        }
    }

    #[cold]
    fn cut(&mut self) {
        let full = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(CHUNK + SLACK));
        self.push(full.freeze());
    }

    fn push(&mut self, chunk: Bytes) {
        self.done.len += chunk.len();
        self.done.chunks.push(chunk);
    }

    pub(super) fn finish(mut self) -> Body {
        if !self.buffer.is_empty() {
            // The last chunk is as long as what is in it.
            let last = Bytes::copy_from_slice(&self.buffer);
            self.push(last);
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_at_lines_and_lose_nothing() {
        let mut chunks = Chunks::new();
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
    }
}
