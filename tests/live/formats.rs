//! The exposition formats. Oracles: Prometheus, promtool and Prometheus's Python client.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    needs::{Need, PYTHON},
    queried::Queried,
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "formats::promtool_finds_nothing",
        &[Need::Agent, Need::Program("promtool")],
        promtool,
    ),
    (
        "formats::strange_names",
        &[Need::Agent, Need::Python("prometheus_client")],
        strange_names,
    ),
    (
        "formats::prometheus_scrapes_and_answers",
        &[Need::Agent, Need::Program("prometheus")],
        prometheus,
    ),
];

/// Runs a program with a text as its standard input.
pub fn fed(command: &mut Command, text: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success() && err.is_empty(),
        "{}\n{out}\n{err}",
        output.status
    );
    Ok(out.into_owned())
}

fn promtool() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("spin 20")?;
    let text = agent.body("/metrics", "")?;
    // promtool objects to some of cAdvisor's names: counters without `_total`, gauges with it, labels in camel case.
    const NOT_OURS: [&str; 3] = [
        "_failcnt",
        "container_fs_inodes_total",
        "cadvisor_version_info",
    ];
    let ours = |line: &&str| !NOT_OURS.iter().any(|name| line.contains(name));
    let text: String = text
        .lines()
        .filter(ours)
        .flat_map(|line| [line, "\n"])
        .collect();
    fed(Command::new("promtool").args(["check", "metrics"]), &text).map(drop)
}

/// Prints the label `id` of every CPU usage series as a JSON list, with the parser for the given
/// format.
const PARSE: &str = "
import sys, json
from prometheus_client.PARSER import text_string_to_metric_families as parse
families = list(parse(sys.stdin.buffer.read().decode('utf-8')))
samples = [s for f in families for s in f.samples]
series = [(s.name, tuple(sorted(s.labels.items()))) for s in samples]
assert len(series) == len(set(series)), 'a series twice'
print(json.dumps([s.labels['id'] for s in samples if s.name == 'container_cpu_usage_seconds_total']))
";

fn strange_names() -> Result<()> {
    let prefix = format!("cgmeter-test-{}", std::process::id());
    let names: [(&[u8], &str); 6] = [
        (b" with blanks ", " with blanks "),
        (b"\"quotes\" {braces}, a=b", "\"quotes\" {braces}, a=b"),
        (b"a\ttab, a\rreturn", "a\ttab, a\rreturn"),
        (b"back\\slash\\x2d\\n", "back\\slash\\x2d\\n"),
        ("ünïcode-日本".as_bytes(), "ünïcode-日本"),
        (b"not\xff\xfeutf8\\x", "not\\xff\\xfeutf8\\x5cx"),
    ];
    // The kernel refuses a newline (kernel/cgroup/cgroup.c, cgroup_mkdir). A unit test covers its
    // escape.
    ensure!(Cgroup::raw(format!("{prefix}-new\nline").as_bytes()).is_err());
    let (early, late) = names.split_at(3);
    let make = |&(name, _): &(&[u8], &str)| Cgroup::raw(&[prefix.as_bytes(), name].concat());
    // Some cgroups are found by the first walk, some by events.
    let mut cgroups = early.iter().map(make).collect::<Result<Vec<_>>>()?;
    let agent = Agent::start(&[])?;
    cgroups.extend(late.iter().map(make).collect::<Result<Vec<_>>>()?);
    for (parser, accept) in [
        ("parser", ""),
        (
            "openmetrics.parser",
            "Accept: application/openmetrics-text; version=1.0.0\r\n",
        ),
    ] {
        let text = agent.body("/metrics", accept)?;
        let script = PARSE.replace("PARSER", parser);
        let output = fed(Command::new(PYTHON).args(["-c", &script]), &text)?;
        let ids: Vec<String> = serde_json::from_str(&output)?;
        for (_, shown) in &names {
            let id = format!("/{prefix}{shown}");
            ensure!(ids.contains(&id), "{parser}: {id:?} is not among {ids:?}");
        }
    }
    Ok(())
}

fn prometheus() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.order("forever")?;
    let strange = Cgroup::raw(format!("cgmeter-test-{}-\"a\\b\"", std::process::id()).as_bytes())?;
    let prometheus = Queried::start(&[("cgmeter", agent.port)], &[])?;
    let id = &cgroup.id;
    let rate = prometheus.value(&format!(
        "rate(container_cpu_usage_seconds_total{{id=\"{id}\"}}[10s]) > 0.1"
    ))?;
    // One task: at most one CPU.
    ensure!(rate < 1.2, "a task uses {rate} CPUs");
    let quantile = prometheus.value(
        "histogram_quantile(0.99, sum by (le) \
         (rate(container_sched_runqueue_latency_seconds_bucket{id=\"/\"}[10s]))) > 0",
    )?;
    ensure!(quantile > 0.0 && quantile < 10.0, "quantile {quantile}");
    ensure!(prometheus.value("up{job=\"cgmeter\"}")? == 1.0);
    ensure!(prometheus.value("scrape_samples_scraped")? > 50.0);
    let ids = prometheus.query("count by (id) (container_last_seen)")?;
    let ids: Vec<&str> = ids
        .iter()
        .filter_map(|series| series["metric"]["id"].as_str())
        .collect();
    ensure!(
        ids.contains(&strange.id.as_str()),
        "{:?} is not among {ids:?}",
        strange.id
    );
    ensure!(ids.contains(&"/"));
    Ok(())
}
