//! The agent: loads the kernel side, follows cgroups, takes frames, and hands them out.
//!
//! Invariant: a [`Frame`] does not change once it is taken. Whoever reads one (an encoder, the JSON
//! API, `dump`) holds no lock of the agent, and scrapes at the same time share a frame and what was
//! encoded of it. Between scrapes a thread sleeps until a lifecycle event comes, or until the time
//! of a removed cgroup is over.

mod collector;
mod frame;
mod housekeeping;
mod identity;
mod inventory;
mod lifecycle;
mod record;
mod slots;
mod sources;
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
pub use inventory::{Entry, Found, Inventory, SHORTEST_PREFIX};
pub use record::{CgroupKind, Life, Record, Subject, rfc3339};
pub use start::Options;
pub use status::{Cgroups, RuntimeStatus, SlotStates, SourceStatus, Status};

use crate::exposition::{Body, Encoder, Format};

/// The running agent.
pub struct Agent {
    /// What takes frames. Only one is taken at a time.
    collector: Mutex<Collector>,
    /// The frame taken last. Not there while the next one is taken, unless somebody still reads it.
    latest: Mutex<Option<Arc<Frame>>>,
    encodings: Arc<Encodings>,
    inventories: Inventories,
    min_interval: Duration,
    started: Instant,
}

/// A panic of one thread must not end all others.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// A frame: a new one, unless the last one is younger than the minimum interval.
    ///
    /// # Errors
    ///
    /// When the slots can't be read; sources that fail keep their last values instead.
    pub fn frame(&self) -> anyhow::Result<Arc<Frame>> {
        if let Some(frame) = self.young() {
            return Ok(frame);
        }
        let frame = {
            let mut collector = lock(&self.collector);
            // Somebody else may have taken one meanwhile.
            if let Some(frame) = self.young() {
                return Ok(frame);
            }
            // Its columns' memory is used for the next frame, if nobody reads it any more.
            drop(lock(&self.latest).take());
            let frame = Arc::new(collector.frame(&self.encodings)?);
            *lock(&self.latest) = Some(Arc::clone(&frame));
            frame
        };
        self.inventories.follow(&frame);
        Ok(frame)
    }

    /// The last frame, if it is young enough to be served once more.
    fn young(&self) -> Option<Arc<Frame>> {
        let latest = lock(&self.latest);
        let young = latest
            .as_ref()
            .filter(|frame| frame.age() < self.min_interval);
        young.cloned()
    }

    /// One exposition, of a frame as of [`frame`](Self::frame).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn scrape(&self, format: Format) -> anyhow::Result<Body> {
        Ok(self.frame()?.body(format))
    }

    /// Hands every family to an encoder, of a frame as of [`frame`](Self::frame).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn encode(&self, out: &mut dyn Encoder) -> anyhow::Result<()> {
        self.frame()?.encode(out);
        Ok(())
    }

    /// The cgroups of a frame as of [`frame`](Self::frame).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn inventory(&self) -> anyhow::Result<Arc<Inventory>> {
        self.inventories.ask();
        let frame = self.frame()?;
        Ok(self.inventories.of(&frame))
    }

    /// Frees what was encoded of the last frame, if no scrape gets that frame any more. Whether
    /// there is nothing left to free.
    pub fn release_bodies(&self) -> bool {
        let latest = lock(&self.latest);
        let Some(frame) = &*latest else {
            return true;
        };
        let over = frame.age() >= self.min_interval;
        if over {
            frame.release_bodies();
        }
        over
    }

    /// How long a frame is served.
    pub fn min_interval(&self) -> Duration {
        self.min_interval
    }
}
