//! Keeps the log from repeating itself: of each kind of message one line a minute, and then one
//! that says how many more there were.
//!
//! The kind of a message is the place in the code that logs it, its text, and what it is about: a
//! source, a runtime, a cgroup. Other fields, such as counts and errors, make no difference.
//! Invariant: a place in the code has at most [`MOST_KINDS`] kinds at a time; what is beyond is one
//! kind together. Messages at debug and below are not held back: who asks for them wants each.

use std::{
    collections::HashMap,
    fmt::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

use super::lines::{Between, Lines};

/// A kind has one line in this time.
const WINDOW: Duration = Duration::from_secs(60);
/// Kinds of one place in the code.
const MOST_KINDS: usize = 32;
/// Longest text that is kept of a message, bytes.
const LONGEST: usize = 512;
/// Target of the lines about the log itself, which are never held back.
const TARGET: &str = "cgmeter::log";
/// Fields that say what a message is about.
const SUBJECTS: &[&str] = &[
    "source",
    "runtime",
    "socket",
    "cgroup",
    "port",
    "path",
    "name",
    "address",
    "signal",
    "setting",
    "thread",
    "log.target",
    "log.file",
    "log.line",
];

/// The kinds that had a line lately. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Repeats(Arc<Mutex<Kinds>>);

type Kinds = HashMap<Identifier, HashMap<String, Kind>>;

#[derive(Debug)]
struct Kind {
    level: Level,
    message: String,
    /// When it had its last line.
    since: Instant,
    /// Messages since then.
    repeated: u64,
    /// The other fields of the last one.
    last: String,
}

/// A line that stands for several messages.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    level: Level,
    message: String,
    repeated: u64,
    last: String,
}

/// What an event says.
#[derive(Default)]
struct Said {
    message: String,
    subject: String,
    fields: String,
}

/// Appends to a text as long as it is short.
fn append(text: &mut String, part: fmt::Arguments<'_>) {
    struct Bounded<'a>(&'a mut String);
    impl Write for Bounded<'_> {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            let room = LONGEST.saturating_sub(self.0.len());
            if room == 0 {
                return Err(fmt::Error);
            }
            let end = part.floor_char_boundary(room);
            self.0.push_str(&part[..end]);
            Ok(())
        }
    }
    // An error means that the text is full.
    let _ = Bounded(text).write_fmt(part);
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let name = field.name();
        match name {
            "message" => append(&mut self.message, format_args!("{value:?}")),
            _ if SUBJECTS.contains(&name) => {
                append(&mut self.subject, format_args!(" {name}={value:?}"));
            }
            _ => append(&mut self.fields, format_args!(" {name}={value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

impl Repeats {
    fn lock(&self) -> MutexGuard<'_, Kinds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a message gets a line of its own. If not, the second value says whether it is the
    /// first one that is held back.
    fn admits(&self, metadata: &Metadata<'_>, said: Said, now: Instant) -> (bool, bool) {
        let mut places = self.lock();
        let kinds = places.entry(metadata.callsite()).or_default();
        if kinds.len() >= MOST_KINDS {
            kinds.retain(|_, kind| kind.repeated > 0 || now - kind.since < WINDOW);
        }
        let mut key = said.message.clone() + &said.subject;
        if kinds.len() >= MOST_KINDS && !kinds.contains_key(&key) {
            // All others together.
            key.clear();
        }
        let last = said.subject + &said.fields;
        match kinds.get_mut(&key) {
            Some(kind) if kind.repeated > 0 || now - kind.since < WINDOW => {
                kind.repeated += 1;
                kind.message = said.message;
                kind.last = last;
                (false, kind.repeated == 1)
            }
            _ => {
                let kind = Kind {
                    level: *metadata.level(),
                    message: said.message,
                    since: now,
                    repeated: 0,
                    last: String::new(),
                };
                kinds.insert(key, kind);
                (true, false)
            }
        }
    }

    /// The lines that are due, and when the next one is.
    fn summaries(&self, now: Instant) -> (Vec<Summary>, Option<Instant>) {
        let mut due = Vec::new();
        let mut next = None;
        let mut places = self.lock();
        places.retain(|_, kinds| {
            kinds.retain(|_, kind| {
                let over = now - kind.since >= WINDOW;
                if over && kind.repeated > 0 {
                    due.push(Summary {
                        level: kind.level,
                        message: kind.message.clone(),
                        repeated: std::mem::take(&mut kind.repeated),
                        last: std::mem::take(&mut kind.last).trim_start().to_owned(),
                    });
                    kind.since = now;
                    return true;
                }
                if kind.repeated > 0 {
                    let at = kind.since + WINDOW;
                    next = Some(next.map_or(at, |next: Instant| next.min(at)));
                }
                !over
            });
            !kinds.is_empty()
        });
        (due, next)
    }
}

/// The layer that holds messages back.
#[derive(Debug)]
pub(super) struct Limit {
    pub(super) repeats: Repeats,
    pub(super) lines: Lines,
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || metadata.target() == TARGET {
            return true;
        }
        let mut said = Said::default();
        event.record(&mut said);
        let (admitted, first) = self.repeats.admits(metadata, said, Instant::now());
        if first {
            // The thread that writes has to wake up when the minute is over.
            self.lines.wake();
        }
        admitted
    }
}

impl Between for Repeats {
    fn due(&mut self, now: Instant) -> Option<Instant> {
        let (due, next) = self.summaries(now);
        for Summary {
            level,
            message,
            repeated,
            last,
        } in due
        {
            let seconds = WINDOW.as_secs();
            match level {
                Level::ERROR => {
                    tracing::error!(target: TARGET, repeated, seconds, last, "{message}");
                }
                Level::WARN => tracing::warn!(target: TARGET, repeated, seconds, last, "{message}"),
                _ => tracing::info!(target: TARGET, repeated, seconds, last, "{message}"),
            }
        }
        next
    }

    fn say_lost(&mut self, lines: u64) {
        tracing::warn!(
            target: TARGET,
            lines,
            "lines of the log are missing here: standard error was full"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every message goes through the layer, and its fate is noted.
    fn layer() -> (Repeats, impl Fn(&dyn Fn()) -> u64) {
        use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
        use tracing_subscriber::layer::SubscriberExt;
        #[derive(Clone, Default)]
        struct Count(Arc<AtomicU64>);
        impl<S: Subscriber> Layer<S> for Count {
            fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
                self.0.fetch_add(1, SeqCst);
            }
        }
        let repeats = Repeats::default();
        let limit = Limit {
            repeats: repeats.clone(),
            lines: Lines::default(),
        };
        let count = Count::default();
        let subscriber = tracing_subscriber::registry()
            .with(limit)
            .with(count.clone());
        let dispatch = tracing::Dispatch::new(subscriber);
        let logged = move |work: &dyn Fn()| {
            let before = count.0.load(SeqCst);
            tracing::dispatcher::with_default(&dispatch, work);
            count.0.load(SeqCst) - before
        };
        (repeats, logged)
    }

    #[test]
    fn thirteen_thousand_messages_in_three_minutes_are_one_line_a_minute() {
        let repeats = Repeats::default();
        let (_, logged) = layer();
        assert_eq!(
            logged(&|| (0..13_000).for_each(|lost| tracing::warn!(lost, "events were lost"))),
            1
        );
        // The same with a clock of the test's own.
        static PLACE: std::sync::OnceLock<&'static Metadata<'static>> = std::sync::OnceLock::new();
        struct Catch;
        impl<S: Subscriber> Layer<S> for Catch {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                let _ = PLACE.set(event.metadata());
            }
        }
        use tracing_subscriber::layer::SubscriberExt;
        let catching = tracing_subscriber::registry().with(Catch);
        tracing::subscriber::with_default(catching, || tracing::warn!(lost = 1, "x"));
        let place = PLACE.get().unwrap();
        let said = |n: u64| Said {
            message: "events were lost".to_owned(),
            subject: String::new(),
            fields: format!(" lost={n}"),
        };
        let begin = Instant::now();
        let mut lines = Vec::new();
        for n in 0..13_000_u64 {
            let now = begin + Duration::from_micros(n * 180_000_000 / 13_000);
            let (due, _) = repeats.summaries(now);
            lines.extend(due);
            if repeats.admits(place, said(n), now).0 {
                assert_eq!(n, 0, "only the first has a line of its own");
            }
        }
        let (due, next) = repeats.summaries(begin + 4 * WINDOW);
        lines.extend(due);
        assert_eq!(next, None);
        assert_eq!(lines.len(), 3, "{lines:?}");
        let counted: u64 = lines.iter().map(|line| line.repeated).sum();
        assert_eq!(counted, 12_999);
        assert_eq!(lines[2].last, "lost=12999");
        assert_eq!(lines[0].level, Level::WARN);
        // After a quiet minute the kind is forgotten, and its next message has a line again.
        let (due, next) = repeats.summaries(begin + 6 * WINDOW);
        assert!(due.is_empty() && next.is_none() && repeats.lock().is_empty());
        assert!(repeats.admits(place, said(1), begin + 6 * WINDOW).0);
    }

    #[test]
    fn what_is_about_different_things_is_not_a_repetition() {
        let (_, logged) = layer();
        let on = || {
            for source in ["cpu", "memory", "cpu"] {
                tracing::info!(source, "source on");
            }
        };
        assert_eq!(logged(&on), 2);
    }

    #[test]
    fn strangers_can_not_fill_the_log_with_names() {
        let (repeats, logged) = layer();
        let broken = || {
            for n in 0..10_000 {
                let cgroup = format!("/tenant/{n}");
                tracing::warn!(cgroup, "an endpoint can't be read");
                tracing::warn!("no such owner: {n}");
            }
        };
        let bound = 2 * (MOST_KINDS as u64 + 1);
        assert_eq!(logged(&broken), bound);
        assert_eq!(logged(&broken), 0);
        let kinds: usize = repeats.lock().values().map(HashMap::len).sum();
        assert_eq!(kinds as u64, bound);
    }

    #[test]
    fn debug_messages_are_all_logged() {
        let (_, logged) = layer();
        assert_eq!(
            logged(&|| (0..5).for_each(|_| tracing::debug!("a detail"))),
            5
        );
    }

    #[test]
    fn messages_of_kernel_programs_are_told_apart_by_their_line() {
        let (repeats, _) = layer();
        let limit = Limit {
            repeats: repeats.clone(),
            lines: Lines::default(),
        };
        use tracing_subscriber::layer::SubscriberExt;
        let subscriber = tracing_subscriber::registry().with(limit);
        tracing::subscriber::with_default(subscriber, || {
            for line in [63, 63, 311, 63] {
                tracing::warn!(
                    "log.target" = "cgroup_mkdir",
                    "log.file" = "src/cgroup.rs",
                    "log.line" = line,
                    "ring buffer full"
                );
            }
        });
        let places = repeats.lock();
        let mut repeated: Vec<u64> = places
            .values()
            .flat_map(HashMap::values)
            .map(|kind| kind.repeated)
            .collect();
        repeated.sort_unstable();
        assert_eq!(repeated, [0, 2]);
    }

    #[test]
    fn long_texts_are_cut() {
        let mut text = String::new();
        append(&mut text, format_args!("{}", "ä".repeat(LONGEST)));
        append(&mut text, format_args!("more"));
        assert!(text.len() <= LONGEST && text.len() > LONGEST - 4);
    }
}
