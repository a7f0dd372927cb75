//! Housekeeping between scrapes: the thread that does it.

use std::{
    os::fd::AsRawFd,
    sync::{Arc, Weak},
    time::Duration,
};

use super::{Agent, collector::Collector, lock};
use crate::kernel::events;

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
