//! `deploy`: what is shipped for Prometheus and Alertmanager, judged by their own tools and by the
//! metrics that the agent defines.
//!
//! Invariant: every name in an expression is the agent's, a recording rule's, or on the list of
//! foreign metrics with a reason; every alert has a runbook, labels to route by, and a quiet, a
//! firing and a recovering case; no runbook is of an alert that is gone.

mod coverage;
mod rules;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

#[cfg(test)]
pub use coverage::recorded_on_hosts;

use crate::{
    setup::setup_tests,
    shell::{has, output, root, run, target},
    tally::Tally,
};

/// The tools, and Debian's packages of them.
const TOOLS: [(&str, &str); 2] = [
    ("promtool", "prometheus"),
    ("amtool", "prometheus-alertmanager"),
];
/// Configurations of a Prometheus server.
const SERVERS: [&str; 4] = [
    "prometheus.yml",
    "fleet/shard.yml",
    "fleet/thanos.yml",
    "fleet/victoriametrics.yml",
];
/// Those of Prometheus in agent mode.
const AGENTS: [&str; 1] = ["fleet/agent.yml"];
/// Debian's Prometheus is built without discovery in Kubernetes: of these the rest is checked.
const KUBERNETES: [&str; 1] = ["kubernetes.yml"];

/// The verb.
pub fn deploy() -> Result<()> {
    setup_tests()?;
    let mut tally = Tally::default();
    steps(&mut tally, true);
    tally.close()
}

/// All checks; those by tools are left out loudly where the tools are missing, unless `strict`.
pub fn steps(tally: &mut Tally, strict: bool) {
    tally.step("rules: names, runbooks, cases", || coverage::check(&root()));
    let missing: Vec<_> = TOOLS.iter().filter(|(tool, _)| !has(tool)).collect();
    if !missing.is_empty() && !strict {
        for (tool, package) in missing {
            eprintln!(
                "xtask: warning: SKIPPED: the shipped configurations are not checked without {tool}: \
                 apt-get install {package}"
            );
        }
        return;
    }
    tally.counted("rules and configurations: promtool", |counts| {
        counts.passed += promtool()?;
        Ok(())
    });
    tally.counted("Alertmanager: amtool", |counts| {
        counts.passed += amtool()?;
        Ok(())
    });
}

fn prometheus_folder() -> PathBuf {
    root().join("deploy/prometheus")
}

/// Files of a folder whose names end so, sorted; none at all is an error.
fn files(folder: &Path, end: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    let mut found = paths.collect::<Result<Vec<_>>>()?;
    found.retain(|path| path.to_string_lossy().ends_with(end));
    found.sort();
    ensure!(!found.is_empty(), "no {end} in {}", folder.display());
    Ok(found)
}

/// Checks and tests by promtool; how many tests passed.
fn promtool() -> Result<u64> {
    let folder = prometheus_folder();
    let tool = || {
        let mut command = Command::new("promtool");
        command.current_dir(&folder);
        command
    };
    for config in SERVERS {
        run(tool().args(["check", "config", "--lint-fatal", config]))?;
    }
    for config in AGENTS {
        run(tool().args(["check", "config", "--agent", config]))?;
    }
    for config in KUBERNETES {
        without_kubernetes(&folder.join(config))?;
    }
    run(tool()
        .args(["check", "rules", "--lint-fatal"])
        .args(files(&folder.join("rules"), ".yml")?)
        .args(files(&folder.join("fleet"), ".rules.yml")?))?;
    runbooks()?;
    run(tool()
        .args(["test", "rules"])
        .args(files(&folder.join("tests"), ".test.yml")?))?;
    coverage::test_count(&root())
}

/// Has promtool read the queries of the runbooks, as rules that record them.
fn runbooks() -> Result<()> {
    let pages = coverage::runbooks(&root())?;
    let queries = pages.values().flatten();
    let rules: Vec<_> = queries
        .map(|query| json!({"record": "runbook:query", "expr": query}))
        .collect();
    ensure!(!rules.is_empty(), "no runbook has a query");
    let file = Copy(target().join("runbook-queries.yml"));
    let text = json!({"groups": [{"name": "runbooks", "rules": rules}]}).to_string();
    fs::write(&file.0, text).with_context(|| format!("writing {}", file.0.display()))?;
    run(Command::new("promtool")
        .args(["check", "rules", "--lint", "none"])
        .arg(&file.0))
}

/// Checks a configuration with fixed targets in the place of discovery in Kubernetes.
fn without_kubernetes(config: &Path) -> Result<()> {
    let text =
        fs::read_to_string(config).with_context(|| format!("reading {}", config.display()))?;
    let fixed = fixed_targets(&text);
    ensure!(
        fixed != text,
        "{} has no discovery in Kubernetes",
        config.display()
    );
    // Beside the original, for its relative paths.
    let copy = Copy(config.with_extension("checked.tmp"));
    fs::write(&copy.0, fixed).with_context(|| format!("writing {}", copy.0.display()))?;
    println!(
        "{}: discovery in Kubernetes itself is not checked, this promtool may be built without it",
        config.display()
    );
    run(Command::new("promtool")
        .args(["check", "config", "--lint-fatal"])
        .arg(&copy.0))
}

/// A file that is removed at the end.
struct Copy(PathBuf);

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Every `kubernetes_sd_configs` with its roles replaced.
fn fixed_targets(text: &str) -> String {
    let mut fixed = String::new();
    for line in text.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        match line.trim_start().trim_start_matches("- ") {
            "kubernetes_sd_configs:" => {
                fixed.push_str(&line.replace("kubernetes_sd_configs", "static_configs"));
            }
            rest if rest.starts_with("role: ") => {
                fixed.push_str(&format!("{indent}- targets: ['127.0.0.1:1']"));
            }
            _ => fixed.push_str(line),
        }
        fixed.push('\n');
    }
    fixed
}

/// Checks by amtool; how many routes are right.
fn amtool() -> Result<u64> {
    let folder = root().join("deploy/alertmanager");
    let config = folder.join("alertmanager.yml");
    run(Command::new("amtool").arg("check-config").arg(&config))?;
    let text = fs::read_to_string(folder.join("routes.test")).context("reading routes.test")?;
    let cases = route_cases(&text)?;
    let mut told = BTreeSet::new();
    for (labels, receivers) in &cases {
        let found = output(
            Command::new("amtool")
                .args(["config", "routes", "test", "--config.file"])
                .arg(&config)
                .args(labels),
        )?;
        ensure!(
            found.trim() == *receivers,
            "{} goes to {} instead of {receivers}: see routes.test",
            labels.join(" "),
            found.trim()
        );
        told.extend(found.trim().split(',').map(str::to_owned));
    }
    for labels in coverage::routed_labels(&root())? {
        ensure!(
            cases
                .iter()
                .any(|(case, _)| labels.iter().all(|label| case.contains(&label.as_str()))),
            "no case of routes.test has the labels {}, which an alert has",
            labels.join(" ")
        );
    }
    let config = fs::read_to_string(&config)?;
    let receivers = config
        .lines()
        .skip_while(|line| *line != "receivers:")
        .filter_map(|line| line.strip_prefix("- name: "));
    for receiver in receivers {
        ensure!(
            told.contains(receiver),
            "no case of routes.test reaches the receiver {receiver}"
        );
    }
    Ok(cases.len().try_into()?)
}

/// (labels, receivers) of the lines `labels -> receivers`.
fn route_cases(text: &str) -> Result<Vec<(Vec<&str>, &str)>> {
    let mut cases = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((labels, receivers)) = line.split_once(" -> ") else {
            bail!("routes.test: {line:?} is not `labels -> receivers`");
        };
        cases.push((labels.split_whitespace().collect(), receivers.trim()));
    }
    ensure!(!cases.is_empty(), "routes.test has no case");
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discovery_in_kubernetes_becomes_fixed_targets() {
        let text = "a:\n- kubernetes_sd_configs:\n  - role: pod\n  relabel_configs: []\n";
        assert_eq!(
            fixed_targets(text),
            "a:\n- static_configs:\n  - targets: ['127.0.0.1:1']\n  relabel_configs: []\n"
        );
    }

    #[test]
    fn cases_of_routes() {
        let cases = route_cases("# note\na=b c=d -> x,y\n").unwrap();
        assert_eq!(cases, [(vec!["a=b", "c=d"], "x,y")]);
        assert!(route_cases("a=b").is_err());
        assert!(route_cases("# nothing").is_err());
    }
}
