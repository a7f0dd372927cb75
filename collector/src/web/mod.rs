//! The HTTP server.
//!
//! Invariant: this module handles expositions as bytes without knowing their content, and cgroups
//! as the agent's records. It never reads a request's body and never blocks the async threads on a
//! scrape. It bounds what one client, or all clients together, can cost: connections, header size
//! and time, concurrent scrapes, bytes on their way, time without reading
//! (docs/design/http.md).

mod answer;
mod api;
mod body;
mod clients;
mod connection;
mod counters;
mod cut;
mod listen;
mod scrapes;
mod timeout;

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use answer::Handler;
pub use answer::is_reserved;
use clients::Clients;
pub use clients::Limits;
use tokio::{sync::watch, task::JoinSet};

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
    /// Returns what `scrape` would, if that exists already. Does not block.
    fn at_hand(&self, format: Format) -> Option<Body>;
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

    fn at_hand(&self, format: Format) -> Option<Body> {
        Self::at_hand(self, format)
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

/// Largest head of a request, bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Time for requests in progress to finish when the agent stops.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted.
const RETRY: Duration = Duration::from_millis(100);
/// Shortest time between two log lines about that.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// Serves until `shutdown` completes, then lets requests in progress finish.
///
/// # Errors
///
/// When a listener can't be used, or if a task that accepts connections panics.
pub async fn serve(
    listeners: Vec<TcpListener>,
    metrics: Arc<dyn Metrics>,
    options: WebOptions,
    limits: Limits,
    counters: Counters,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (stop, stopped) = watch::channel(false);
    let addresses = listeners.iter().map(TcpListener::local_addr);
    let served = Served {
        metrics,
        addresses: addresses.collect::<Result<_, _>>()?,
    };
    let clients = Clients::new(limits, counters.clone());
    let handler = Handler::new(served, options, Arc::clone(&clients), counters);
    let handler = Arc::new(handler);
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let accepting = accept(
            listener,
            Arc::clone(&handler),
            Arc::clone(&clients),
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
    let ended = clients.ended();
    if tokio::time::timeout(GRACE * 2, ended).await.is_err() {
        tracing::warn!("requests still in progress were cut off");
    }
    Ok(())
}

async fn accept(
    listener: tokio::net::TcpListener,
    handler: Arc<Handler>,
    clients: Arc<Clients>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut failures = Failures::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop_requested(&mut stopped) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                failures.log(&error);
                // Too many open files, or too little memory: an idle connection can free some.
                clients.make_place();
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let place = tokio::select! {
            place = clients.place(stream) => place,
            () = stop_requested(&mut stopped) => return,
        };
        let Some(place) = place else { return };
        tokio::spawn(connection::serve(
            place,
            Arc::clone(&handler),
            stopped.clone(),
        ));
    }
}

/// Connections that could not be accepted. They are logged once a minute.
#[derive(Default)]
struct Failures {
    logged: Option<Instant>,
    since: u64,
}

impl Failures {
    fn log(&mut self, error: &std::io::Error) {
        self.since += 1;
        if self
            .logged
            .is_none_or(|logged| logged.elapsed() >= LOG_PAUSE)
        {
            tracing::warn!(%error, count = self.since, "connections could not be accepted");
            self.logged = Some(Instant::now());
            self.since = 0;
        }
    }
}

/// Waits until the server has to stop.
async fn stop_requested(stopped: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, so the server has ended.
    let _ = stopped.wait_for(|&stop| stop).await;
}

#[cfg(test)]
mod tests;
