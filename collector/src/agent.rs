//! The agent: loads the kernel side, follows cgroups, takes frames, and hands them out.
//!
//! Invariant: a [`Frame`] does not change once it is taken. Readers of a frame (an encoder, the
//! JSON API, `dump`) hold no lock of the agent, and scrapes at the same time share a frame and its
//! encoded body. Between scrapes a thread sleeps until a lifecycle event arrives, or until a
//! removed cgroup has to be reaped.

mod collector;
mod frame;
mod health;
mod housekeeping;
mod identity;
mod inventory;
mod keep;
mod lifecycle;
mod record;
mod slots;
mod sources;
mod stages;
mod start;
mod status;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use collector::Collector;
use frame::Encodings;
use health::Health;
use inventory::Inventories;

pub use frame::Frame;
pub use inventory::{Inventory, InventoryEntry, KeyMatch, SHORTEST_PREFIX};
pub use record::{CgroupKind, Life, Record, Subject, rfc3339};
pub use start::AgentOptions;
pub use status::{AgentStatus, Cgroups, RuntimeStatus, SlotStates, SourceStatus};

use crate::exposition::{Body, Encoder, Format};

/// The running agent.
pub struct Agent {
    /// Takes frames, one at a time. Used by way of `health` alone.
    collector: Mutex<Collector>,
    health: Health,
    /// The latest frame. `None` before the first one and while the next one is taken.
    latest: Mutex<Option<Arc<Frame>>>,
    encodings: Arc<Encodings>,
    inventories: Inventories,
    /// Nanoseconds.
    min_interval: AtomicU64,
}

/// How long a snapshot may be under way before the agent counts as not ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// Nanoseconds of a duration; the most there are, which is 584 years, of a longer one.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Takes a lock even if a thread has panicked while it held it: the other threads go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Returns the latest frame if it is younger than the minimum interval, else takes a new one.
    ///
    /// # Errors
    ///
    /// When the slots can't be read. A source that fails is absent instead.
    pub fn frame(&self) -> anyhow::Result<Arc<Frame>> {
        if let Some(frame) = self.young() {
            return Ok(frame);
        }
        let taken = self.work(|collector| -> anyhow::Result<_> {
            // Another thread may have taken a frame in the meantime.
            if let Some(frame) = self.young() {
                return Ok((frame, false));
            }
            // If nobody reads the old frame any more, its memory is reused for the new one.
            let old = lock(&self.latest).take();
            drop(old);
            let frame = collector.frame(&self.encodings);
            self.health.snapshot(&frame);
            let frame = Arc::new(frame?);
            collector.lifecycle.tree.served();
            *lock(&self.latest) = Some(Arc::clone(&frame));
            Ok((frame, true))
        });
        let (frame, new) = taken??;
        if new {
            self.inventories.follow(&frame);
        }
        Ok(frame)
    }

    /// Works with the collector.
    ///
    /// # Errors
    ///
    /// If the work panics, or has panicked: see [`broken`](Self::broken).
    fn work<T>(&self, work: impl FnOnce(&mut Collector) -> T) -> anyhow::Result<T> {
        let done = self.health.work(&self.collector, work);
        done.context("the agent can't go on and is about to end")
    }

    /// The latest frame, if it is young enough to be served again.
    fn young(&self) -> Option<Arc<Frame>> {
        let latest = lock(&self.latest);
        let young = latest
            .as_ref()
            .filter(|frame| frame.age() < self.min_interval());
        young.cloned()
    }

    /// Returns one exposition of the frame that [`frame`](Self::frame) returns.
    ///
    /// # Errors
    ///
    /// As for [`frame`](Self::frame).
    pub fn scrape(&self, format: Format) -> anyhow::Result<Body> {
        Ok(self.frame()?.body(format))
    }

    /// Returns what [`scrape`](Self::scrape) would, if that is encoded already. Does not block.
    pub fn at_hand(&self, format: Format) -> Option<Body> {
        self.young()?.encoded(format)
    }

    /// Hands every family of the frame that [`frame`](Self::frame) returns to an encoder.
    ///
    /// # Errors
    ///
    /// As for [`frame`](Self::frame).
    pub fn encode(&self, out: &mut dyn Encoder) -> anyhow::Result<()> {
        self.frame()?.encode(out);
        Ok(())
    }

    /// Returns the cgroups of the frame that [`frame`](Self::frame) returns.
    ///
    /// # Errors
    ///
    /// As for [`frame`](Self::frame).
    pub fn inventory(&self) -> anyhow::Result<Arc<Inventory>> {
        self.inventories.ask();
        let frame = self.frame()?;
        Ok(self.inventories.of(&frame))
    }

    /// Frees the encoded bodies of the latest frame once it is too old to be served. Returns
    /// whether nothing is left to free.
    pub fn release_bodies(&self) -> bool {
        // The lock of `latest` is not held while bodies are freed: an encoder may hold a body's
        // lock for long.
        let latest = lock(&self.latest).clone();
        latest.is_none_or(|frame| frame.age() >= self.min_interval() && frame.release_bodies())
    }

    /// Notes what is served, for an agent of another version: see `keep`. To be called at the end, with
    /// `--state.pin`; else it does nothing.
    ///
    /// # Errors
    ///
    /// When a snapshot can't be taken, or the map can't be written.
    pub fn keep_totals(&self) -> anyhow::Result<()> {
        self.work(|collector| collector.keep_totals(&self.encodings))?
    }

    /// Whether programs and maps stay when the agent ends, see `--state.pin`.
    pub fn stays(&self) -> bool {
        let pinned = self.work(|collector| collector.keeper.is_some());
        pinned.unwrap_or_default()
    }

    /// How long a frame is served before a new one is taken.
    pub fn min_interval(&self) -> Duration {
        Duration::from_nanos(self.min_interval.load(Relaxed))
    }

    /// Changes how long a frame is served.
    pub fn set_min_interval(&self, interval: Duration) {
        self.min_interval.store(nanos(interval), Relaxed);
    }

    /// Changes how long a removed cgroup is reported.
    ///
    /// # Errors
    ///
    /// When the agent is about to end.
    pub fn set_linger(&self, linger: Duration) -> anyhow::Result<()> {
        self.work(|collector| collector.lifecycle.linger = linger)
    }

    /// Whether the agent can be scraped: all its threads live, no snapshot is stuck, and the last
    /// one could be taken. Does not wait for a snapshot.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn ready(&self) -> Result<(), String> {
        self.health.ready(PATIENCE)
    }

    /// Whether the agent works, even if the last snapshot failed. A snapshot may be under way for
    /// `patience`.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn alive(&self, patience: Duration) -> Result<(), String> {
        self.health.alive(patience)
    }

    /// Whether the agent can't go on.
    pub fn is_broken(&self) -> bool {
        self.health.is_broken()
    }

    /// Completes once the agent can't go on: a panic has left its totals half changed. It should
    /// then end with a failure, and be started again.
    pub async fn broken(&self) {
        self.health.broken().await;
    }
}
