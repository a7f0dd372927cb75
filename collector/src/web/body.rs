//! Bodies of answers, sent chunk by chunk.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::clients::Client;
use crate::exposition::Body;

/// A body on its way to a client. The total length is known, so the answer has a `Content-Length`.
#[derive(Debug)]
pub(super) struct Chunks {
    body: Body,
    /// Number of chunks that the server has taken.
    taken: usize,
    left: u64,
    client: Arc<Client>,
}

impl Chunks {
    pub(super) fn new(body: Body, client: Arc<Client>) -> Self {
        Self {
            taken: 0,
            left: body.len() as u64,
            body,
            client,
        }
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        self.client.taken();
    }
}

impl HttpBody for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.body.chunks().get(self.taken).cloned();
        Poll::Ready(next.map(|chunk| {
            self.taken += 1;
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
