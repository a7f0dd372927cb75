//! The results of tests and checks: counts of tests, steps and their time, reruns, failures.
//!
//! Invariant: a step that fails does not stop the next ones. The closing lines and the exit status
//! come from here alone.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    notes::{Notes, Skip},
    shell::watched,
    skips::{self, Ledger, Place},
};

/// Reruns of a whole run, host and virtual machines together, above which it fails.
const MOST_RERUNS: usize = 2;

/// How many of the slowest tests of a place are shown.
const SLOWEST: usize = 10;

/// How many failed tests of a step the closing lines tell of, how many lines of each, and how much of
/// a line.
const TOLD_FAILURES: usize = 20;
const TOLD_LINES: usize = 6;
const TOLD_CHARS: usize = 400;

/// Numbers of tests by result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Skipped, because the machine lacks something.
    pub skipped: u64,
    /// Tests that were left to the long tier.
    pub long: u64,
    /// Tests that failed and were run again: name, reason and error.
    pub reruns: Vec<String>,
    /// The first failed tests: the name, and the first lines of what they said.
    pub told: Vec<Vec<String>>,
    /// Whether the lines being read are what a failed test said.
    pub is_telling: bool,
}

impl Counts {
    /// Reads a line of output: `test result: ok. 3 passed; 0 failed; 1 ignored; …` and `RERUN NAME:
    /// REASON` count. What comes after `---- NAME ----` is what a failed test said.
    pub fn add_line(&mut self, line: &str) {
        let line = line.trim();
        self.tell(line);
        if let Some(rerun) = line.strip_prefix("RERUN ") {
            self.reruns.push(rerun.to_owned());
        }
        let Some(rest) = line.strip_prefix("test result:") else {
            return;
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let number = |what: &str| {
            words
                .windows(2)
                .find(|pair| pair[1].trim_end_matches(';') == what)
                .and_then(|pair| pair[0].parse::<u64>().ok())
                .unwrap_or(0)
        };
        self.passed += number("passed");
        self.failed += number("failed");
        self.skipped += number("ignored");
    }

    fn tell(&mut self, line: &str) {
        let name = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix("----"));
        if let Some(name) = name {
            self.is_telling = self.told.len() < TOLD_FAILURES;
            if self.is_telling {
                let name = name.trim().trim_end_matches(" stdout");
                self.told.push(vec![name.to_owned()]);
            }
        } else if line == "failures:" || line.starts_with("test result:") {
            self.is_telling = false;
        } else if self.is_telling
            && !line.is_empty()
            && let Some(lines) = self.told.last_mut()
            && lines.len() <= TOLD_LINES
        {
            lines.push(line.chars().take(TOLD_CHARS).collect());
        }
    }

    /// Separates the tests that were left to the long tier from the skipped ones. Both are `ignored` in
    /// the output.
    pub fn take(&mut self, notes: &Notes) {
        self.long = length(&notes.long);
        self.skipped = self.skipped.saturating_sub(self.long);
    }

    /// An error if a test failed, or if the command failed without one.
    pub fn verdict(&self, ended_well: bool) -> Result<()> {
        match self.failed {
            0 if ended_well => Ok(()),
            0 => bail!("ended badly without a failed test: see above"),
            failed => bail!("{failed} failed"),
        }
    }

    /// Adds other counts.
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.long += other.long;
        self.reruns.extend(other.reruns);
        self.told.extend(other.told);
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
            ..
        } = self;
        write!(out, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// The results of a run of several steps.
#[derive(Debug)]
pub struct Tally {
    begin: Instant,
    counts: Counts,
    skips: Ledger,
    times: Vec<(String, Duration)>,
    remarks: Vec<String>,
    failures: Vec<String>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            begin: Instant::now(),
            counts: Counts::default(),
            skips: Ledger::default(),
            times: Vec::new(),
            remarks: Vec::new(),
            failures: Vec::new(),
        }
    }
}

impl Tally {
    /// Runs a step. A failure is recorded.
    pub fn step(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        self.counted(name, |_| step());
    }

    /// Runs a test command and counts its tests.
    pub fn tests(&mut self, name: &str, command: &mut Command) {
        self.counted(name, |counts| {
            let ended_well = watched(command, std::io::stdout(), |line| counts.add_line(line))?;
            counts.verdict(ended_well)
        });
    }

    /// Runs a step that counts tests.
    pub fn counted(&mut self, name: &str, step: impl FnOnce(&mut Counts) -> Result<()>) {
        eprintln!("\n==> {name}");
        let (begin, mut counts) = (Instant::now(), Counts::default());
        let outcome = step(&mut counts);
        self.times.push((name.to_owned(), begin.elapsed()));
        for lines in &mut counts.told {
            lines[0] = format!("{name}: {}", lines[0]);
        }
        self.counts.add(counts);
        if let Err(error) = outcome {
            eprintln!("xtask: {name}: {error:#}");
            self.failures.push(name.to_owned());
        }
    }

    /// Runs a step without which the others can't run.
    pub fn required<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let outcome = step();
        self.times.push((name.to_owned(), begin.elapsed()));
        outcome
    }

    /// Counts tests as skipped on this host, and judges them.
    pub fn skip(&mut self, name: &str, skips: Vec<Skip>) {
        self.counts.skipped += length(&skips);
        self.judge(name, skips, Place::Host, skips::in_ci());
    }

    /// Reads the notes of live tests: judges the skipped ones, and says in the closing lines which were
    /// left to the long tier and which were slowest.
    pub fn noted(&mut self, whose: &str, notes: Notes, place: Place, strict: bool) {
        if !notes.long.is_empty() {
            let count = notes.long.len();
            self.remark(format!(
                "{whose}: {count} tests left to the long tier (cargo xtask test --all)"
            ));
            // In guests they are all but those in tests/live/kernels.rs.
            if place == Place::Host {
                for Skip { name, reason } in &notes.long {
                    self.remark(format!("  {name}: {reason}"));
                }
            }
        }
        if !notes.times.is_empty() {
            self.remark(format!(
                "{whose}: slowest tests: {}",
                notes.slowest(SLOWEST)
            ));
        }
        let name = format!("{whose}: skipped tests");
        self.judge(&name, notes.skips, place, strict);
    }

    /// Adds a closing line.
    pub fn remark(&mut self, text: String) {
        self.remarks.push(text);
    }

    /// Says in the closing lines which lines of the list of skips were not needed. Only for a run of all
    /// tests.
    pub fn stale_skips(&mut self) {
        match self.skips.stale() {
            Ok(rows) => self.remarks.extend(
                rows.iter()
                    .map(|row| format!("stale line in the list of allowed skips: {row}")),
            ),
            Err(error) => self.remark(format!("the list of skips can't be read: {error:#}")),
        }
    }

    fn judge(&mut self, name: &str, skips: Vec<Skip>, place: Place, strict: bool) {
        // Moved out, since `step` borrows the tally.
        let mut ledger = std::mem::take(&mut self.skips);
        self.step(name, || ledger.judge(skips, place, strict));
        self.skips = ledger;
    }

    /// Prints the closing lines: times, remarks, reruns and counts.
    ///
    /// # Errors
    ///
    /// The steps that failed, too many reruns, or that there was no test at all.
    pub fn close(&self) -> Result<()> {
        let Counts {
            passed,
            long,
            reruns,
            told,
            ..
        } = &self.counts;
        println!(
            "\nwhere the time went ({} in all):",
            clock(self.begin.elapsed())
        );
        for (name, time) in &self.times {
            // Steps of less than a second are left out.
            if time.as_secs() > 0 {
                println!("{:>8}  {name}", clock(*time));
            }
        }
        for remark in &self.remarks {
            println!("{remark}");
        }
        for rerun in reruns {
            println!("run again: {rerun}");
        }
        println!(
            "{} run again (at most {MOST_RERUNS} may be), {long} left to the long tier",
            reruns.len()
        );
        for lines in told {
            println!("failed: {}", lines.join("\n    "));
        }
        println!("{}", self.counts);
        let mut failures = self.failures.clone();
        if reruns.len() > MOST_RERUNS {
            failures.push(format!("{} tests were run again", reruns.len()));
        }
        if !failures.is_empty() {
            bail!("failed: {}", failures.join(", "));
        }
        if *passed == 0 {
            bail!("no test ran: is the filter right?");
        }
        Ok(())
    }
}

fn length<T>(list: &[T]) -> u64 {
    list.len().try_into().unwrap_or(u64::MAX)
}

/// A duration as `M:SS`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64, skipped: u64) -> Counts {
        Counts {
            passed,
            failed,
            skipped,
            ..Counts::default()
        }
    }

    #[test]
    fn result_lines_are_added_up() {
        let mut found = Counts::default();
        for line in [
            "test result: ok. 41 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            "running 3 tests",
            "test result: \u{1b}[31mFAILED\u{1b}[0m. 1 passed; 2 failed; 0 ignored; 0 measured; 5 filtered out",
            "it said: test result: ok. 7 passed; 0 failed",
        ] {
            found.add_line(line);
        }
        assert_eq!(found, counts(42, 2, 2));
    }

    #[test]
    fn what_is_left_to_the_long_tier_is_not_skipped() {
        let mut found = counts(5, 0, 3);
        found.take(&Notes::parse(
            "skip a: no root\nlong b: slow\nlong c: slow\n",
        ));
        assert_eq!((found.skipped, found.long), (1, 2));
    }

    #[test]
    fn what_failed_tests_said_is_kept() {
        let said = "test a::b ... FAILED\n\nfailures:\n\n---- a::b ----\nleft: 1\n\nright: 2\n\n\
                    ---- c stdout ----\nno\n\nfailures:\n    a::b\n    c\n\n\
                    test result: FAILED. 0 passed; 2 failed; 0 ignored;\nnot told";
        let mut found = Counts::default();
        said.lines().for_each(|line| found.add_line(line));
        assert_eq!(
            found.told,
            [vec!["a::b", "left: 1", "right: 2"], vec!["c", "no"]]
        );
        let mut much = Counts::default();
        for _ in 0..100 {
            much.add_line("---- a ----");
            (0..100).for_each(|_| much.add_line("line"));
        }
        assert_eq!(much.told.len(), TOLD_FAILURES);
        assert!(much.told.iter().all(|lines| lines.len() == 1 + TOLD_LINES));
    }

    #[test]
    fn a_failed_step_fails_the_run_but_does_not_stop_it() {
        let mut tally = Tally::default();
        tally.step("lints", || bail!("no"));
        tally.tests("tests", &mut Command::new("true"));
        tally.counts.passed += 1;
        assert_eq!(tally.close().unwrap_err().to_string(), "failed: lints");
    }

    #[test]
    fn a_command_that_ends_badly_fails() {
        let mut tally = Tally::default();
        tally.tests("tests", &mut Command::new("false"));
        assert_eq!(tally.close().unwrap_err().to_string(), "failed: tests");
        let error = counts(1, 2, 0).verdict(false).unwrap_err();
        assert_eq!(error.to_string(), "2 failed");
    }

    #[test]
    fn more_than_two_reruns_fail_a_run() {
        let mut tally = Tally::default();
        tally.counts.passed = 9;
        for (name, is_fine) in [("a", true), ("b", true), ("c", false)] {
            tally.counted("tests", |counts| {
                counts.add_line(&format!("RERUN {name}: timing; it failed with: 1 is not 2"));
                Ok(())
            });
            assert_eq!(tally.close().is_ok(), is_fine, "{name}");
        }
        let error = tally.close().unwrap_err().to_string();
        assert_eq!(error, "failed: 3 tests were run again");
    }

    #[test]
    fn no_test_at_all_is_a_failure() {
        assert!(Tally::default().close().is_err());
    }

    #[test]
    fn durations_are_minutes_and_seconds() {
        assert_eq!(clock(Duration::from_secs(7)), "0:07");
        assert_eq!(clock(Duration::from_millis(754_900)), "12:34");
    }
}
