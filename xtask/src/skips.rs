//! Tests that were skipped, against the list of those that may be.
//!
//! Invariant: no skip is silent, and in CI none is tolerated that the list doesn't name with a reason.

use anyhow::{Context, Result, bail};

use crate::shell::root;

/// The list, from the root of the repository: lines `name # reason`.
const ALLOWED: &str = "tests/allowed-skips.txt";

/// A test that was skipped.
#[derive(Debug, PartialEq, Eq)]
pub struct Skip<'a> {
    name: &'a str,
    reason: &'a str,
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

/// Prints skips, and fails if `strict` and some may not be.
pub fn judge(skips: &[Skip<'_>], strict: bool) -> Result<()> {
    let text = std::fs::read_to_string(root().join(ALLOWED))
        .with_context(|| format!("reading {ALLOWED}"))?;
    let allowed = allowed(&text)?;
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

/// The names on the list.
fn allowed(text: &str) -> Result<Vec<&str>> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match line.split_once('#') {
            Some((name, reason)) if !reason.trim().is_empty() => Ok(name.trim()),
            _ => bail!("{ALLOWED}: `{line}` gives no reason: write `name # reason`"),
        })
        .collect()
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
            allowed("# all of them\n\na::b # no KVM here\n").unwrap(),
            ["a::b"]
        );
        for text in ["a::b\n", "a::b #\n"] {
            assert!(
                allowed(text)
                    .unwrap_err()
                    .to_string()
                    .contains("gives no reason")
            );
        }
    }

    #[test]
    fn only_a_strict_judge_fails() {
        let skips = recorded("nobody::allows_this: because\n");
        assert!(judge(&skips, true).is_err());
        assert!(judge(&skips, false).is_ok());
        assert!(judge(&[], true).is_ok());
    }
}
