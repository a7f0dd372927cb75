//! How long the stages of a frame take.

use std::time::{Duration, Instant};

/// Durations of the stages of a frame.
pub(super) struct Stages {
    since: Instant,
    /// Those that have ended, in their order.
    pub(super) done: Vec<(&'static str, Duration)>,
}

impl Stages {
    /// Begins the first one.
    pub(super) fn start() -> Self {
        Self {
            since: Instant::now(),
            done: Vec::with_capacity(32),
        }
    }

    /// Ends a stage and begins the next one.
    pub(super) fn end(&mut self, stage: &'static str) {
        let now = Instant::now();
        self.done.push((stage, now - self.since));
        self.since = now;
    }
}
