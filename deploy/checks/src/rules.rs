//! Recording rules, alerts, their tests and their runbooks.
//!
//! Invariant: every name in an expression is the agent's, a recording rule's, or on the list of
//! foreign metrics with a reason. Every alert has a runbook, labels to route by, and a test in which
//! it is quiet, fires and recovers, and one that sees it pending before it fires. Every runbook belongs to an alert, has commands for a terminal, and its
//! queries take labels of the alert.

mod faults;
mod file;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Result, bail, ensure};

use crate::{
    reference::{Row, rows},
    root,
    tool::{files, text},
};
use file::{Rule, Rules, Test, Tests, read};

/// Pages beside the runbooks whose queries and configurations are checked.
const PAGES: [&str; 1] = ["docs/migrating-from-cadvisor.md"];
/// Labels that routes and inhibition go by.
const ROUTED: [&str; 3] = ["severity", "team", "scope"];

/// Checks the rules, their tests and the runbooks.
///
/// # Errors
///
/// Returns the number of faults, each of which is printed on standard error.
pub fn check() -> Result<()> {
    let root = &root();
    let folder = root.join("deploy/prometheus");
    let rules = rules(root)?;
    let tests = tests(root)?;
    let reference = text(&root.join("docs/metrics.md"))?;
    let own = reference_names(&reference)?;
    let foreign = text(&folder.join("foreign-metrics.txt"))?;
    let foreign = foreign_names(&foreign)?;
    let runbooks = runbooks(root)?;
    let mut pages = runbooks.clone();
    for (page, text) in pages_texts(root)? {
        pages.insert(page.to_owned(), queries(&text));
    }

    let mut faults = faults::names(
        &expressions(&rules, &pages),
        &recorded(&rules),
        &own,
        &foreign,
    );
    faults.extend(faults::shape(&rules));
    faults.extend(faults::runbooks(&rules, &runbooks));
    faults.extend(faults::cases(&rules, &tests));
    faults.extend(faults::bounds(&rules, &tests));
    faults.extend(faults::labels(&runbooks, &tests));
    faults.extend(without_commands(root)?);
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

/// All rules, with those for long-term stores.
fn rules(root: &Path) -> Result<Vec<Rule>> {
    let mut rules = host_rules(root)?;
    rules.extend(rules_in(
        &root.join("deploy/prometheus/fleet"),
        ".rules.yml",
    )?);
    Ok(rules)
}

/// The rules for the Prometheus of a host or of a shard.
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

/// Names of the series that [`host_rules`] record.
#[cfg(test)]
pub(crate) fn recorded_on_hosts(root: &Path) -> Result<BTreeSet<String>> {
    let rules = host_rules(root)?;
    Ok(recorded(&rules).into_iter().map(str::to_owned).collect())
}

/// Each combination of the [`ROUTED`] labels that alerts have, as `name=value`.
pub(crate) fn routed_labels(root: &Path) -> Result<BTreeSet<Vec<String>>> {
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

/// The tests of the rules, which promtool runs.
fn tests(root: &Path) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for path in files(&root.join("deploy/prometheus/tests"), ".test.yml")? {
        let file: Tests = read(&path)?;
        tests.extend(file.tests);
    }
    Ok(tests)
}

/// How many tests there are.
pub(crate) fn test_count(root: &Path) -> Result<u64> {
    Ok(tests(root)?.len().try_into()?)
}

/// Names and types in the metric reference.
fn reference_names(reference: &str) -> Result<BTreeMap<String, String>> {
    let own = |row: Row<'_>| (row.name.to_owned(), row.kind.to_owned());
    let found: BTreeMap<_, _> = rows(reference).map(own).collect();
    ensure!(!found.is_empty(), "docs/metrics.md lists no metric");
    Ok(found)
}

/// Names in the list of foreign metrics. A line without a reason is an error.
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
pub(crate) fn runbooks(root: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    for path in files(&root.join("docs/runbooks"), ".md")? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if name != "README" {
            found.insert(name.into_owned(), queries(&text(&path)?));
        }
    }
    Ok(found)
}

/// Runbooks without commands for a terminal, as faults.
fn without_commands(root: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for path in files(&root.join("docs/runbooks"), ".md")? {
        if !path.ends_with("README.md") && !has_commands(&text(&path)?) {
            faults.push(format!("{}: no command for a terminal", path.display()));
        }
    }
    Ok(faults)
}

/// Whether a page has a block of commands that is not empty.
fn has_commands(page: &str) -> bool {
    let mut blocks = page.split("```sh\n").skip(1);
    blocks.any(|block| {
        block
            .split("```")
            .next()
            .is_some_and(|block| !block.trim().is_empty())
    })
}

/// The queries of a page: blocks of PromQL, separated by empty lines.
fn queries(page: &str) -> Vec<String> {
    blocks(page, "promql")
        .flat_map(|block| block.split("\n\n"))
        .map(|query| query.trim().to_owned())
        .collect()
}

/// The fenced blocks of a page in a language.
fn blocks<'a>(page: &'a str, language: &str) -> impl Iterator<Item = &'a str> {
    let blocks: Vec<&str> = page.split(&format!("```{language}\n")).skip(1).collect();
    blocks
        .into_iter()
        .filter_map(|block| block.split("```").next())
}

/// The texts of [`PAGES`].
fn pages_texts(root: &Path) -> Result<Vec<(&'static str, String)>> {
    PAGES
        .into_iter()
        .map(|page| Ok((page, text(&root.join(page))?)))
        .collect()
}

/// The queries of [`PAGES`].
pub(crate) fn page_queries(root: &Path) -> Result<Vec<String>> {
    let texts = pages_texts(root)?;
    Ok(texts.iter().flat_map(|(_, text)| queries(text)).collect())
}

/// The configurations of Prometheus in [`PAGES`]: blocks of YAML that begin with its scrape jobs.
pub(crate) fn page_configurations(root: &Path) -> Result<Vec<String>> {
    let texts = pages_texts(root)?;
    let blocks = texts.iter().flat_map(|(_, text)| blocks(text, "yaml"));
    Ok(blocks
        .filter(|block| block.starts_with("scrape_configs:\n"))
        .map(str::to_owned)
        .collect())
}

/// (name of the rule or page, expression) of all rules, and of runbooks and other pages.
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

/// Names of the series that rules record.
fn recorded(rules: &[Rule]) -> BTreeSet<&str> {
    rules
        .iter()
        .filter_map(|rule| rule.record.as_deref())
        .collect()
}
