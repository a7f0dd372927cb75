//! Containers that runtimes were asked for, and waiting for the answers.
//!
//! A runtime knows a container before `docker run -d` or `podman run -d` returns, and answers within
//! milliseconds: a scrape that begins afterwards waits for the name.
//!
//! Invariant: a wait ends at its limit. A runtime that let one end there is not waited for again
//! before it has answered something, and after three such waits in a row not before a pause is over,
//! which doubles each time.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::status::SocketStatus;
use crate::cgroup::Runtime;

/// The maximum number of open questions.
const MOST: usize = 4096;
/// Age at which an open question is dropped. Followers answer or fail earlier.
const KEPT: Duration = Duration::from_secs(15);
/// The first pause of a runtime that was too slow, and the longest.
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(300);
/// Number of waits in a row that may reach their limit. After that, a pause lasts even if the
/// runtime answers.
const FORGIVEN: u32 = 3;
/// How long after a pause the next one counts as the first again.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Questions without an answer, by container id.
#[derive(Debug, Default)]
pub(super) struct Questions {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<String, Question>,
    /// Runtimes that are not waited for, by socket.
    pauses: HashMap<PathBuf, Pause>,
}

#[derive(Debug)]
struct Question {
    asked: Instant,
    /// Sockets of the runtimes that have answered that they don't have the container.
    denied: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    /// Waits in a row that ended at their limit.
    misses: u32,
    length: Duration,
    until: Instant,
    /// The runtime's answers when the pause began.
    answers: u64,
}

impl Pause {
    fn lasts(&self, status: &SocketStatus, now: Instant) -> bool {
        self.until > now && (self.misses >= FORGIVEN || status.answers() == self.answers)
    }
}

impl Questions {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that every runtime is asked for a container.
    pub(super) fn ask(&self, id: &str) {
        let mut state = self.lock();
        if state.open.len() < MOST {
            let question = Question {
                asked: Instant::now(),
                denied: Vec::new(),
            };
            state.open.insert(id.to_owned(), question);
        }
    }

    /// Notes that there is a record.
    pub(super) fn answered(&self, id: &str) {
        if self.lock().open.remove(id).is_some() {
            self.changed.notify_all();
        }
    }

    /// Notes that a runtime doesn't have a container, or failed to answer.
    pub(super) fn denied(&self, id: &str, socket: &Path) {
        if let Some(question) = self.lock().open.get_mut(id) {
            question.denied.push(socket.to_owned());
            self.changed.notify_all();
        }
    }

    /// Wakes those who wait, since a runtime went down.
    pub(super) fn look_again(&self) {
        // The lock is held, so that nobody who has just looked begins to wait without this notice.
        let _state = self.lock();
        self.changed.notify_all();
    }

    /// Drops the questions that are older than [`KEPT`].
    pub(super) fn sweep(&self) {
        let mut state = self.lock();
        state
            .open
            .retain(|_, question| question.asked.elapsed() < KEPT);
        if state.open.is_empty() && state.open.capacity() > 64 {
            state.open.shrink_to_fit();
        }
    }

    /// Waits until each container has a record or no runtime is left that might have it; for `limit`
    /// at most. Returns how long it took.
    pub(super) fn wait(
        &self,
        containers: &[(&str, Option<Runtime>)],
        runtimes: &[Arc<SocketStatus>],
        limit: Duration,
    ) -> Duration {
        let begin = Instant::now();
        let mut state = self.lock();
        let mut waited_for: Vec<&SocketStatus> = Vec::new();
        loop {
            let missing = state.missing(containers, runtimes, begin);
            if missing.is_empty() {
                // Those that are up answered in time.
                let up = |status: &&SocketStatus| status.reported().up == Some(true);
                for status in waited_for.into_iter().filter(up) {
                    state.pauses.remove(status.socket());
                }
                return begin.elapsed();
            }
            let left = limit.saturating_sub(begin.elapsed());
            if left.is_zero() {
                for status in missing {
                    tracing::debug!(socket = %status.socket().display(), "too slow to wait for");
                    state.pause(status);
                }
                return begin.elapsed();
            }
            waited_for.extend(missing);
            let wait = self.changed.wait_timeout(state, left);
            (state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    /// Runtimes that may still answer about one of the containers.
    fn missing<'a>(
        &self,
        containers: &[(&str, Option<Runtime>)],
        runtimes: &'a [Arc<SocketStatus>],
        now: Instant,
    ) -> Vec<&'a SocketStatus> {
        let open: Vec<_> = containers
            .iter()
            .filter_map(|(id, runtime)| Some((self.open.get(*id)?, *runtime)))
            .collect();
        let paused = |status: &SocketStatus| {
            let pause = self.pauses.get(status.socket());
            pause.is_some_and(|pause| pause.lasts(status, now))
        };
        let may_answer = |status: &&Arc<SocketStatus>| {
            let (reported, socket) = (status.reported(), status.socket());
            reported.up == Some(true)
                && !paused(status)
                && open.iter().any(|(question, runtime)| {
                    runtime.is_none_or(|runtime| runtime == reported.runtime)
                        && !question.denied.iter().any(|denied| denied == socket)
                })
        };
        let found = runtimes.iter().filter(may_answer);
        found.map(Arc::as_ref).collect()
    }

    /// Notes that a runtime let a wait reach its limit.
    fn pause(&mut self, status: &SocketStatus) {
        let now = Instant::now();
        let recent = |pause: &&Pause| now < pause.until + FORGOTTEN;
        let before = self.pauses.get(status.socket()).filter(recent);
        let (misses, length) = before.map_or((1, PAUSE), |pause| {
            (pause.misses + 1, (pause.length * 2).min(LONGEST))
        });
        let pause = Pause {
            misses,
            length,
            until: now + length,
            answers: status.answers(),
        };
        self.pauses.insert(status.socket().to_owned(), pause);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            descriptor::{docker::DOCKER, podman::PODMAN},
            wire::Fault,
        },
        *,
    };

    const LIMIT: Duration = Duration::from_millis(40);
    /// Far more than any machine takes to wake a thread.
    const LONG: Duration = Duration::from_secs(60);

    fn runtime(runtime: Runtime, socket: &str, up: bool) -> Arc<SocketStatus> {
        let status = SocketStatus::new(runtime, socket.into());
        if up {
            status.up(runtime, "1");
        }
        Arc::new(status)
    }

    #[test]
    fn nobody_is_waited_for_who_is_down_or_another_or_was_not_asked() {
        let questions = Questions::default();
        let down = [runtime(DOCKER.runtime(), "/d", false)];
        let podman = [runtime(PODMAN.runtime(), "/p", true)];
        let containers = [("a", Some(DOCKER.runtime()))];
        assert!(
            questions.wait(&containers, &podman, LONG) < LONG,
            "nobody was asked"
        );
        questions.ask("a");
        assert!(questions.wait(&containers, &[], LONG) < LONG);
        assert!(questions.wait(&containers, &down, LONG) < LONG);
        assert!(
            questions.wait(&containers, &podman, LONG) < LONG,
            "another's"
        );
        questions.denied("a", Path::new("/p"));
        assert!(
            questions.wait(&[("a", None)], &podman, LONG) < LONG,
            "it has no such container"
        );
    }

    #[test]
    fn an_answer_ends_the_wait() {
        let questions = Questions::default();
        let both = [
            runtime(DOCKER.runtime(), "/d", true),
            runtime(PODMAN.runtime(), "/p", true),
        ];
        for answer in [
            (|questions| questions.answered("a")) as fn(&Questions),
            |questions| {
                questions.denied("a", Path::new("/p"));
                questions.denied("a", Path::new("/d"));
            },
        ] {
            questions.ask("a");
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(5));
                    answer(&questions);
                });
                assert!(questions.wait(&[("a", None)], &both, LONG) < LONG);
            });
            assert!(questions.lock().pauses.is_empty());
        }
    }

    #[test]
    fn a_runtime_that_goes_down_is_waited_for_no_longer() {
        let questions = Questions::default();
        let docker = [runtime(DOCKER.runtime(), "/d", true)];
        questions.ask("a");
        // It was too slow before; the pause is over.
        questions.wait(&[("a", None)], &docker, Duration::ZERO);
        questions
            .lock()
            .pauses
            .values_mut()
            .for_each(|pause| pause.until = Instant::now());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(5));
                docker[0].down(&Fault::Unknown);
                questions.look_again();
            });
            assert!(questions.wait(&[("a", None)], &docker, LONG) < LONG);
        });
        assert_eq!(questions.lock().pauses.len(), 1, "it has not answered");
    }

    #[test]
    fn a_slow_runtime_is_waited_for_once_and_then_ever_more_rarely() {
        let questions = Questions::default();
        let docker = [runtime(DOCKER.runtime(), "/d", true)];
        questions.ask("a");
        assert!(questions.wait(&[("a", None)], &docker, LIMIT) >= LIMIT);
        questions.ask("b");
        assert!(
            questions.wait(&[("b", None)], &docker, LONG) < LONG,
            "it pauses"
        );
        let pause = |questions: &Questions| questions.lock().pauses[Path::new("/d")];
        assert_eq!(pause(&questions).length, PAUSE);
        let over = |questions: &Questions| {
            for pause in questions.lock().pauses.values_mut() {
                pause.until = Instant::now();
            }
        };
        for _ in 0..10 {
            over(&questions);
            questions.wait(&[("b", None)], &docker, Duration::ZERO);
        }
        assert_eq!(pause(&questions).length, LONGEST);
        // It answers in time again.
        over(&questions);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                questions.answered("b");
            });
            questions.wait(&[("b", None)], &docker, LONG);
        });
        assert!(questions.lock().pauses.is_empty());
    }

    #[test]
    fn a_runtime_that_answers_late_now_and_then_is_waited_for_again() {
        let questions = Questions::default();
        let docker = [runtime(DOCKER.runtime(), "/d", true)];
        questions.ask("a");
        let missed = |questions: &Questions| {
            questions.wait(&[("a", None)], &docker, Duration::ZERO);
            questions.lock().pauses[Path::new("/d")].misses
        };
        for misses in 1..=FORGIVEN {
            assert_eq!(missed(&questions), misses);
            assert_eq!(missed(&questions), misses, "it has answered nothing since");
            docker[0].count(&Ok(()), Duration::ZERO);
        }
        assert_eq!(missed(&questions), FORGIVEN, "it is slow, and pauses");
        let long_ago = Instant::now().checked_sub(FORGOTTEN).unwrap();
        questions
            .lock()
            .pauses
            .values_mut()
            .for_each(|pause| pause.until = long_ago);
        assert_eq!(missed(&questions), 1);
    }

    #[test]
    fn questions_are_bounded() {
        let questions = Questions::default();
        for number in 0..2 * MOST {
            questions.ask(&number.to_string());
        }
        assert_eq!(questions.lock().open.len(), MOST);
    }
}
