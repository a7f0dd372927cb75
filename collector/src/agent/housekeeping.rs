//! Housekeeping between scrapes: the thread that does it.

use std::{
    os::fd::AsRawFd,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{Agent, collector::Collector};
use crate::{
    kernel::{self, events, slots::READING},
    threads,
};

/// Minimum and maximum time between two rounds that no event triggers. A thread that is late for its
/// next round is stuck.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// How often it looks for removals, which don't wake it.
const LOOK: Duration = Duration::from_millis(250);
/// Shortest time between two returns of freed memory to the kernel. Each takes some milliseconds.
const KEEP_FREED: Duration = Duration::from_secs(10);

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
            let mut memory = FreedMemory::default();
            while let Some(pause) = tidy(&agent, &mut memory) {
                let end = Instant::now() + pause;
                loop {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() || events::wait_readable(&descriptors, left.min(LOOK)) {
                        break;
                    }
                }
            }
        };
        threads::spawn("cgmeter-events", run)?;
        Ok(())
    }
}

/// Does one round. Returns `None` once the agent is gone, else the time until the next round.
fn tidy(agent: &Weak<Agent>, memory: &mut FreedMemory) -> Option<Duration> {
    let agent = agent.upgrade()?;
    // After a panic the agent ends, and the thread before it.
    let (pause, used) = agent
        .work(|collector| (collector.tidy(), collector.work_done))
        .ok()?;
    memory.release(used);
    agent.health.round(pause);
    Some(pause)
}

/// Memory that the allocator keeps after snapshots and removals.
#[derive(Default)]
struct FreedMemory {
    /// What the collector had done when that was last looked at.
    done: u64,
    /// When it had last done something.
    busy: Option<Instant>,
    /// When the memory was last returned.
    released: Option<Instant>,
}

/// After the collector has done something, memory goes on to be freed for so long: by clients that are sent an
/// exposition.
const SETTLED: Duration = Duration::from_secs(10);

impl FreedMemory {
    /// Returns freed memory to the kernel now and then, if the collector has done anything since.
    fn release(&mut self, done: u64) {
        if done != self.done {
            (self.done, self.busy) = (done, Some(Instant::now()));
        }
        let Some(busy) = self.busy else {
            return;
        };
        let due = |released: Instant| released.elapsed() >= KEEP_FREED && released < busy + SETTLED;
        if self.released.is_none_or(due) {
            kernel::release_free_memory();
            self.released = Some(Instant::now());
        }
    }
}

impl Collector {
    /// Does one round. Returns the time until the next one.
    fn tidy(&mut self) -> Duration {
        self.alarm.stop();
        let came = self.housekeeping();
        if came > 0 {
            let lock = self.slots.lock(READING);
            self.refresh_removed();
            // What a program moved meanwhile is found at the next reading.
            let _ = self.slots.unlock(lock);
            self.keep_removed();
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
