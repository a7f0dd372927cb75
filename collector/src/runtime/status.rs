//! Whether a runtime answers, for metrics, log and `check`.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use super::wire::Fault;
use crate::cgroup::Runtime;

/// Results of requests, as the label `result` has them.
pub const RESULTS: [&str; 6] = [
    "ok",
    "not_found",
    "timeout",
    "too_large",
    "invalid",
    "error",
];

/// What is known of a runtime.
#[derive(Clone, Debug)]
pub struct RuntimeState {
    /// The runtime.
    pub runtime: Runtime,
    /// Whether it answers; `None` before the first answer, and where another service listens.
    pub up: Option<bool>,
    /// Its version, or why it is down.
    pub text: String,
}

/// One runtime at one socket.
#[derive(Debug)]
pub struct SocketStatus {
    socket: PathBuf,
    reported: Mutex<RuntimeState>,
    containers: AtomicUsize,
    results: [AtomicU64; RESULTS.len()],
    nanos: AtomicU64,
}

impl SocketStatus {
    pub(super) fn new(runtime: Runtime, socket: PathBuf) -> Self {
        Self {
            socket,
            reported: Mutex::new(RuntimeState {
                runtime,
                up: None,
                text: String::new(),
            }),
            containers: AtomicUsize::new(0),
            results: Default::default(),
            nanos: AtomicU64::new(0),
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The runtime's last known state.
    pub fn reported(&self) -> RuntimeState {
        self.lock().clone()
    }

    /// Containers that it has listed.
    pub fn containers(&self) -> usize {
        self.containers.load(Relaxed)
    }

    /// Requests by result, as `RESULTS` has them.
    pub fn results(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.results.iter().map(|count| count.load(Relaxed));
        RESULTS.into_iter().zip(counts)
    }

    /// Requests that were answered about a container, or about the runtime itself.
    pub(super) fn answers(&self) -> u64 {
        let results = self
            .results()
            .filter(|(name, _)| ["ok", "not_found"].contains(name));
        results.map(|(_, count)| count).sum()
    }

    /// Time spent waiting for answers.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, RuntimeState> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_containers(&self, count: usize) {
        self.containers.store(count, Relaxed);
    }

    pub(super) fn count<T>(&self, result: &Result<T, Fault>, took: Duration) {
        let name = match result {
            Ok(_) => "ok",
            Err(Fault::Unknown) => "not_found",
            Err(Fault::Late(_)) => "timeout",
            Err(Fault::Large(_)) => "too_large",
            Err(Fault::Garbage(_)) => "invalid",
            Err(_) => "error",
        };
        if let Some(at) = RESULTS.iter().position(|known| *known == name) {
            self.results[at].fetch_add(1, Relaxed);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Relaxed);
    }

    pub(super) fn up(&self, runtime: Runtime, version: &str) {
        let mut reported = self.lock();
        if reported.up != Some(true) {
            tracing::info!(%runtime, socket = %self.socket.display(), version, "following the runtime");
        }
        *reported = RuntimeState {
            runtime,
            up: Some(true),
            text: version.to_owned(),
        };
    }

    pub(super) fn down(&self, fault: &Fault) {
        let mut reported = self.lock();
        let reason = fault.to_string();
        let (runtime, socket) = (reported.runtime, self.socket.display());
        let up = if matches!(fault, Fault::Unsupported(_)) {
            if reported.text != reason {
                tracing::debug!(%runtime, %socket, reason, "the runtime's service is not offered here");
            }
            None
        } else {
            if reported.up != Some(false) {
                tracing::warn!(%runtime, %socket, reason, "the runtime doesn't answer: containers keep the names that are known");
            }
            Some(false)
        };
        reported.up = up;
        reported.text = reason;
    }
}
