//! Requests endpoints, in one thread that is started with the first target.
//!
//! Invariants: an endpoint has one request at a time, which ends after `--custom.timeout`. At most
//! [`CONCURRENT`] requests run at once, so a host full of hanging applications costs no more
//! sockets and bodies than that. Results of removed targets are dropped.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};

use super::{
    endpoint::Endpoint,
    enter, fetch,
    options::CustomOptions,
    parse::{TextLimits, parse},
    store::{EndpointKey, Failure, Kept, Reason, RequestOutcome, Store},
};
use crate::threads::{self, caught_async};

/// Maximum number of concurrent requests.
const CONCURRENT: usize = 8;
/// The first request to a new target is sent within this time.
const SOON: Duration = Duration::from_secs(1);

/// An endpoint to request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Id of the application's cgroup.
    pub cgroup: u64,
    /// Id of the cgroup whose share it takes: the container's.
    pub owner: u64,
    /// The cgroup's path, for the log.
    pub path: String,
    /// The cgroup's directory.
    pub directory: PathBuf,
    /// First process of the container, if a runtime reported it.
    pub pid: Option<u32>,
    /// The endpoint.
    pub endpoint: Endpoint,
}

impl Target {
    fn key(&self) -> EndpointKey {
        EndpointKey {
            cgroup: self.cgroup,
            port: self.endpoint.port,
            path: self.endpoint.path.clone(),
        }
    }
}

/// The thread that requests endpoints.
#[derive(Debug)]
pub struct Worker {
    options: CustomOptions,
    store: Store,
    targets: Option<mpsc::UnboundedSender<Vec<Target>>>,
}

impl Worker {
    /// Makes a worker without a thread.
    pub fn new(options: CustomOptions, store: Store) -> Self {
        Self {
            options,
            store,
            targets: None,
        }
    }

    /// Sets the endpoints to request.
    ///
    /// # Errors
    ///
    /// When the thread can't be created.
    pub fn set_targets(&mut self, targets: Vec<Target>) -> std::io::Result<()> {
        if self.targets.is_none() && targets.is_empty() {
            return Ok(());
        }
        let targets = match &self.targets {
            Some(sender) => match sender.send(targets) {
                Ok(()) => return Ok(()),
                // The thread has panicked. Another one takes over.
                Err(mpsc::error::SendError(targets)) => targets,
            },
            None => targets,
        };
        let sender = start(self.options.clone(), self.store.clone())?;
        let ended = |_| std::io::Error::other("the thread that requests endpoints has ended");
        sender.send(targets).map_err(ended)?;
        self.targets = Some(sender);
        Ok(())
    }
}

fn start(
    options: CustomOptions,
    store: Store,
) -> std::io::Result<mpsc::UnboundedSender<Vec<Target>>> {
    let (sender, mut lists) = mpsc::unbounded_channel::<Vec<Target>>();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let run = async move {
        let context = Arc::new(Context {
            permits: Semaphore::new(CONCURRENT),
            random: RandomState::new(),
            options,
            store,
        });
        let mut tasks: HashMap<EndpointKey, (Target, JoinHandle<()>)> = HashMap::new();
        // Ends when the agent drops the worker.
        while let Some(list) = lists.recv().await {
            let mut wanted: HashMap<EndpointKey, Target> = list
                .into_iter()
                .map(|target| (target.key(), target))
                .collect();
            tasks.retain(|key, (target, task)| {
                let stays = wanted.get(key) == Some(target);
                if stays {
                    wanted.remove(key);
                } else {
                    task.abort();
                }
                stays
            });
            for (key, target) in wanted {
                let task = tokio::spawn(follow(Arc::clone(&context), target.clone()));
                tasks.insert(key, (target, task));
            }
            let mut contents = context.store.lock();
            let before = contents.outcomes.len();
            contents.outcomes.retain(|key, _| tasks.contains_key(key));
            contents.changes += u64::from(contents.outcomes.len() != before);
        }
        for (_, task) in tasks.values() {
            task.abort();
        }
    };
    threads::spawn("cgmeter-custom", move || runtime.block_on(run))?;
    Ok(sender)
}

struct Context {
    permits: Semaphore,
    random: RandomState,
    options: CustomOptions,
    store: Store,
}

impl Context {
    /// Returns a random part of a duration.
    fn part(&self, of: Duration) -> Duration {
        of.mul_f64((self.random.hash_one(Instant::now()) >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

/// Requests one endpoint at its interval.
async fn follow(context: Arc<Context>, target: Target) {
    let key = target.key();
    let interval = target.endpoint.interval;
    tokio::time::sleep(context.part(SOON.min(interval))).await;
    // Only the reason is compared: an application could change the text each time.
    let mut last = None;
    loop {
        let failure = caught_async(once(&context, &target, &key)).await;
        let failure = failure.unwrap_or_else(|panicked| {
            let mut contents = context.store.lock();
            contents.changes += 1;
            contents.counters.failed += 1;
            contents.counters.add(Reason::Fault, 1);
            if let Some(outcome) = contents.outcomes.get_mut(&key) {
                outcome.up = false;
            }
            Some(Failure::new(Reason::Fault, panicked.to_string()))
        });
        let reason = failure.as_ref().map(|failure| failure.reason);
        if reason != last {
            let (port, path) = (key.port, &key.path);
            match &failure {
                Some(failure) => tracing::warn!(
                    cgroup = target.path,
                    port,
                    path,
                    error = failure.text,
                    "custom metrics: an endpoint can't be read, or not completely"
                ),
                None => tracing::info!(
                    cgroup = target.path,
                    port,
                    path,
                    "custom metrics: an endpoint is read without errors again"
                ),
            }
            last = reason;
        }
        // Waits 0.9 to 1.1 intervals, so that endpoints that started together drift apart.
        tokio::time::sleep(interval.mul_f64(0.9) + context.part(interval / 5)).await;
    }
}

/// Sends one request. Returns the failure, if any.
async fn once(context: &Context, target: &Target, key: &EndpointKey) -> Option<Failure> {
    let options = &context.options;
    let permit = context.permits.acquire().await;
    let begin = Instant::now();
    let ask = async {
        let stream = enter::connect(
            &target.directory,
            target.pid,
            options.host_network,
            key.port,
        )
        .await?;
        fetch::fetch(stream, key.port, &key.path, options.max_body).await
    };
    let result = match tokio::time::timeout(options.timeout, ask).await {
        Ok(result) => result,
        Err(_) => {
            let seconds = options.timeout.as_secs_f64();
            let text = format!("no whole answer within {seconds} s, see --custom.timeout");
            Err(Failure::new(Reason::Timeout, text))
        }
    };
    let took = begin.elapsed();
    let limits = TextLimits {
        samples: options.max_samples,
        owners: false,
    };
    let result = result.map(|body| parse(&body, limits));
    drop(permit);
    let mut contents = context.store.lock();
    contents.changes += 1;
    let good = contents
        .outcomes
        .get(key)
        .and_then(|outcome| outcome.good.clone());
    let mut outcome = RequestOutcome {
        owner: target.owner,
        up: false,
        took,
        good,
        samples: 0,
        age: options.endpoint_age(target.endpoint.interval),
    };
    let failure = match result {
        Ok(parsed) => {
            contents.counters.good += 1;
            contents.counters.add(Reason::Parse, parsed.bad.count);
            contents.counters.add(Reason::Samples, parsed.excess);
            outcome.up = true;
            outcome.samples = parsed.samples;
            outcome.good = Some((begin, Kept::new(parsed.families)));
            if parsed.excess > 0 {
                let (excess, max) = (parsed.excess, options.max_samples);
                let message =
                    format!("{excess} samples more than the {max} of --custom.max-samples");
                Some(Failure::new(Reason::Samples, message))
            } else {
                parsed.bad.first.first().map(|(line, what)| {
                    let count = parsed.bad.count;
                    let message = format!("bad lines: {count}; line {line}: {what}");
                    Failure::new(Reason::Parse, message)
                })
            }
        }
        Err(failure) => {
            contents.counters.failed += 1;
            contents.counters.add(failure.reason, 1);
            Some(failure)
        }
    };
    contents.outcomes.insert(key.clone(), outcome);
    contents.fit(options.max_bytes);
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_has_panicked_is_started_anew() {
        // The thread's end of the channel goes with it.
        let (sender, _) = mpsc::unbounded_channel();
        let mut worker = Worker::new(CustomOptions::default(), Store::default());
        worker.targets = Some(sender);
        worker.set_targets(Vec::new()).unwrap();
        assert!(!worker.targets.unwrap().is_closed());
    }
}
