//! `test`: everything, the live kernel included.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{
    build::build_only,
    check::check,
    setup::{setup, setup_tests},
    shell::{agent, cargo, require_root, root, watched},
};

/// Tests by their end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    /// Adds what a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …` says.
    pub fn add(&mut self, line: &str) {
        let Some(rest) = line.trim().strip_prefix("test result:") else {
            return;
        };
        let number = |what: &str| {
            let before = rest
                .split([';', '.'])
                .find(|part| part.trim().ends_with(what))?;
            before.split_whitespace().next()?.parse::<u64>().ok()
        };
        self.passed += number("passed").unwrap_or(0);
        self.failed += number("failed").unwrap_or(0);
        self.skipped += number("ignored").unwrap_or(0);
    }
}

/// Sets up, checks, builds, and runs every test.
pub fn test(filter: Option<&str>) -> Result<()> {
    require_root("test", "the tests load BPF programs and make cgroups")?;
    setup()?;
    setup_tests()?;
    let mut counts = check()?;
    build_only()?;
    let skips = root().join("target/skipped-tests.txt");
    std::fs::write(&skips, "").with_context(|| format!("writing {}", skips.display()))?;
    let mut command = cargo(&[
        "test",
        "--release",
        "--locked",
        "--package",
        "cgmeter-tests",
        "--",
    ]);
    command.arg("--test-threads=1").args(filter);
    command
        .env("CGMETER_BIN", agent())
        .env("CGMETER_SKIPS", &skips);
    let passed = watched(&mut command, |line| counts.add(line))?;
    let unexpected = unexpected_skips(&skips)?;
    println!(
        "\n{} passed, {} failed, {} skipped",
        counts.passed, counts.failed, counts.skipped
    );
    if !passed {
        bail!("integration tests failed");
    }
    if !unexpected.is_empty() && std::env::var_os("CI").is_some() {
        bail!(
            "skipped, but not on tests/allowed-skips.txt: {}",
            unexpected.join("; ")
        );
    }
    Ok(())
}

/// Prints what was skipped, and returns what isn't on the list.
fn unexpected_skips(skips: &Path) -> Result<Vec<String>> {
    let allowed = std::fs::read_to_string(root().join("tests/allowed-skips.txt"))?;
    let allowed: Vec<&str> = allowed
        .lines()
        .filter_map(|line| Some(line.split('#').next()?.trim()))
        .filter(|name| !name.is_empty())
        .collect();
    let mut unexpected = Vec::new();
    for line in std::fs::read_to_string(skips)?.lines() {
        println!("SKIPPED {line}");
        let name = line.split(':').next().unwrap_or_default().trim();
        if !allowed.contains(&name) {
            unexpected.push(line.to_owned());
        }
    }
    Ok(unexpected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_added_up() {
        let mut counts = Counts::default();
        counts.add("test result: ok. 41 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s");
        counts.add("running 3 tests");
        counts
            .add("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 5 filtered out");
        assert_eq!(
            counts,
            Counts {
                passed: 42,
                failed: 2,
                skipped: 2
            }
        );
    }
}
