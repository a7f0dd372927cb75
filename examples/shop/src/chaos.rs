//! Misbehaviour: what the shop can be told, and how it does it.
//!
//! Invariant: a change is taken whole or not at all, and nothing exceeds its bound.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::cli::Size;

/// Longest time that an answer can be held up.
const MAX_LATENCY: Duration = Duration::from_secs(60);
/// Most items of a product.
const MAX_INVENTORY: u64 = 1_000_000;
/// Turn of a thread that burns CPU: it works for a part of it.
const TURN: Duration = Duration::from_millis(20);

/// What the shop has been told.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Settings {
    /// Seconds added to each answer.
    pub latency_seconds: f64,
    /// Part of the requests that fail.
    pub error_rate: f64,
    /// Bytes of memory held.
    pub memory_bytes: usize,
    /// CPUs burnt.
    pub cpu: f64,
    /// Items left of each product, with no more to come; none: business as usual.
    pub inventory: Option<u64>,
}

impl Settings {
    /// These, with changes.
    ///
    /// # Errors
    ///
    /// The first that can't be: key, value, what was expected.
    pub fn with(&self, changes: &[(String, String)], max_memory: usize) -> Result<Self, String> {
        let mut new = self.clone();
        for (key, value) in changes {
            let wrong = |expected: &str| format!("{key}={value:?}: expected {expected}");
            match key.as_str() {
                "latency" => {
                    let time = humantime::parse_duration(value).ok();
                    let time = time.filter(|time| *time <= MAX_LATENCY);
                    let expected = "a time of at most 60s, for example 300ms";
                    new.latency_seconds = time.ok_or_else(|| wrong(expected))?.as_secs_f64();
                }
                "error_rate" => {
                    new.error_rate = number(value, 1.0).ok_or_else(|| wrong("0 to 1"))?;
                }
                "memory" => {
                    let bytes = value.parse().map(|Size(bytes)| bytes).ok();
                    let bytes = bytes.filter(|&bytes| bytes <= max_memory);
                    let expected =
                        format!("at most {max_memory} bytes (--max-memory), for example 64MiB");
                    new.memory_bytes = bytes.ok_or_else(|| wrong(&expected))?;
                }
                "cpu" => {
                    let most = cpus();
                    let expected = format!("0 to {most} CPUs");
                    new.cpu = number(value, most).ok_or_else(|| wrong(&expected))?;
                }
                "inventory" => {
                    let items = value.parse().ok().filter(|&items| items <= MAX_INVENTORY);
                    let expected = "a number of items, at most 1000000";
                    new.inventory = Some(items.ok_or_else(|| wrong(expected))?);
                }
                "reset" if value == "true" => new = Self::default(),
                "reset" => return Err(wrong("true")),
                _ => {
                    return Err(format!(
                        "{key:?} is not known: expected latency, error_rate, memory, cpu, inventory or reset"
                    ));
                }
            }
        }
        Ok(new)
    }

    /// Time to hold an answer up.
    pub fn latency(&self) -> Duration {
        Duration::from_secs_f64(self.latency_seconds)
    }
}

fn number(text: &str, most: f64) -> Option<f64> {
    let number = text.parse().ok();
    number.filter(|number| (0.0..=most).contains(number))
}

fn cpus() -> f64 {
    thread::available_parallelism().map_or(1, usize::from) as f64
}

/// The shop's misbehaviour.
#[derive(Debug)]
pub struct Chaos {
    max_memory: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    settings: Settings,
    /// Failures owed, below 1.
    owed: f64,
    held: Vec<u8>,
    burners: Option<Burners>,
}

impl Chaos {
    /// None, and at most so much memory.
    pub fn new(max_memory: usize) -> Self {
        Self {
            max_memory,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has been told.
    pub fn settings(&self) -> Settings {
        self.state().settings.clone()
    }

    /// Takes changes; blocks while memory is filled.
    ///
    /// # Errors
    ///
    /// As [`Settings::with`]; also when there is no memory.
    pub fn change(&self, changes: &[(String, String)]) -> Result<Settings, String> {
        let mut state = self.state();
        let new = state.settings.with(changes, self.max_memory)?;
        if new.memory_bytes != state.settings.memory_bytes {
            // The old goes first: never more than the bound.
            state.held = Vec::new();
            state.settings.memory_bytes = 0;
            state.held = hold(new.memory_bytes)?;
        }
        if new.cpu != state.settings.cpu {
            // Those before end when they are dropped.
            state.burners = None;
            state.burners = Some(Burners::start(new.cpu));
        }
        state.settings = new.clone();
        Ok(new)
    }

    /// Whether the next request has to fail: evenly spread, exactly the rate.
    pub fn fails(&self) -> bool {
        let mut state = self.state();
        state.owed += state.settings.error_rate;
        // Ten times 0.1 is a little less than 1.
        let fails = state.owed > 1.0 - 1e-9;
        if fails {
            state.owed -= 1.0;
        }
        fails
    }
}

/// So much memory, each page written to.
fn hold(bytes: usize) -> Result<Vec<u8>, String> {
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(bytes)
        .map_err(|error| format!("no {bytes} bytes of memory: {error}"))?;
    // Not zeroes: those the kernel would give without a page behind them.
    memory.resize(bytes, 7);
    Ok(memory)
}

/// Threads that burn CPU until they are dropped.
#[derive(Debug)]
struct Burners {
    stop: Arc<AtomicBool>,
}

impl Burners {
    fn start(cpus: f64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = cpus.ceil() as usize;
        for _ in 0..threads {
            let (stop, part) = (Arc::clone(&stop), cpus / threads as f64);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    while begin.elapsed() < TURN.mul_f64(part) {
                        std::hint::spin_loop();
                    }
                    thread::sleep(TURN.mul_f64(1.0 - part));
                }
            });
        }
        Self { stop }
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The changes in a JSON object.
///
/// # Errors
///
/// What is wrong with it.
pub fn from_json(body: &[u8]) -> Result<Vec<(String, String)>, String> {
    let object: HashMap<String, serde_json::Value> =
        serde_json::from_slice(body).map_err(|error| format!("expected a JSON object: {error}"))?;
    let text = |(key, value)| match value {
        serde_json::Value::String(text) => Ok((key, text)),
        serde_json::Value::Number(number) => Ok((key, number.to_string())),
        serde_json::Value::Bool(flag) => Ok((key, flag.to_string())),
        other => Err(format!("{key}={other}: expected a number or a text")),
    };
    let mut changes = object
        .into_iter()
        .map(text)
        .collect::<Result<Vec<_>, _>>()?;
    // `reset` comes first, whatever the object's order: the others are what shall be afterwards.
    changes.sort_by_key(|(key, _)| key != "reset");
    Ok(changes)
}

/// The changes in a query string.
///
/// # Errors
///
/// What is wrong with it.
pub fn from_query(query: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(format!("{pair:?}: expected KEY=VALUE")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(query: &str) -> Vec<(String, String)> {
        from_query(query).unwrap()
    }

    #[test]
    fn a_change_is_taken_whole_or_not_at_all() {
        let chaos = Chaos::new(1 << 20);
        chaos
            .change(&changes("latency=300ms&error_rate=0.5"))
            .unwrap();
        let before = chaos.settings();
        assert_eq!(before.latency(), Duration::from_millis(300));
        let error = chaos
            .change(&changes("latency=1s&memory=2MiB"))
            .unwrap_err();
        assert!(error.contains("at most 1048576 bytes"), "{error}");
        assert_eq!(chaos.settings(), before);
        assert_eq!(
            chaos.change(&changes("reset=true")).unwrap(),
            Settings::default()
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        let chaos = Chaos::new(1 << 20);
        for (query, expected) in [
            ("latency=61s", "at most 60s"),
            ("latency=fast", "for example 300ms"),
            ("error_rate=1.1", "0 to 1"),
            ("error_rate=NaN", "0 to 1"),
            ("cpu=-1", "CPUs"),
            ("inventory=many", "a number of items"),
            ("reset=no", "expected true"),
            ("speed=1", "\"speed\" is not known"),
        ] {
            let error = chaos.change(&changes(query)).unwrap_err();
            assert!(error.contains(expected), "{query}: {error}");
        }
        assert!(from_query("latency").is_err());
        for body in ["[]", "{\"latency\":null}", "{"] {
            assert!(from_json(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn json_and_query_say_the_same() {
        let json = br#"{"error_rate": 0.25, "reset": true, "memory": "64KiB"}"#;
        let mut json = from_json(json).unwrap();
        assert_eq!(json[0].0, "reset");
        json.sort();
        let mut query = changes("reset=true&error_rate=0.25&memory=64KiB");
        query.sort();
        assert_eq!(json, query);
    }

    #[test]
    fn the_error_rate_is_exact() {
        let chaos = Chaos::new(0);
        for (rate, failures) in [("0", 0), ("0.1", 100), ("0.25", 250), ("1", 1000)] {
            let change = [("error_rate".to_owned(), rate.to_owned())];
            chaos.change(&change).unwrap();
            let failed = (0..1000).filter(|_| chaos.fails()).count();
            assert_eq!(failed, failures, "{rate}");
        }
    }

    #[test]
    fn memory_is_held_and_given_back() {
        let chaos = Chaos::new(1 << 20);
        chaos.change(&changes("memory=1MiB")).unwrap();
        assert_eq!(chaos.state().held.len(), 1 << 20);
        chaos.change(&changes("memory=0")).unwrap();
        assert_eq!(chaos.state().held.capacity(), 0);
    }
}
