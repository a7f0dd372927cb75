//! Results of the threads that read endpoints and files, and their errors.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use super::series::{AppFamily, Owner};

/// Kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A container's labels or annotations are invalid.
    Discovery,
    /// The cgroup has no process, or its namespace can't be entered.
    Namespace,
    /// The network namespace is the host's.
    HostNetwork,
    /// The connection was refused or failed.
    Connect,
    /// The answer took too long.
    Timeout,
    /// The answer is not valid HTTP.
    Protocol,
    /// The status of the answer is not 200.
    Status,
    /// The answer is too large.
    Size,
    /// A line can't be parsed.
    Parse,
    /// A text file can't be read, or is not a regular file.
    File,
    /// A text file contains timestamps.
    Timestamp,
    /// There are more samples than allowed.
    Samples,
    /// Another family has the name or another type, or the series already exists.
    Conflict,
    /// Samples of a text file belong to a cgroup or container that does not exist.
    Owner,
    /// The agent has a fault, which its log describes.
    Fault,
}

impl Reason {
    /// Returns the value of the label `reason`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discovery => "discovery",
            Self::Namespace => "namespace",
            Self::HostNetwork => "host_network",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Status => "status",
            Self::Size => "size",
            Self::Parse => "parse",
            Self::File => "file",
            Self::Timestamp => "timestamp",
            Self::Samples => "samples",
            Self::Conflict => "conflict",
            Self::Owner => "owner",
            Self::Fault => "fault",
        }
    }
}

/// Why an endpoint or a file could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// Kind of the error.
    pub reason: Reason,
    /// What went wrong, for the log.
    pub text: String,
}

impl Failure {
    /// Makes a failure of kind `reason`.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }
}

/// An endpoint of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    /// Id of the cgroup.
    pub cgroup: u64,
    /// TCP port of the endpoint.
    pub port: u16,
    /// Path of the endpoint's URL.
    pub path: String,
}

/// Result of requesting an endpoint.
#[derive(Clone, Debug)]
pub struct RequestOutcome {
    /// Whether the last request was answered.
    pub up: bool,
    /// Duration of the last request.
    pub took: Duration,
    /// The last valid answer, and when it was requested.
    pub good: Option<(Instant, Arc<Vec<AppFamily>>)>,
    /// Number of samples in the last answer; 0 if the request failed.
    pub samples: usize,
    /// How long a valid answer is served.
    pub age: Duration,
}

/// Contents of a text file.
#[derive(Clone, Debug)]
pub struct TextFile {
    /// When the file was last modified.
    pub modified: SystemTime,
    /// The file's families by owner; `None` has the series that name no owner.
    pub families: Vec<(Option<Owner>, Arc<Vec<AppFamily>>)>,
}

/// Errors by reason, and requests by result.
#[derive(Clone, Debug, Default)]
pub struct CustomCounters {
    /// Errors by reason.
    pub errors: BTreeMap<Reason, u64>,
    /// Requests that succeeded.
    pub good: u64,
    /// Requests that failed.
    pub failed: u64,
}

impl CustomCounters {
    /// Counts errors.
    pub fn add(&mut self, reason: Reason, count: usize) {
        if count > 0 {
            *self.errors.entry(reason).or_default() += count as u64;
        }
    }
}

/// Everything behind the store's lock.
#[derive(Debug, Default)]
pub struct StoreContents {
    /// Results of the endpoints that were requested.
    pub outcomes: BTreeMap<EndpointKey, RequestOutcome>,
    /// Text files, by name.
    pub files: BTreeMap<String, TextFile>,
    /// Requests and errors so far.
    pub counters: CustomCounters,
    /// Incremented when outcomes or files change.
    pub changes: u64,
}

/// Shared results: the threads write them, the source reads them.
#[derive(Clone, Debug, Default)]
pub struct Store(Arc<Mutex<StoreContents>>);

impl Store {
    /// Locks the contents. Never wait for anything while the lock is held.
    pub fn lock(&self) -> MutexGuard<'_, StoreContents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
