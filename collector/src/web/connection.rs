//! One connection, from its place among the [clients](super::clients) to its end.
//!
//! Invariant: the socket is closed only when the client has acknowledged its last answer, or when it
//! is cut off; then the kernel drops what it has not sent. So the bytes that the kernel keeps for
//! clients are those of connections that have a place.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::{
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioTimer;
use tokio::sync::watch;

use super::{
    GRACE, MAX_HEAD,
    answer::Handler,
    clients::{Client, Place},
    cut::Cut,
    stop_requested,
};
use crate::kernel::socket;

/// Age at which a connection answers its last request. A well-behaved client connects again.
const MAX_AGE: Duration = Duration::from_secs(600);
/// Longest time between two looks at what a client has not acknowledged.
const LOOK: Duration = Duration::from_secs(1);

/// The socket, as hyper uses it.
struct Io(Arc<Client>);

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 8 << 10];
        let most = buffer.remaining().min(bytes.len());
        loop {
            ready!(self.0.stream.poll_read_ready(context))?;
            match self.0.stream.try_read(&mut bytes[..most]) {
                Ok(count) => {
                    buffer.put_slice(&bytes[..count]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Io {
    fn poll_write_with(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&tokio::net::TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(context))?;
            match write(&self.0.stream) {
                Ok(count) => {
                    self.0.wrote(count);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Write for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |stream| stream.try_write(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |stream| stream.try_write_vectored(parts))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper calls this only when it has nothing left to write.
        self.0.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket::finish_writing(&self.0.stream))
    }
}

/// Serves a connection until its end.
pub(super) async fn serve(place: Place, handler: Arc<Handler>, stop: watch::Receiver<bool>) {
    let client = &place.client;
    let limits = place.clients.limits;
    let whole = async {
        let ended = converse(client, &handler, limits.head, stop.clone()).await;
        match ended {
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(%error, "a connection ended early");
                // The rest of the answer before a bad request may still be on its way.
                if !error.is_timeout() && !error.is_parse() {
                    return;
                }
            }
        }
        client.lingers();
        drained(client).await;
    };
    let cut = tokio::select! {
        () = whole => return,
        cut = client.cut_off() => cut,
        () = stalled(client, limits.stall) => Cut::Stalled,
        () = grace_over(stop.clone()) => Cut::Stopped,
    };
    place.clients.cut(client, cut);
    tracing::debug!(reason = cut.label(), "a connection was cut off");
    if client.unacknowledged() > 0 {
        // The kernel drops what it still has to send.
        let _ = client.stream.set_zero_linger();
    }
}

/// Answers requests until the client or the agent has had enough.
async fn converse(
    client: &Arc<Client>,
    handler: &Arc<Handler>,
    head: Duration,
    mut stop: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let service = service_fn(|request| {
        client.works();
        let (handler, client) = (Arc::clone(handler), Arc::clone(client));
        async move { Ok::<_, Infallible>(handler.answer(request, client).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(Io(Arc::clone(client)), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = tokio::time::sleep(MAX_AGE) => {}
        () = stop_requested(&mut stop) => {}
    }
    // The request in progress is answered.
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// Waits until the client's side has acknowledged everything, or is gone.
async fn drained(client: &Client) {
    let mut pause = Duration::from_millis(1);
    while client.unacknowledged() > 0 {
        // An error says that the client is gone. What it still sends is dropped.
        match client.stream.try_read(&mut [0; 4096]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            _ => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK / 4);
    }
}

/// Waits until the client has taken nothing for as long as `limit`.
async fn stalled(client: &Client, limit: Duration) {
    loop {
        tokio::time::sleep(LOOK.min(limit / 4)).await;
        let now = Instant::now();
        if now.duration_since(client.progress(now)) >= limit {
            return;
        }
    }
}

/// Waits until the agent has to stop without waiting for clients.
async fn grace_over(mut stop: watch::Receiver<bool>) {
    stop_requested(&mut stop).await;
    tokio::time::sleep(GRACE).await;
}
