//! An encoded exposition, as bytes in chunks.

use bytes::Bytes;

/// Approximate size of a chunk in bytes. A chunk ends with the line that reaches it.
const CHUNK: usize = 64 << 10;
/// Spare room for that line. The buffer grows if a line is longer.
const SLACK: usize = 4 << 10;

/// An encoded exposition. A clone shares the bytes.
#[derive(Clone, Debug, Default)]
pub struct Body {
    chunks: Vec<Bytes>,
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

    /// Returns the chunks in order, without a copy.
    pub fn into_chunks(self) -> Vec<Bytes> {
        self.chunks
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
            chunks: vec![bytes],
        }
    }
}

/// The buffer that an encoder writes to.
#[derive(Debug)]
pub(super) struct ChunkWriter {
    pub(super) buffer: Vec<u8>,
    done: Body,
}

impl ChunkWriter {
    pub(super) fn new() -> Self {
        Self {
            buffer: Vec::with_capacity(CHUNK + SLACK),
            done: Body::default(),
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
        self.push(full.into());
    }

    fn push(&mut self, chunk: Bytes) {
        self.done.len += chunk.len();
        self.done.chunks.push(chunk);
    }

    pub(super) fn finish(mut self) -> Body {
        if !self.buffer.is_empty() {
            // The last chunk is copied, so that it is no larger than its contents.
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
    }
}
