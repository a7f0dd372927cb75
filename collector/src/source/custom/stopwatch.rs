//! Measures the time of a request without what it waits for other requests.

use std::{
    future::Future,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Most often that the limit of a paused request is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// A clock that can be paused.
#[derive(Debug)]
pub struct Stopwatch {
    begin: Instant,
    /// Nanoseconds of pauses that are over.
    waited: AtomicU64,
    /// When the present pause began, nanoseconds after `begin` and one; 0 if there is none.
    paused: AtomicU64,
}

impl Stopwatch {
    /// Starts it.
    pub fn start() -> Self {
        Self {
            begin: Instant::now(),
            waited: AtomicU64::new(0),
            paused: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Time since its start, without pauses.
    pub fn elapsed(&self) -> Duration {
        let now = match self.paused.load(Relaxed) {
            0 => self.now(),
            paused => paused - 1,
        };
        Duration::from_nanos(now.saturating_sub(self.waited.load(Relaxed)))
    }

    /// Awaits something whose time does not count.
    pub async fn paused<T>(&self, work: impl Future<Output = T>) -> T {
        let begin = self.now();
        self.paused.store(begin + 1, Relaxed);
        let result = work.await;
        self.waited.fetch_add(self.now() - begin, Relaxed);
        self.paused.store(0, Relaxed);
        result
    }

    /// Awaits something until the time is up. Pauses do not count.
    pub async fn limit<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let left = limit
                .checked_sub(self.elapsed())
                .filter(|left| !left.is_zero())?;
            if let Ok(result) = tokio::time::timeout(left.max(LOOK), &mut work).await {
                return Some(result);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn waiting_for_others_does_not_count() {
        let watch = Stopwatch::start();
        let limit = Duration::from_secs(1);
        let wait = async { watch.paused(tokio::time::sleep(limit * 2)).await };
        assert!(run(watch.limit(limit, wait)).is_some());
        assert!(watch.elapsed() < limit);
    }

    #[test]
    fn what_takes_too_long_is_given_up() {
        let watch = Stopwatch::start();
        let never = std::future::pending::<()>();
        assert!(run(watch.limit(Duration::from_millis(20), never)).is_none());
        assert!(run(watch.limit(Duration::ZERO, async {})).is_none());
    }
}
