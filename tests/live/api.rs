//! The JSON API. Oracles: the exposition of the same frame, the cgroups' files, and
//! schemathesis, which sends both valid and invalid requests according to the OpenAPI document.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    metrics::{Metrics, agree, same},
    needs::{Need, venv},
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "api::a_record_equals_metrics_and_files",
        &[Need::Agent],
        record,
    ),
    (
        "api::rates_and_quantiles_are_of_the_last_interval",
        &[Need::Agent],
        interval,
    ),
    (
        "api::containers_are_found_by_id_and_stay_after_removal",
        &[Need::Agent],
        found,
    ),
    (
        "api::custom_metrics_are_in_the_record",
        &[Need::Agent],
        custom,
    ),
    ("api::the_status_lists_the_sources", &[Need::Agent], status),
    (
        "api::schemathesis_finds_nothing",
        &[Need::Agent, Need::Venv("schemathesis")],
        schemathesis,
    ),
];

/// A field of a record and the family with the same value. `true`: the family has no series before
/// the first event, while the field is 0.
const FIELDS: &[(&str, &str, bool)] = &[
    (
        "/cpu/usage_seconds",
        "container_cpu_usage_seconds_total",
        false,
    ),
    (
        "/cpu/user_seconds",
        "container_cpu_user_seconds_total",
        false,
    ),
    (
        "/cpu/system_seconds",
        "container_cpu_system_seconds_total",
        false,
    ),
    (
        "/cpu/runqueue_seconds",
        "container_cpu_schedstat_runqueue_seconds_total",
        false,
    ),
    ("/cpu/periods", "container_cpu_cfs_periods_total", false),
    (
        "/cpu/throttled_seconds",
        "container_cpu_cfs_throttled_seconds_total",
        false,
    ),
    ("/memory_usage", "container_memory_usage_bytes", false),
    (
        "/memory/working_set",
        "container_memory_working_set_bytes",
        false,
    ),
    ("/memory/rss", "container_memory_rss", false),
    ("/memory/cache", "container_memory_cache", false),
    ("/memory/swap", "container_memory_swap", false),
    ("/process_count", "container_processes", false),
    ("/thread_count", "container_threads", false),
    ("/file_descriptors", "container_file_descriptors", false),
    ("/disk_read", "container_fs_reads_bytes_total", true),
    ("/disk_write", "container_fs_writes_bytes_total", true),
    ("/disk/reads", "container_fs_reads_total", true),
    (
        "/network/sockets_rx",
        "container_socket_receive_bytes_total",
        true,
    ),
    (
        "/network/tcp_retransmits",
        "container_tcp_retransmits_total",
        false,
    ),
    ("/oom_kills", "container_oom_events_total", false),
    (
        "/pressure/cpu/waiting_seconds",
        "container_pressure_cpu_waiting_seconds_total",
        false,
    ),
];

const ID: &str = "c0ffee0d9e2b4a5f6071829304a5b6c7d8e9f00112233445566778899aabbccd";
/// An id with the same first twelve digits as [`ID`].
const TWIN: &str = "c0ffee0d9e2b0000607182930405b6c7d8e9f00112233445566778899aabbccd";

pub fn json(agent: &Agent, path: &str) -> Result<Value> {
    let body = agent.body(path, "")?;
    serde_json::from_str(&body).with_context(|| format!("{path}: {body}"))
}

fn container(agent: &Agent, key: &str) -> Result<Value> {
    json(agent, &format!("/api/v1/containers/{}", encoded(key)))
}

/// Percent-encodes a text.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn number(record: &Value, pointer: &str) -> Result<f64> {
    let value = record.pointer(pointer).and_then(Value::as_f64);
    value.with_context(|| format!("no number at {pointer} of {record}"))
}

/// Compares a record with the series of its cgroup.
fn compare(record: &Value, metrics: &Metrics) -> Result<()> {
    let cgroup = record["cgroup"].as_str().context("no cgroup")?;
    let id = cgroup.replace('\\', "\\\\").replace('"', "\\\"");
    for (pointer, family, events) in FIELDS {
        let value = record.pointer(pointer);
        let value = value.with_context(|| format!("no {pointer}"))?;
        let labels = [("id", id.as_str())];
        let what = format!("{cgroup}: {pointer}");
        match (metrics.has(family, &labels), value.as_f64()) {
            (true, Some(value)) => agree(&what, value, metrics.sum(family, &labels), 1e-12, 0.0)?,
            (false, Some(value)) if *events => same(&what, value, 0.0)?,
            (false, None) => {}
            (served, value) => anyhow::bail!("{what}: {value:?}, but the exposition has {served}"),
        }
    }
    Ok(())
}

fn record() -> Result<()> {
    let top = Cgroup::new()?;
    let cgroup = top.child(&format!("docker-{ID}.scope"))?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("spin 300")?;
    // All answers are from the same frame.
    let agent = Agent::start(&["--web.min-interval", "1h"])?;
    let list = json(&agent, "/api/v1/containers?all=true&limit=10000")?;
    let metrics = agent.scrape()?;
    let record = container(&agent, ID)?;
    ensure!(record["timestamp"] == list["timestamp"], "two frames");
    let records = list["containers"].as_array().context("no list")?;
    ensure!(list["total"].as_u64() == Some(records.len() as u64));
    for record in records {
        compare(record, &metrics)?;
    }
    let mut listed: Vec<&str> = records
        .iter()
        .filter_map(|r| r["cgroup"].as_str())
        .collect();
    let mut served = metrics.ids("container_last_seen");
    for ids in [&mut listed, &mut served] {
        ids.retain(|id| !id.contains(['\\', '(']));
        ids.sort_unstable();
    }
    ensure!(listed == served, "{listed:?} instead of {served:?}");
    ensure!(records.contains(&record), "the record and the list differ");
    let usage = number(&record, "/cpu/usage_seconds")?;
    agree("CPU time", usage, cgroup.cpu_seconds()?, 0.01, 0.002)?;
    let lines = |file: &str| -> Result<f64> {
        let text = fs::read_to_string(cgroup.directory.join(file))?;
        Ok(text.lines().count() as f64)
    };
    let open = fs::read_dir(format!("/proc/{}/fd", worker.pid()))?.count() as f64;
    same(
        "processes",
        number(&record, "/process_count")?,
        lines("cgroup.procs")?,
    )?;
    same(
        "threads",
        number(&record, "/thread_count")?,
        lines("cgroup.threads")?,
    )?;
    same("descriptors", number(&record, "/file_descriptors")?, open)?;
    ensure!(record["kind"] == "container" && record["state"] == "running");
    // The tree has the same numbers, and contains each cgroup once.
    let tree = json(
        &agent,
        &format!("/api/v1/cgroups?root={}", encoded(&top.id)),
    )?;
    let branch = &tree["roots"][0]["children"][0];
    for name in ["cgroup", "memory_usage", "process_count", "id"] {
        ensure!(branch[name] == record[name], "{name}: {branch}");
    }
    let all = json(&agent, "/api/v1/cgroups?depth=32&limit=10000")?;
    ensure!(
        all["shown"] == list["total"] && all["left_out"] == 0,
        "{}",
        all["shown"]
    );
    Ok(())
}

fn interval() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    let agent = Agent::start(&[])?;
    // The first request starts the intervals.
    let first = container(&agent, &cgroup.id)?;
    let metrics = agent.scrape()?;
    let (statistics, usage) = (worker.statistics()?, cgroup.cpu_seconds()?);
    worker.run("spin 200")?;
    worker.run("sleeps 50")?;
    let record = container(&agent, &cgroup.id)?;
    let (periods, used) = (
        worker.statistics()?.periods - statistics.periods,
        cgroup.cpu_seconds()? - usage,
    );
    let interval = number(&record, "/interval_seconds")?;
    ensure!(interval > 0.2 && first["timestamp"] != record["timestamp"]);
    let before = metrics.of(&cgroup.id, "container_cpu_usage_seconds_total")?;
    let grown = number(&record, "/cpu/usage_seconds")? - before;
    let percent = number(&record, "/cpu_usage")?;
    agree("percent", percent, 100.0 * grown / interval, 1e-6, 1e-6)?;
    agree("CPU time", percent * interval / 100.0, used, 0.01, 0.002)?;
    let runqueue = &record["latency"]["runqueue"];
    same("run periods", number(runqueue, "/count")?, periods)?;
    let quantiles = ["/p50", "/p90", "/p99"].map(|p| number(runqueue, p));
    let quantiles = quantiles.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(quantiles.is_sorted() && quantiles[0] > 0.0, "{quantiles:?}");
    Ok(())
}

fn found() -> Result<()> {
    let agent = Agent::start(&[])?;
    let top = Cgroup::new()?;
    let cgroup = top.child(&format!("docker-{ID}.scope"))?;
    let unit = top.child("odd%2Fname ü.service")?;
    for key in [ID, &ID[..12], &cgroup.id] {
        let record = container(&agent, key)?;
        ensure!(
            record["id"] == ID && record["runtime"] == "docker",
            "{record}"
        );
    }
    ensure!(container(&agent, &unit.id)?["kind"] == "unit");
    let twin = top.child(&format!("docker-{TWIN}.scope"))?;
    let answer = agent.get(&format!("/api/v1/containers/{}", &ID[..12]), "")?;
    let text = answer.text()?;
    ensure!(
        answer.status == 400 && text.contains(ID) && text.contains(TWIN),
        "{}: {text}",
        answer.status_line
    );
    let prefix = format!("/api/v1/containers?id={}&sort=-cgroup", &ID[..12]);
    let ids = |list: Value| -> Vec<String> {
        let records = list["containers"].as_array().cloned().unwrap_or_default();
        let ids = records.iter().filter_map(|record| record["id"].as_str());
        ids.map(str::to_owned).collect()
    };
    ensure!(ids(json(&agent, &prefix)?) == [ID, TWIN]);
    Worker::once(&cgroup, "spin 20")?;
    let used = cgroup.cpu_seconds()?;
    cgroup.remove()?;
    let record = container(&agent, ID)?;
    ensure!(
        record["state"] == "ended" && record["ended"].is_string(),
        "{record}"
    );
    ensure!(
        record["memory_usage"].is_null(),
        "a gauge is removed with its cgroup"
    );
    agree(
        "CPU time",
        number(&record, "/cpu/usage_seconds")?,
        used,
        0.01,
        0.002,
    )?;
    // One of the two containers with that prefix has ended.
    ensure!(container(&agent, &ID[..12])?["id"] == TWIN);
    ensure!(ids(json(&agent, &format!("{prefix}&state=ended"))?) == [ID]);
    drop(twin);
    Ok(())
}

fn status() -> Result<()> {
    let agent = Agent::start(&["--no-collector.tcp"])?;
    let metrics = agent.scrape()?;
    let status = json(&agent, "/api/v1/status")?;
    let sources = status["sources"].as_array().context("no sources")?;
    for source in sources {
        let name = source["name"].as_str().context("no name")?;
        if source["absent"] == true {
            ensure!(
                source["up"] == false && source["reason"].is_string(),
                "{source}"
            );
            continue;
        }
        let up = metrics.get("cgmeter_source_up", &[("source", name)])?;
        ensure!(source["up"] == (up == 1.0), "{source}");
    }
    let absent = sources.iter().filter(|source| source["absent"] == true);
    same(
        "sources",
        (sources.len() - absent.count()) as f64,
        metrics.count("cgmeter_source_up", &[]) as f64,
    )?;
    let tcp = sources.iter().find(|source| source["name"] == "tcp");
    ensure!(tcp.context("no tcp")?["reason"] == "switched off");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(status["kernel"] == release.trim());
    ensure!(status["listen"][0] == format!("127.0.0.1:{}", agent.port));
    let live = number(&status, "/cgroups/live")?;
    same(
        "cgroups",
        live,
        metrics.get("cgmeter_cgroups", &[("state", "live")])?,
    )
}

fn custom() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let folder = Folder::new("custom")?;
    let id = &cgroup.id;
    let text = format!(
        "# TYPE jobs gauge\njobs{{id=\"{id}\"}} 5.5\nqueue{{id=\"{id}\",of=\"mail\"}} 2\n\
         queue{{id=\"{id}\",of=\"sms\"}} NaN\n"
    );
    fs::write(folder.0.join("values.prom"), text)?;
    let path = folder.0.to_str().context("no text")?;
    let agent = Agent::start(&["--custom.textfile-directory", path])?;
    let expected = serde_json::json!({
        "jobs": 5.5, "queue{of=\"mail\"}": 2.0, "queue{of=\"sms\"}": null,
    });
    // Text files are read at intervals, not at scrapes.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let record = container(&agent, id)?;
        let values = &record["custom_metrics"];
        if *values == expected {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{values} instead of {expected}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A folder for this test.
struct Folder(PathBuf);

impl Folder {
    fn new(what: &str) -> Result<Self> {
        let name = format!("cgmeter-test-api-{what}-{}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(&folder.0)?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn schemathesis() -> Result<()> {
    let top = Cgroup::new()?;
    let _cgroup = top.child(&format!("docker-{ID}.scope"))?;
    let agent = Agent::start(&[])?;
    let folder = Folder::new("schemathesis")?;
    let document = format!("http://127.0.0.1:{}/api/v1/openapi.json", agent.port);
    let output = Command::new(venv("schemathesis"))
        .args(["run", &document, "--checks", "all", "--no-color"])
        .args(["--phases", "examples,coverage,fuzzing"])
        .args([
            "--max-examples",
            "40",
            "--seed",
            "5",
            "--request-timeout",
            "20",
        ])
        .args(["--continue-on-failure", "--suppress-health-check", "all"])
        // It writes its examples to the current directory.
        .current_dir(&folder.0)
        .stdin(Stdio::null())
        .output()?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success(), "{}: {text}", output.status);
    let generated = text.split(" generated, ").next().and_then(|before| {
        let number = before.rsplit(char::is_whitespace).next()?;
        number.parse::<u64>().ok()
    });
    let generated = generated.with_context(|| format!("no number of cases in: {text}"))?;
    ensure!(generated > 100, "only {generated} cases: {text}");
    println!("schemathesis: {generated} requests");
    let log = agent.log();
    ensure!(!log.contains("panicked"), "{log}");
    ensure!(container(&agent, ID)?["id"] == ID);
    Ok(())
}
