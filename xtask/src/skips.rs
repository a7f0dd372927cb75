//! Tests that were skipped, against the list of those that may be.
//!
//! Invariant: every skip is printed. In CI, one that the list does not allow at its place is a failure.

use anyhow::{Context, Result, bail};

use crate::{notes::Skip, shell::root};

/// The list, from the root of the repository: lines `PLACE: NAME # reason`. PLACE is `host`, `vm` for
/// every virtual machine, or `vm SERIES` for those with that kernel.
const LIST: &str = "tests/allowed-skips.txt";

/// Where tests ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The tests ran on this host.
    Host,
    /// In a virtual machine, on a kernel of this series.
    Guest(&'static str),
}

/// A line of the list.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    /// As it is written: `host`, `vm` or `vm SERIES`.
    scope: String,
    name: String,
}

impl Row {
    fn parse(line: &str) -> Result<Self> {
        let test = match line.split_once('#') {
            Some((test, reason)) if !reason.trim().is_empty() => test.trim(),
            _ => bail!("`{line}` gives no reason: write `PLACE: NAME # reason`"),
        };
        let Some((scope, name)) = test.split_once(": ") else {
            bail!("`{line}` names no place: begin it with `host: `, `vm: ` or `vm SERIES: `");
        };
        let is_known = matches!(scope, "host" | "vm")
            || scope.strip_prefix("vm ").is_some_and(|series| {
                series.starts_with(|c: char| c.is_ascii_digit()) && !series.contains(' ')
            });
        if !is_known {
            bail!("`{line}` is about `{scope}`, which is none of `host`, `vm` and `vm SERIES`");
        }
        Ok(Self {
            scope: scope.to_owned(),
            name: name.trim().to_owned(),
        })
    }

    /// Whether it is about a place.
    fn covers(&self, place: Place) -> bool {
        match place {
            Place::Host => self.scope == "host",
            Place::Guest(series) => {
                self.scope == "vm" || self.scope.strip_prefix("vm ") == Some(series)
            }
        }
    }
}

/// The list of allowed skips.
#[derive(Debug, Default, PartialEq, Eq)]
struct List(Vec<Row>);

impl List {
    fn read() -> Result<Self> {
        let text = std::fs::read_to_string(root().join(LIST))
            .with_context(|| format!("reading {LIST}"))?;
        Self::parse(&text).with_context(|| LIST.to_owned())
    }

    fn parse(text: &str) -> Result<Self> {
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(Row::parse)
            .collect::<Result<_>>()
            .map(Self)
    }

    fn allows(&self, name: &str, place: Place) -> bool {
        self.0
            .iter()
            .any(|row| row.name == name && row.covers(place))
    }
}

/// The skips of a run, by place.
#[derive(Debug, Default)]
pub struct Ledger(Vec<(Place, Vec<Skip>)>);

impl Ledger {
    /// Prints skips at a place and notes them; fails if `strict` and some may not be.
    pub fn judge(&mut self, skips: Vec<Skip>, place: Place, strict: bool) -> Result<()> {
        let list = List::read()?;
        let mut unexpected = Vec::new();
        for Skip { name, reason } in &skips {
            let mark = if list.allows(name, place) {
                ""
            } else {
                unexpected.push(name.as_str());
                " (not on the list)"
            };
            println!("SKIPPED {name}: {reason}{mark}");
        }
        let names = unexpected.join(", ");
        let result = match (unexpected.is_empty(), strict) {
            (true, _) => Ok(()),
            (false, true) => Err(anyhow::anyhow!(
                "skipped, but {LIST} doesn't name them for this place: {names}"
            )),
            (false, false) => {
                eprintln!("xtask: warning: CI would fail, since {LIST} doesn't name {names}");
                Ok(())
            }
        };
        self.0.push((place, skips));
        result
    }

    /// Lines of the list that this run did not need: the tests were not skipped at these places. Makes
    /// sense only after a run of all tests.
    pub fn stale(&self) -> Result<Vec<String>> {
        Ok(self.stale_in(&List::read()?))
    }

    fn stale_in(&self, list: &List) -> Vec<String> {
        let is_stale = |row: &&Row| {
            let mut places = self.0.iter().filter(|(place, _)| row.covers(*place));
            let was_there = places.clone().next().is_some();
            was_there && !places.any(|(_, skips)| skips.iter().any(|skip| skip.name == row.name))
        };
        let stale = list.0.iter().filter(is_stale);
        stale
            .map(|row| format!("{}: {}", row.scope, row.name))
            .collect()
    }
}

/// Whether this is CI.
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    fn list(text: &str) -> List {
        List::parse(text).unwrap()
    }

    #[test]
    fn a_row_without_a_reason_or_a_place_is_an_error() {
        for (text, part) in [
            ("host: a::b\n", "gives no reason"),
            ("host: a::b #\n", "gives no reason"),
            ("a::b # no KVM here\n", "names no place"),
            ("moon: a::b # far away\n", "is about `moon`"),
            ("vm : a::b # odd\n", "is about `vm `"),
        ] {
            let error = List::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(list("# all of them\n\n").0, []);
    }

    #[test]
    fn a_row_allows_a_skip_at_its_place_alone() {
        let list = list("host: a # here\nvm: b::c # in guests\nvm 6.1: d # on that kernel\n");
        for (place, allowed) in [
            (Place::Host, &["a"][..]),
            (Place::Guest("6.1"), &["b::c", "d"]),
            (Place::Guest("6.12"), &["b::c"]),
        ] {
            let names = ["a", "b::c", "d"].map(|name| list.allows(name, place).then_some(name));
            let names: Vec<_> = names.into_iter().flatten().collect();
            assert_eq!(names, allowed, "{place:?}");
        }
    }

    #[test]
    fn only_a_strict_judge_fails() {
        let skips = || vec![Skip::new("nobody::allows_this", "because")];
        let mut ledger = Ledger::default();
        assert!(ledger.judge(skips(), Place::Host, true).is_err());
        assert!(ledger.judge(skips(), Place::Host, false).is_ok());
        assert!(ledger.judge(Vec::new(), Place::Host, true).is_ok());
    }

    #[test]
    fn a_row_that_nobody_used_is_stale() {
        let list = list("host: a # x\nhost: b # x\nvm: c # x\nvm 6.1: d # x\nvm 6.12: e # x\n");
        let skips = |names: &[&str]| names.iter().map(|name| Skip::new(*name, "x")).collect();
        let ledger = Ledger(vec![
            (Place::Host, skips(&["b"])),
            (Place::Host, skips(&[])),
            (Place::Guest("6.1"), skips(&["c", "e"])),
        ]);
        // No test ran on 6.12.
        assert_eq!(ledger.stale_in(&list), ["host: a", "vm 6.1: d"]);
    }

    /// Every text in quotes in Rust files below a folder.
    fn quoted(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                quoted(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(path).unwrap();
                found.extend(text.split('"').map(str::to_owned));
            }
        }
    }

    /// The row of a renamed test would allow nothing, and nobody would see it.
    #[test]
    fn each_row_names_a_test() {
        let mut names = BTreeSet::from([crate::deny::ADVISORIES.to_owned()]);
        quoted(&root().join("tests/live"), &mut names);
        for Row { name, .. } in List::read().unwrap().0 {
            assert!(names.contains(&name), "{LIST}: there is no test {name}");
        }
    }
}
