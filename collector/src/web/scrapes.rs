//! Scrapes that wait for an exposition.
//!
//! Invariant: each format has one queue, which one thread works off. The thread takes all that wait
//! at once, and they share one exposition. Its frame is taken, or found young enough, after all of
//! them have arrived. So the number of threads does not depend on the number of scrapes.
//!
//! While the server is [crowded](Clients::is_crowded), scrapes get the latest exposition instead if
//! it is younger than [`Limits::reuse`](super::Limits::reuse) and still in memory.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Metrics,
    clients::{Clients, Coming, lock},
};
use crate::exposition::{Body, Format, WeakBody};

/// An exposition for a client.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) body: Body,
    /// Kept until the client is noted as one that is sent the body. Until then the body counts as
    /// coming.
    _coming: Option<Arc<Coming>>,
}

impl From<Body> for Made {
    fn from(body: Body) -> Self {
        Self {
            body,
            _coming: None,
        }
    }
}

type Outcome = Result<Made, String>;

/// The scrapes that wait for one format.
#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<oneshot::Sender<Outcome>>,
    /// Whether a thread works off the queue.
    at_work: bool,
    /// The latest exposition, and when it was asked for.
    latest: Option<(Instant, WeakBody)>,
}

impl Queue {
    /// The latest exposition, if it is in memory and not older than this.
    fn latest(&self, age: Duration) -> Option<Body> {
        let (asked, body) = self.latest.as_ref()?;
        body.upgrade().filter(|_| asked.elapsed() < age)
    }
}

/// The queues of all formats.
#[derive(Debug, Default)]
pub(super) struct Scrapes {
    queues: [Arc<Mutex<Queue>>; Format::ALL.len()],
}

impl Scrapes {
    /// Returns an exposition.
    ///
    /// # Errors
    ///
    /// The message for the client.
    pub(super) async fn exposition(
        &self,
        format: Format,
        metrics: &Arc<dyn Metrics>,
        clients: &Arc<Clients>,
    ) -> Outcome {
        if let Some(body) = metrics.at_hand(format) {
            return Ok(body.into());
        }
        let queue = &self.queues[format as usize];
        // First whether there is one: it is what takes less time.
        let latest = lock(queue).latest(clients.limits.reuse);
        if let Some(body) = latest.filter(|_| clients.is_crowded()) {
            return Ok(body.into());
        }
        let (answer, answered) = oneshot::channel();
        let idle = {
            let mut queue = lock(queue);
            queue.waiting.push(answer);
            !std::mem::replace(&mut queue.at_work, true)
        };
        if idle {
            let (queue, metrics, clients) =
                (Arc::clone(queue), Arc::clone(metrics), Arc::clone(clients));
            tokio::task::spawn_blocking(move || work_off(&queue, format, &*metrics, &clients));
        }
        answered.await.unwrap_or_else(|_| Err(failed()))
    }
}

fn failed() -> String {
    "the scrape failed; see the log of the agent".to_owned()
}

/// Serves a queue until nobody waits.
fn work_off(queue: &Mutex<Queue>, format: Format, metrics: &dyn Metrics, clients: &Arc<Clients>) {
    while is_wanted(queue) {
        let coming = match metrics.at_hand(format) {
            Some(_) => None,
            // Who arrives while this waits for room is served, too.
            None => Some(clients.expect()),
        };
        let waiting = std::mem::take(&mut lock(queue).waiting);
        let asked = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| metrics.scrape(format)));
        let outcome = outcome.unwrap_or_else(|_| Err(failed())).map(|body| {
            lock(queue).latest = Some((asked, body.downgrade()));
            if let Some(coming) = &coming {
                coming.made(&body);
            }
            Made {
                body,
                _coming: coming.map(Arc::new),
            }
        });
        for answer in waiting {
            let _ = answer.send(outcome.clone());
        }
    }
}

/// Whether somebody waits. If not, the thread's work is over. Nobody works for those who have given
/// up.
fn is_wanted(queue: &Mutex<Queue>) -> bool {
    let mut queue = lock(queue);
    queue.waiting.retain(|answer| !answer.is_closed());
    queue.at_work = !queue.waiting.is_empty();
    queue.at_work
}
