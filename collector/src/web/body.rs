//! Bodies of answers, as hyper sends them.

use std::{
    convert::Infallible,
    io::IoSlice,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Buf;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::clients::Client;
use crate::exposition::Body;

/// A body on its way to a client. The total length is known, so the answer has a `Content-Length`.
///
/// hyper gets all of it at once, so that one system call writes as much as the socket takes.
#[derive(Debug)]
pub(super) struct Outgoing {
    body: Option<Remaining>,
    client: Arc<Client>,
}

impl Outgoing {
    pub(super) fn new(body: Body, client: Arc<Client>) -> Self {
        let body = Some(Remaining::new(body)).filter(Buf::has_remaining);
        Self { body, client }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.client.taken();
    }
}

impl HttpBody for Outgoing {
    type Data = Remaining;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Remaining>, Infallible>>> {
        Poll::Ready(self.body.take().map(|body| Ok(Frame::data(body))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.body.as_ref().map_or(0, |body| body.left as u64))
    }
}

/// What is still to be written of a body.
#[derive(Debug)]
pub(super) struct Remaining {
    body: Body,
    /// Number of chunks that are written.
    chunks: usize,
    /// Bytes of the next chunk that are written.
    bytes: usize,
    left: usize,
}

impl Remaining {
    fn new(body: Body) -> Self {
        Self {
            left: body.len(),
            body,
            chunks: 0,
            bytes: 0,
        }
    }

    /// Returns the parts that are still to be written. None is empty, as no chunk is.
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let chunks = self.body.chunks().iter().skip(self.chunks);
        let written = std::iter::once(self.bytes).chain(std::iter::repeat(0));
        chunks
            .zip(written)
            .map(|(chunk, written)| chunk.get(written..).unwrap_or_default())
    }
}

impl Buf for Remaining {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        self.parts().next().unwrap_or_default()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, part) in slices.iter_mut().zip(self.parts()) {
            *slice = IoSlice::new(part);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.left, "advanced past the end of a body");
        self.left -= count;
        self.bytes += count;
        while let Some(chunk) = self.body.chunks().get(self.chunks)
            && self.bytes >= chunk.len()
        {
            self.bytes -= chunk.len();
            self.chunks += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{Format, LabelSet, Labels, Metadata, MetricKind, Unit};

    /// A body of several chunks.
    fn body() -> Body {
        let mut encoder = Format::Text.encoder();
        encoder.begin(&Metadata {
            name: "a",
            help: "",
            kind: MetricKind::Gauge,
            unit: Unit::None,
            base_is_free: true,
        });
        let set = LabelSet::new(&[("id", "/some/path")]);
        for number in 0..20_000 {
            let value = crate::exposition::Value::Count(number);
            encoder.sample(Labels::new(&set, &[]), value);
        }
        encoder.finish()
    }

    #[test]
    fn every_byte_is_written_once_whatever_the_sizes_of_writes() {
        let body = body();
        assert!(body.chunks().len() > 3);
        for step in [1_000, 65_536, 100_001, usize::MAX] {
            let (mut remaining, mut written) = (Remaining::new(body.clone()), Vec::new());
            while remaining.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 3];
                let filled = remaining.chunks_vectored(&mut slices);
                assert_eq!(*slices[0], *remaining.chunk());
                let before = written.len();
                for slice in &slices[..filled] {
                    let room = step - (written.len() - before);
                    written.extend_from_slice(&slice[..slice.len().min(room)]);
                }
                remaining.advance(written.len() - before);
                assert_eq!(remaining.remaining(), body.len() - written.len());
            }
            assert_eq!(written, body.to_vec());
            assert!(remaining.chunk().is_empty());
            assert_eq!(remaining.chunks_vectored(&mut [IoSlice::new(&[])]), 0);
        }
    }
}
