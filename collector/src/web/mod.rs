//! The HTTP server.
//!
//! Invariant: this module knows expositions as bytes, not what is in them, and cgroups as the
//! agent's records. It never reads a
//! request's body, never blocks the async threads on a scrape, and bounds what one client, or all
//! of them, can cost: connections, header size and time, scrapes at a time, time to take an answer.

mod answer;
mod api;
mod body;
mod counters;
mod listen;

use std::{
    convert::Infallible,
    future::Future,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use answer::Handler;
pub use answer::is_reserved;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, watch};

pub use counters::Counters;
pub use listen::{BindError, bind};

use crate::{
    agent::{Agent, Inventory, Status},
    exposition::{Body, Format},
};

/// What the server serves.
pub trait Metrics: Send + Sync + 'static {
    /// One exposition. Blocks for milliseconds.
    ///
    /// # Errors
    ///
    /// What is told to the client.
    fn scrape(&self, format: Format) -> Result<Body, String>;
    /// Frees what was encoded for scrapes, if none gets it any more. Whether nothing is left to free.
    fn release(&self) -> bool;
    /// How long scrapes get what was encoded before.
    fn shared_for(&self) -> Duration;
    /// The cgroups of the same snapshot. Blocks as well.
    ///
    /// # Errors
    ///
    /// What is told to the client.
    fn inventory(&self) -> Result<Arc<Inventory>, String>;
    /// The state of the agent.
    ///
    /// # Errors
    ///
    /// What is told to the client.
    fn status(&self) -> Result<Status, String>;
}

impl Metrics for Agent {
    fn scrape(&self, format: Format) -> Result<Body, String> {
        Self::scrape(self, format).map_err(|error| format!("{error:#}"))
    }

    fn release(&self) -> bool {
        Self::release_bodies(self)
    }

    fn shared_for(&self) -> Duration {
        self.min_interval()
    }

    fn inventory(&self) -> Result<Arc<Inventory>, String> {
        Self::inventory(self).map_err(|error| format!("{error:#}"))
    }

    fn status(&self) -> Result<Status, String> {
        Self::status(self).map_err(|error| format!("{error:#}"))
    }
}

/// Whose answers they are.
#[derive(Clone)]
struct Served {
    metrics: Arc<dyn Metrics>,
    /// Where the server listens.
    addresses: Vec<SocketAddr>,
}

/// How to serve.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--web.telemetry-path`
    pub telemetry_path: String,
    /// `--web.max-requests`
    pub max_requests: usize,
}

/// Connections at a time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 512;
/// Time for a client to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one connection in all, keep-alive included: a client that never reads ends here, and a
/// well-behaved one connects again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// Time for requests under way when the agent is told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until `shutdown`, then lets requests under way finish.
///
/// # Errors
///
/// When a listener can't be used.
pub async fn serve(
    listeners: Vec<TcpListener>,
    metrics: Arc<dyn Metrics>,
    options: Options,
    counters: Counters,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (stop, stopped) = watch::channel(false);
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let addresses = listeners.iter().map(TcpListener::local_addr);
    let served = Served {
        metrics,
        addresses: addresses.collect::<Result<_, _>>()?,
    };
    let handler = Arc::new(Handler::new(served, options, counters));
    let mut tasks = Vec::new();
    for listener in listeners {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let accepting = accept(
            listener,
            Arc::clone(&handler),
            Arc::clone(&connections),
            stopped.clone(),
        );
        tasks.push(tokio::spawn(accepting));
    }
    shutdown.await;
    let _ = stop.send(true);
    for task in tasks {
        let _ = task.await;
    }
    // Every connection holds a permit until it has ended.
    let ended = connections.acquire_many(MAX_CONNECTIONS as u32);
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        tracing::warn!("requests still under way were cut off");
    }
    Ok(())
}

async fn accept(
    listener: tokio::net::TcpListener,
    handler: Arc<Handler>,
    connections: Arc<Semaphore>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = told_to_stop(&mut stopped) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // EMFILE and the like don't go away at once: no spinning.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (handler, mut stopped) = (Arc::clone(&handler), stopped.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let handler = Arc::clone(&handler);
                async move { Ok::<_, Infallible>(handler.answer(request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            let ended = tokio::select! {
                result = connection.as_mut() => Some(result),
                () = tokio::time::sleep(CONNECTION_TIMEOUT) => None,
                () = told_to_stop(&mut stopped) => None,
            };
            let ended = match ended {
                Some(result) => Ok(result),
                None => {
                    // The request under way is answered, if the client takes the answer.
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(GRACE, connection).await
                }
            };
            if let Ok(Err(error)) = ended {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
}

async fn told_to_stop(stopped: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: the server has ended.
    let _ = stopped.wait_for(|&stop| stop).await;
}

#[cfg(test)]
mod tests;
