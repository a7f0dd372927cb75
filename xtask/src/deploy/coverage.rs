//! What promtool does not look at: which metrics exist, and that nothing is without its other half.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    promql,
    reference::{Row, rows},
};

use super::{
    files,
    rules::{Case, Rule, Rules, Test, Tests, read},
};

/// Of histograms, the agent's tables have the name alone.
const HISTOGRAM_ENDS: [&str; 3] = ["_bucket", "_sum", "_count"];
/// What each alert has to tell.
const ANNOTATIONS: [&str; 3] = ["summary", "description", "runbook_url"];
/// Labels that routes and inhibition go by.
const ROUTED: [&str; 3] = ["severity", "team", "scope"];
/// Severities, which routes go by.
const SEVERITIES: [&str; 3] = ["critical", "warning", "info"];

/// Checks the repository at `root`.
pub fn check(root: &Path) -> Result<()> {
    let folder = root.join("deploy/prometheus");
    let rules = rules(root)?;
    let tests = tests(root)?;
    let reference = text(&root.join("docs/metrics.md"))?;
    let own = reference_names(&reference)?;
    let foreign = text(&folder.join("foreign-metrics.txt"))?;
    let foreign = foreign_names(&foreign)?;
    let runbooks = runbooks(root)?;

    let mut faults = names(
        &expressions(&rules, &runbooks),
        &recorded(&rules),
        &own,
        &foreign,
    );
    faults.extend(shape(&rules));
    faults.extend(runbook_faults(&rules, &runbooks));
    faults.extend(cases(&rules, &tests));
    for fault in &faults {
        eprintln!("{fault}");
    }
    ensure!(faults.is_empty(), "{} faults in deploy", faults.len());
    println!(
        "{} rules, {} tests, {} runbooks",
        rules.len(),
        tests.len(),
        runbooks.len()
    );
    Ok(())
}

/// The rules, those for stores included.
fn rules(root: &Path) -> Result<Vec<Rule>> {
    let mut rules = host_rules(root)?;
    rules.extend(rules_in(
        &root.join("deploy/prometheus/fleet"),
        ".rules.yml",
    )?);
    Ok(rules)
}

/// Those for a host's or a shard's Prometheus.
fn host_rules(root: &Path) -> Result<Vec<Rule>> {
    rules_in(&root.join("deploy/prometheus/rules"), ".yml")
}

fn rules_in(folder: &Path, end: &str) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for path in files(folder, end)? {
        let file: Rules = read(&path)?;
        rules.extend(file.groups.into_iter().flat_map(|group| group.rules));
    }
    Ok(rules)
}

/// What [`host_rules`] record.
#[cfg(test)]
pub fn recorded_on_hosts(root: &Path) -> Result<BTreeSet<String>> {
    let rules = host_rules(root)?;
    Ok(recorded(&rules).into_iter().map(str::to_owned).collect())
}

/// Labels that Alertmanager goes by, `name=value`, in each combination that alerts have.
pub fn routed_labels(root: &Path) -> Result<BTreeSet<Vec<String>>> {
    let labels = |rule: &Rule| {
        let label = |name| {
            format!(
                "{name}={}",
                rule.labels.get(name).map_or("", String::as_str)
            )
        };
        ROUTED.map(label).to_vec()
    };
    let rules = rules(root)?;
    Ok(rules
        .iter()
        .filter(|rule| rule.alert.is_some())
        .map(labels)
        .collect())
}

/// promtool's tests.
fn tests(root: &Path) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for path in files(&root.join("deploy/prometheus/tests"), ".test.yml")? {
        let file: Tests = read(&path)?;
        tests.extend(file.tests);
    }
    Ok(tests)
}

/// How many tests promtool has.
pub fn test_count(root: &Path) -> Result<u64> {
    Ok(tests(root)?.len().try_into()?)
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Names and types in the metric reference.
fn reference_names(reference: &str) -> Result<BTreeMap<String, String>> {
    let own = |row: Row<'_>| (row.name.to_owned(), row.kind.to_owned());
    let found: BTreeMap<_, _> = rows(reference).map(own).collect();
    ensure!(!found.is_empty(), "docs/metrics.md lists no metric");
    Ok(found)
}

/// Names in the list of foreign metrics, each of which has a reason.
fn foreign_names(list: &str) -> Result<BTreeSet<&str>> {
    let mut found = BTreeSet::new();
    for line in list
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
    {
        match line.split_once(" # ") {
            Some((name, reason)) if !reason.trim().is_empty() => found.insert(name.trim()),
            _ => bail!("foreign-metrics.txt: {line:?} is not `name # reason`"),
        };
    }
    Ok(found)
}

/// The runbooks by their alerts, with the queries in each.
pub fn runbooks(root: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    for path in files(&root.join("docs/runbooks"), ".md")? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if name != "README" {
            found.insert(name.into_owned(), queries(&text(&path)?));
        }
    }
    Ok(found)
}

/// The queries of a page: blocks of PromQL, divided by empty lines.
fn queries(page: &str) -> Vec<String> {
    let blocks = page.split("```promql\n").skip(1);
    blocks
        .filter_map(|block| block.split("```").next())
        .flat_map(|block| block.split("\n\n"))
        .map(|query| query.trim().to_owned())
        .collect()
}

/// (whose, expression) of all rules and runbooks.
fn expressions<'a>(
    rules: &'a [Rule],
    runbooks: &'a BTreeMap<String, Vec<String>>,
) -> Vec<(&'a str, &'a str)> {
    let of = |rule: &'a Rule| rule.record.as_deref().or(rule.alert.as_deref());
    let rules = rules
        .iter()
        .map(|rule| (of(rule).unwrap_or("a rule"), rule.expr.as_str()));
    let pages = runbooks.iter().flat_map(|(page, queries)| {
        queries
            .iter()
            .map(move |query| (page.as_str(), query.as_str()))
    });
    rules.chain(pages).collect()
}

/// What the rules record.
fn recorded(rules: &[Rule]) -> BTreeSet<&str> {
    rules
        .iter()
        .filter_map(|rule| rule.record.as_deref())
        .collect()
}

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

fn names(
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

/// Labels and annotations of alerts.
fn shape(rules: &[Rule]) -> Vec<String> {
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

fn runbook_faults(rules: &[Rule], pages: &BTreeMap<String, Vec<String>>) -> Vec<String> {
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

/// For each alert and severity a test in which it is quiet, then fires, then is quiet again.
fn cases(rules: &[Rule], tests: &[Test]) -> Vec<String> {
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
            // promtool takes an alert that does not exist for one that is quiet.
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

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str =
        "| `a_total` | counter | | |\n| `h_seconds` | histogram | seconds | |\n";
    const RULES: &str = "
groups:
- name: g
  rules:
  - record: a:rate5m
    expr: rate(a_total[5m])
  - alert: A
    expr: a:rate5m > 1 and h_seconds_count > 0 and up == 1
    labels: {severity: warning, team: t, scope: s}
    annotations: {summary: s, description: d, runbook_url: 'x/docs/runbooks/A.md'}
";
    const PAGE: &str = "# A

```promql
a:rate5m

h_seconds_sum
```
";
    const TESTS: &str = "
tests:
- name: n
  alert_rule_test:
  - {eval_time: 1m, alertname: A, exp_alerts: []}
  - {eval_time: 2m, alertname: A, exp_alerts: [{exp_labels: {severity: warning}}]}
  - {eval_time: 3m, alertname: A, exp_alerts: []}
";

    fn rules(text: &str) -> Vec<Rule> {
        let file: Rules = serde_saphyr::from_str(text).unwrap();
        file.groups
            .into_iter()
            .flat_map(|group| group.rules)
            .collect()
    }

    fn faults(rules_text: &str, tests_text: &str, list: &str, page: &str) -> Vec<String> {
        let rules = rules(rules_text);
        let tests: Tests = serde_saphyr::from_str(tests_text).unwrap();
        let pages = BTreeMap::from([(page.to_owned(), queries(PAGE))]);
        let own = reference_names(REFERENCE).unwrap();
        let foreign = foreign_names(list).unwrap();
        let mut faults = names(
            &expressions(&rules, &pages),
            &recorded(&rules),
            &own,
            &foreign,
        );
        faults.extend(shape(&rules));
        faults.extend(runbook_faults(&rules, &pages));
        faults.extend(cases(&rules, &tests.tests));
        faults
    }

    #[test]
    fn what_is_whole_has_no_fault() {
        assert_eq!(
            faults(RULES, TESTS, "up # Prometheus's own\n", "A"),
            [""; 0]
        );
    }

    #[test]
    fn queries_of_a_page() {
        assert_eq!(queries(PAGE), ["a:rate5m", "h_seconds_sum"]);
        let page = PAGE.replace("h_seconds_sum", "gone");
        let pages = BTreeMap::from([("A".to_owned(), queries(&page))]);
        let found = names(
            &expressions(&[], &pages),
            &BTreeSet::from(["a:rate5m"]),
            &BTreeMap::new(),
            &BTreeSet::new(),
        );
        assert!(found[0].starts_with("A: nobody defines gone"), "{found:?}");
    }

    #[test]
    fn each_fault_is_found() {
        let up = "up # Prometheus's own\n";
        let cases: [(&str, Vec<String>); 9] = [
            ("nobody defines up", faults(RULES, TESTS, "", "A")),
            (
                "nobody defines h_seconds:",
                faults(
                    &RULES.replace("h_seconds_count", "h_seconds"),
                    TESTS,
                    up,
                    "A",
                ),
            ),
            (
                "a_total is ours",
                faults(RULES, TESTS, &format!("{up}a_total # x\n"), "A"),
            ),
            (
                "nothing uses pg_up",
                faults(RULES, TESTS, &format!("{up}pg_up # x\n"), "A"),
            ),
            (
                "A has no summary",
                faults(&RULES.replace("summary: s, ", ""), TESTS, up, "A"),
            ),
            (
                "severity \"loud\"",
                faults(&RULES.replace("warning", "loud"), TESTS, up, "A"),
            ),
            (
                "docs/runbooks/B.md: there is no",
                faults(RULES, TESTS, up, "B"),
            ),
            (
                "quiet, fires, and recovers",
                faults(
                    RULES,
                    &TESTS.replace("eval_time: 3m, alertname: A", "eval_time: 3m, alertname: B"),
                    up,
                    "A",
                ),
            ),
            (
                "there is no alert B",
                faults(
                    RULES,
                    &TESTS.replace("eval_time: 1m, alertname: A", "eval_time: 1m, alertname: B"),
                    up,
                    "A",
                ),
            ),
        ];
        for (expected, found) in cases {
            assert!(
                found.iter().any(|fault| fault.contains(expected)),
                "{expected}: {found:?}"
            );
        }
        assert!(
            foreign_names("up").is_err(),
            "a foreign metric without a reason"
        );
    }
}
