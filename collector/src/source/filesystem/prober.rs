//! Queries devices that may hang, in a thread that is given up together with the device.
//!
//! Invariants: the caller waits a limited time. A device that hangs is not queried again until it
//! has answered. There is one more thread for each device that hangs, and no other.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError},
    time::{Duration, Instant},
};

use crate::kernel::system::FileSystem;

/// The queries of a thread. Each of them may hang.
pub trait Probe {
    /// Lists the names of the devices.
    ///
    /// # Errors
    ///
    /// When they can't be listed.
    fn devices(&mut self) -> io::Result<Vec<String>>;
    /// Queries one device.
    ///
    /// # Errors
    ///
    /// An error of the device.
    fn probe(&mut self, device: &str) -> io::Result<FileSystem>;
}

/// Makes the object that a thread queries.
type Make = fn() -> io::Result<Box<dyn Probe>>;

/// Results of querying all devices.
#[derive(Debug, Default)]
pub struct Round {
    /// Devices and their values.
    pub found: BTreeMap<String, FileSystem>,
    /// Error messages.
    pub errors: Vec<String>,
}

/// A message from a thread.
enum Answer {
    /// The thread is about to query this device.
    Asking(String),
    /// The result of a query.
    Said(String, io::Result<FileSystem>),
    /// All devices of a round were queried, or the list of mounts could not be read.
    End(io::Result<()>),
}

struct Thread {
    /// Requests for rounds: devices to leave out.
    requests: Sender<HashSet<String>>,
    answers: Receiver<Answer>,
}

/// A thread that hangs.
struct Stuck {
    /// The device that hangs; `None` stands for the list of mounts.
    device: Option<String>,
    since: Instant,
    answers: Receiver<Answer>,
}

/// A round ends after this many times the patience, even if devices are left.
const ROUND: u32 = 3;

/// Queries all devices, round by round.
pub struct Prober {
    make: Make,
    thread: Option<Thread>,
    stuck: Vec<Stuck>,
}

impl Prober {
    /// Makes a prober whose threads query what `make` returns.
    pub fn new(make: Make) -> Self {
        Self {
            make,
            thread: None,
            stuck: Vec::new(),
        }
    }

    /// Queries every device, and waits `patience` for each answer.
    pub fn ask(&mut self, patience: Duration) -> Round {
        let mut round = Round::default();
        // A thread that has sent an answer since is no longer stuck, and ends by itself.
        self.stuck
            .retain(|stuck| matches!(stuck.answers.try_recv(), Err(TryRecvError::Empty)));
        let deadline = Instant::now() + patience * ROUND;
        let mut done = HashSet::new();
        while !self.stuck.iter().any(|stuck| stuck.device.is_none()) {
            match self.round(patience, deadline, &mut done, &mut round) {
                Ok(true) => break,
                // A device hangs: another thread queries the others.
                Ok(false) if Instant::now() < deadline => {}
                Ok(false) => {
                    round.errors.push("too many devices hang".to_owned());
                    break;
                }
                Err(error) => {
                    round.errors.push(error.to_string());
                    break;
                }
            }
        }
        for stuck in &self.stuck {
            let what = stuck.device.as_deref().unwrap_or("the list of mounts");
            let seconds = stuck.since.elapsed().as_secs_f64();
            let error = format!("{what} has not answered for {seconds:.1} s");
            round.errors.push(error);
        }
        round
    }

    /// Runs a round of one thread. Returns whether it was completed.
    fn round(
        &mut self,
        patience: Duration,
        deadline: Instant,
        done: &mut HashSet<String>,
        round: &mut Round,
    ) -> io::Result<bool> {
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => start(self.make)?,
        };
        let hanging = self.stuck.iter().filter_map(|stuck| stuck.device.clone());
        let ended = |_| io::Error::other("the thread that queries devices has ended");
        thread
            .requests
            .send(hanging.chain(done.iter().cloned()).collect())
            .map_err(|error| ended(error.to_string()))?;
        let mut asked = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match thread.answers.recv_timeout(patience.min(left)) {
                Ok(Answer::Asking(device)) => asked = Some(device),
                Ok(Answer::Said(device, answer)) => {
                    asked = None;
                    done.insert(device.clone());
                    match answer {
                        Ok(info) => {
                            round.found.insert(device, info);
                        }
                        Err(error) => round.errors.push(format!("{device}: {error}")),
                    }
                }
                Ok(Answer::End(result)) => {
                    self.thread = Some(thread);
                    return result.map(|()| true);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.stuck.push(Stuck {
                        device: asked,
                        since: Instant::now(),
                        answers: thread.answers,
                    });
                    return Ok(false);
                }
                Err(RecvTimeoutError::Disconnected) => return Err(ended(String::new())),
            }
        }
    }
}

fn start(make: Make) -> io::Result<Thread> {
    let (requests, rounds) = mpsc::channel::<HashSet<String>>();
    let (answers, received) = mpsc::channel();
    let run = move || {
        let mut probe = None;
        // Ends when the other side of either channel is gone.
        for left_out in rounds {
            let result = ask_all(make, &mut probe, &left_out, &answers);
            if answers.send(Answer::End(result)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("cgmeter-statfs".to_owned())
        .stack_size(128 * 1024)
        .spawn(run)?;
    Ok(Thread {
        requests,
        answers: received,
    })
}

fn ask_all(
    make: Make,
    probe: &mut Option<Box<dyn Probe>>,
    left_out: &HashSet<String>,
    answers: &Sender<Answer>,
) -> io::Result<()> {
    let probe = match probe {
        Some(probe) => probe,
        None => probe.insert(make()?),
    };
    let given_up = |_| io::Error::other("given up");
    for device in probe.devices()? {
        if left_out.contains(&device) {
            continue;
        }
        answers
            .send(Answer::Asking(device.clone()))
            .map_err(given_up)?;
        let answer = probe.probe(&device);
        answers
            .send(Answer::Said(device, answer))
            .map_err(given_up)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;

    const INFO: FileSystem = FileSystem {
        block_size: 4096,
        blocks: 10,
        free: 5,
        inodes: 8,
        inodes_free: 4,
    };
    const PATIENCE: Duration = Duration::from_millis(300);

    /// Devices. Those whose names begin with "hung" answer once the gate is open.
    struct Fake;

    static OPEN: AtomicBool = AtomicBool::new(false);
    static DEVICES: Mutex<Vec<&str>> = Mutex::new(Vec::new());
    /// The tests share the statics above.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    impl Probe for Fake {
        fn devices(&mut self) -> io::Result<Vec<String>> {
            let devices = DEVICES.lock().unwrap().clone();
            if devices.is_empty() {
                wait();
            }
            Ok(devices.into_iter().map(str::to_owned).collect())
        }

        fn probe(&mut self, device: &str) -> io::Result<FileSystem> {
            if device.starts_with("hung") {
                wait();
            }
            if device == "broken" {
                return Err(io::Error::other("out of order"));
            }
            assert_ne!(device, "faulty", "a test");
            Ok(INFO)
        }
    }

    fn wait() {
        while !OPEN.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn prober(devices: &[&'static str]) -> Prober {
        OPEN.store(false, Ordering::Relaxed);
        *DEVICES.lock().unwrap() = devices.to_vec();
        Prober::new(|| Ok(Box::new(Fake)))
    }

    fn names(round: &Round) -> Vec<&str> {
        round.found.keys().map(String::as_str).collect()
    }

    fn until_recovered(prober: &mut Prober) -> Round {
        OPEN.store(true, Ordering::Relaxed);
        loop {
            let round = prober.ask(PATIENCE);
            if round.errors.is_empty() {
                return round;
            }
        }
    }

    #[test]
    fn a_hanging_device_is_absent_and_the_others_are_not() {
        let _guard = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        let mut prober = prober(&["a", "hung", "b"]);
        let round = prober.ask(PATIENCE);
        assert_eq!(names(&round), ["a", "b"]);
        assert_eq!(round.errors.len(), 1);
        assert!(round.errors[0].starts_with("hung has not answered for"));
        // The second round does not wait for it.
        let begin = Instant::now();
        let round = prober.ask(Duration::from_secs(3600));
        assert!(begin.elapsed() < Duration::from_secs(3600));
        assert_eq!(names(&round), ["a", "b"]);
        assert_eq!(round.errors.len(), 1);
        assert_eq!(prober.stuck.len(), 1);
        let round = until_recovered(&mut prober);
        assert_eq!(names(&round), ["a", "b", "hung"]);
        assert_eq!(prober.stuck.len(), 0);
    }

    #[test]
    fn many_hanging_devices_end_the_round() {
        let _guard = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        let mut prober = prober(&["hung1", "hung2", "hung3", "hung4", "hung5", "z"]);
        let mut rounds = 0;
        loop {
            rounds += 1;
            let round = prober.ask(PATIENCE);
            assert!(!round.errors.is_empty());
            if names(&round) == ["z"] {
                break;
            }
        }
        assert!(rounds > 1);
        assert_eq!(prober.stuck.len(), 5);
        assert_eq!(until_recovered(&mut prober).found.len(), 6);
    }

    #[test]
    fn a_hanging_list_is_requested_by_one_thread() {
        let _guard = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        let mut prober = prober(&[]);
        for _ in 0..3 {
            let round = prober.ask(Duration::from_millis(10));
            assert!(round.found.is_empty());
            assert_eq!(round.errors.len(), 1);
            assert_eq!(prober.stuck.len(), 1);
        }
        *DEVICES.lock().unwrap() = vec!["a"];
        assert_eq!(names(&until_recovered(&mut prober)), ["a"]);
    }

    #[test]
    fn a_panic_is_an_error_of_the_round_and_the_next_round_has_a_thread() {
        let _guard = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        let mut prober = prober(&["a", "faulty"]);
        for _ in 0..2 {
            let round = prober.ask(PATIENCE * 100);
            assert_eq!(names(&round), ["a"]);
            assert_eq!(round.errors, ["the thread that queries devices has ended"]);
            assert_eq!(prober.stuck.len(), 0);
        }
        *DEVICES.lock().unwrap() = vec!["a", "b"];
        let round = prober.ask(PATIENCE * 100);
        assert_eq!(names(&round), ["a", "b"]);
        assert_eq!(round.errors, [""; 0]);
    }

    #[test]
    fn an_error_concerns_only_its_device() {
        let _guard = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        let mut prober = prober(&["broken", "a"]);
        let round = prober.ask(PATIENCE);
        assert_eq!(names(&round), ["a"]);
        assert_eq!(round.errors, ["broken: out of order"]);
    }
}
