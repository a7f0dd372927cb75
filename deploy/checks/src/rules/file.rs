//! Rule files of Prometheus and test files of promtool, as far as the checks read them.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, de::DeserializeOwned};

/// A file of rules.
#[derive(Debug, Deserialize)]
pub struct Rules {
    /// Its groups.
    pub groups: Vec<Group>,
}

/// A group of rules, which are evaluated one after the other.
#[derive(Debug, Deserialize)]
pub struct Group {
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A recording rule or an alert.
#[derive(Debug, Deserialize)]
pub struct Rule {
    /// The metric that a recording rule writes.
    pub record: Option<String>,
    /// The name of an alert.
    pub alert: Option<String>,
    /// The expression.
    pub expr: String,
    /// How long an alert is pending before it fires.
    #[serde(rename = "for")]
    pub wait: Option<String>,
    /// Labels that it sets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations of an alert.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A file of tests.
#[derive(Debug, Deserialize)]
pub struct Tests {
    /// The tests.
    pub tests: Vec<Test>,
}

/// A test: series, and the expected results at several times.
#[derive(Debug, Deserialize)]
pub struct Test {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Expectations of alerts, in the order of their times.
    #[serde(default)]
    pub alert_rule_test: Vec<Case>,
    /// Expectations of queries.
    #[serde(default)]
    pub promql_expr_test: Vec<Query>,
}

/// A query and what it is expected to return.
#[derive(Debug, Deserialize)]
pub struct Query {
    /// The query.
    pub expr: String,
    /// The expected samples.
    #[serde(default)]
    pub exp_samples: Vec<Sample>,
}

/// An expected sample.
#[derive(Debug, Deserialize)]
pub struct Sample {
    /// Its labels, in braces.
    #[serde(default)]
    pub labels: String,
}

/// The expected state of an alert at a time.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// The alert.
    pub alertname: String,
    /// The firing ones; none if it is quiet.
    #[serde(default)]
    pub exp_alerts: Vec<Expected>,
}

/// An alert that is expected to fire.
#[derive(Debug, Deserialize)]
pub struct Expected {
    /// Its labels without its name.
    #[serde(default)]
    pub exp_labels: BTreeMap<String, String>,
}

/// Reads a file of YAML.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} can't be read", path.display()))
}
