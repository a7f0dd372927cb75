//! Prometheus's rule files and promtool's tests of them, as far as the checks read them.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, de::DeserializeOwned};

/// A file of rules.
#[derive(Debug, Deserialize)]
pub struct Rules {
    /// Groups, whose rules are evaluated one after the other.
    pub groups: Vec<Group>,
}

/// A group.
#[derive(Debug, Deserialize)]
pub struct Group {
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A rule: that of a record or of an alert.
#[derive(Debug, Deserialize)]
pub struct Rule {
    /// The metric that it records.
    pub record: Option<String>,
    /// The alert that it raises.
    pub alert: Option<String>,
    /// The expression.
    pub expr: String,
    /// Labels that it sets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What is told of an alert.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A file of tests.
#[derive(Debug, Deserialize)]
pub struct Tests {
    /// The tests.
    pub tests: Vec<Test>,
}

/// A test: series, and what comes of them at several times.
#[derive(Debug, Deserialize)]
pub struct Test {
    /// What it is about.
    #[serde(default)]
    pub name: String,
    /// Alerts at times, in their order.
    #[serde(default)]
    pub alert_rule_test: Vec<Case>,
}

/// What an alert has to be at a time.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// The alert.
    pub alertname: String,
    /// Those that fire.
    #[serde(default)]
    pub exp_alerts: Vec<Expected>,
}

/// An alert that has to fire.
#[derive(Debug, Deserialize)]
pub struct Expected {
    /// Its labels, less its name.
    #[serde(default)]
    pub exp_labels: BTreeMap<String, String>,
}

/// Reads a file of YAML.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} can't be read", path.display()))
}
