//! The agent's threads, and what becomes of a panic in one of them.
//!
//! Invariant: a panic is logged and counted, and then either the work goes on, or somebody notices
//! that it does not: a task that panics is tried again ([`caught`], [`caught_async`]), a thread that
//! has ended is listed in [`ended`]. `/-/ready` and the watchdog ask for that list. The collector
//! is another matter (`agent`): after a panic there its totals can't be trusted, and the agent ends.

use std::{
    any::Any,
    collections::BTreeSet,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    thread::JoinHandle,
};

/// Names of the agent's threads. The last one stands for all others.
const NAMES: [&str; 9] = [
    "main",
    "cgmeter-web",
    "cgmeter-events",
    "cgmeter-custom",
    "cgmeter-textfile",
    "cgmeter-statfs",
    "cgmeter-netns",
    "cgmeter-log",
    "other",
];

/// Name of the threads that serve requests and follow runtimes.
pub const WEB: &str = NAMES[1];

static PANICS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];
static ENDED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Something panicked; the log has said what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fault of the agent; see its log")]
pub struct Panicked;

/// Has every panic logged and counted from now on, instead of written to standard error.
pub fn watch() {
    std::panic::set_hook(Box::new(|panic| {
        let current = std::thread::current();
        let thread = current.name().unwrap_or("unnamed");
        count(thread);
        let place = panic.location().map(ToString::to_string);
        tracing::error!(
            thread,
            place = place.as_deref().unwrap_or("unknown"),
            panic = text(panic.payload()),
            "a thread panicked: this is a fault of cgmeter, please report it"
        );
    }));
}

/// What a panic says.
pub fn text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

fn count(thread: &str) {
    let found = NAMES.iter().position(|name| *name == thread);
    PANICS[found.unwrap_or(NAMES.len() - 1)].fetch_add(1, Relaxed);
}

/// Number of panics of each thread.
pub fn panics() -> [(&'static str, u64); NAMES.len()] {
    std::array::from_fn(|at| (NAMES[at], PANICS[at].load(Relaxed)))
}

/// Runs something that may panic.
///
/// # Errors
///
/// If it has. What it was about to change may be half changed.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Panicked)
}

/// Awaits something that may panic.
///
/// # Errors
///
/// If it has. It is not polled again.
pub async fn caught_async<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| match caught(|| work.as_mut().poll(context)) {
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(panicked) => Poll::Ready(Err(panicked)),
    })
    .await
}

fn ended_threads() -> MutexGuard<'static, BTreeSet<String>> {
    ENDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a thread that the agent needs. If it panics, it is in the list of [`ended`] threads until
/// one of the same name is started.
///
/// # Errors
///
/// When it can't be created.
pub fn spawn(
    name: &'static str,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let run = move || {
        // Not by the thread that starts it: the new one may have panicked by then.
        ended_threads().remove(name);
        if caught(work).is_err() {
            ended_threads().insert(name.to_owned());
        }
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// Threads that the agent needs and that have ended by a panic.
pub fn ended() -> Vec<String> {
    ended_threads().iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_is_missed_until_it_is_started_again() {
        let missed = || ended().iter().any(|name| name == "cgmeter-test-a");
        let thread = spawn("cgmeter-test-a", || panic!("a test")).unwrap();
        thread.join().unwrap();
        assert!(missed());
        spawn("cgmeter-test-a", || {}).unwrap().join().unwrap();
        assert!(!missed());
        assert!(!ended().iter().any(|name| name == "cgmeter-test-b"));
    }

    #[test]
    fn panics_are_counted_by_thread() {
        let of = |name: &str| panics().into_iter().find(|(found, _)| *found == name);
        let before = (of("cgmeter-statfs").unwrap().1, of("other").unwrap().1);
        count("cgmeter-statfs");
        count("tokio-1");
        let after = (of("cgmeter-statfs").unwrap().1, of("other").unwrap().1);
        assert!(after.0 > before.0 && after.1 > before.1);
    }

    #[test]
    fn a_future_that_panics_is_an_error() {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio.block_on(async {
            let work = async {
                tokio::task::yield_now().await;
                assert!(std::hint::black_box(false), "a test");
            };
            assert_eq!(caught_async(work).await, Err(Panicked));
            let work = async {
                tokio::task::yield_now().await;
                7
            };
            assert_eq!(caught_async(work).await, Ok(7));
        });
    }

    #[test]
    fn what_a_panic_says() {
        for (work, said) in [
            ((|| panic!("plain")) as fn(), "plain"),
            (|| panic!("with {}", 1), "with 1"),
            (|| std::panic::panic_any(5_u8), "no text"),
        ] {
            assert_eq!(text(&*catch_unwind(work).unwrap_err()), said);
        }
    }
}
