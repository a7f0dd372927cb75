//! Housekeeping between scrapes: the thread that does it.

use std::{
    os::fd::AsRawFd,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{Agent, collector::Collector};
use crate::{
    kernel::{events, slots::READING},
    threads,
};

/// Minimum and maximum time between two rounds that no event triggers. A thread that is late for its
/// next round is stuck.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

impl Agent {
    /// Starts the thread that follows lifecycle events. It ends with the agent.
    ///
    /// # Errors
    ///
    /// When the thread can't be created.
    pub fn follow(self: &Arc<Self>) -> anyhow::Result<()> {
        let agent = Arc::downgrade(self);
        let descriptors = self.work(|collector| {
            let events = collector.lifecycle.events.as_raw_fd();
            let mut descriptors = vec![events, collector.alarm.as_raw_fd()];
            descriptors.extend(collector.kernel_log.as_ref().map(AsRawFd::as_raw_fd));
            descriptors
        })?;
        let run = move || {
            while let Some(timeout) = tidy(&agent) {
                events::wait_readable(&descriptors, timeout);
            }
        };
        threads::spawn("cgmeter-events", run)?;
        Ok(())
    }
}

/// Does one round. Returns `None` once the agent is gone, else the time until the next round.
fn tidy(agent: &Weak<Agent>) -> Option<Duration> {
    let agent = agent.upgrade()?;
    // After a panic the agent ends, and the thread before it.
    let pause = agent.work(Collector::tidy).ok()?;
    agent.health.round(pause);
    Some(pause)
}

impl Collector {
    /// Does one round. Returns the time until the next one.
    fn tidy(&mut self) -> Duration {
        self.alarm.stop();
        let came = self.housekeeping();
        if came > 0 {
            let lock = self.slots.lock(READING);
            if let Err(error) = self.refresh_slots() {
                tracing::warn!(%error, "slots could not be read");
            }
            // What a program moved meanwhile is found at the next reading.
            let _ = self.slots.unlock(lock);
        }
        let Self {
            lifecycle,
            slots,
            sources,
            ..
        } = self;
        slots.provide(&lifecycle.tree, sources);
        let idle = sources.idle(&lifecycle.tree);
        let next = lifecycle.next_round().min(slots.next_round());
        // A node that is due may have to wait for its children, so a minimum applies.
        let pause = next.clamp(SHORTEST, LONGEST).min(idle);
        self.next_round = Instant::now() + pause;
        pause
    }
}
