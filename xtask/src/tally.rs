//! What came of tests and checks: counts of tests, and the steps that failed.
//!
//! Invariant: a step that fails doesn't keep the next from running; the closing line and the exit
//! status come from here alone.

use std::process::Command;

use anyhow::{Result, bail};

use crate::shell::watched;

/// Tests by their end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ran, and were right.
    pub passed: u64,
    /// Ran, and were wrong.
    pub failed: u64,
    /// Did not run.
    pub skipped: u64,
}

impl Counts {
    /// Adds what a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …` says.
    pub fn add_line(&mut self, line: &str) {
        let Some(rest) = line.trim().strip_prefix("test result:") else {
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

    /// Takes tests that ended early, and so passed for their harness, for skipped: `recorded` of
    /// them said that they skipped, more than the harness has seen.
    pub fn with_recorded_skips(mut self, recorded: u64) -> Self {
        let hidden = recorded.saturating_sub(self.skipped).min(self.passed);
        self.passed -= hidden;
        self.skipped += hidden;
        self
    }

    /// What counts and exit status come to.
    pub fn verdict(self, ended_well: bool) -> Result<()> {
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
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(out, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Counts and failures of a run of several steps.
#[derive(Debug, Default)]
pub struct Tally {
    counts: Counts,
    failures: Vec<String>,
}

impl Tally {
    /// Does a step and notes its failure.
    pub fn step(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        eprintln!("\n==> {name}");
        if let Err(error) = step() {
            eprintln!("xtask: {name}: {error:#}");
            self.failures.push(name.to_owned());
        }
    }

    /// Runs a test command and counts its tests, given how many were recorded as skipped.
    pub fn tests(&mut self, name: &str, command: &mut Command, recorded: impl FnOnce() -> u64) {
        self.counted(name, |counts| {
            let ended_well = watched(command, std::io::stdout(), |line| counts.add_line(line));
            *counts = counts.with_recorded_skips(recorded());
            counts.verdict(ended_well?)
        });
    }

    /// Does a step that counts tests.
    pub fn counted(&mut self, name: &str, step: impl FnOnce(&mut Counts) -> Result<()>) {
        let mut counts = Counts::default();
        self.step(name, || step(&mut counts));
        self.counts.add(counts);
    }

    /// Counts what was skipped before it could run.
    pub fn skip(&mut self, count: usize) {
        self.counts.skipped += u64::try_from(count).unwrap_or(u64::MAX);
    }

    /// Prints the closing line.
    ///
    /// # Errors
    ///
    /// The steps that failed, or that there was no test at all.
    pub fn close(&self) -> Result<()> {
        println!("\n{}", self.counts);
        if !self.failures.is_empty() {
            bail!("failed: {}", self.failures.join(", "));
        }
        if self.counts.passed == 0 {
            bail!("no test ran: is the filter right?");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_added_up() {
        let mut counts = Counts::default();
        for line in [
            "test result: ok. 41 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            "running 3 tests",
            "test result: \u{1b}[31mFAILED\u{1b}[0m. 1 passed; 2 failed; 0 ignored; 0 measured; 5 filtered out",
            "it said: test result: ok. 7 passed; 0 failed",
        ] {
            counts.add_line(line);
        }
        assert_eq!(
            counts,
            Counts {
                passed: 42,
                failed: 2,
                skipped: 2
            }
        );
    }

    #[test]
    fn a_skip_counts_once_whether_the_harness_saw_it_or_not() {
        let seen = Counts {
            passed: 5,
            failed: 0,
            skipped: 2,
        };
        assert_eq!(seen.with_recorded_skips(2), seen);
        let unseen = Counts {
            passed: 7,
            failed: 0,
            skipped: 0,
        };
        assert_eq!(unseen.with_recorded_skips(2), seen);
    }

    #[test]
    fn a_failed_step_fails_the_whole_and_stops_nothing() {
        let mut tally = Tally::default();
        tally.step("lints", || bail!("no"));
        tally.tests("tests", &mut Command::new("true"), || 0);
        tally.counts.passed += 1;
        assert_eq!(tally.close().unwrap_err().to_string(), "failed: lints");
    }

    #[test]
    fn a_command_that_ends_badly_fails() {
        let mut tally = Tally::default();
        tally.tests("tests", &mut Command::new("false"), || 0);
        assert_eq!(tally.close().unwrap_err().to_string(), "failed: tests");
        let counts = Counts {
            passed: 1,
            failed: 2,
            skipped: 0,
        };
        assert_eq!(counts.verdict(false).unwrap_err().to_string(), "2 failed");
    }

    #[test]
    fn no_test_at_all_is_a_failure() {
        assert!(Tally::default().close().is_err());
    }
}
