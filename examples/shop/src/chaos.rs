//! Chaos: errors, delays and load that the shop causes on request.
//!
//! Invariant: a change is applied as a whole or not at all, and no value exceeds its limit.

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

/// The longest delay of an answer.
const MAX_LATENCY: Duration = Duration::from_secs(60);
/// The most items of a product.
const MAX_INVENTORY: u64 = 1_000_000;
/// The period of a thread that burns CPU. It works for a part of each.
const TURN: Duration = Duration::from_millis(20);

/// Settings of the chaos.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Settings {
    /// Seconds added to each answer.
    pub latency_seconds: f64,
    /// Share of the requests that fail, 0 to 1.
    pub error_rate: f64,
    /// Memory to hold, in bytes.
    pub memory_bytes: usize,
    /// CPUs to burn.
    pub cpu: f64,
    /// Items of each product without deliveries; `None` for the usual stock with deliveries.
    pub inventory: Option<u64>,
}

impl Settings {
    /// Returns the settings with changes applied.
    ///
    /// # Errors
    ///
    /// Returns key, value and the expected form of the first change that is invalid.
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

    /// The delay of each answer.
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

/// The chaos of a shop.
#[derive(Debug)]
pub struct Chaos {
    max_memory: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    settings: Settings,
    /// The fraction of a failure carried over, below 1.
    owed: f64,
    held: Vec<u8>,
    burners: Option<Burners>,
}

impl Chaos {
    /// Makes one without effects, which never holds more than `max_memory` bytes.
    pub fn new(max_memory: usize) -> Self {
        Self {
            max_memory,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present settings.
    pub fn settings(&self) -> Settings {
        self.state().settings.clone()
    }

    /// Applies changes. Blocks while memory is filled.
    ///
    /// # Errors
    ///
    /// As [`Settings::with`], or if memory can't be allocated.
    pub fn change(&self, changes: &[(String, String)]) -> Result<Settings, String> {
        let mut state = self.state();
        let new = state.settings.with(changes, self.max_memory)?;
        if new.memory_bytes != state.settings.memory_bytes {
            // The old memory is freed first, so that the limit holds.
            state.held = Vec::new();
            state.settings.memory_bytes = 0;
            state.held = hold(new.memory_bytes)?;
        }
        if new.cpu != state.settings.cpu {
            // Dropping the old threads ends them.
            state.burners = None;
            state.burners = Some(Burners::start(new.cpu));
        }
        state.settings = new.clone();
        Ok(new)
    }

    /// Whether the next request fails. Failures are evenly spread and match the rate exactly.
    pub fn fails(&self) -> bool {
        let mut state = self.state();
        state.owed += state.settings.error_rate;
        // In floating point, ten times 0.1 is less than 1.
        let fails = state.owed > 1.0 - 1e-9;
        if fails {
            state.owed -= 1.0;
        }
        fails
    }
}

/// Allocates memory and writes to each page.
fn hold(bytes: usize) -> Result<Vec<u8>, String> {
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(bytes)
        .map_err(|error| format!("no {bytes} bytes of memory: {error}"))?;
    // Zeroes would be mapped without a page of their own.
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

/// Parses changes from a JSON object.
///
/// # Errors
///
/// Returns what is wrong with it.
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
    // `reset` is applied first, whatever the order in the object.
    changes.sort_by_key(|(key, _)| key != "reset");
    Ok(changes)
}

/// Parses changes from a query string.
///
/// # Errors
///
/// Returns what is wrong with it.
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
