//! The notes that the live tests write (tests/live/harness.rs): what did not run and why, and how
//! long the others took.

use std::time::Duration;

/// A test that did not run, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// The test.
    pub name: String,
    /// Why it did not run.
    pub reason: String,
}

impl Skip {
    /// A skip and its reason.
    pub fn new(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            reason: reason.into(),
        }
    }
}

/// The notes of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Skipped, because the machine lacks something.
    pub skips: Vec<Skip>,
    /// Tests that were left to the long tier.
    pub long: Vec<Skip>,
    /// How long the tests took that ran.
    pub times: Vec<(String, Duration)>,
}

impl Notes {
    /// Reads lines `skip NAME: reason`, `long NAME: reason` and `took NAME: SECONDS`.
    pub fn parse(text: &str) -> Self {
        let mut notes = Self::default();
        for line in text.lines() {
            let Some((kind, rest)) = line.trim().split_once(' ') else {
                continue;
            };
            let (name, what) = rest.split_once(": ").unwrap_or((rest, "no reason given"));
            match kind {
                "skip" => notes.skips.push(Skip::new(name, what)),
                "long" => notes.long.push(Skip::new(name, what)),
                "took" => {
                    let time = what.parse().ok().map(Duration::try_from_secs_f64);
                    let time = time.and_then(Result::ok).unwrap_or_default();
                    notes.times.push((name.to_owned(), time));
                }
                _ => {}
            }
        }
        notes
    }

    /// The tests that took longest, as a line of text.
    pub fn slowest(&self, count: usize) -> String {
        let mut times: Vec<_> = self.times.iter().collect();
        times.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        let shown = times
            .iter()
            .take(count)
            .map(|(name, time)| format!("{name} {} s", time.as_secs()));
        shown.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_sorted_by_kind() {
        let text = "skip tcp::resets: needs root: no\n\nlong docker::many: 200 containers\n\
                    took cpu::one: 1.5\nskip odd\r\nnonsense\ntook cpu::two: -1\n";
        let notes = Notes::parse(text);
        let skips = [
            Skip::new("tcp::resets", "needs root: no"),
            Skip::new("odd", "no reason given"),
        ];
        assert_eq!(notes.skips, skips);
        assert_eq!(notes.long, [Skip::new("docker::many", "200 containers")]);
        let times = [("cpu::one", 1500), ("cpu::two", 0)];
        let times = times.map(|(name, ms)| (name.to_owned(), Duration::from_millis(ms)));
        assert_eq!(notes.times, times);
    }

    #[test]
    fn the_slowest_come_first() {
        let notes = Notes::parse("took a: 1\ntook b: 30.7\ntook c: 2\n");
        assert_eq!(notes.slowest(2), "b 30 s, c 2 s");
        assert_eq!(Notes::default().slowest(2), "");
    }
}
