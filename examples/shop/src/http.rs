//! The server.
//!
//! Invariant: it serves at most [`MAX_CONNECTIONS`] at a time. On shutdown it accepts no more, and open
//! connections have [`GRACE`] to get their answers.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use crate::routes::Shop;

/// The most connections at a time. More wait in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 512;
/// How long a client may take to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open requests may take on shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until `ended`.
pub async fn serve(listener: TcpListener, shop: Arc<Shop>, ended: impl Future<Output = ()>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (stop, stopped) = watch::channel(false);
    tokio::pin!(ended);
    loop {
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut ended => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let local = peer.ip().to_canonical().is_loopback();
                let (shop, stopped) = (Arc::clone(&shop), stopped.clone());
                tokio::spawn(async move {
                    converse(stream, shop, local, stopped).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Errors such as EMFILE persist for a while: don't spin.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let _ = stop.send(true);
    let all = room.acquire_many(MAX_CONNECTIONS as u32);
    if tokio::time::timeout(GRACE, all).await.is_err() {
        tracing::warn!("answers still under way were cut off");
    }
}

async fn converse(
    stream: TcpStream,
    shop: Arc<Shop>,
    local: bool,
    mut stopped: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let shop = Arc::clone(&shop);
        async move { Ok::<_, Infallible>(shop.answer(request, local).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stop_requested = async {
        let _ = stopped.wait_for(|&stop| stop).await;
    };
    let result = tokio::select! {
        result = connection.as_mut() => Some(result),
        () = stop_requested => None,
    };
    let result = match result {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}
