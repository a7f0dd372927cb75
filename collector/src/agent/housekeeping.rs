//! Housekeeping between scrapes: lifecycle events, retired slots, reaped cgroups.

use std::{
    os::fd::AsRawFd,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{Agent, collector::Collector, lock};
use crate::{kernel::events, source::Change};

/// Minimum and maximum time between two rounds that no event triggers.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3600);

impl Agent {
    /// Starts the thread that follows lifecycle events. It ends with the agent.
    ///
    /// # Errors
    ///
    /// When the thread can't be created.
    pub fn follow(self: &Arc<Self>) -> std::io::Result<()> {
        let agent = Arc::downgrade(self);
        let descriptors = {
            let collector = lock(&self.collector);
            let mut descriptors = vec![collector.lifecycle.events.as_raw_fd()];
            descriptors.extend(collector.kernel_log.as_ref().map(AsRawFd::as_raw_fd));
            descriptors
        };
        let run = move || {
            while let Some(timeout) = tidy(&agent) {
                events::wait_readable(&descriptors, timeout);
            }
        };
        std::thread::Builder::new()
            .name("cgmeter-events".to_owned())
            .spawn(run)
            .map(drop)
    }
}

/// Does one round. Returns `None` once the agent is gone, else the time until the next round.
fn tidy(agent: &Weak<Agent>) -> Option<Duration> {
    let agent = agent.upgrade()?;
    let mut collector = lock(&agent.collector);
    let came = collector.housekeeping();
    if came > 0
        && let Err(error) = collector.refresh_slots()
    {
        tracing::warn!(%error, "slots could not be read");
    }
    let Collector {
        lifecycle,
        slots,
        sources,
        ..
    } = &mut *collector;
    slots.provide(&lifecycle.tree, sources);
    let idle = sources.idle(&lifecycle.tree);
    let next = lifecycle.next_round().min(slots.next_round());
    // A node that is due may have to wait for its children, so a minimum applies.
    Some(next.clamp(SHORTEST, LONGEST).min(idle))
}

impl Collector {
    /// Applies lifecycle events, retires slots, reaps removed cgroups. Returns the number of
    /// events.
    pub(super) fn housekeeping(&mut self) -> usize {
        if let Some(log) = &mut self.kernel_log {
            log.flush();
        }
        let events = self.drain();
        self.walk_if_events_were_lost();
        let Self {
            lifecycle,
            slots,
            sources,
            ..
        } = self;
        slots.retire(&mut lifecycle.tree, sources, Instant::now());
        let mut reaped = Vec::new();
        lifecycle.tree.reap(
            Instant::now(),
            lifecycle.linger,
            |id| slots.is_pending(id),
            |node, into| {
                sources.notify(&Change::Reaped { node, into });
                reaped.push((node, into));
            },
        );
        slots.reaped(&reaped);
        self.identify();
        events
    }

    /// Reads which cgroups have slots, then drops removed cgroups that never counted anything.
    ///
    /// # Errors
    ///
    /// When the kernel's map of slots can't be read.
    pub(super) fn refresh_slots(&mut self) -> std::io::Result<()> {
        let Self {
            lifecycle,
            slots,
            sources,
            ..
        } = self;
        slots.refresh()?;
        let mut reaped = Vec::new();
        lifecycle.tree.discard(
            |id| slots.has(id),
            |id| slots.is_pending(id),
            |node, into| {
                sources.notify(&Change::Reaped { node, into });
                reaped.push((node, into));
            },
        );
        slots.reaped(&reaped);
        Ok(())
    }
}
