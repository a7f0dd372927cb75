//! The HTTP server.
//!
//! Invariant: this module handles expositions as bytes without knowing their content, and cgroups
//! as the agent's records. It never reads a request's body and never blocks the async threads on a
//! scrape. It bounds what one client, or all clients together, can cost: connections, header size
//! and time, concurrent scrapes, time to read an answer.

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
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

pub use counters::Counters;
pub use listen::{BindError, bind};

use crate::{
    agent::{Agent, AgentStatus, Inventory},
    exposition::{Body, Format},
};

/// What the server serves.
pub trait Metrics: Send + Sync + 'static {
    /// Returns one exposition. Blocks for milliseconds.
    ///
    /// # Errors
    ///
    /// The message for the client.
    fn scrape(&self, format: Format) -> Result<Body, String>;
    /// Frees encoded bodies that no further scrape can get. Returns whether nothing is left to
    /// free.
    fn release(&self) -> bool;
    /// How long scrapes share one encoded body.
    fn shared_for(&self) -> Duration;
    /// Returns the cgroups of the same frame. Blocks as well.
    ///
    /// # Errors
    ///
    /// The message for the client.
    fn inventory(&self) -> Result<Arc<Inventory>, String>;
    /// Returns the state of the agent.
    ///
    /// # Errors
    ///
    /// The message for the client.
    fn status(&self) -> Result<AgentStatus, String>;
    /// Whether scrapes can be expected to succeed. Does not block.
    ///
    /// # Errors
    ///
    /// What is wrong.
    fn ready(&self) -> Result<(), String>;
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

    fn status(&self) -> Result<AgentStatus, String> {
        Self::status(self).map_err(|error| format!("{error:#}"))
    }

    fn ready(&self) -> Result<(), String> {
        Self::ready(self)
    }
}

/// What requests are answered from.
#[derive(Clone)]
struct Served {
    metrics: Arc<dyn Metrics>,
    /// Addresses that the server listens on.
    addresses: Vec<SocketAddr>,
}

/// Settings of the server.
#[derive(Clone, Debug, Default)]
pub struct WebOptions {
    /// `--web.telemetry-path`
    pub telemetry_path: String,
    /// `--web.max-requests`
    pub max_requests: usize,
}

/// Concurrent connections. Further ones wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 512;
/// Time limit for a client to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for a whole connection, keep-alive included. It ends clients that never read; a
/// well-behaved client connects again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Largest head of a request, bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Time for requests in progress to finish when the agent stops.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until `shutdown` completes, then lets requests in progress finish.
///
/// # Errors
///
/// When a listener can't be used, or if a task that accepts connections panics.
pub async fn serve(
    listeners: Vec<TcpListener>,
    metrics: Arc<dyn Metrics>,
    options: WebOptions,
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
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let accepting = accept(
            listener,
            Arc::clone(&handler),
            Arc::clone(&connections),
            stopped.clone(),
        );
        tasks.spawn(accepting);
    }
    let ended = tokio::select! {
        () = shutdown => None,
        ended = tasks.join_next() => ended,
    };
    let _ = stop.send(true);
    if ended.is_some() {
        anyhow::bail!("the server has stopped accepting connections after a fault; see the log");
    }
    while tasks.join_next().await.is_some() {}
    // Every connection holds a permit until it has ended.
    let ended = connections.acquire_many(MAX_CONNECTIONS as u32);
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        tracing::warn!("requests still in progress were cut off");
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
            () = stop_requested(&mut stopped) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // EMFILE and similar errors last for a while: wait instead of retrying at once.
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
                () = stop_requested(&mut stopped) => None,
            };
            let ended = match ended {
                Some(result) => Ok(result),
                None => {
                    // The request in progress is answered, if the client reads the answer.
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

async fn stop_requested(stopped: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, so the server has ended.
    let _ = stopped.wait_for(|&stop| stop).await;
}

#[cfg(test)]
mod tests;
