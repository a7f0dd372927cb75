//! Records of containers, written by the followers.
//!
//! Invariant: reading never waits for a runtime, except in [`Directory::wait`], which is bounded. The
//! directory is bounded in records, and each record in bytes.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{questions::Questions, status::SocketStatus};
use crate::cgroup::{Container, Runtime, State};

/// The maximum number of records.
const RECORDS: usize = 65_536;
/// Longest value of a label or annotation; the rest is cut off.
const VALUE: usize = 4096;
/// Most labels, and most annotations, of a container.
const VALUES: usize = 512;
/// Longest name, image and the like.
const NAME: usize = 1024;
/// Limit on the size of all labels and annotations, bytes. Further records have none.
const WEIGHT: usize = 64 << 20;

/// A container, and when the runtime removed it.
#[derive(Debug)]
struct Record {
    container: Arc<Container>,
    gone: Option<Instant>,
}

/// Bounds the size of a record, which may be hostile.
fn shorten(container: &mut Container) {
    for values in [&mut container.labels, &mut container.annotations] {
        while values.len() > VALUES {
            values.pop_last();
        }
        values.retain(|key, _| key.len() <= VALUE);
        for value in values.values_mut() {
            cut(value, VALUE);
        }
    }
    let pod = container.pod.as_mut().map(|pod| {
        [
            &mut pod.namespace,
            &mut pod.name,
            &mut pod.uid,
            &mut pod.container,
        ]
    });
    let names = [
        &mut container.name,
        &mut container.image,
        &mut container.image_id,
        &mut container.exit_reason,
    ];
    for name in names.into_iter().chain(pod.into_iter().flatten()) {
        cut(name, NAME);
    }
}

fn cut(text: &mut String, longest: usize) {
    if text.len() > longest {
        text.truncate(text.floor_char_boundary(longest));
    }
}

/// Size of a container's labels and annotations, bytes.
fn weight(container: &Container) -> usize {
    let values = container.labels.iter().chain(&container.annotations);
    values.map(|(key, value)| key.len() + value.len()).sum()
}

/// Records by full id, and the size of their labels and annotations.
#[derive(Debug, Default)]
struct Records {
    by_id: HashMap<String, Record>,
    weight: usize,
}

impl Records {
    /// Inserts or replaces a record. Drops its labels and annotations if all of them would be too
    /// large.
    fn replace(&mut self, mut container: Container) {
        let before = self.by_id.get(&container.id);
        let before = before.map_or(0, |record| weight(&record.container));
        self.weight -= before;
        if self.weight + weight(&container) > WEIGHT {
            container.labels.clear();
            container.annotations.clear();
        }
        self.weight += weight(&container);
        let record = Record {
            container: Arc::new(container),
            gone: None,
        };
        self.by_id.insert(record.container.id.clone(), record);
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(record) = self.by_id.remove(id) else {
            return false;
        };
        self.weight -= weight(&record.container);
        true
    }
}

/// The directory of containers, by full id.
#[derive(Debug)]
pub struct Directory {
    containers: Mutex<Records>,
    changes: AtomicU64,
    refused: AtomicU64,
    runtimes: Mutex<Vec<Arc<SocketStatus>>>,
    wanted: mpsc::UnboundedSender<String>,
    questions: Questions,
    /// How long records of removed containers are kept.
    linger_ns: AtomicU64,
}

impl Directory {
    /// An empty one, and the receiver of the ids that are asked for.
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<String>) {
        let (wanted, asked) = mpsc::unbounded_channel();
        let directory = Self {
            containers: Mutex::default(),
            changes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            runtimes: Mutex::default(),
            wanted,
            questions: Questions::default(),
            linger_ns: AtomicU64::new(0),
        };
        (Arc::new(directory), asked)
    }

    fn containers(&self) -> MutexGuard<'_, Records> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of a container.
    pub fn get(&self, id: &str) -> Option<Arc<Container>> {
        self.containers()
            .by_id
            .get(id)
            .map(|record| Arc::clone(&record.container))
    }

    /// Number of changes so far.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Has every runtime asked for a container.
    pub fn want(&self, id: &str) {
        if self.get(id).is_none() {
            self.questions.ask(id);
        }
        // Without followers there is no receiver.
        let _ = self.wanted.send(id.to_owned());
    }

    /// Waits for the records of containers that were asked for, each with its runtime if the path has
    /// it. Ends when all are there, when no runtime that is up is left to answer, or after
    /// `limit`; a runtime that was too slow is not waited for again for some time. Returns how long
    /// it waited.
    pub fn wait(&self, containers: &[(&str, Option<Runtime>)], limit: Duration) -> Duration {
        self.questions.wait(containers, &self.runtimes(), limit)
    }

    /// Notes that a runtime doesn't have a container that was asked for, or failed to answer.
    pub(super) fn denied(&self, id: &str, status: &SocketStatus) {
        self.questions.denied(id, status.socket());
    }

    /// Wakes those who wait, since a runtime went down.
    pub(super) fn look_again(&self) {
        self.questions.look_again();
    }

    /// Inserts or updates a record. The size of the writable layer and how the last run ended are
    /// retained if the new record lacks them.
    pub fn put(&self, container: Container) {
        let id = container.id.clone();
        self.take_in(container);
        self.questions.answered(&id);
    }

    fn take_in(&self, mut container: Container) {
        shorten(&mut container);
        let mut containers = self.containers();
        if let Some(known) = containers.by_id.get_mut(&container.id) {
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
        } else if containers.by_id.len() >= RECORDS {
            // An ended container makes room.
            let ended = containers.by_id.iter().find(|(_, record)| {
                record.gone.is_some() || record.container.state == State::Exited
            });
            let ended = ended.map(|(id, _)| id.clone());
            if ended.is_none_or(|id| !containers.remove(&id)) {
                if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(
                        limit = RECORDS,
                        "more containers than can be remembered: the excess has no names"
                    );
                }
                return;
            }
        }
        containers.replace(container);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Changes a record, if there is one.
    pub fn update(&self, id: &str, change: impl FnOnce(&mut Container)) {
        let mut containers = self.containers();
        let Some(record) = containers.by_id.get_mut(id) else {
            return;
        };
        let mut container = Container::clone(&record.container);
        change(&mut container);
        shorten(&mut container);
        if *record.container != container {
            let gone = record.gone;
            containers.replace(container);
            if let Some(record) = containers.by_id.get_mut(id) {
                record.gone = gone;
            }
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Notes that a container was removed. Its record stays for a while.
    pub fn gone(&self, id: &str) {
        if let Some(record) = self.containers().by_id.get_mut(id) {
            record.gone.get_or_insert_with(Instant::now);
        }
    }

    /// How long the followers keep records of containers that were removed.
    pub fn set_linger(&self, linger: Duration) {
        let nanos = u64::try_from(linger.as_nanos()).unwrap_or(u64::MAX);
        self.linger_ns.store(nanos, Ordering::Relaxed);
    }

    pub(super) fn linger(&self) -> Duration {
        Duration::from_nanos(self.linger_ns.load(Ordering::Relaxed))
    }

    /// Drops records of containers that were removed longer ago than `linger`.
    pub fn sweep(&self, linger: Duration) {
        self.questions.sweep();
        let mut containers = self.containers();
        let over = |record: &Record| record.gone.is_some_and(|since| since.elapsed() >= linger);
        let over = containers.by_id.iter().filter(|(_, record)| over(record));
        let over: Vec<String> = over.map(|(id, _)| id.clone()).collect();
        for id in &over {
            containers.remove(id);
        }
        if !over.is_empty() {
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Containers without a record because there are too many.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The runtimes that are followed.
    pub fn runtimes(&self) -> Vec<Arc<SocketStatus>> {
        self.statuses().clone()
    }

    pub(super) fn statuses(&self) -> MutexGuard<'_, Vec<Arc<SocketStatus>>> {
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
