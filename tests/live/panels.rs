//! Every query of the dashboards, evaluated by a Prometheus that scraped the agent and the example
//! shop under a mixed load. Oracle: Prometheus, which reports invalid queries and empty results.
//!
//! A panel may be empty only if deploy/grafana/allowed-empty.txt gives the reason. A listed panel
//! that has data is an error too, unless its line says `perhaps`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    mixed::Load,
    needs::Need,
    queried::{Queried, shipped_rules},
};

pub const TESTS: &[Test] = &[(
    "panels::every_query_has_an_answer",
    &[
        Need::Agent,
        Need::Example("shop"),
        Need::Program("prometheus"),
        Need::Program("ip"),
        Need::Controller("cpu"),
        Need::Controller("memory"),
        Need::Controller("pids"),
        Need::Loop,
    ],
    every_query,
)];

/// `$__rate_interval`: at least four scrape intervals, as in Grafana.
const RATE_INTERVAL: &str = "8s";
/// The time range of a panel, seconds.
const SHOWN: u64 = 20;
/// Maximum wait until all queries have answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// A query of a dashboard.
#[derive(Clone, Debug)]
struct Asked {
    /// `DASHBOARD/PANEL` or `DASHBOARD/$VARIABLE`
    place: String,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    AtOnce(String),
    Range(String),
    Values { series: String, label: String },
}

impl Asked {
    /// Number of series in the answer.
    fn answers(&self, prometheus: &Queried) -> Result<usize> {
        match &self.what {
            What::AtOnce(query) => prometheus.at_once(query),
            What::Range(query) => prometheus.range(query, SHOWN),
            What::Values { series, label } => Ok(prometheus.label_values(series, label)?.len()),
        }
        .with_context(|| format!("{}: {:?}", self.place, self.what))
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All queries of all dashboards, with variables set as a user would: all values if several can be
/// chosen, otherwise the host and the container of the test.
fn queries(chosen: &BTreeMap<&str, &str>) -> Result<Vec<Asked>> {
    let folder = repository().join("deploy/grafana/dashboards");
    let mut all = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(entry?.path())?)?;
        let uid = dashboard["uid"].as_str().context("no uid")?;
        let variables = dashboard["templating"]["list"]
            .as_array()
            .context("no variables")?;
        let mut values = BTreeMap::from([("__rate_interval", RATE_INTERVAL)]);
        for variable in variables {
            let name = variable["name"].as_str().context("no name")?;
            let all = variable["allValue"].as_str();
            if let Some(value) = all.or_else(|| chosen.get(name).copied()) {
                values.insert(name, value);
            }
        }
        let filled = |query: &str| substituted(query, &values).with_context(|| uid.to_owned());
        for variable in variables {
            let Some(query) = variable["query"]["query"].as_str() else {
                continue;
            };
            let inner = query
                .strip_prefix("label_values(")
                .and_then(|rest| rest.strip_suffix(')'));
            let (series, label) = inner
                .and_then(|inner| inner.rsplit_once(", "))
                .context("no label_values")?;
            all.push(Asked {
                place: format!("{uid}/${}", variable["name"].as_str().unwrap_or_default()),
                what: What::Values {
                    series: filled(series)?,
                    label: label.to_owned(),
                },
            });
        }
        for panel in dashboard["panels"].as_array().context("no panels")? {
            let title = panel["title"].as_str().unwrap_or_default();
            for target in panel["targets"].as_array().into_iter().flatten() {
                let query = filled(target["expr"].as_str().context("no query")?)?;
                let at_once = target["instant"] == true;
                all.push(Asked {
                    place: format!("{uid}/{title}"),
                    what: if at_once {
                        What::AtOnce(query)
                    } else {
                        What::Range(query)
                    },
                });
            }
        }
    }
    Ok(all)
}

/// Fills in the variables of a query, the longest names first, so that `$name` does not match in
/// `$namespace`.
fn substituted(query: &str, values: &BTreeMap<&str, &str>) -> Result<String> {
    let mut text = query.to_owned();
    for (name, value) in values.iter().rev() {
        text = text.replace(&format!("${name}"), value);
    }
    ensure!(!text.contains('$'), "{text}: a variable has no value");
    Ok(text)
}

/// The places that may be empty, and whether they must be.
fn allowed_empty() -> Result<BTreeMap<String, bool>> {
    let text = fs::read_to_string(repository().join("deploy/grafana/allowed-empty.txt"))?;
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (place, _) = line
                .split_once(" # ")
                .with_context(|| format!("no reason: {line}"))?;
            Ok(match place.strip_prefix("perhaps: ") {
                Some(place) => (place.to_owned(), false),
                None => (place.to_owned(), true),
            })
        })
        .collect()
}

fn every_query() -> Result<()> {
    let agent = Agent::start(&[])?;
    // A container's path, as Docker creates it with the systemd driver. No runtime knows it.
    let number = std::process::id();
    let container = Cgroup::named(&format!("docker-{number:064x}.scope"))?;
    let mut load = Load::start(&container)?;
    let prometheus = Queried::start(
        &[("cgmeter", agent.port), ("shop", load.port())],
        &shipped_rules(&repository()),
    )?;
    let instance = format!("127.0.0.1:{}", agent.port);
    let chosen = BTreeMap::from([
        ("instance", instance.as_str()),
        ("id", container.id.as_str()),
    ]);
    let queries = queries(&chosen)?;
    ensure!(queries.len() > 150, "only {} queries", queries.len());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worked = scope.spawn(|| load.work(&over));
        let empty = answered(&prometheus, &queries);
        over.store(true, Ordering::Relaxed);
        worked
            .join()
            .map_err(|_| anyhow!("the load panicked"))?
            .context("the load")?;
        judged(&empty?, &queries)
    })
}

/// The places with a query that still has no answer when all others have one.
fn answered(prometheus: &Queried, queries: &[Asked]) -> Result<BTreeSet<String>> {
    let allowed = allowed_empty()?;
    let deadline = Instant::now() + PATIENCE;
    let mut left: Vec<&Asked> = queries.iter().collect();
    loop {
        let mut without = Vec::new();
        for asked in left {
            if asked.answers(prometheus)? == 0 {
                without.push(asked);
            }
        }
        left = without;
        // Wait only for queries that may not be empty.
        let waiting = left.iter().any(|asked| !allowed.contains_key(&asked.place));
        if !waiting || Instant::now() > deadline {
            return Ok(left.iter().map(|asked| asked.place.clone()).collect());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn judged(empty: &BTreeSet<String>, queries: &[Asked]) -> Result<()> {
    let allowed = allowed_empty()?;
    let unexpected: Vec<&String> = empty
        .iter()
        .filter(|place| !allowed.contains_key(*place))
        .collect();
    ensure!(
        unexpected.is_empty(),
        "without an answer, and not in allowed-empty.txt: {unexpected:#?}"
    );
    let needless: Vec<&String> = allowed
        .iter()
        .filter(|&(place, &has_to_be)| has_to_be && !empty.contains(place))
        .map(|(place, _)| place)
        .collect();
    ensure!(
        needless.is_empty(),
        "in allowed-empty.txt, but with an answer to every query: {needless:#?}"
    );
    println!(
        "{} queries, {} places empty as expected",
        queries.len(),
        empty.len()
    );
    Ok(())
}
