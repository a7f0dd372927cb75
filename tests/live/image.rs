//! The agent's container image, run as in deploy/docker/README.md by a Docker daemon that the test
//! starts. Oracle: an agent on the host at the same time, and counts of a known workload.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::{self, Agent, free_port, get},
    cgroup::Cgroup,
    docker::Docker,
    metrics::{Metrics, alike, same},
    needs::Need,
    wire::{self, End, V4},
};

const NEEDS: &[Need] = &[
    Need::Agent,
    Need::Variable(FOLDER, "the folder that `cargo xtask image` builds from"),
    Need::Program("dockerd"),
    Need::Program("docker"),
    Need::Program("ip"),
];

pub const TESTS: &[Test] = &[
    (
        "image::counts_what_an_agent_on_the_host_counts",
        NEEDS,
        same_numbers,
    ),
    ("image::each_capability_is_needed", NEEDS, capabilities),
];

/// The variable with the folder of the binary and the Dockerfile.
const FOLDER: &str = "CGMETER_IMAGE";
/// The mount below which the image keeps the agent's state.
const BPFFS: &str = "/sys/fs/bpf:/sys/fs/bpf";
/// The manual with the command to run.
const MANUAL: &str = include_str!("../../deploy/docker/README.md");
/// Datagrams that the workload sends to itself.
const DATAGRAMS: f64 = 100.0;
/// Processes of the workload that are killed.
const CHILDREN: f64 = 25.0;

/// Arguments of the manual's `docker run`.
fn manual() -> Result<Vec<String>> {
    let block = MANUAL.split("```sh\n").nth(1).context("no command")?;
    let block = block.split("```").next().unwrap_or_default();
    let words: Vec<String> = block
        .replace("\\\n", " ")
        .split_whitespace()
        .skip(1)
        .map(str::to_owned)
        .collect();
    ensure!(words.first().is_some_and(|word| word == "run"), "{words:?}");
    ensure!(!block.contains("privileged"), "{block}");
    Ok(words)
}

/// The manual's container on a port that the test chooses.
struct Contained<'a> {
    docker: &'a Docker,
    words: Vec<String>,
    name: String,
    port: u16,
    state: String,
}

impl Drop for Contained<'_> {
    fn drop(&mut self) {
        let flag = format!("--state.pin={}", self.state);
        match self.remove().and_then(|()| agent::run(&["unload", &flag])) {
            Ok(output) if output.status.success() => {}
            other => eprintln!("{} is left: {other:?}", self.state),
        }
    }
}

impl<'a> Contained<'a> {
    /// Starts it without the capabilities in `without`.
    fn start(docker: &'a Docker, name: &str, without: &[&str]) -> Result<Self> {
        let port = free_port()?;
        let mut words = manual()?;
        for capability in without {
            let at = words.iter().position(|word| word == capability);
            let at = at.with_context(|| format!("{capability} is not listed"))?;
            words.drain(at - 1..=at);
        }
        // Not where an agent of this machine may have its own.
        let state = format!("/sys/fs/bpf/cgmeter-test-{name}");
        ensure!(
            words.iter().any(|word| word == BPFFS),
            "no place for the state: {words:?}"
        );
        let of_image = docker.run(&["image", "inspect", "--format", "{{.Config.Env}}", IMAGE])?;
        ensure!(
            of_image.contains("CGMETER_STATE_PIN=/sys/fs/bpf/cgmeter"),
            "{of_image}"
        );
        let image = words.iter().position(|word| word.starts_with("cgmeter:"));
        words.truncate(image.context("no image")?);
        let at = words.iter().position(|word| word == "--name");
        words[at.context("no name")? + 1] = name.to_owned();
        words.extend(
            [
                "--env",
                "CGMETER_WEB_MIN_INTERVAL=0s",
                "--env",
                &format!("CGMETER_WEB_LISTEN_ADDRESS=127.0.0.1:{port}"),
                "--env",
                &format!("CGMETER_STATE_PIN={state}"),
                IMAGE,
            ]
            .map(str::to_owned),
        );
        let contained = Self {
            docker,
            words,
            name: name.to_owned(),
            port,
            state,
        };
        contained.run()?;
        Ok(contained)
    }

    /// Runs the container.
    fn run(&self) -> Result<()> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        self.docker.run(&words).map(drop)
    }

    /// Removes the container. What is pinned stays.
    fn remove(&self) -> Result<()> {
        self.docker.run(&["rm", "--force", &self.name]).map(drop)
    }

    fn state(&self, field: &str) -> Result<String> {
        let field = format!("{{{{.State.{field}}}}}");
        self.docker.inspect(&self.name, &field)
    }

    fn log(&self) -> String {
        self.docker
            .logs(&self.name)
            .unwrap_or_else(|error| format!("{error:#}"))
    }

    fn wait_ready(&self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(30);
        while !get(self.port, "/-/ready").is_ok_and(|answer| answer.status == 200) {
            let running = self.state("Running")?;
            ensure!(running == "true", "the container ended: {}", self.log());
            ensure!(Instant::now() < until, "not ready: {}", self.log());
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn scrape(&self) -> Result<String> {
        Ok(get(self.port, "/metrics")?.ok_text()?.to_owned())
    }
}

const IMAGE: &str = "cgmeter-image-test";

/// Starts a daemon and builds the image.
fn docker() -> Result<Docker> {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap_or_default()).join("cgmeter");
    let docker = Docker::bare()?;
    docker.build(IMAGE, &folder.to_string_lossy())?;
    Ok(docker)
}

/// Counters and histograms of a cgroup, by series.
fn counters(text: &str, id: &str) -> BTreeMap<String, String> {
    let label = format!("id=\"{id}\"");
    text.lines()
        .filter(|line| !line.starts_with('#') && line.contains(&label))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| {
            let name = series.split('{').next().unwrap_or_default();
            ["_total", "_bucket", "_sum", "_count"]
                .iter()
                .any(|end| name.ends_with(end))
        })
        .map(|(series, value)| (series.to_owned(), value.to_owned()))
        .collect()
}

/// Two ends of a veth pair, each in its own namespace. The first has done the workload.
struct Workload([End; 2]);

impl Workload {
    /// Runs the workload: CPU time, exits of processes, memory, and datagrams to the other end.
    fn run() -> Result<Self> {
        let mut ends = wire::pair()?;
        let [one, other] = &mut ends;
        other.worker.run(&format!("udp-bind {}:1001", V4[1]))?;
        for order in [
            "spin 50",
            "sleeps 100",
            &format!("kill {CHILDREN}"),
            "anon 500",
            &format!("udp-bind {}:1001", V4[0]),
            &format!("udp-send {}:1001 {DATAGRAMS} 500", V4[1]),
        ] {
            one.worker.run(order)?;
        }
        other.worker.run(&format!("udp-receive {DATAGRAMS}"))?;
        Ok(Self(ends))
    }

    fn cgroup(&self) -> &Cgroup {
        &self.0[0].cgroup
    }

    /// The counters of its interface in /proc.
    fn statistics(&self) -> Result<[f64; 8]> {
        wire::interface_of(self.0[0].worker.pid(), "eth0")
    }

    /// How many of its processes were killed, according to an agent.
    fn killed(&self, metrics: &Metrics) -> f64 {
        let labels = [("id", self.cgroup().id.as_str()), ("reason", "signaled")];
        metrics.sum("container_processes_exited_total", &labels)
    }

    /// How many packets its interface has sent, according to an agent.
    fn sent(&self, metrics: &Metrics) -> f64 {
        let labels = [("id", self.cgroup().id.as_str()), ("interface", "eth0")];
        metrics.sum("container_network_transmit_packets_total", &labels)
    }
}

/// Scrapes both agents until the kernel has sent no packet in between. It sends some for IPv6 by
/// itself.
fn at_rest(workload: &Workload, contained: &Contained<'_>, agent: &Agent) -> Result<[String; 2]> {
    for _ in 0..100 {
        let before = workload.statistics()?;
        let scrapes = [contained.scrape()?, agent.body("/metrics", "")?];
        if workload.statistics()? == before {
            return Ok(scrapes);
        }
        sleep(Duration::from_millis(50));
    }
    anyhow::bail!("the interfaces don't become idle")
}

fn same_numbers() -> Result<()> {
    let docker = docker()?;
    let contained = Contained::start(&docker, "cgmeter", &[])?;
    contained.wait_ready()?;
    let agent = Agent::start(&[])?;
    let workload = Workload::run()?;
    let cgroup = workload.cgroup();

    let [inside, outside] = at_rest(&workload, &contained, &agent)?;
    let (inside_counts, outside_counts) = (
        counters(&inside, &cgroup.id),
        counters(&outside, &cgroup.id),
    );
    ensure!(outside_counts.len() > 40, "{outside_counts:?}");
    let differing: Vec<String> = inside_counts
        .iter()
        .map(|(series, value)| (series, Some(value), outside_counts.get(series)))
        .chain(
            outside_counts
                .iter()
                .filter(|(series, _)| !inside_counts.contains_key(*series))
                .map(|(series, value)| (series, None, Some(value))),
        )
        .filter(|(series, inside, outside)| {
            let [inside, outside] = [*inside, *outside].map(|text| text?.parse::<f64>().ok());
            !alike(series, inside, outside)
        })
        .map(|(series, inside, outside)| format!("{series}: {inside:?} and {outside:?}"))
        .collect();
    ensure!(
        differing.is_empty(),
        "in the container and on the host:\n{}",
        differing.join("\n")
    );
    // Both agents may be wrong in the same way, so compare known counts too.
    let metrics = Metrics::parse(&inside)?;
    let id = &cgroup.id;
    same("processes killed", workload.killed(&metrics), CHILDREN)?;
    same(
        "packets sent",
        workload.sent(&metrics),
        workload.statistics()?[5],
    )?;
    ensure!(workload.sent(&metrics) >= DATAGRAMS);
    let used = metrics.of(id, "container_cpu_usage_seconds_total")?;
    let kernel = cgroup.cpu_seconds()?;
    ensure!(
        (used - kernel).abs() < 1e-4 + kernel / 1e3,
        "{used}, {kernel}"
    );
    // The sources are the same as on the host.
    let sources = |text: &str| -> Vec<String> {
        let of_source = |line: &&str| line.starts_with("cgmeter_source_up{");
        text.lines().filter(of_source).map(str::to_owned).collect()
    };
    ensure!(sources(&inside) == sources(&outside), "{}", contained.log());

    healthy(&contained)?;
    docker.run(&["stop", "--time", "20", "cgmeter"])?;
    let (code, log) = (contained.state("ExitCode")?, contained.log());
    ensure!(code == "0", "the container exited with {code}: {log}");
    // The next container goes on with the counters.
    contained.remove()?;
    contained.run()?;
    contained.wait_ready()?;
    let metrics = Metrics::parse(&contained.scrape()?)?;
    same("processes killed", workload.killed(&metrics), CHILDREN)
}

/// The image's health check succeeds for a running agent and fails without one.
fn healthy(contained: &Contained<'_>) -> Result<()> {
    let exec = ["exec", contained.name.as_str(), "/cgmeter", "healthcheck"];
    contained.docker.run(&exec)?;
    let elsewhere = ["--web.listen-address", "127.0.0.1:1"];
    let wrong = contained.docker.run(&[&exec[..], &elsewhere[..]].concat());
    ensure!(
        wrong.is_err(),
        "no agent listens there, but the check succeeds"
    );
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let health = contained.state("Health.Status")?;
        if health == "healthy" {
            return Ok(());
        }
        ensure!(
            health == "starting" && Instant::now() < until,
            "{health}: {}",
            contained.log()
        );
        sleep(Duration::from_millis(200));
    }
}

fn capabilities() -> Result<()> {
    let docker = docker()?;
    // Without SYS_ADMIN the agent exits and names the missing capability.
    let powerless = Contained::start(&docker, "powerless", &["SYS_ADMIN"])?;
    let until = Instant::now() + Duration::from_secs(30);
    while powerless.state("Running")? == "true" {
        ensure!(
            Instant::now() < until,
            "the container still runs: {}",
            powerless.log()
        );
        sleep(Duration::from_millis(50));
    }
    ensure!(powerless.state("ExitCode")? == "1");
    let log = powerless.log();
    ensure!(
        log.contains("not privileged") && log.contains("CAP_SYS_ADMIN"),
        "{log}"
    );

    // Without SYS_PTRACE it can't enter the namespace of a process with more privileges.
    let blind = Contained::start(&docker, "blind", &["SYS_PTRACE"])?;
    blind.wait_ready()?;
    let workload = Workload::run()?;
    let metrics = Metrics::parse(&blind.scrape()?)?;
    same("packets seen", workload.sent(&metrics), 0.0)?;
    same("processes killed", workload.killed(&metrics), CHILDREN)
}
