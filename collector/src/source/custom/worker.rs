//! Requests endpoints, in one thread that is started with the first target.
//!
//! Invariants: an endpoint has one request at a time, which ends after `--custom.timeout`. Slow
//! endpoints do not delay prompt ones ([`lanes`](super::lanes)), which also bounds sockets and
//! bodies. Results of removed targets are dropped.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle};

use super::{
    endpoint::Endpoint,
    enter,
    fetch::{self, Allowed},
    lanes::{Lane, Lanes, PROMPT, Pace},
    options::CustomOptions,
    parse::{Parsed, TextLimits, parse},
    stopwatch::Stopwatch,
    store::{EndpointKey, Failure, Kept, Reason, RequestOutcome, Store},
};
use crate::threads::{self, caught_async};

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
    targets: Option<watch::Sender<Vec<Target>>>,
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
                Err(watch::error::SendError(targets)) => targets,
            },
            None => targets,
        };
        self.targets = Some(start(self.options.clone(), self.store.clone(), targets)?);
        Ok(())
    }
}

/// Starts the thread. The channel has only the latest list.
fn start(
    options: CustomOptions,
    store: Store,
    targets: Vec<Target>,
) -> std::io::Result<watch::Sender<Vec<Target>>> {
    let (sender, mut lists) = watch::channel(targets);
    lists.mark_changed();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let run = async move {
        let context = Arc::new(Context {
            lanes: Lanes::new(),
            random: RandomState::new(),
            options,
            store,
        });
        let mut tasks: HashMap<EndpointKey, (Target, JoinHandle<()>)> = HashMap::new();
        // Ends when the agent drops the worker.
        while lists.changed().await.is_ok() {
            let list = lists.borrow_and_update().clone();
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
    lanes: Lanes,
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
    let mut pace = Pace::new();
    loop {
        let begin = Instant::now();
        let failure = caught_async(once(&context, &target, &key, &mut pace)).await;
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
        // The next request begins 0.9 to 1.1 intervals after this one, so that endpoints that
        // started together drift apart; and there is a pause in any case.
        let next = interval.mul_f64(0.9) + context.part(interval / 5);
        tokio::time::sleep(next - begin.elapsed().min(interval / 2)).await;
    }
}

/// A request that has ended.
struct Asked {
    begin: Instant,
    took: Duration,
    result: Result<Parsed, Failure>,
}

/// Sends a request in a lane, and notes how prompt the answer is. Returns `None` if there is none
/// within the time of the lane.
async fn ask(context: &Context, target: &Target, lane: &Lane, pace: &mut Pace) -> Option<Asked> {
    let options = &context.options;
    let watch = Stopwatch::start();
    let begin = Instant::now();
    let port = target.endpoint.port;
    let work = async {
        let stream =
            enter::connect(&target.directory, target.pid, options.host_network, port).await?;
        let allowed = Allowed {
            max_body: options.max_body,
            large: &lane.large,
            watch: &watch,
        };
        let (body, _permit) = fetch::fetch(stream, port, &target.endpoint.path, allowed).await?;
        let limits = TextLimits {
            samples: options.max_samples,
            owners: false,
        };
        Ok(parse(&body, limits))
    };
    let limit = lane.limit.unwrap_or(options.timeout).min(options.timeout);
    let work = watch.limit(limit, work);
    let result = match lane.limit {
        // Nor is a place in the lane held while others keep their large answers.
        Some(limit) => tokio::time::timeout(2 * limit, work).await,
        None => Ok(work.await),
    };
    let took = watch.elapsed();
    pace.note(result.is_ok() && took < PROMPT.min(options.timeout));
    let result = match result {
        Ok(Some(result)) => result,
        Ok(None) if limit == options.timeout => {
            let seconds = options.timeout.as_secs_f64();
            let text = format!("no whole answer within {seconds} s, see --custom.timeout");
            Err(Failure::new(Reason::Timeout, text))
        }
        Ok(None) | Err(_) => return None,
    };
    Some(Asked {
        begin,
        took,
        result,
    })
}

/// Sends a request in the prompt lane.
async fn ask_promptly(context: &Context, target: &Target, pace: &mut Pace) -> Option<Asked> {
    let lane = &context.lanes.prompt;
    let _permit = lane.requests.acquire().await;
    ask(context, target, lane, pace).await
}

/// Sends a request in the slow lane. While it waits for a place there, the endpoint is asked in the
/// prompt lane now and then.
async fn ask_slowly(context: &Context, target: &Target, pace: &mut Pace) -> Option<Asked> {
    let lane = &context.lanes.slow;
    let waiting = context.lanes.wait();
    let mut place = pin!(lane.requests.acquire());
    let _permit = loop {
        let patience = waiting.patience(target.endpoint.interval);
        match tokio::time::timeout(patience, &mut place).await {
            Ok(permit) => break permit,
            Err(_) => {
                if let Some(asked) = ask_promptly(context, target, pace).await {
                    return Some(asked);
                }
            }
        }
    };
    drop(waiting);
    ask(context, target, lane, pace).await
}

/// Sends one request. Returns the failure, if any.
async fn once(
    context: &Context,
    target: &Target,
    key: &EndpointKey,
    pace: &mut Pace,
) -> Option<Failure> {
    let options = &context.options;
    let asked = match pace.is_slow() {
        true => None,
        false => ask_promptly(context, target, pace).await,
    };
    let asked = match asked {
        Some(asked) => asked,
        None => ask_slowly(context, target, pace).await?,
    };
    let Asked {
        begin,
        took,
        result,
    } = asked;
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

    use std::{
        io::{Read, Write},
        net::TcpListener,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use crate::source::custom::measure;

    /// A folder that stands for a cgroup with this process.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("cgmeter-worker-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            let pid = format!("{}\n", std::process::id());
            std::fs::write(path.join("cgroup.procs"), pid).unwrap();
            Self(path)
        }

        fn target(&self, cgroup: u64, port: u16, path: &str) -> Target {
            Target {
                cgroup,
                owner: cgroup,
                path: format!("/{cgroup}"),
                directory: self.0.clone(),
                pid: None,
                endpoint: Endpoint {
                    port,
                    path: path.to_owned(),
                    interval: Duration::from_millis(200),
                },
            }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// An application. Its answers are a head and a body. `before` gets the number of the request,
    /// from 1.
    fn application(
        body: &'static str,
        length: usize,
        before: fn(usize),
        end: fn(),
    ) -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let answer = move |mut stream: std::net::TcpStream| -> std::io::Result<()> {
            let _ = stream.read(&mut [0; 4096])?;
            before(count.fetch_add(1, Ordering::Relaxed) + 1);
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"
            )?;
            end();
            Ok(())
        };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = answer.clone();
                std::thread::spawn(move || answer(stream));
            }
        });
        (port, asked)
    }

    fn options() -> CustomOptions {
        CustomOptions {
            // The tests' applications are in the agent's own network namespace.
            host_network: true,
            // Who hangs does so until the end of a test.
            timeout: Duration::from_secs(3600),
            ..CustomOptions::for_tests()
        }
    }

    /// Waits until something is so.
    fn until(so: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(300);
        while !so() {
            assert!(Instant::now() < deadline, "not within five minutes");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A hundred applications that never answer.
    fn hanging(folder: &Folder) -> (Vec<TcpListener>, Vec<Target>) {
        // The kernel accepts connections; nobody reads the requests.
        let listeners: Vec<TcpListener> = (0..100)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let target = |(at, listener): (usize, &TcpListener)| {
            let port = listener.local_addr().unwrap().port();
            folder.target(at as u64, port, "/metrics")
        };
        let targets = listeners.iter().enumerate().map(target).collect();
        (listeners, targets)
    }

    #[test]
    fn an_endpoint_that_has_recovered_does_not_wait_for_a_hundred_that_hang() {
        let folder = Folder::new("recovered");
        let before = |number| {
            if number <= 2 {
                std::thread::sleep(PROMPT * 2);
            }
        };
        let (recovered, asked) = application("a 1\n", 4, before, || ());
        let (_listeners, mut targets) = hanging(&folder);
        let store = Store::default();
        let mut worker = Worker::new(options(), store.clone());
        worker.set_targets(targets.clone()).unwrap();
        // All others have had their second in the prompt lane, and fill the slow one.
        std::thread::sleep(PROMPT * 8);
        targets.push(folder.target(1000, recovered, "/metrics"));
        worker.set_targets(targets).unwrap();
        until(|| asked.load(Ordering::Relaxed) >= 6);
        assert_eq!(store.lock().counters.failed, 0, "the others still hang");
    }

    #[test]
    fn a_good_endpoint_is_asked_at_each_interval_beside_a_hundred_that_hang() {
        let folder = Folder::new("hang");
        let (good, asked) = application("a 1\n", 4, |_| (), || ());
        // Others send a large part of an answer, and no more.
        let part = "# more\n".repeat(20_000).leak();
        let (partial, _) = application(part, 1 << 20, |_| (), std::thread::park);
        let (_listeners, mut targets) = hanging(&folder);
        targets.extend((200..204).map(|cgroup| folder.target(cgroup, partial, "/metrics")));
        targets.push(folder.target(1000, good, "/metrics"));
        let store = Store::default();
        let mut worker = Worker::new(options(), store.clone());
        worker.set_targets(targets).unwrap();
        // The others have an hour each.
        until(|| asked.load(Ordering::Relaxed) >= 10);
        let contents = store.lock();
        assert!(
            contents
                .outcomes
                .values()
                .any(|outcome| outcome.up && outcome.good.is_some())
        );
        assert_eq!(contents.counters.failed, 0, "the others still hang");
    }

    #[test]
    fn sixty_answers_of_a_mebibyte_stay_within_the_limits() {
        let folder = Folder::new("large");
        let line = |at: usize| format!("m{{k=\"{at:0900}\"}} 1\n");
        let text: &str = (0..1100).map(line).collect::<String>().leak();
        assert!(text.len() < 1 << 20 && text.len() > 1_000_000);
        let (large, _) = application(text, text.len(), |_| (), || ());
        let (small, _) = application("a 1\nb 2\n", 8, |_| (), || ());
        let mut targets: Vec<Target> = (0..60)
            .map(|cgroup| folder.target(cgroup, large, "/metrics"))
            .collect();
        targets.push(folder.target(1000, small, "/metrics"));
        let store = Store::default();
        let mut worker = Worker::new(options(), store.clone());
        worker.set_targets(targets).unwrap();
        until(|| {
            let contents = store.lock();
            let good = contents.outcomes.values().filter(|outcome| outcome.up);
            good.count() == 61
        });
        let contents = store.lock();
        let kept = contents.outcomes.values().map(|outcome| {
            let (_, kept) = outcome.good.as_ref().unwrap();
            let size = measure::size(&kept.families, &measure::MemorySize);
            (outcome.owner, size, kept.lost)
        });
        let kept: Vec<(u64, usize, usize)> = kept.collect();
        let sum: usize = kept.iter().map(|(_, size, _)| size).sum();
        assert!(sum <= 8 << 20 && sum > 7 << 20, "{sum}");
        for (owner, size, lost) in kept {
            assert!(
                (owner == 1000) == (lost == 0),
                "{owner} has {size} and lost {lost}"
            );
            assert!(owner == 1000 || size > 120_000, "{owner} has {size}");
        }
    }

    #[test]
    fn a_thread_that_has_panicked_is_started_anew() {
        // The thread's end of the channel goes with it.
        let (sender, _) = watch::channel(Vec::new());
        let mut worker = Worker::new(CustomOptions::default(), Store::default());
        worker.targets = Some(sender);
        worker.set_targets(Vec::new()).unwrap();
        assert!(!worker.targets.unwrap().is_closed());
    }
}
