//! Container runtimes: what they know of their containers.
//!
//! Invariant: whoever reads the [`Directory`] never waits for a runtime. Tasks of their own follow
//! the runtimes' events, ask within limits of time and size, and leave what they learn here. The
//! directory is bounded in records, and each record in bytes.

mod choice;
mod cri;
mod docker;
mod follow;
mod status;
mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

pub use choice::{Choice, Word};
pub use follow::{Followers, ask, follow};
pub use status::{Status, Told};

use crate::cgroup::{Container, State};

/// Most containers that are remembered.
const RECORDS: usize = 65_536;
/// Longest value of a label or annotation; the rest is cut off.
const VALUE: usize = 4096;
/// Most labels, and most annotations, of a container.
const VALUES: usize = 512;

/// A container, and since when it is no more.
#[derive(Debug)]
struct Record {
    container: Arc<Container>,
    gone: Option<Instant>,
}

/// Keeps what a hostile label can cost within bounds.
fn shorten(values: &mut BTreeMap<String, String>) {
    while values.len() > VALUES {
        values.pop_last();
    }
    values.retain(|key, _| key.len() <= VALUE);
    for value in values.values_mut() {
        if value.len() > VALUE {
            value.truncate(value.floor_char_boundary(VALUE));
        }
    }
}

/// What is known of containers, by full id.
#[derive(Debug)]
pub struct Directory {
    containers: Mutex<HashMap<String, Record>>,
    changes: AtomicU64,
    refused: AtomicU64,
    runtimes: Mutex<Vec<Arc<Status>>>,
    wanted: mpsc::UnboundedSender<String>,
}

impl Directory {
    /// An empty one, and the ids that its readers would like to know of.
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<String>) {
        let (wanted, asked) = mpsc::unbounded_channel();
        let directory = Self {
            containers: Mutex::default(),
            changes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            runtimes: Mutex::default(),
            wanted,
        };
        (Arc::new(directory), asked)
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Record>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a container.
    pub fn get(&self, id: &str) -> Option<Arc<Container>> {
        self.containers()
            .get(id)
            .map(|record| Arc::clone(&record.container))
    }

    /// A number that grows whenever anything here changes.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Asks for a container of which there is a cgroup and no record.
    pub fn want(&self, id: &str) {
        // Nobody listens where no runtime is followed.
        let _ = self.wanted.send(id.to_owned());
    }

    /// Takes in what a runtime says. What it doesn't say any more of the last run, or asks to be
    /// accounted for more rarely, stays as it was told before.
    pub fn put(&self, mut container: Container) {
        shorten(&mut container.labels);
        shorten(&mut container.annotations);
        let mut containers = self.containers();
        if let Some(known) = containers.get_mut(&container.id) {
            let old = &known.container;
            container.writable = container.writable.or(old.writable);
            container.exit_code = container.exit_code.or(old.exit_code);
            if container.exit_reason.is_empty() {
                container.exit_reason.clone_from(&old.exit_reason);
            }
            container.finished = container.finished.or(old.finished);
            known.gone = None;
            if **old == container {
                return;
            }
            known.container = Arc::new(container);
        } else {
            if containers.len() >= RECORDS {
                // Whoever has ended makes room for whoever may run.
                let ended = containers.iter().find(|(_, record)| {
                    record.gone.is_some() || record.container.state == State::Exited
                });
                let ended = ended.map(|(id, _)| id.clone());
                if ended.is_none_or(|id| containers.remove(&id).is_none()) {
                    if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                        tracing::warn!(
                            limit = RECORDS,
                            "more containers than can be remembered: the excess has no names"
                        );
                    }
                    return;
                }
            }
            let record = Record {
                container: Arc::new(container),
                gone: None,
            };
            containers.insert(record.container.id.clone(), record);
        }
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Changes a container that is known.
    pub fn update(&self, id: &str, change: impl FnOnce(&mut Container)) {
        let mut containers = self.containers();
        let Some(record) = containers.get_mut(id) else {
            return;
        };
        let mut container = Container::clone(&record.container);
        change(&mut container);
        if *record.container != container {
            record.container = Arc::new(container);
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Notes that a container is no more: it is remembered for a while.
    pub fn gone(&self, id: &str) {
        if let Some(record) = self.containers().get_mut(id) {
            record.gone.get_or_insert_with(Instant::now);
        }
    }

    /// Forgets those that have been gone for longer.
    pub fn sweep(&self, linger: Duration) {
        let mut containers = self.containers();
        let before = containers.len();
        containers.retain(|_, record| record.gone.is_none_or(|since| since.elapsed() < linger));
        if containers.len() < before {
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Containers that were not remembered because there are too many.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The runtimes that are followed.
    pub fn runtimes(&self) -> Vec<Arc<Status>> {
        self.statuses().clone()
    }

    fn statuses(&self) -> MutexGuard<'_, Vec<Arc<Status>>> {
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a container.
    pub fn forget(&self, id: &str) {
        if self.containers().remove(id).is_some() {
            self.changes.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests;
