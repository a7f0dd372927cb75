//! Each fault is found, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    expressions, faults,
    file::{Rule, Rules, Tests},
    foreign_names, has_commands, queries, recorded, reference_names,
};

const REFERENCE: &str = "| `a_total` | counter | | |\n| `h_seconds` | histogram | seconds | |\n";
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
    let mut faults = faults::names(
        &expressions(&rules, &pages),
        &recorded(&rules),
        &own,
        &foreign,
    );
    faults.extend(faults::shape(&rules));
    faults.extend(faults::runbooks(&rules, &pages));
    faults.extend(faults::cases(&rules, &tests.tests));
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
    let found = faults::names(
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

#[test]
fn configurations_of_a_page_are_its_blocks_of_scrape_jobs() {
    let page = "```yaml\nscrape_configs:\n- job_name: a\n```\n```yaml\nkind: PodMonitor\n```\n```promql\nup\n```\n";
    let found: Vec<_> = super::blocks(page, "yaml").collect();
    assert_eq!(
        found,
        ["scrape_configs:\n- job_name: a\n", "kind: PodMonitor\n"]
    );
    assert_eq!(queries(page), ["up"]);
}

#[test]
fn queries_take_labels_of_the_alert() {
    let tests: Tests =
        serde_saphyr::from_str(&TESTS.replace("severity: warning", "id: /a, severity: warning"))
            .unwrap();
    let found = |query: &str| {
        let pages = BTreeMap::from([("A".to_owned(), vec![query.to_owned()])]);
        faults::labels(&pages, &tests.tests)
    };
    assert_eq!(found("a_total{id=\"$id\",cluster=\"$cluster\"}"), [""; 0]);
    assert!(found("a_total")[0].contains("no label of the alert"));
    assert!(found("a_total{name=\"$name\"}")[0].contains("the alert has no name"));
    assert!(found("a_total{name=\"$id\"}")[0].contains("the alert has no id"));
}

#[test]
fn commands_of_a_page() {
    assert!(has_commands("# A\n\n```sh\nuptime\n```\n"));
    assert!(!has_commands(PAGE));
    assert!(!has_commands("# A\n\n```sh\n```\n"));
}

#[test]
fn what_is_shipped_has_no_fault() {
    super::check().unwrap();
}

#[test]
fn alerts_are_seen_pending_and_firing() {
    let waits = rules(&RULES.replace(
        "    labels: {severity",
        "    for: 1m\n    labels: {severity",
    ));
    let tests = |states: &[&str]| -> Tests {
        let mut text =
            "tests:\n- name: n\n  promql_expr_test:\n  - expr: 'ALERTS{alertname=\"A\"}'\n    \
                        exp_samples:\n"
                .to_owned();
        for state in states {
            text += &format!("    - labels: '{{severity=\"warning\",alertstate=\"{state}\"}}'\n");
        }
        serde_saphyr::from_str(&text).unwrap()
    };
    let found = |rules: &[Rule], states: &[&str]| faults::bounds(rules, &tests(states).tests);
    assert_eq!(found(&waits, &["pending", "firing"]), [""; 0]);
    assert!(found(&waits, &["firing"])[0].contains("sees it pending"));
    assert!(found(&waits, &["pending"])[0].contains("sees it firing"));
    assert_eq!(found(&rules(RULES), &["firing"]), [""; 0]);
}
