//! Custom metrics: endpoints inside network namespaces, and text files. Oracle: the test's own
//! server and files.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    api::json,
    cgroup::Cgroup,
    docker::Docker,
    folder_server,
    formats::fed,
    metrics::{Metrics, agree, same},
    mounted::Folder,
    needs::{Need, PYTHON},
    netns::Namespaces,
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "custom::an_endpoint_in_its_namespace",
        &[Need::Agent, Need::Program("ip")],
        endpoint,
    ),
    (
        "custom::parsers_accept_custom_metrics",
        &[
            Need::Agent,
            Need::Program("ip"),
            Need::Program("promtool"),
            Need::Python("prometheus_client"),
        ],
        formats,
    ),
    (
        "custom::hostile_endpoints_do_not_delay_others",
        &[Need::Agent, Need::Program("ip")],
        hostile,
    ),
    (
        "custom::bad_answers_are_reported",
        &[Need::Agent, Need::Program("ip")],
        bad,
    ),
    (
        "custom::old_values_are_dropped",
        &[Need::Agent, Need::Program("ip")],
        stale,
    ),
    (
        "custom::endpoints_in_the_host_network_are_not_read",
        &[Need::Agent],
        host_network,
    ),
    (
        "custom::a_docker_container_with_labels",
        &[
            Need::Agent,
            Need::Program("dockerd"),
            Need::Program("docker"),
            Need::Program("busybox"),
        ],
        labelled,
    ),
    (
        "custom::sixty_large_answers_and_a_hundred_endpoints_that_hang",
        &[Need::Agent, Need::Program("ip"), Need::RealCpus],
        crowd,
    ),
    ("custom::text_files", &[Need::Agent], text_files),
    ("custom::bad_text_files", &[Need::Agent], bad_text_files),
];

/// Port of the applications. Each listens on it in its own network namespace.
const PORT: u16 = 9100;

/// An application in its own cgroup and network namespace.
struct Application {
    worker: Worker,
    cgroup: Cgroup,
    folder: Folder,
    namespaces: Namespaces,
}

impl Application {
    fn start(name: &str) -> Result<Self> {
        let folder = Folder::new(&format!("custom-{name}"))?;
        let namespaces = Namespaces::new()?;
        let cgroup = Cgroup::new()?;
        let mut worker = Worker::start_in(&cgroup, Some(namespaces.left()))?;
        worker.run(&format!("http {PORT} {}", folder.0.as_path().display()))?;
        Ok(Self {
            worker,
            cgroup,
            folder,
            namespaces,
        })
    }

    /// How often a path was asked for.
    fn asked(&self, path: &str) -> Result<usize> {
        let asked = fs::read_to_string(self.folder.0.as_path().join(folder_server::ASKED))?;
        Ok(asked.lines().filter(|line| *line == path).count())
    }

    fn says(&self, path: &str, text: &str) -> Result<()> {
        // Replace the file atomically, so that an answer is never partial.
        let new = self.folder.0.as_path().join("new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, self.folder.0.as_path().join(path))?)
    }
}

/// Writes a configuration with the paths to read from each application.
fn config(folder: &Folder, rules: &[(&Cgroup, u16, &[&str])]) -> Result<PathBuf> {
    let mut text = String::new();
    for (cgroup, port, paths) in rules {
        for path in *paths {
            text += &format!(
                "[[custom.endpoint]]\nid = \"^{}$\"\nport = {port}\npath = \"{path}\"\n",
                cgroup.id
            );
        }
    }
    let file = folder.0.as_path().join("cgmeter.toml");
    fs::write(&file, text)?;
    Ok(file)
}

/// Starts an agent with a short interval.
fn agent(config: &Path, more: &[&str]) -> Result<Agent> {
    let config = config.display().to_string();
    let mut arguments = vec!["--config.file", &config];
    if !more.contains(&"--custom.interval") {
        arguments.extend(["--custom.interval", "200ms"]);
    }
    arguments.extend(more);
    Agent::start(&arguments)
}

/// Scrapes until a condition holds. Otherwise fails with `what`.
fn until(agent: &Agent, what: &str, so: impl Fn(&Metrics) -> bool) -> Result<Metrics> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let metrics = agent.scrape()?;
        if so(&metrics) {
            return Ok(metrics);
        }
        if Instant::now() > deadline {
            let text = agent.body("/metrics", "")?;
            let custom: Vec<&str> = text
                .lines()
                .filter(|line| line.contains("custom"))
                .collect();
            anyhow::bail!("{what}: {}\n{}", custom.join("\n"), agent.log());
        }
        sleep(Duration::from_millis(50));
    }
}

/// Number of errors of a kind.
fn errors(metrics: &Metrics, reason: &str) -> f64 {
    metrics.sum("cgmeter_custom_errors_total", &[("reason", reason)])
}

const TEXT: &str = "\
# HELP shop_orders_total Orders \\\\ taken.
# TYPE shop_orders_total counter
shop_orders_total{kind=\"a \\\"b\\\"\"} 5
shop_orders_total{kind=\"c\"} 7
# TYPE temperature gauge
temperature{id=\"1\",name=\"x\"} -2.5
# HELP request_seconds Requests.
# TYPE request_seconds histogram
request_seconds_bucket{route=\"/\",le=\"0.1\"} 3
request_seconds_bucket{route=\"/\",le=\"+Inf\"} 4
request_seconds_sum{route=\"/\"} 2.5
request_seconds_count{route=\"/\"} 4
# TYPE size summary
size{quantile=\"0.5\"} 10
size_sum 30
size_count 3
plain 1e3
";

fn endpoint() -> Result<()> {
    let application = Application::start("endpoint")?;
    application.says("metrics", TEXT)?;
    let id = application.cgroup.id.as_str();
    let rules = [(&application.cgroup, PORT, &["/metrics"][..])];
    let agent = agent(&config(&application.folder, &rules)?, &[])?;
    let metrics = until(&agent, "no answer", |metrics| {
        metrics.has("container_custom_up", &[("id", id)])
    })?;
    let get = |name: &str, labels: &[(&str, &str)]| {
        let labels: Vec<_> = [("id", id)].iter().chain(labels).copied().collect();
        metrics.get(name, &labels)
    };
    same(
        "up",
        get(
            "container_custom_up",
            &[("port", "9100"), ("path", "/metrics")],
        )?,
        1.0,
    )?;
    same("samples", get("container_custom_samples", &[])?, 11.0)?;
    let metric = "container_custom_metric";
    let kind = ("kind", "a \\\"b\\\"");
    same("plain", get(metric, &[("metric_name", "plain")])?, 1000.0)?;
    same(
        "orders",
        get(metric, &[("metric_name", "shop_orders_total"), kind])?,
        5.0,
    )?;
    same(
        "plain values",
        metrics.count(metric, &[("id", id)]) as f64,
        4.0,
    )?;
    same("orders", get("custom_shop_orders_total", &[kind])?, 5.0)?;
    same(
        "orders",
        get("custom_shop_orders_total", &[("kind", "c")])?,
        7.0,
    )?;
    let renamed = [("exported_id", "1"), ("exported_name", "x")];
    same("renamed labels", get("custom_temperature", &renamed)?, -2.5)?;
    let route = ("route", "/");
    for (suffix, extra, value) in [
        ("bucket", Some(("le", "0.1")), 3.0),
        ("bucket", Some(("le", "+Inf")), 4.0),
        ("sum", None, 2.5),
        ("count", None, 4.0),
    ] {
        let labels: Vec<_> = [route].into_iter().chain(extra).collect();
        same(
            suffix,
            get(&format!("custom_request_seconds_{suffix}"), &labels)?,
            value,
        )?;
    }
    same(
        "quantile",
        get("custom_size", &[("quantile", "0.5")])?,
        10.0,
    )?;
    same("count", get("custom_size_count", &[])?, 3.0)?;
    let text = agent.body("/metrics", "")?;
    for line in [
        "# HELP custom_shop_orders_total Orders \\\\ taken.",
        "# TYPE custom_shop_orders_total counter",
        "# TYPE custom_request_seconds histogram",
        "# TYPE custom_size summary",
        "# TYPE custom_plain untyped",
    ] {
        ensure!(text.lines().any(|found| found == line), "no {line:?}");
    }
    same(
        "failed",
        metrics.sum("cgmeter_custom_scrapes_total", &[("result", "failed")]),
        0.0,
    )?;
    // The API has the plain values too.
    let list = json(&agent, "/api/v1/containers?all=true&limit=10000")?;
    let records = list["containers"].as_array().context("no list")?;
    let record = records.iter().find(|record| record["cgroup"] == id);
    let custom = &record.context("no record")?["custom_metrics"];
    for (name, value) in [("plain", 1000.0), ("shop_orders_total{kind=\"c\"}", 7.0)] {
        let found = custom[name].as_f64();
        ensure!(found == Some(value), "{name} is {found:?}: {custom}");
    }
    // A later answer is served too.
    application.says("metrics", "plain 2\n")?;
    until(&agent, "no second answer", |metrics| {
        metrics
            .of(id, "custom_plain")
            .is_ok_and(|value| value == 2.0)
            && !metrics.has("custom_size_count", &[("id", id)])
    })?;
    // An application's metrics end with its cgroup.
    let (id, cgroup) = (id.to_owned(), &application.cgroup);
    cgroup.remove_tasks()?;
    cgroup.remove()?;
    let metrics = agent.scrape()?;
    for name in [metric, "custom_plain", "container_custom_up"] {
        ensure!(
            !metrics.has(name, &[("id", &id)]),
            "{name} is still served after its cgroup"
        );
    }
    Ok(())
}

/// Parses an exposition with Prometheus's Python client, as `formats` does.
const PARSE: &str = "
import sys
from prometheus_client.PARSER import text_string_to_metric_families as parse
families = list(parse(sys.stdin.buffer.read().decode('utf-8')))
series = [(s.name, tuple(sorted(s.labels.items()))) for f in families for s in f.samples]
assert len(series) == len(set(series)), 'a series twice'
names = [f.name for f in families]
assert len(names) == len(set(names)), 'a family twice'
for f in families:
    if f.name.startswith('custom_'):
        print(f.name, f.type, len(f.samples))
";

fn formats() -> Result<()> {
    let (one, other) = (Application::start("one")?, Application::start("other")?);
    one.says("metrics", TEXT)?;
    // Names that are invalid only in OpenMetrics, a conflicting type, and a name that belongs to
    // another family.
    other.says(
        "metrics",
        &format!(
            "# TYPE shop_orders gauge\nshop_orders 1\n# TYPE temperature counter\ntemperature 1\n\
             # TYPE visits counter\nvisits 3\n# TYPE visits_created gauge\nvisits_created 1.7e9\n\
             # TYPE depth histogram\ndepth_bucket{{le=\"-1\"}} 1\ndepth_bucket{{le=\"5\"}} 1\n\
             depth_count 2\ndepth_sum -7\n{}",
            "# TYPE size_count gauge\nsize_count 9\n"
        ),
    )?;
    let rules = [
        (&one.cgroup, PORT, &["/metrics"][..]),
        (&other.cgroup, PORT, &["/metrics"][..]),
    ];
    let agent = agent(&config(&one.folder, &rules)?, &[])?;
    let up = |metrics: &Metrics| metrics.sum("container_custom_up", &[]) == 2.0;
    let metrics = until(&agent, "not two answers", up)?;
    same("conflicts", errors(&metrics, "conflict"), 2.0)?;
    // A conflict is counted once while it lasts.
    sleep(Duration::from_millis(600));
    same("conflicts", errors(&agent.scrape()?, "conflict"), 2.0)?;
    let text = agent.body("/metrics", "")?;
    let custom: String = text
        .lines()
        .filter(|line| line.contains("custom_"))
        // promtool wants counters to end in _total, and no gauge to end in _count.
        .filter(|line| !line.contains("custom_visits") && !line.contains("custom_temperature"))
        .filter(|line| !line.contains("custom_size_count"))
        .map(|line| format!("{line}\n"))
        .collect();
    let linted = fed(Command::new("promtool").args(["check", "metrics"]), &custom);
    let complaints = linted
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    let complaints: Vec<&str> = complaints
        .lines()
        // Not every application gives help texts.
        .filter(|line| line.contains("custom_") && !line.ends_with("no help text"))
        .collect();
    ensure!(complaints.is_empty(), "promtool: {complaints:?}");
    for (parser, accept, expected) in [
        (
            "parser",
            "",
            &["custom_shop_orders counter 2", "custom_visits counter 1"][..],
        ),
        (
            "openmetrics.parser",
            "Accept: application/openmetrics-text; version=1.0.0\r\n",
            &[
                "custom_shop_orders_total unknown 2",
                "custom_shop_orders gauge 1",
                "custom_visits unknown 1",
                "custom_request_seconds histogram 4",
                "custom_depth histogram 3",
            ],
        ),
    ] {
        let mut text = agent.body("/metrics", accept)?;
        if parser == "parser" {
            // The client gives the counter the gauge's name, because it drops `_total`.
            let clash = |line: &&str| {
                !line.contains("custom_shop_orders ") && !line.contains("custom_shop_orders{")
            };
            text = text
                .lines()
                .filter(clash)
                .map(|line| format!("{line}\n"))
                .collect();
        }
        let script = PARSE.replace("PARSER", parser);
        let output = fed(Command::new(PYTHON).args(["-c", &script]), &text)?;
        for line in expected {
            ensure!(
                output.lines().any(|found| found == *line),
                "{parser}: no {line:?}: {output}"
            );
        }
    }
    Ok(())
}

fn hostile() -> Result<()> {
    let application = Application::start("hostile")?;
    application.says("metrics", "plain 1\n")?;
    let id = application.cgroup.id.as_str();
    let paths = ["/hang", "/endless", "/metrics"];
    let rules = [(&application.cgroup, PORT, &paths[..])];
    let config = config(&application.folder, &rules)?;
    // This timeout is longer than a scrape of this test may take, so no scrape can have waited for
    // the endpoint.
    let patient = agent(
        &config,
        &["--custom.timeout", "10m", "--custom.max-body", "100000"],
    )?;
    let metrics = until(
        &patient,
        "the other endpoint is not served while one hangs",
        |metrics| metrics.has("custom_plain", &[("id", id)]) && errors(metrics, "size") >= 1.0,
    )?;
    let path = |path| [("id", id), ("path", path)];
    same(
        "up",
        metrics.get("container_custom_up", &path("/endless"))?,
        0.0,
    )?;
    same(
        "up",
        metrics.get("container_custom_up", &path("/metrics"))?,
        1.0,
    )?;
    ensure!(
        !metrics.has("container_custom_up", &path("/hang")),
        "it hangs"
    );
    for _ in 0..20 {
        patient.scrape()?;
    }
    ensure!(
        patient.log().contains("--custom.max-body"),
        "{}",
        patient.log()
    );
    drop(patient);
    let agent = agent(&config, &["--custom.timeout", "200ms"])?;
    let metrics = until(&agent, "no timeout", |metrics| {
        errors(metrics, "timeout") >= 3.0
    })?;
    same(
        "up",
        metrics.get("container_custom_up", &path("/hang"))?,
        0.0,
    )?;
    // It is logged once, however often it happens.
    let log = agent.log();
    let logged = log.matches("no whole answer within 0.2 s").count();
    ensure!((1..=2).contains(&logged), "logged {logged} times: {log}");
    Ok(())
}

/// Limit of custom metrics in the agent's memory and in a scrape: the default of --custom.max-bytes.
const MAX_BYTES: usize = 8 << 20;
/// Most memory that the crowd may cost the agent: what is kept, what is served to one client while
/// the next text is made, and 8 answers of 1 MiB at a time.
const MOST_RSS: u64 = 56 << 20;

/// Memory that the agent has used at most, and the length of a scrape, after some scrapes.
fn cost(agent: &Agent) -> Result<(u64, usize)> {
    let mut length = 0;
    for _ in 0..5 {
        length = agent.body("/metrics", "")?.len();
    }
    Ok((agent.memory("VmHWM")?, length))
}

fn crowd() -> Result<()> {
    let application = Application::start("crowd")?;
    application.says("metrics", "plain 0\n")?;
    let line = |at: usize| format!("large{{k=\"{at:0960}\"}} 1\n");
    let large: String = (0..1060).map(line).collect();
    ensure!(large.len() < 1 << 20 && large.len() > 1_000_000);
    application.says("large", &large)?;
    // Applications in cgroups of their own, which share a network namespace and the server in it.
    let namespace = application.namespaces.left();
    let crowd = (0..160)
        .map(|_| {
            let cgroup = Cgroup::new()?;
            let worker = Worker::start_in(&cgroup, Some(namespace))?;
            Ok((worker, cgroup))
        })
        .collect::<Result<Vec<_>>>()?;
    let (hanging, large) = crowd.split_at(100);
    let rule = |cgroup: &Cgroup, path: &str, interval: &str| {
        format!(
            "[[custom.endpoint]]\nid = \"^{}$\"\nport = {PORT}\npath = \"{path}\"\n\
             interval = \"{interval}\"\n",
            cgroup.id
        )
    };
    let mut text = rule(&application.cgroup, "/metrics", "1s");
    for (_, cgroup) in hanging {
        text += &rule(cgroup, "/hang", "1s");
    }
    for (_, cgroup) in large {
        text += &rule(cgroup, "/large", "5s");
    }
    let file = application.folder.0.as_path().join("cgmeter.toml");
    fs::write(&file, text)?;
    let plain = Agent::start(&[])?;
    let (plain_rss, plain_length) = cost(&plain)?;
    drop(plain);
    // Those that hang do so until the end of the test.
    let more = ["--custom.timeout", "10m", "--custom.max-samples", "5000"];
    let agent = agent(&file, &more)?;
    let up = |metrics: &Metrics| metrics.sum("container_custom_up", &[]);
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut metrics = agent.scrape()?;
    while up(&metrics) < 61.0 {
        ensure!(
            Instant::now() < deadline,
            "{} answers: {}",
            up(&metrics),
            agent.log()
        );
        sleep(Duration::from_millis(500));
        metrics = agent.scrape()?;
    }
    // The good one is asked at each interval, and what it says is served.
    let id = application.cgroup.id.as_str();
    let asked = || application.asked("/metrics");
    let (before, begin) = (asked()?, Instant::now());
    for round in 1..=10 {
        application.says("metrics", &format!("plain {round}\n"))?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while metrics.of(id, "custom_plain").ok() != Some(f64::from(round)) {
            ensure!(Instant::now() < deadline, "not asked: {}", agent.log());
            sleep(Duration::from_millis(100));
            metrics = agent.scrape()?;
        }
    }
    sleep(Duration::from_secs(15).saturating_sub(begin.elapsed()));
    let (times, intervals) = (asked()? - before, begin.elapsed().as_secs_f64());
    println!("asked {times} times in {intervals:.1} s");
    // One more or less at either end, and one that came late.
    agree("times asked", times as f64, intervals, 0.0, 2.0)?;
    let hang = application.asked("/hang")?;
    ensure!(hang >= 100, "{hang} requests of 100 endpoints hang");
    let (rss, length) = cost(&agent)?;
    println!(
        "custom metrics of {} bytes, {} bytes more memory",
        length - plain_length,
        rss.saturating_sub(plain_rss)
    );
    ensure!(length > plain_length + MAX_BYTES / 2 && length <= plain_length + MAX_BYTES);
    ensure!(
        rss <= plain_rss + MOST_RSS,
        "{rss} bytes instead of {plain_rss}"
    );
    // The large ones have even shares, and what they lack is said.
    let shares: Vec<usize> = large
        .iter()
        .map(|(_, cgroup)| metrics.count("custom_large", &[("id", &cgroup.id)]))
        .collect();
    let (least, most) = (shares.iter().min(), shares.iter().max());
    let (least, most) = least.zip(most).context("no shares")?;
    ensure!(*least > 20 && most - least <= 2, "{shares:?}");
    let lost = errors(&metrics, "bytes");
    ensure!(
        lost >= (60 * (1060 - most)) as f64,
        "{lost} left out of {shares:?}"
    );
    let log = agent.log();
    let named = large.iter().filter(|(_, cgroup)| {
        let lines = log
            .lines()
            .filter(|line| line.contains("--custom.max-bytes"));
        lines
            .filter(|line| line.contains(&format!("cgroup={} ", cgroup.id)))
            .count()
            == 1
    });
    let named = named.count();
    // Of one kind of message, 32 cgroups have lines of their own.
    ensure!(named >= 31, "{named} cgroups are named: {log}");
    Ok(())
}

fn bad() -> Result<()> {
    let application = Application::start("bad")?;
    let id = application.cgroup.id.as_str();
    let many: String = (0..30).map(|n| format!("many{{n=\"{n}\"}} 1\n")).collect();
    application.says("many", &many)?;
    application.says("lines", "good 1\nbad{x=1} 2\ngood 2\nalso_good 3\nworse\n")?;
    application.says("binary", "\u{0}\u{1}\u{2}\n")?;
    let paths = ["/many", "/lines", "/binary", "/nothing"];
    let closed = PORT + 1;
    let rules = [
        (&application.cgroup, PORT, &paths[..]),
        (&application.cgroup, closed, &["/metrics"][..]),
    ];
    let agent = agent(
        &config(&application.folder, &rules)?,
        &["--custom.max-samples", "20", "--custom.interval", "10m"],
    )?;
    let metrics = until(&agent, "not all endpoints were read", |metrics| {
        metrics.count("container_custom_up", &[("id", id)]) == 5
    })?;
    // Each was read once, so the counts are known.
    for (reason, count) in [("parse", 4.0), ("status", 1.0), ("connect", 1.0)] {
        same(reason, errors(&metrics, reason), count)?;
    }
    let up = |path| metrics.get("container_custom_up", &[("id", id), ("path", path)]);
    for (path, expected) in [
        ("/many", 1.0),
        ("/lines", 1.0),
        ("/nothing", 0.0),
        ("/metrics", 0.0),
    ] {
        same(path, up(path)?, expected)?;
    }
    // 10 samples over the limit of one answer, and the families over the limit of the cgroup.
    let left = metrics.count("custom_many", &[("id", id)]);
    let others = metrics.count("custom_good", &[]) + metrics.count("custom_also_good", &[]);
    ensure!(
        left + others <= 20 && left + others > 0,
        "{left} and {others} samples"
    );
    same(
        "too many",
        errors(&metrics, "samples"),
        10.0 + (22 - left - others) as f64,
    )?;
    let log = agent.log();
    for expected in [
        "bad lines: 3; line 2: ",
        "status is 404",
        "10 samples more than the 20 of --custom.max-samples",
        "connecting to port 9101",
    ] {
        ensure!(log.contains(expected), "not logged: {expected}: {log}");
    }
    Ok(())
}

fn stale() -> Result<()> {
    let mut application = Application::start("stale")?;
    application.says("metrics", "plain 1\n")?;
    let id = application.cgroup.id.clone();
    let rules = [(&application.cgroup, PORT, &["/metrics"][..])];
    let agent = agent(
        &config(&application.folder, &rules)?,
        &["--custom.max-age", "2s"],
    )?;
    until(&agent, "no answer", |metrics| {
        metrics.has("custom_plain", &[("id", &id)])
    })?;
    // From now on its answers are errors. The cgroup and its process still exist.
    fs::remove_file(application.folder.0.as_path().join("metrics"))?;
    until(&agent, "the old values are still served", |metrics| {
        !metrics.has("custom_plain", &[("id", &id)])
            && metrics
                .of(&id, "container_custom_up")
                .is_ok_and(|up| up == 0.0)
    })?;
    application.says("metrics", "plain 2\n")?;
    until(&agent, "the values are not served again", |metrics| {
        metrics
            .of(&id, "custom_plain")
            .is_ok_and(|value| value == 2.0)
    })?;
    application.worker.run("spin 1")
}

fn host_network() -> Result<()> {
    let folder = Folder::new("custom-host")?;
    fs::write(folder.0.as_path().join("metrics"), "plain 1\n")?;
    let cgroup = Cgroup::new()?;
    let port = crate::agent::free_port()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run(&format!("http {port} {}", folder.0.as_path().display()))?;
    let id = cgroup.id.as_str();
    let config = config(&folder, &[(&cgroup, port, &["/metrics"][..])])?;
    let careful = agent(&config, &[])?;
    let metrics = until(&careful, "not refused", |metrics| {
        errors(metrics, "host_network") >= 2.0
    })?;
    ensure!(
        !metrics.has("custom_plain", &[]),
        "an endpoint in the host's network was read"
    );
    let logged = careful.log().matches("--custom.host-network").count();
    same("logged", logged as f64, 1.0)?;
    drop(careful);
    let agent = agent(&config, &["--custom.host-network"])?;
    until(&agent, "no answer", |metrics| {
        metrics.has("custom_plain", &[("id", id)])
    })
    .map(drop)
}

/// An application in a Docker container. The container's labels say where its metrics are, and a
/// text file refers to it by name.
fn labelled() -> Result<()> {
    let docker = Docker::bare()?;
    let root = docker.path("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::create_dir(root.join("www"))?;
    let which = Command::new("sh")
        .args(["-c", "command -v busybox"])
        .output()?;
    let busybox = String::from_utf8(which.stdout)?;
    fs::copy(busybox.trim(), root.join("bin/busybox"))?;
    fs::write(root.join("www/stats"), "orders_total{name=\"x\"} 5\n")?;
    let archive = format!("{}.tar", root.display());
    let status = Command::new("tar")
        .args(["-C", &root.display().to_string(), "-cf", &archive, "."])
        .status()?;
    ensure!(status.success(), "tar");
    docker.run(&["import", &archive, "cgmeter-shop:1"])?;
    let files = docker.path("prom");
    fs::create_dir(&files)?;
    let name = "cgmeter-test-shop";
    fs::write(
        files.join("a.prom"),
        format!("backups{{container=\"{name}\"}} 3\n"),
    )?;
    let agent = reading(&files, &["--container.runtime", &docker.flag()])?;
    let mut run: Vec<&str> = "run -d --network none --ulimit nofile=1024:1024"
        .split(' ')
        .collect();
    run.extend(["--name", name, "--label", "prometheus.io/scrape=true"]);
    run.extend([
        "--label",
        "prometheus.io/port=8080",
        "--label",
        "prometheus.io/path=/stats",
    ]);
    run.push("cgmeter-shop:1");
    run.extend("/bin/busybox httpd -f -p 8080 -h /www".split(' '));
    docker.run(&run)?;
    let labels = [
        ("name", name),
        ("image", "cgmeter-shop:1"),
        ("exported_name", "x"),
    ];
    let metrics = until(&agent, "no answer", |metrics| {
        metrics.has("custom_orders_total", &labels) && metrics.has("custom_backups", &labels[..2])
    })?;
    same("orders", metrics.get("custom_orders_total", &labels)?, 5.0)?;
    same("backups", metrics.get("custom_backups", &labels[..2])?, 3.0)?;
    let plain = [labels[0], ("metric_name", "orders_total")];
    same(
        "orders",
        metrics.get("container_custom_metric", &plain)?,
        5.0,
    )?;
    same("up", metrics.get("container_custom_up", &labels[..2])?, 1.0)?;
    docker.run(&["rm", "-f", name])?;
    until(
        &agent,
        "it is still served after its container",
        |metrics| !metrics.has("custom_orders_total", &[]) && !metrics.has("custom_backups", &[]),
    )
    .map(drop)
}

/// Starts an agent that reads a directory of text files.
fn reading(folder: &Path, more: &[&str]) -> Result<Agent> {
    let folder = folder.display().to_string();
    let mut arguments = vec!["--custom.textfile-directory", &folder];
    arguments.extend(["--custom.interval", "200ms"]);
    arguments.extend(more);
    Agent::start(&arguments)
}

fn text_files() -> Result<()> {
    let folder = Folder::new("custom-files")?;
    let cgroup = Cgroup::new()?;
    let id = cgroup.id.as_str();
    let write = |name: &str, text: &str| -> Result<()> {
        let new = folder.0.as_path().join("new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, folder.0.as_path().join(name))?)
    };
    write(
        "host.prom",
        "# TYPE backup_seconds gauge\nbackup_seconds{disk=\"a\"} 5\n",
    )?;
    write(
        "cgroup.prom",
        &format!(
            "jobs{{id=\"{id}\",k=\"v\"}} 3\njobs{{id=\"/no/such\"}} 4\njobs{{container=\"nobody\"}} 5\n"
        ),
    )?;
    write("other.txt", "not_read 1\n")?;
    let agent = reading(folder.0.as_path(), &[])?;
    // They are served at the first scrape.
    let metrics = agent.scrape()?;
    let host = [("id", "/"), ("disk", "a")];
    same(
        "of the host",
        metrics.get("custom_backup_seconds", &host)?,
        5.0,
    )?;
    same(
        "of a cgroup",
        metrics.get("custom_jobs", &[("id", id), ("k", "v")])?,
        3.0,
    )?;
    let plain = [("id", id), ("metric_name", "jobs"), ("k", "v")];
    same(
        "of a cgroup",
        metrics.get("container_custom_metric", &plain)?,
        3.0,
    )?;
    same("series", metrics.count("custom_jobs", &[]) as f64, 1.0)?;
    same("owners", errors(&metrics, "owner"), 2.0)?;
    ensure!(!metrics.has("custom_not_read", &[]));
    let modified = fs::metadata(folder.0.as_path().join("host.prom"))?.modified()?;
    let modified = modified
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs_f64();
    let file = [("file", "host.prom")];
    let found = metrics.get("cgmeter_custom_file_mtime_seconds", &file)?;
    ensure!((found - modified).abs() < 1e-3, "{found} is not {modified}");
    // A changed file is read again. The samples of a removed file and of a too old file are
    // dropped.
    write("host.prom", "backup_seconds{disk=\"b\"} 6\n")?;
    let old = SystemTime::now() - Duration::from_secs(600);
    fs::File::options()
        .write(true)
        .open(folder.0.as_path().join("cgroup.prom"))?
        .set_modified(old)?;
    let metrics = until(&agent, "not read again", |metrics| {
        metrics.has("custom_backup_seconds", &[("id", "/"), ("disk", "b")])
            && !metrics.has("custom_jobs", &[])
    })?;
    ensure!(!metrics.has("custom_backup_seconds", &host));
    ensure!(metrics.has(
        "cgmeter_custom_file_mtime_seconds",
        &[("file", "cgroup.prom")]
    ));
    fs::remove_file(folder.0.as_path().join("host.prom"))?;
    until(&agent, "not forgotten", |metrics| {
        !metrics.has("custom_backup_seconds", &[])
            && !metrics.has("cgmeter_custom_file_mtime_seconds", &file)
    })
    .map(drop)
}

fn bad_text_files() -> Result<()> {
    let folder = Folder::new("custom-bad-files")?;
    let at = |name: &str| folder.0.as_path().join(name);
    let fifo = at("fifo.prom");
    let status = Command::new("mkfifo").arg(&fifo).status()?;
    ensure!(status.success(), "mkfifo");
    fs::write(at("target"), "linked 1\n")?;
    symlink(at("target"), at("link.prom"))?;
    fs::create_dir(at("folder.prom"))?;
    symlink("/dev/zero", at("device.prom"))?;
    fs::write(at("lines.prom"), "fine 1\nbad{ 2\n\nalso 3\n")?;
    fs::write(at("partial.prom"), "partial 1\npart")?;
    fs::write(at("time.prom"), "timed 1 1700000000000\nuntimed 1\n")?;
    fs::write(
        at("large.prom"),
        format!("large 1\n{}", "# more\n".repeat(1000)),
    )?;
    let agent = reading(folder.0.as_path(), &["--custom.max-body", "5000"])?;
    let metrics = agent.scrape()?;
    for name in ["custom_fine", "custom_also"] {
        same(
            name,
            metrics.get(name, &[("id", "/")])?,
            if name == "custom_fine" { 1.0 } else { 3.0 },
        )?;
    }
    for name in ["linked", "partial", "timed", "untimed", "large"] {
        ensure!(
            !metrics.has(&format!("custom_{name}"), &[]),
            "{name} was read"
        );
    }
    for reason in ["file", "parse", "timestamp", "size"] {
        ensure!(errors(&metrics, reason) >= 1.0, "no {reason}");
    }
    let log = agent.log();
    for expected in [
        "fifo.prom: not a regular file",
        "folder.prom: not a regular file",
        "link.prom: links are not followed",
        "device.prom: links are not followed",
        "lines.prom:2: ",
        "partial.prom: its last line has no end",
        "time.prom:1: a timestamp",
        "large.prom: more than 5000 bytes",
    ] {
        ensure!(
            log.matches(expected).count() == 1,
            "not logged exactly once: {expected}: {log}"
        );
    }
    // Once it is repaired, it is read.
    fs::write(at("new"), "partial 1\n")?;
    fs::rename(at("new"), at("partial.prom"))?;
    until(&agent, "not read", |metrics| {
        metrics.has("custom_partial", &[("id", "/")])
    })?;
    // If it is damaged again, the last good values are kept. The same message would be held back.
    fs::write(at("new"), "partial 2 1700000000000\n")?;
    fs::rename(at("new"), at("partial.prom"))?;
    until(&agent, "not reported", |_| {
        agent.log().contains("partial.prom:1: a timestamp")
    })?;
    let metrics = agent.scrape()?;
    same(
        "as before",
        metrics.get("custom_partial", &[("id", "/")])?,
        1.0,
    )?;
    ensure!(
        agent.log().matches("read without errors again").count() == 1,
        "{}",
        agent.log()
    );
    Ok(())
}
