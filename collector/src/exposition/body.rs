//! An encoded exposition, as bytes in chunks.

use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::chunk::{CHUNK, Chunk};

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

    /// Returns what finds the body again as long as somebody else keeps it.
    pub fn downgrade(&self) -> WeakBody {
        WeakBody {
            chunks: Arc::downgrade(&self.chunks),
            len: self.len,
        }
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

/// A body that is in memory only as long as somebody else keeps it.
#[derive(Clone, Debug)]
pub struct WeakBody {
    chunks: Weak<[Bytes]>,
    len: usize,
}

impl WeakBody {
    /// The body, if it is still in memory.
    pub fn upgrade(&self) -> Option<Body> {
        let chunks = self.chunks.upgrade()?;
        Some(Body {
            chunks,
            len: self.len,
        })
    }
}

/// The buffer that an encoder writes to.
#[derive(Debug)]
pub(super) struct ChunkWriter {
    chunk: Chunk,
    done: Vec<Bytes>,
}

impl ChunkWriter {
    pub(super) fn new() -> Self {
        Self {
            chunk: Chunk::new(),
            done: Vec::new(),
        }
    }

    /// What is written to.
    #[inline]
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.chunk.0
    }

    /// Ends a line. A chunk may end here.
    #[inline]
    pub(super) fn end_line(&mut self) {
        if self.chunk.0.len() >= CHUNK {
            self.cut();
        }
    }

    #[cold]
    fn cut(&mut self) {
        let full = std::mem::replace(&mut self.chunk, Chunk::new());
        self.done.push(Bytes::from_owner(full));
    }

    pub(super) fn finish(mut self) -> Body {
        if !self.chunk.0.is_empty() {
            // The last chunk is copied, so that it is no larger than its contents.
            let last = Bytes::copy_from_slice(&self.chunk.0);
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
            chunks.buffer().extend_from_slice(line.as_bytes());
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
        let weak = body.downgrade();
        assert!(body.is_same(&weak.upgrade().unwrap()));
        let copy = Body::from(Bytes::from(expected));
        assert!(!body.is_same(&copy));
        drop(body);
        assert!(weak.upgrade().is_none());
    }
}
