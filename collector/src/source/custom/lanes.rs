//! Lanes: an application that answers slowly, or never, holds up none that answers promptly.
//!
//! An endpoint is asked in the prompt lane. If its answer takes more than [`PROMPT`], the request is
//! given up, and sent again in the slow lane, where it has the whole of `--custom.timeout`. There
//! the endpoint stays until it has answered promptly several times; how often, doubles each time
//! that it becomes slow again. Who waits for a place in the slow lane for long is asked in the prompt
//! lane meanwhile: it may have recovered, and those before it may hang for hours.
//!
//! Invariants: a lane has a number of requests at a time, and of large answers in memory. All lanes
//! together have at most [`REQUESTS`] requests, and [`LARGE`] large answers. Those who wait take a
//! small part of the prompt lane, however many they are.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use tokio::sync::Semaphore;

/// Who answers within this time stays in the prompt lane.
pub const PROMPT: Duration = Duration::from_secs(1);
/// Maximum number of requests at a time in the prompt lane.
const PROMPT_REQUESTS: usize = 32;
/// Maximum number of requests at a time.
pub const REQUESTS: usize = 128;
/// Maximum number of large answers in memory, half of them in each lane.
pub const LARGE: usize = 8;
/// Maximum number of prompt answers after which an endpoint is prompt again.
const MOST: u32 = 16;

/// Requests of one kind.
#[derive(Debug)]
pub struct Lane {
    /// A permit for each request.
    pub requests: Semaphore,
    /// A permit for each large answer in memory.
    pub large: Semaphore,
    /// How long a request may take, if that is less than `--custom.timeout`.
    pub limit: Option<Duration>,
}

/// Both lanes.
#[derive(Debug)]
pub struct Lanes {
    /// For endpoints that answer promptly, and for new ones.
    pub prompt: Lane,
    /// For the others.
    pub slow: Lane,
    /// Number of endpoints that wait for a place in the slow lane.
    waiting: AtomicU32,
}

/// An endpoint waits as long as this value lives.
#[derive(Debug)]
pub struct Waiting<'a>(&'a Lanes);

impl Waiting<'_> {
    /// How long to wait before it is asked in the prompt lane meanwhile. Two of those that wait are
    /// asked in a second.
    pub fn patience(&self, interval: Duration) -> Duration {
        interval.max(Duration::from_millis(500) * self.0.waiting.load(Relaxed))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Lanes {
    /// Makes empty lanes.
    pub fn new() -> Self {
        let lane = |requests, limit| Lane {
            requests: Semaphore::new(requests),
            large: Semaphore::new(LARGE / 2),
            limit,
        };
        Self {
            prompt: lane(PROMPT_REQUESTS, Some(PROMPT)),
            slow: lane(REQUESTS - PROMPT_REQUESTS, None),
            waiting: AtomicU32::new(0),
        }
    }

    /// Notes that an endpoint waits for a place in the slow lane.
    pub fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Relaxed);
        Waiting(self)
    }
}

/// Which lane an endpoint is in.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    slow: bool,
    /// Prompt answers in a row.
    prompt: u32,
    /// How many of them it takes to leave the slow lane.
    needed: u32,
}

impl Pace {
    /// That of a new endpoint.
    pub fn new() -> Self {
        Self {
            slow: false,
            prompt: 0,
            needed: 1,
        }
    }

    /// Whether the endpoint is in the slow lane.
    pub fn is_slow(&self) -> bool {
        self.slow
    }

    /// Notes whether an answer was prompt.
    pub fn note(&mut self, prompt: bool) {
        if !prompt {
            if !self.slow {
                self.needed = (self.needed * 2).min(MOST);
            }
            self.slow = true;
            self.prompt = 0;
        } else if self.slow {
            self.prompt += 1;
            self.slow = self.prompt < self.needed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_becomes_slow_again_and_again_has_to_be_prompt_for_longer() {
        let mut pace = Pace::new();
        let mut needed = || {
            pace.note(false);
            assert!(pace.slow);
            pace.note(false);
            (1..)
                .find(|_| {
                    pace.note(true);
                    !pace.slow
                })
                .unwrap()
        };
        assert_eq!([(); 5].map(|()| needed()), [2, 4, 8, 16, 16]);
    }

    #[test]
    fn the_more_endpoints_wait_the_less_often_they_are_asked_meanwhile() {
        let (lanes, interval) = (Lanes::new(), Duration::from_secs(15));
        let first = lanes.wait();
        assert_eq!(first.patience(interval), interval);
        let others: Vec<Waiting<'_>> = (1..4000).map(|_| lanes.wait()).collect();
        assert_eq!(first.patience(interval), Duration::from_secs(2000));
        drop(others);
        assert_eq!(first.patience(interval), interval);
    }

    #[test]
    fn one_prompt_answer_between_slow_ones_is_not_enough() {
        let mut pace = Pace::new();
        for _ in 0..9 {
            pace.note(false);
            pace.note(true);
            assert!(pace.slow);
        }
    }
}
