//! The agent: loads the kernel side, follows cgroups, takes frames, and hands them out.
//!
//! Invariant: a [`Frame`] does not change once it is taken. Readers of a frame (an encoder, the
//! JSON API, `dump`) hold no lock of the agent, and scrapes at the same time share a frame and its
//! encoded body. Between scrapes a thread sleeps until a lifecycle event arrives, or until a
//! removed cgroup has to be reaped.

mod collector;
mod frame;
mod housekeeping;
mod identity;
mod inventory;
mod lifecycle;
mod record;
mod slots;
mod sources;
mod stages;
mod start;
mod status;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use collector::Collector;
use frame::Encodings;
use inventory::Inventories;

pub use frame::Frame;
pub use inventory::{Inventory, InventoryEntry, KeyMatch, SHORTEST_PREFIX};
pub use record::{CgroupKind, Life, Record, Subject, rfc3339};
pub use start::AgentOptions;
pub use status::{AgentStatus, Cgroups, RuntimeStatus, SlotStates, SourceStatus};

use crate::exposition::{Body, Encoder, Format};

/// The running agent.
pub struct Agent {
    /// Takes frames, one at a time.
    collector: Mutex<Collector>,
    /// The latest frame. `None` before the first one and while the next one is taken.
    latest: Mutex<Option<Arc<Frame>>>,
    encodings: Arc<Encodings>,
    inventories: Inventories,
    min_interval: Duration,
    started: Instant,
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
    /// When the slots can't be read. A source that fails keeps its last values instead.
    pub fn frame(&self) -> anyhow::Result<Arc<Frame>> {
        if let Some(frame) = self.young() {
            return Ok(frame);
        }
        let frame = {
            let mut collector = lock(&self.collector);
            // Another thread may have taken a frame in the meantime.
            if let Some(frame) = self.young() {
                return Ok(frame);
            }
            // If nobody reads the old frame any more, its memory is reused for the new one.
            drop(lock(&self.latest).take());
            let frame = Arc::new(collector.frame(&self.encodings)?);
            *lock(&self.latest) = Some(Arc::clone(&frame));
            frame
        };
        self.inventories.follow(&frame);
        Ok(frame)
    }

    /// The latest frame, if it is young enough to be served again.
    fn young(&self) -> Option<Arc<Frame>> {
        let latest = lock(&self.latest);
        let young = latest
            .as_ref()
            .filter(|frame| frame.age() < self.min_interval);
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
        latest.is_none_or(|frame| frame.age() >= self.min_interval && frame.release_bodies())
    }

    /// How long a frame is served before a new one is taken.
    pub fn min_interval(&self) -> Duration {
        self.min_interval
    }
}
