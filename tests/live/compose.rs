//! The shipped compose file, run by docker-compose with a Docker daemon that the test starts. Only
//! the services whose images can be built here are run: agent, shop and customers. Oracle: Docker's
//! health states, /proc.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::{self, get, get_from},
    docker::Docker,
    metrics::Metrics,
    needs::Need,
    runtimes::output,
};

pub const TESTS: &[Test] = &[(
    "compose::services_are_healthy_and_scraped",
    &[
        Need::Agent,
        Need::Variable(FOLDER, "the folder that `cargo xtask image` builds from"),
        Need::Program("dockerd"),
        Need::Program("docker"),
        Need::Program("docker-compose"),
    ],
    stack,
)];

/// The folder with the binaries and the Dockerfiles.
const FOLDER: &str = "CGMETER_IMAGE";
/// The folder with the compose file and the files that it mounts.
const FILE: &str = include_str!("../../deploy/compose/compose.yaml");
const BESIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/compose");
/// The services whose images can be built here.
const SERVICES: [&str; 3] = ["cgmeter", "shop", "customers"];
/// The agent's address in the stack's network.
const INSIDE: &str = "172.30.95.1:10295";
/// Where the agent's counters outlive its container.
const STATE: &str = "/sys/fs/bpf/cgmeter-test-compose";

/// The compose file, changed for docker-compose 1.29, which does not know `cgroup`. Ports that may
/// be in use on this machine are replaced, and the limit of open files is lowered so that no
/// privilege is needed.
fn file(docker: &Docker) -> Result<String> {
    let mut text = FILE.to_owned();
    let socket = docker.socket();
    let state = format!("      CGMETER_STATE_PIN: {STATE}\n      # Loopback, and");
    for (from, to) in [
        ("    cgroup: host\n", ""),
        ("['127.0.0.1:8080:8080']", "['127.0.0.1::8080']"),
        ("ulimits: {nofile: 8192}", "ulimits: {nofile: 1024}"),
        (
            "/run/docker.sock:/run/docker.sock:ro",
            &format!("{socket}:/run/docker.sock:ro"),
        ),
        ("127.0.0.1:10295,172", "172"),
        ("      # Loopback, and", &state),
    ] {
        ensure!(
            text.matches(from).count() == 1,
            "{from:?} does not occur exactly once"
        );
        text = text.replace(from, to);
    }
    Ok(text)
}

/// The running stack. On drop it removes its networks, because their bridges would outlive the
/// daemon.
struct Stack {
    docker: Docker,
    file: String,
}

impl Stack {
    fn new(docker: Docker) -> Result<Self> {
        let path = docker.path("compose.yaml");
        fs::write(&path, file(&docker)?)?;
        let file = path.display().to_string();
        Ok(Self { docker, file })
    }

    /// docker-compose, with all variables of the stack set.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.docker.client("docker-compose");
        command
            .args(["--project-directory", BESIDE])
            .args(["--project-name", "cgmeter-test"])
            .args(["--file", &self.file])
            .args(words);
        for service in [
            "GRAFANA", "POSTGRES", "REDIS", "ELASTIC", "KIBANA", "FILEBEAT",
        ] {
            command.env(format!("{service}_PASSWORD"), "only-for-this-test");
        }
        command
    }

    /// Its output. It must succeed.
    fn compose(&self, words: &[&str]) -> Result<String> {
        output(&mut self.command(words))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // A stopped daemon does not answer, and one that has died leaves the bridges behind.
        self.docker.daemon.signal(libc::SIGCONT);
        if !self.docker.daemon.lives() {
            let _ = self.docker.again();
        }
        patiently(&mut self.command(&["down", "--volumes", "--timeout", "0"]));
        match agent::run(&["unload", &format!("--state.pin={STATE}")]) {
            Ok(output) if output.status.success() => {}
            other => eprintln!("{STATE} is left: {other:?}"),
        }
        let mut docker = self.docker.client("docker");
        patiently(docker.args(["network", "prune", "--force"]));
    }
}

/// Runs a program that may fail, with a timeout.
fn patiently(command: &mut Command) {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    let Ok(mut child) = command.stderr(Stdio::null()).spawn() else {
        return;
    };
    let until = Instant::now() + Duration::from_secs(60);
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
        sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn wait_healthy(docker: &Docker, service: &str, id: &str) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let state = docker.inspect(id, "{{.State.Health.Status}}")?;
        if state == "healthy" {
            return Ok(());
        }
        let log = || docker.logs(id).unwrap_or_default();
        ensure!(Instant::now() < until, "{service} is {state}: {}", log());
        sleep(Duration::from_millis(500));
    }
}

fn stack() -> Result<()> {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap_or_default());
    let docker = Docker::bare()?;
    for name in ["cgmeter", "shop"] {
        let from = folder.join(name).display().to_string();
        docker.build(&format!("{name}:0.1.0"), &from)?;
    }
    let stack = Stack::new(docker)?;
    let docker = &stack.docker;
    // Their dependencies have no image here.
    for service in ["shop", "customers", "cgmeter"] {
        stack.compose(&["up", "--detach", "--no-build", "--no-deps", service])?;
    }
    let id = |service: &str| stack.compose(&["ps", "--quiet", service]);
    for service in SERVICES {
        wait_healthy(docker, service, &id(service)?)?;
    }
    // The agent, reached as Prometheus would: from another container in the stack's network.
    let asked = docker.run(&["exec", &id("shop")?, "/shop", "check", "--address", INSIDE]);
    // It has no /healthz: a status of 404 is an answer, a refused connection is not.
    let error = asked.err().map(|error| format!("{error:#}"));
    ensure!(
        error.as_ref().is_some_and(|error| error.contains("404")),
        "{error:?}"
    );
    // More processes than health checks start in the meantime.
    for _ in 0..20 {
        let _ = docker.run(&["exec", &id("shop")?, "/shop", "check"]);
    }
    let host = get_from(INSIDE, "/metrics")?;
    let metrics = Metrics::parse(host.ok_text()?)?;
    let cgroup = format!("{}/{}", docker.parent(), id("shop")?);
    let used = metrics.of(&cgroup, "container_cpu_usage_seconds_total")?;
    ensure!(used > 0.0, "the shop has used no CPU");
    // The runtime starts them outside of the container's cgroup.
    let ended =
        |metrics: &Metrics| metrics.sum("container_processes_exited_total", &[("id", &cgroup)]);
    let before = ended(&metrics);
    ensure!(before >= 20.0, "{before} processes of the shop have ended");
    // Another container of the agent goes on with the counters.
    stack.compose(&["rm", "--stop", "--force", "cgmeter"])?;
    stack.compose(&["up", "--detach", "--no-build", "--no-deps", "cgmeter"])?;
    wait_healthy(docker, "cgmeter", &id("cgmeter")?)?;
    let host = get_from(INSIDE, "/metrics")?;
    let now = ended(&Metrics::parse(host.ok_text()?)?);
    ensure!(now >= before, "{before} processes of the shop became {now}");
    // Its port is published only on loopback.
    let port = stack.compose(&["port", "shop", "8080"])?;
    let number = port
        .strip_prefix("127.0.0.1:")
        .with_context(|| port.clone())?;
    get(number.parse()?, "/products")?.ok_text()?;
    stack.compose(&["down", "--volumes"])?;
    Ok(())
}
