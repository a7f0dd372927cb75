//! Tests that were skipped, against the list of those that may be.
//!
//! Invariant: no skip is silent, and in CI none is tolerated that the list doesn't name with a reason.

use anyhow::{Context, Result, bail};

use crate::shell::root;

/// The list, from the root of the repository: lines `name # reason`, or `vm: name # reason` for
/// tests that virtual machines alone may skip, or `vm 6.1: name # reason` for those of one kernel.
const ALLOWED: &str = "tests/allowed-skips.txt";

/// A test that was skipped.
#[derive(Debug, PartialEq, Eq)]
pub struct Skip<'a> {
    name: &'a str,
    reason: &'a str,
}

impl<'a> Skip<'a> {
    /// A skip and its reason.
    pub fn new(name: &'a str, reason: &'a str) -> Self {
        Self { name, reason }
    }
}

/// Where tests ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// On this host.
    Host,
    /// In a virtual machine, on a kernel of this series.
    Guest(&'a str),
}

impl Place<'_> {
    /// Whether a line of the list that begins with `scope:` is about this place.
    fn is_in(self, scope: &str) -> bool {
        match (self, scope.strip_prefix("vm")) {
            (Self::Guest(_), Some("")) => true,
            (Self::Guest(series), Some(only)) => only.strip_prefix(' ') == Some(series),
            _ => false,
        }
    }
}

/// Skips from the lines `name: reason` that the tests write.
pub fn recorded(text: &str) -> Vec<Skip<'_>> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.split_once(": ").unwrap_or((line, "no reason given")))
        .map(|(name, reason)| Skip {
            name: name.trim(),
            reason: reason.trim(),
        })
        .collect()
}

/// Prints skips at a place, and fails if `strict` and some may not be.
pub fn judge(skips: &[Skip<'_>], place: Place<'_>, strict: bool) -> Result<()> {
    let text = std::fs::read_to_string(root().join(ALLOWED))
        .with_context(|| format!("reading {ALLOWED}"))?;
    let allowed = allowed(&text, place)?;
    let unexpected: Vec<&str> = skips
        .iter()
        .map(|skip| skip.name)
        .filter(|name| !allowed.contains(name))
        .collect();
    for Skip { name, reason } in skips {
        let mark = if allowed.contains(name) {
            ""
        } else {
            " (not on the list)"
        };
        println!("SKIPPED {name}: {reason}{mark}");
    }
    if unexpected.is_empty() {
        return Ok(());
    }
    let names = unexpected.join(", ");
    if strict {
        bail!("skipped, but {ALLOWED} doesn't name them: {names}");
    }
    eprintln!("xtask: warning: CI would fail, since {ALLOWED} doesn't name {names}");
    Ok(())
}

/// The names on the list that are about a place.
fn allowed<'a>(text: &'a str, place: Place<'_>) -> Result<Vec<&'a str>> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut names = Vec::new();
    for line in lines {
        let test = match line.split_once('#') {
            Some((test, reason)) if !reason.trim().is_empty() => test.trim(),
            _ => bail!("{ALLOWED}: `{line}` gives no reason: write `name # reason`"),
        };
        match test.split_once(": ") {
            None => names.push(test),
            Some((scope, name)) if place.is_in(scope) => names.push(name),
            Some(_) => {}
        }
    }
    Ok(names)
}

/// Whether this is CI.
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_have_a_name_and_a_reason() {
        let skips = recorded("tcp::resets: needs root: no\n\nodd\n");
        let expected = [
            Skip {
                name: "tcp::resets",
                reason: "needs root: no",
            },
            Skip {
                name: "odd",
                reason: "no reason given",
            },
        ];
        assert_eq!(skips, expected);
    }

    #[test]
    fn the_list_wants_reasons() {
        assert_eq!(
            allowed("# all of them\n\na::b # no KVM here\n", Place::Host).unwrap(),
            ["a::b"]
        );
        for text in ["a::b\n", "a::b #\n"] {
            assert!(
                allowed(text, Place::Host)
                    .unwrap_err()
                    .to_string()
                    .contains("gives no reason")
            );
        }
    }

    #[test]
    fn a_scope_keeps_a_line_to_its_place() {
        let text = "a # everywhere\nvm: b::c # in guests\nvm 6.1: d # on that kernel\n";
        for (place, names) in [
            (Place::Host, &["a"][..]),
            (Place::Guest("6.1"), &["a", "b::c", "d"]),
            (Place::Guest("6.12"), &["a", "b::c"]),
        ] {
            assert_eq!(allowed(text, place).unwrap(), names, "{place:?}");
        }
    }

    #[test]
    fn only_a_strict_judge_fails() {
        let skips = recorded("nobody::allows_this: because\n");
        assert!(judge(&skips, Place::Host, true).is_err());
        assert!(judge(&skips, Place::Host, false).is_ok());
        assert!(judge(&[], Place::Host, true).is_ok());
    }
}
