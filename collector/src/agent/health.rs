//! Whether the agent is in order: what `/-/ready` and the watchdog ask.
//!
//! Invariant: nobody who asks waits for the collector. A collector in which a panic has left work
//! half done is never used again: its totals can't be trusted, so the agent ends and is started
//! anew ([`Health::broken`]).

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::lock;
use crate::threads::{self, Panicked};

/// The state of the agent.
#[derive(Debug)]
pub(super) struct Health {
    started: Instant,
    /// Since when somebody works with the collector: milliseconds after the start, plus 1. 0 while
    /// nobody does.
    held: AtomicU64,
    /// When the thread that follows cgroups has to begin its next round, in the same way. 0 before
    /// its first one.
    due: AtomicU64,
    /// Why the last snapshot could not be taken.
    failed: Mutex<Option<String>>,
    broken: watch::Sender<bool>,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            held: AtomicU64::new(0),
            due: AtomicU64::new(0),
            failed: Mutex::new(None),
            broken: watch::Sender::new(false),
        }
    }

    /// When the agent was started.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// Works with what a lock protects.
    ///
    /// # Errors
    ///
    /// If the work panics, now or earlier.
    pub(super) fn work<C, T>(
        &self,
        mutex: &Mutex<C>,
        work: impl FnOnce(&mut C) -> T,
    ) -> Result<T, Panicked> {
        let mut inside = lock(mutex);
        if self.is_broken() {
            return Err(Panicked);
        }
        self.held.store(self.stamp(Duration::ZERO), Relaxed);
        let result = threads::caught(|| work(&mut inside));
        self.held.store(0, Relaxed);
        if result.is_err() {
            self.broken.send_replace(true);
        }
        result
    }

    /// The time in some time from now, as a number above 0.
    fn stamp(&self, from_now: Duration) -> u64 {
        let at = self.started.elapsed().saturating_add(from_now);
        u64::try_from(at.as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// How long ago the time of such a number was.
    fn since(&self, stamp: u64) -> Duration {
        let at = Duration::from_millis(stamp - 1);
        self.started.elapsed().saturating_sub(at)
    }

    /// Notes that the thread that follows cgroups has done a round, and will pause.
    pub(super) fn round(&self, pause: Duration) {
        self.due.store(self.stamp(pause), Relaxed);
    }

    /// Notes how the last snapshot went.
    pub(super) fn snapshot<T>(&self, result: &anyhow::Result<T>) {
        *lock(&self.failed) = result.as_ref().err().map(|error| format!("{error:#}"));
    }

    /// Whether a panic has left work half done.
    pub(super) fn is_broken(&self) -> bool {
        *self.broken.borrow()
    }

    /// Completes once the collector is broken.
    pub(super) async fn broken(&self) {
        let mut broken = self.broken.subscribe();
        // An error would mean that the sender is gone; it is ours.
        let _ = broken.wait_for(|&broken| broken).await;
    }

    /// Whether the agent works: all threads live, nobody has had the collector for longer than
    /// `patience`, and the thread that follows cgroups is not later than that.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub(super) fn alive(&self, patience: Duration) -> Result<(), String> {
        if self.is_broken() {
            return Err("the agent is about to end after a fault; see its log".to_owned());
        }
        if let Some(thread) = threads::ended().first() {
            return Err(format!("the thread {thread} has ended; see the log"));
        }
        let late = |stamp: &AtomicU64| match stamp.load(Relaxed) {
            0 => None,
            stamp => Some(self.since(stamp)).filter(|&since| since > patience),
        };
        if let Some(held) = late(&self.held) {
            let seconds = held.as_secs();
            return Err(format!("a snapshot has been under way for {seconds} s"));
        }
        if let Some(late) = late(&self.due) {
            let seconds = late.as_secs();
            return Err(format!(
                "the thread that follows cgroups is {seconds} s late"
            ));
        }
        Ok(())
    }

    /// Whether the agent works and its last snapshot could be taken.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub(super) fn ready(&self, patience: Duration) -> Result<(), String> {
        self.alive(patience)?;
        match &*lock(&self.failed) {
            Some(why) => Err(format!("the last snapshot failed: {why}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3600);

    #[test]
    fn after_a_panic_the_collector_is_not_used_again() {
        let (health, mutex) = (Health::new(), Mutex::new(5));
        assert_eq!(health.work(&mutex, |n| *n + 1), Ok(6));
        assert_eq!(health.ready(PATIENCE), Ok(()));
        let half = |n: &mut i32| {
            *n = 6;
            panic!("a test");
        };
        assert_eq!(health.work(&mutex, half), Err(Panicked));
        assert_eq!(health.work(&mutex, |n| *n), Err(Panicked));
        assert!(health.alive(PATIENCE).unwrap_err().contains("about to end"));
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let ended = async { tokio::time::timeout(PATIENCE, health.broken()).await };
        tokio.block_on(ended).unwrap();
    }

    #[test]
    fn who_holds_the_collector_for_long_is_noticed_without_waiting() {
        let (health, mutex) = (Arc::new(Health::new()), Arc::new(Mutex::new(())));
        let (begun, has_begun) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let thread = std::thread::spawn({
            let health = Arc::clone(&health);
            move || {
                health.work(&mutex, |()| {
                    begun.send(()).unwrap();
                    may_end.recv().unwrap();
                })
            }
        });
        has_begun.recv().unwrap();
        assert_eq!(health.alive(PATIENCE), Ok(()));
        std::thread::sleep(Duration::from_millis(20));
        let error = health.alive(Duration::from_millis(1)).unwrap_err();
        assert_eq!(error, "a snapshot has been under way for 0 s");
        end.send(()).unwrap();
        thread.join().unwrap().unwrap();
        assert_eq!(health.alive(Duration::ZERO), Ok(()));
    }

    #[test]
    fn a_thread_that_is_late_for_its_round_is_noticed() {
        let health = Health::new();
        assert_eq!(health.alive(Duration::ZERO), Ok(()), "it has not begun");
        health.round(PATIENCE);
        assert_eq!(health.alive(Duration::ZERO), Ok(()));
        health.round(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(health.alive(PATIENCE), Ok(()));
        let error = health.alive(Duration::from_millis(1)).unwrap_err();
        assert_eq!(error, "the thread that follows cgroups is 0 s late");
        health.round(Duration::MAX);
        assert_eq!(health.alive(Duration::ZERO), Ok(()));
    }

    #[test]
    fn a_failed_snapshot_is_not_ready_until_one_succeeds() {
        let health = Health::new();
        health.snapshot::<()>(&Err(anyhow::anyhow!("why").context("what")));
        assert_eq!(health.alive(PATIENCE), Ok(()));
        let error = health.ready(PATIENCE).unwrap_err();
        assert_eq!(error, "the last snapshot failed: what: why");
        health.snapshot(&Ok(()));
        assert_eq!(health.ready(PATIENCE), Ok(()));
    }
}
