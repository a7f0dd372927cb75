//! What was last learnt, and what went wrong.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use super::{Family, Owner};

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Labels that can't be followed.
    Discovery,
    /// No process, or its namespace can't be entered.
    Namespace,
    /// The namespace is the host's.
    HostNetwork,
    /// Nobody listens there.
    Connect,
    /// Too slow.
    Timeout,
    /// Not an answer of HTTP.
    Protocol,
    /// Not status 200.
    Status,
    /// Too long.
    Size,
    /// A line that can't be read.
    Parse,
    /// A text file that can't be read, or isn't one.
    File,
    /// Text files with timestamps.
    Timestamp,
    /// More samples than allowed.
    Samples,
    /// A name or type that another family has, or a series that is there already.
    Conflict,
    /// Samples of a text file for a cgroup or container that isn't there.
    Owner,
}

impl Reason {
    /// As label `reason` has it.
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
        }
    }
}

/// Why an endpoint could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// Kind.
    pub reason: Reason,
    /// In words.
    pub text: String,
}

impl Failure {
    /// One.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }
}

/// An endpoint of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The cgroup's id.
    pub cgroup: u64,
    /// Port.
    pub port: u16,
    /// Path.
    pub path: String,
}

/// What came of asking an endpoint.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whether the last request was answered.
    pub up: bool,
    /// How long it took.
    pub took: Duration,
    /// Its last good answer, and when.
    pub good: Option<(Instant, Arc<Vec<Family>>)>,
    /// Samples in that.
    pub samples: usize,
    /// How long a good answer counts.
    pub age: Duration,
}

/// What came of reading a text file.
#[derive(Clone, Debug)]
pub struct File {
    /// When it was written.
    pub modified: SystemTime,
    /// Its families by owner.
    pub families: Vec<(Option<Owner>, Arc<Vec<Family>>)>,
}

/// Errors by reason, and requests by outcome.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Errors.
    pub errors: BTreeMap<Reason, u64>,
    /// Requests that were answered.
    pub good: u64,
    /// Requests that were not.
    pub failed: u64,
}

impl Counters {
    /// Counts errors.
    pub fn add(&mut self, reason: Reason, count: usize) {
        if count > 0 {
            *self.errors.entry(reason).or_default() += count as u64;
        }
    }
}

/// Everything behind the store's lock.
#[derive(Debug, Default)]
pub struct Contents {
    /// Endpoints that have been asked.
    pub outcomes: BTreeMap<Key, Outcome>,
    /// Text files, by name.
    pub files: BTreeMap<String, File>,
    /// Counters.
    pub counters: Counters,
    /// A number that grows when outcomes or files change.
    pub changes: u64,
}

/// What the threads leave, and the source reads.
#[derive(Clone, Debug, Default)]
pub struct Store(Arc<Mutex<Contents>>);

impl Store {
    /// The contents; whoever has them does nothing that waits.
    pub fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
