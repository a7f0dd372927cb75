//! Bodies of answers: an encoded exposition, sent chunk by chunk.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::exposition::Body;

/// The chunks that are not sent yet. The total length is known, so the answer has a
/// `Content-Length`.
#[derive(Debug)]
pub(super) struct Chunks {
    rest: std::vec::IntoIter<Bytes>,
    left: u64,
}

impl Chunks {
    pub(super) fn new(body: Body) -> Self {
        Self {
            left: body.len() as u64,
            rest: body.into_chunks().into_iter(),
        }
    }
}

impl HttpBody for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.rest.next();
        Poll::Ready(next.map(|chunk| {
            self.left -= chunk.len() as u64;
            Ok(Frame::data(chunk))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
