//! Rules that all dashboards keep, checked on the JSON that Grafana reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde_json::Value;

use super::{all, write};
use crate::{
    promql::{Names, names},
    reference::rows,
    root, rules,
};

/// Labels that the configuration of Prometheus adds to every series.
const TARGET: [&str; 3] = ["cluster", "instance", "job"];
/// Labels of a cgroup.
const CGROUP: [&str; 7] = [
    "id",
    "name",
    "unit",
    "image",
    "namespace",
    "pod",
    "container",
];
/// The units in use, by Grafana's names.
const UNITS: [&str; 10] = [
    "none",
    "s",
    "bytes",
    "Bps",
    "ops",
    "pps",
    "iops",
    "reqps",
    "percentunit",
    "dateTimeFromNow",
];

/// Defined metrics, with their labels; `None` allows any label.
type Definitions = BTreeMap<String, Option<BTreeSet<String>>>;

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn set<'a>(labels: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let labels = labels.into_iter().map(str::trim);
    labels
        .filter(|label| !label.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Adds a family by the names of its samples.
fn define(definitions: &mut Definitions, name: &str, kind: &str, labels: BTreeSet<String>) {
    if kind == "histogram" {
        let with_le = labels.iter().map(String::as_str).chain(["le"]);
        definitions.insert(format!("{name}_bucket"), Some(set(with_le)));
        for suffix in ["sum", "count"] {
            definitions.insert(format!("{name}_{suffix}"), Some(labels.clone()));
        }
    } else {
        definitions.insert(name.to_owned(), Some(labels));
    }
}

/// The agent's metrics, from docs/metrics.md, which `cargo xtask docs --check` compares with the agent.
fn agents() -> Definitions {
    let mut definitions = Definitions::new();
    for row in rows(&read("docs/metrics.md")) {
        let name = row.name;
        let of_cgroup = name.starts_with("container_") && name != "container_scrape_error";
        let common = if of_cgroup { &CGROUP[..] } else { &[] };
        let labels = row
            .labels
            .split(',')
            .chain(TARGET)
            .chain(common.iter().copied());
        define(&mut definitions, name, row.kind, set(labels));
    }
    assert!(
        definitions.len() > 100,
        "{} in docs/metrics.md",
        definitions.len()
    );
    definitions
}

/// Metrics of others. A line of the list is `NAME{LABELS} KIND # who defines it`.
fn foreign() -> Vec<(String, String, BTreeSet<String>)> {
    let text = read("deploy/grafana/foreign-metrics.txt");
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entry = |line: &str| {
        let (entry, reason) = line
            .split_once(" # ")
            .unwrap_or_else(|| panic!("no reason: {line}"));
        assert!(!reason.trim().is_empty(), "{line}");
        let (series, kind) = entry.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap();
        let labels = labels.trim_end_matches('}').split(',');
        (name.to_owned(), kind.to_owned(), set(labels.chain(TARGET)))
    };
    lines.map(entry).collect()
}

fn definitions() -> Definitions {
    let mut definitions = agents();
    for name in rules::recorded_on_hosts(&root()).unwrap() {
        definitions.insert(name, None);
    }
    for (name, kind, labels) in foreign() {
        define(&mut definitions, &name, &kind, labels);
    }
    definitions
}

/// (place, query) of the panels and variables of a dashboard. The query of a variable becomes a sum
/// grouped by its label.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let uid = dashboard["uid"].as_str().unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let place = format!("{uid}/{}", panel["title"].as_str().unwrap());
            queries.push((place, target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(query) = variable["query"]["query"].as_str() else {
            continue;
        };
        let inner = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')'));
        let (series, label) = inner.unwrap().rsplit_once(", ").unwrap();
        let place = format!("{uid}/${}", variable["name"].as_str().unwrap());
        queries.push((place, format!("sum by ({label}) ({series})")));
    }
    queries
}

/// Metrics and labels in the queries of a dashboard that are not defined.
fn undefined(dashboard: &Value, definitions: &Definitions) -> Vec<String> {
    let mut problems = Vec::new();
    for (place, query) in queries(dashboard) {
        let Names { selectors, grouped } = names(&query);
        assert!(!selectors.is_empty(), "{place}: no metric in {query}");
        let mut known = BTreeSet::new();
        for selector in &selectors {
            let metric = &selector.metric;
            let Some(labels) = definitions.get(metric) else {
                problems.push(format!("{place}: nobody defines {metric}"));
                continue;
            };
            let Some(labels) = labels else { continue };
            for label in selector
                .labels
                .iter()
                .filter(|label| !labels.contains(*label))
            {
                problems.push(format!("{place}: {metric} has no label {label}"));
            }
            known.extend(labels);
        }
        for label in grouped.iter().filter(|label| !known.contains(label)) {
            problems.push(format!("{place}: no metric has the label {label}"));
        }
    }
    problems
}

#[test]
fn what_is_committed_is_what_is_made() {
    if let Err(error) = write(true) {
        panic!("{error:#}");
    }
}

#[test]
fn every_metric_is_somebody_s() {
    let definitions = definitions();
    for dashboard in all() {
        let problems = undefined(&dashboard.json(), &definitions);
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }
}

#[test]
fn a_metric_or_label_that_nobody_defines_is_found() {
    let mut dashboard = super::host::dashboard().json();
    let expr = &mut dashboard["panels"][1]["targets"][0]["expr"];
    *expr = "sum by (colour) (rate(container_cpu_seconds_total{device=\"x\"}[5m]) + container_threads{device=\"x\"})".into();
    assert_eq!(
        undefined(&dashboard, &definitions()),
        [
            "cgmeter-host/CPUs: nobody defines container_cpu_seconds_total",
            "cgmeter-host/CPUs: container_threads has no label device",
            "cgmeter-host/CPUs: no metric has the label colour",
        ]
    );
}

#[test]
fn every_foreign_metric_is_asked_for_and_foreign() {
    let agents = agents();
    let used: BTreeSet<String> = all()
        .iter()
        .flat_map(|dashboard| queries(&dashboard.json()))
        .flat_map(|(_, query)| names(&query).into_metrics())
        .collect();
    for (name, ..) in foreign() {
        assert!(!agents.contains_key(&name), "{name} is the agent's own");
        let asked = used.iter().any(|metric| metric.starts_with(&name));
        assert!(
            asked,
            "{name} is asked for by no dashboard: take it off the list"
        );
    }
}

#[test]
fn grafana_can_lay_them_out() {
    let mut uids = BTreeSet::new();
    for dashboard in all() {
        let json = dashboard.json();
        let uid = json["uid"].as_str().unwrap();
        assert!(uids.insert(uid.to_owned()), "{uid} twice");
        assert!(uid.len() <= 40, "{uid} is longer than Grafana takes");
        assert!(dashboard.text().is_ascii(), "{uid}");
        let (mut ids, mut titles, mut taken) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for panel in json["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{uid}/{title}");
            let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(place("x") + place("w") <= 24, "{uid}/{title}");
            for x in place("x")..place("x") + place("w") {
                for y in place("y")..place("y") + place("h") {
                    assert!(taken.insert((x, y)), "{uid}/{title} lies on another");
                }
            }
            if panel["type"] == "row" {
                continue;
            }
            assert!(titles.insert(title), "{uid}/{title} twice");
            let description = panel["description"].as_str().unwrap();
            assert!(description.ends_with('.'), "{uid}/{title}: {description}");
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap();
            assert!(UNITS.contains(&unit), "{uid}/{title}: {unit}");
            assert!(
                panel["targets"]
                    .as_array()
                    .is_some_and(|targets| !targets.is_empty())
            );
        }
    }
}

#[test]
fn variables_are_there_and_used() {
    for dashboard in all() {
        let json = dashboard.json();
        let list = json["templating"]["list"].as_array().unwrap();
        let names: Vec<&str> = list
            .iter()
            .map(|variable| variable["name"].as_str().unwrap())
            .collect();
        let queries = queries(&json);
        for (place, query) in &queries {
            for part in query.split('$').skip(1) {
                let name = part
                    .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .next()
                    .unwrap();
                let known = names.contains(&name) || name == "__rate_interval";
                assert!(known, "{place}: ${name} is not defined");
            }
        }
        for name in &names[1..] {
            let uses = queries
                .iter()
                .filter(|(_, query)| query.contains(&format!("${name}\"")));
            assert!(uses.count() > 0, "{}: ${name} is not used", dashboard.uid);
        }
    }
}

#[test]
fn what_may_be_empty_is_there() {
    let mut known = BTreeSet::new();
    for dashboard in all() {
        known.extend(
            queries(&dashboard.json())
                .into_iter()
                .map(|(place, _)| place),
        );
    }
    let mut seen = BTreeSet::new();
    for line in read("deploy/grafana/allowed-empty.txt").lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (place, reason) = line
            .split_once(" # ")
            .unwrap_or_else(|| panic!("no reason: {line}"));
        assert!(!reason.trim().is_empty(), "{line}");
        let place = place.strip_prefix("perhaps: ").unwrap_or(place);
        assert!(known.contains(place), "there is no {place}");
        assert!(seen.insert(place.to_owned()), "{place} twice");
    }
}
