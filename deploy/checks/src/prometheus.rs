//! The configurations, rules, runbooks and other pages for Prometheus, by promtool.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{
    root, rules,
    tool::{files, run, text},
};

/// Configurations of a Prometheus server.
const SERVERS: [&str; 4] = [
    "prometheus.yml",
    "fleet/shard.yml",
    "fleet/thanos.yml",
    "fleet/victoriametrics.yml",
];
/// Configurations of Prometheus in agent mode.
const AGENTS: [&str; 1] = ["fleet/agent.yml"];
/// Configurations with discovery in Kubernetes, which Debian's Prometheus is built without. The rest
/// of them is checked.
const KUBERNETES: [&str; 1] = ["kubernetes.yml"];

/// Checks the configurations, the rules, the queries of runbooks, and the queries and configurations of other pages, and
/// runs the tests of the rules.
/// Returns how many tests there are. Temporary files are made in `scratch`.
///
/// # Errors
///
/// Returns what promtool refused; its own messages are on standard error.
pub fn check(scratch: &Path) -> Result<u64> {
    let folder = root().join("deploy/prometheus");
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
    queries(scratch)?;
    examples(scratch)?;
    run(tool()
        .args(["test", "rules"])
        .args(files(&folder.join("tests"), ".test.yml")?))?;
    rules::test_count(&root())
}

/// Has promtool parse the queries of the runbooks and of other pages, as recording rules.
fn queries(scratch: &Path) -> Result<()> {
    let runbooks = rules::runbooks(&root())?;
    let pages = rules::page_queries(&root())?;
    ensure!(!runbooks.is_empty(), "no runbook has a query");
    ensure!(!pages.is_empty(), "no page has a query");
    let queries = runbooks.values().flatten().chain(&pages);
    let rules: Vec<_> = queries
        .map(|query| json!({"record": "page:query", "expr": query}))
        .collect();
    let file = Temporary(scratch.join("page-queries.yml"));
    let text = json!({"groups": [{"name": "pages", "rules": rules}]}).to_string();
    fs::write(&file.0, text).with_context(|| format!("writing {}", file.0.display()))?;
    run(Command::new("promtool")
        .args(["check", "rules", "--lint", "none"])
        .arg(&file.0))
}

/// Checks the configurations in pages.
fn examples(scratch: &Path) -> Result<()> {
    let found = rules::page_configurations(&root())?;
    ensure!(!found.is_empty(), "no page has a configuration");
    for (number, text) in found.iter().enumerate() {
        let file = Temporary(scratch.join(format!("page-configuration-{number}.yml")));
        fs::write(&file.0, fixed_targets(text))
            .with_context(|| format!("writing {}", file.0.display()))?;
        run(Command::new("promtool")
            .args(["check", "config", "--lint-fatal"])
            .arg(&file.0))?;
    }
    Ok(())
}

/// Checks a configuration with fixed targets instead of discovery in Kubernetes.
fn without_kubernetes(config: &Path) -> Result<()> {
    let text = text(config)?;
    let fixed = fixed_targets(&text);
    ensure!(
        fixed != text,
        "{} has no discovery in Kubernetes",
        config.display()
    );
    // Beside the original, because its paths are relative.
    let copy = Temporary(config.with_extension("checked.tmp"));
    fs::write(&copy.0, fixed).with_context(|| format!("writing {}", copy.0.display()))?;
    println!(
        "{}: discovery in Kubernetes itself is not checked, this promtool may be built without it",
        config.display()
    );
    run(Command::new("promtool")
        .args(["check", "config", "--lint-fatal"])
        .arg(&copy.0))
}

/// A file that is removed on drop.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Replaces every `kubernetes_sd_configs` by fixed targets.
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
}
