//! A guest's console.
//!
//! Invariant: a line belongs to the section whose marker came last (see init.sh). A guest has finished
//! if, and only if, it printed the marker that ends its tests. The tests that a guest ran before it
//! died count and are not run again.

use std::mem;

use super::faults::Faults;
use crate::{notes::Notes, tally::Counts};

/// How a line of init.sh's `marker` begins.
const MARKER: &str = ":::guest ";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Check,
    Tests,
    Notes,
}

/// What it has printed so far.
#[derive(Debug, Default)]
pub struct Console {
    section: Option<Section>,
    /// The output of `cgmeter check`.
    pub check: String,
    /// The tests' notes, as they were written.
    notes: String,
    /// The tests by their end.
    pub counts: Counts,
    /// The tests' exit status, once they have ended.
    pub status: Option<i32>,
    /// Faults of the kernel.
    pub faults: Faults,
    /// Tests that have run, and whether they passed.
    ran: Vec<(String, bool)>,
    /// The test that is running.
    running: Option<String>,
}

impl Console {
    /// Reads a line. Returns it if it is to be shown.
    pub fn line<'a>(&mut self, line: &'a str) -> Option<&'a str> {
        let line = line.trim_end();
        self.faults.line(line);
        if let Some(words) = line.strip_prefix(MARKER) {
            self.marker(words);
            return None;
        }
        match self.section {
            Some(Section::Check) => {
                self.check.push_str(line);
                self.check.push('\n');
                // Only sources that can't run, and the closing line.
                let on = line.ends_with(" on");
                (line.starts_with("source") && !on || !line.contains("  ")).then_some(line)
            }
            Some(Section::Tests) => {
                self.counts.add_line(line);
                self.test(line);
                Some(line)
            }
            Some(Section::Notes) => {
                self.notes.push_str(line);
                self.notes.push('\n');
                None
            }
            None => (!line.is_empty()).then_some(line),
        }
    }

    /// The tests' notes.
    pub fn notes(&self) -> Notes {
        Notes::parse(&self.notes)
    }

    /// Where the guest was when it printed its last line: in a test, or between tests.
    pub fn last_test(&self) -> String {
        match (&self.running, self.ran.last()) {
            (Some(running), _) => running.clone(),
            (None, Some((ended, _))) => format!("after {ended}"),
            (None, None) => "before the first test".to_owned(),
        }
    }

    /// The guest died before its tests were done. Counts those that ran, gets ready for the console of
    /// the next guest, and returns the names of the tests that need not run there.
    pub fn died(&mut self) -> Vec<String> {
        let dead = mem::take(self);
        // Earlier guests' counts and this one's reruns: it did not get to print its own counts.
        self.counts = dead.counts;
        for &(_, passed) in &dead.ran {
            self.counts.passed += u64::from(passed);
            self.counts.failed += u64::from(!passed);
        }
        dead.ran.into_iter().map(|(name, _)| name).collect()
    }

    /// Reads a line such as `test a::b ... ok`. If the test printed something, its end has a line of
    /// its own. An ignored test did not run.
    fn test(&mut self, line: &str) {
        let begun = line.strip_prefix("test ");
        let end = match begun.and_then(|test| test.split_once(" ...")) {
            Some((name, end)) => {
                self.running = Some(name.trim().to_owned());
                end
            }
            None => line,
        };
        let passed = match end.trim() {
            "ok" => Some(true),
            "FAILED" => Some(false),
            "ignored" => None,
            _ => return,
        };
        let ended = self.running.take();
        self.ran.extend(ended.zip(passed));
    }

    fn marker(&mut self, words: &str) {
        let words: Vec<&str> = words.split(' ').collect();
        self.section = match words[..] {
            ["check", "begin"] => Some(Section::Check),
            ["tests", "begin"] => Some(Section::Tests),
            ["notes", "begin"] => Some(Section::Notes),
            ["tests", "end", status] => {
                self.status = status.parse().ok();
                None
            }
            _ => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "init: module x does not load\r
:::guest check begin
kernel     6.1.0-56-cloud-amd64
source     sched    on
source     tcp      off: no program
1 source cannot run
:::guest check end 1
:::guest tests begin

running 3 tests
test a::b ... ok
test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out
:::guest tests end 101
:::guest notes begin
skip c::d: needs the program promtool
:::guest notes end 0
";

    fn listen(said: &str) -> (Console, Vec<&str>) {
        let mut console = Console::default();
        let shown = said.lines().filter_map(|line| console.line(line)).collect();
        (console, shown)
    }

    #[test]
    fn sections_are_kept_apart() {
        let (console, shown) = listen(SAID);
        let expected = Counts {
            passed: 1,
            failed: 1,
            skipped: 1,
            ..Counts::default()
        };
        assert_eq!(console.counts, expected);
        assert_eq!(console.status, Some(101));
        assert_eq!(console.notes().skips.len(), 1);
        assert_eq!(console.check.lines().count(), 4);
        assert_eq!(shown[0], "init: module x does not load");
        assert_eq!(
            shown[1..3],
            ["source     tcp      off: no program", "1 source cannot run"]
        );
        assert_eq!(shown.len(), 7);
    }

    #[test]
    fn a_guest_that_died_has_no_status() {
        let end = SAID.find(":::guest tests end").unwrap();
        let (console, _) = listen(&SAID[..end]);
        assert_eq!(console.status, None);
    }

    #[test]
    fn the_last_test_is_known() {
        let last = |said: &str| listen(said).0.last_test();
        assert_eq!(last(""), "before the first test");
        let said = ":::guest tests begin\ntest a::b ... ok\ntest a::c ... ignored";
        assert_eq!(last(said), "after a::b");
        let said = format!("{said}\ntest a::d   ... ");
        assert_eq!(last(&said), "a::d");
        assert_eq!(last(&format!("{said}\nRERUN a::d: timing\n")), "a::d");
        assert_eq!(
            last(&format!("{said}\nRERUN a::d: timing\nok")),
            "after a::d"
        );
    }

    #[test]
    fn a_test_that_was_run_again_has_ended() {
        let said = ":::guest tests begin\ntest a::b ... \nRERUN a::b: timing; it failed with: no\nok\n\
                    test a::c ... ";
        let (mut console, _) = listen(said);
        assert_eq!(console.died(), ["a::b"]);
        assert_eq!((console.counts.passed, console.counts.reruns.len()), (1, 1));
    }

    #[test]
    fn tests_of_a_guest_that_died_count_once() {
        let said = ":::guest tests begin\ntest a::b   ... ok\ntest a::c ... ignored\n\
                    test a::d ... FAILED\ntest a::e ... \nRERUN a::e: timing; it failed with: no";
        let (mut console, _) = listen(said);
        assert_eq!(console.died(), ["a::b", "a::d"]);
        let counts = Counts {
            passed: 1,
            failed: 1,
            reruns: vec!["a::e: timing; it failed with: no".to_owned()],
            ..Counts::default()
        };
        assert_eq!(console.counts, counts);
        // The counts of the next guest are added.
        console.line(":::guest tests begin");
        console.line("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured");
        assert_eq!((console.counts.passed, console.counts.skipped), (4, 1));
        assert!(console.died().is_empty());
    }
}
