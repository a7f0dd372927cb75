//! What promtool doesn't check: that every name is defined, and that every alert is complete.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ROUTED,
    file::{Case, Rule, Test},
};
use crate::promql;

/// Ends of the names of a histogram's series; the metric reference has the name without them.
const HISTOGRAM_ENDS: [&str; 3] = ["_bucket", "_sum", "_count"];
/// Labels that every series may have from the scrape configuration or from Kubernetes.
const OF_TARGETS: [&str; 2] = ["cluster", "namespace"];
/// Annotations that every alert needs.
const ANNOTATIONS: [&str; 3] = ["summary", "description", "runbook_url"];
/// The severities that routes know.
const SEVERITIES: [&str; 3] = ["critical", "warning", "info"];

/// Whether a name is of one of these families.
fn defined(name: &str, own: &BTreeMap<String, String>) -> bool {
    let histogram = |end: &&str| {
        name.strip_suffix(*end)
            .and_then(|family| own.get(family))
            .is_some_and(|kind| kind == "histogram")
    };
    let whole = own.get(name).is_some_and(|kind| kind != "histogram");
    whole || HISTOGRAM_ENDS.iter().any(histogram)
}

/// Metrics that nobody defines, and entries of the foreign list that are wrong or not used.
pub fn names(
    expressions: &[(&str, &str)],
    recorded: &BTreeSet<&str>,
    own: &BTreeMap<String, String>,
    foreign: &BTreeSet<&str>,
) -> Vec<String> {
    let mut used = BTreeSet::new();
    let mut faults = Vec::new();
    for (of, expression) in expressions {
        for name in promql::names(expression).into_metrics() {
            let known = defined(&name, own)
                || recorded.contains(name.as_str())
                || foreign.contains(name.as_str());
            if !known {
                faults.push(format!(
                    "{of}: nobody defines {name}: neither docs/metrics.md, nor a recording rule, nor \
                     deploy/prometheus/foreign-metrics.txt"
                ));
            }
            used.insert(name);
        }
    }
    for name in foreign {
        if defined(name, own) || recorded.contains(name) {
            faults.push(format!(
                "foreign-metrics.txt: {name} is ours: take it off the list"
            ));
        } else if !used.contains(*name) {
            faults.push(format!("foreign-metrics.txt: nothing uses {name}"));
        }
    }
    let clashes = recorded.iter().filter(|name| defined(name, own));
    faults.extend(clashes.map(|name| format!("{name} is recorded, and served by the agent")));
    faults
}

/// Alerts without a label or an annotation that they need.
pub fn shape(rules: &[Rule]) -> Vec<String> {
    let mut faults = Vec::new();
    for rule in rules {
        let Some(alert) = &rule.alert else {
            continue;
        };
        for name in ANNOTATIONS {
            if rule
                .annotations
                .get(name)
                .is_none_or(|text| text.trim().is_empty())
            {
                faults.push(format!("{alert} has no {name}"));
            }
        }
        let severity = rule.labels.get("severity").map_or("", String::as_str);
        if !SEVERITIES.contains(&severity) {
            faults.push(format!(
                "{alert}: severity {severity:?} is none of {SEVERITIES:?}"
            ));
        }
        for name in ROUTED {
            if !rule.labels.contains_key(name) {
                faults.push(format!(
                    "{alert} has no label {name}, which Alertmanager goes by"
                ));
            }
        }
    }
    faults
}

/// Alerts without a runbook, and runbooks without an alert.
pub fn runbooks(rules: &[Rule], pages: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut faults = Vec::new();
    let alerts: BTreeSet<&str> = rules
        .iter()
        .filter_map(|rule| rule.alert.as_deref())
        .collect();
    for rule in rules {
        let Some(alert) = &rule.alert else {
            continue;
        };
        let url = rule
            .annotations
            .get("runbook_url")
            .map_or("", String::as_str);
        if !url.ends_with(&format!("/docs/runbooks/{alert}.md")) {
            faults.push(format!("{alert}: its runbook_url is {url:?}"));
        }
    }
    let without = alerts.iter().filter(|alert| !pages.contains_key(**alert));
    faults.extend(without.map(|alert| format!("{alert} has no docs/runbooks/{alert}.md")));
    let stale = pages.keys().filter(|page| !alerts.contains(page.as_str()));
    faults.extend(stale.map(|page| format!("docs/runbooks/{page}.md: there is no such alert")));
    faults
}

/// Alerts without a test in which they are quiet, fire and are quiet again, for each severity, and
/// tests of alerts that do not exist.
pub fn cases(rules: &[Rule], tests: &[Test]) -> Vec<String> {
    let mut faults = Vec::new();
    for rule in rules {
        let Some(alert) = &rule.alert else {
            continue;
        };
        let severity = rule.labels.get("severity");
        let fires = |case: &&Case| {
            let mut expected = case.exp_alerts.iter();
            expected.any(|expected| expected.exp_labels.get("severity") == severity)
        };
        let whole = tests.iter().any(|test| {
            let own: Vec<&Case> = test
                .alert_rule_test
                .iter()
                .filter(|case| case.alertname == *alert)
                .collect();
            let Some(first) = own.iter().position(fires) else {
                return false;
            };
            let quiet = |cases: &[&Case]| cases.iter().any(|case| case.exp_alerts.is_empty());
            quiet(&own[..first]) && quiet(&own[first..])
        });
        if !whole {
            faults.push(format!(
                "{alert} ({}): no test in which it is quiet, fires, and recovers",
                severity.map_or("no severity", String::as_str)
            ));
        }
    }
    let alerts: BTreeSet<&str> = rules
        .iter()
        .filter_map(|rule| rule.alert.as_deref())
        .collect();
    for test in tests {
        for case in &test.alert_rule_test {
            // To promtool, an alert that does not exist is one that is quiet.
            if !alerts.contains(case.alertname.as_str()) {
                faults.push(format!(
                    "test {:?}: there is no alert {}",
                    test.name, case.alertname
                ));
            }
        }
    }
    faults
}

/// Queries of runbooks that take no label of the alert, or one that the alert does not have. Which labels an
/// alert has is known from its tests. A query takes a label by `name="$name"`.
pub fn labels(pages: &BTreeMap<String, Vec<String>>, tests: &[Test]) -> Vec<String> {
    let mut faults = Vec::new();
    for (page, queries) in pages {
        let cases = tests.iter().flat_map(|test| &test.alert_rule_test);
        let has: BTreeSet<&str> = cases
            .filter(|case| case.alertname == *page)
            .flat_map(|case| &case.exp_alerts)
            .flat_map(|alert| alert.exp_labels.keys().map(String::as_str))
            .chain(OF_TARGETS)
            .collect();
        for query in queries {
            let taken: Vec<&str> = query
                .split("=\"$")
                .skip(1)
                .filter_map(|rest| rest.split('"').next())
                .collect();
            if taken.is_empty() {
                faults.push(format!("{page}: no label of the alert in {query:?}"));
            }
            for label in taken {
                if !has.contains(label) || !query.contains(&format!("{label}=\"${label}\"")) {
                    faults.push(format!(
                        "{page}: the alert has no {label}, taken in {query:?}"
                    ));
                }
            }
        }
    }
    faults
}

/// Alerts without a test that queries `ALERTS` and sees them fire, and be pending before if they wait, for
/// each severity.
pub fn bounds(rules: &[Rule], tests: &[Test]) -> Vec<String> {
    let mut faults = Vec::new();
    for rule in rules {
        let Some(alert) = &rule.alert else {
            continue;
        };
        let severity = rule.labels.get("severity").map_or("", String::as_str);
        let states: &[&str] = if rule.wait.is_some() {
            &["pending", "firing"]
        } else {
            &["firing"]
        };
        for state in states {
            let wanted = [
                format!("severity=\"{severity}\""),
                format!("alertstate=\"{state}\""),
            ];
            let seen = tests
                .iter()
                .flat_map(|test| &test.promql_expr_test)
                .filter(|query| {
                    query
                        .expr
                        .contains(&format!("ALERTS{{alertname=\"{alert}\"}}"))
                })
                .flat_map(|query| &query.exp_samples)
                .any(|sample| wanted.iter().all(|label| sample.labels.contains(label)));
            if !seen {
                faults.push(format!(
                    "{alert} ({severity}): no test of ALERTS sees it {state}"
                ));
            }
        }
    }
    faults
}
