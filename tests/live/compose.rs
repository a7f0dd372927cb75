//! The compose stack, as far as its images can be made here: agent, shop and customers, from the file that is
//! shipped, by docker-compose and a Docker daemon of the test's own. Oracle: Docker's own health states, /proc.

use std::{
    fs,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::{get, get_from},
    dockerd::Daemon,
    metrics::Metrics,
    needs::Need,
};

pub const TESTS: &[Test] = &[(
    "compose::what_can_run_is_healthy_and_scraped",
    &[
        Need::Agent,
        Need::Variable(
            FOLDER,
            "the folder with what `cargo xtask image` builds from",
        ),
        Need::Program("dockerd"),
        Need::Program("docker"),
        Need::Program("docker-compose"),
    ],
    stack,
)];

/// Where binaries and recipes are.
const FOLDER: &str = "CGMETER_IMAGE";
/// The file, and where what it mounts is.
const FILE: &str = include_str!("../../deploy/compose/compose.yaml");
const BESIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/compose");
/// The services whose images can be made here.
const SERVICES: [&str; 3] = ["cgmeter", "shop", "customers"];
/// The agent's address in the stack's network.
const INSIDE: &str = "172.30.95.1:10295";

/// The file, for docker-compose 1.29 (which does not know `cgroup`), with the ports that others may have on
/// this machine replaced, and a limit that needs no raising.
fn file(daemon: &Daemon) -> Result<String> {
    let mut text = FILE.to_owned();
    let socket = daemon.socket();
    for (from, to) in [
        ("    cgroup: host\n", ""),
        ("['127.0.0.1:8080:8080']", "['127.0.0.1::8080']"),
        ("ulimits: {nofile: 8192}", "ulimits: {nofile: 1024}"),
        (
            "/run/docker.sock:/run/docker.sock:ro",
            &format!("{socket}:/run/docker.sock:ro"),
        ),
        ("127.0.0.1:10295,172", "172"),
    ] {
        ensure!(
            text.matches(from).count() == 1,
            "{from:?} is not there once"
        );
        text = text.replace(from, to);
    }
    Ok(text)
}

fn stack() -> Result<()> {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap_or_default());
    let daemon = Daemon::start()?;
    for name in ["cgmeter", "shop"] {
        let from = folder.join(name).display().to_string();
        let tag = format!("{name}:0.1.0");
        daemon.docker(&["build", "--network", "none", "--tag", &tag, &from])?;
    }
    let path = daemon.folder().join("compose.yaml");
    fs::write(&path, file(&daemon)?)?;
    let path = path.display().to_string();
    let compose = |words: &[&str]| {
        let start = [
            "--project-directory",
            BESIDE,
            "--project-name",
            "cgmeter-test",
            "--file",
            &path,
        ];
        daemon.compose(&[&start[..], words].concat())
    };
    // What they depend on has no image here.
    for service in ["shop", "customers", "cgmeter"] {
        compose(&["up", "--detach", "--no-build", "--no-deps", service])?;
    }
    let id = |service: &str| compose(&["ps", "--quiet", service]);
    let until = Instant::now() + Duration::from_secs(120);
    for service in SERVICES {
        let id = id(service)?;
        loop {
            let state = daemon.docker(&["inspect", "--format", "{{.State.Health.Status}}", &id])?;
            if state == "healthy" {
                break;
            }
            let told = || daemon.docker(&["logs", &id]).unwrap_or_default();
            ensure!(Instant::now() < until, "{service} is {state}: {}", told());
            sleep(Duration::from_millis(500));
        }
    }
    // The agent, by the way that Prometheus has to it: another container in the stack's network.
    let asked = daemon.docker(&["exec", &id("shop")?, "/shop", "check", "--address", INSIDE]);
    // It has no /healthz: 404 is an answer, a refused connection is none.
    let told = asked.err().map(|error| format!("{error:#}"));
    ensure!(
        told.as_ref().is_some_and(|told| told.contains("404")),
        "{told:?}"
    );
    let host = get_from(INSIDE, "/metrics")?;
    let (head, body) = host.split_once("\r\n\r\n").context("no body")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    let metrics = Metrics::parse(body)?;
    let cgroup = format!("/{}/{}", daemon.parent(), id("shop")?);
    let used = metrics.of(&cgroup, "container_cpu_usage_seconds_total")?;
    ensure!(used > 0.0, "the shop has used no CPU");
    // Its port is published on loopback alone.
    let port = compose(&["port", "shop", "8080"])?;
    let number = port
        .strip_prefix("127.0.0.1:")
        .with_context(|| port.clone())?;
    let products = get(number.parse()?, "/products")?;
    ensure!(products.starts_with("HTTP/1.1 200"), "{products}");
    compose(&["down", "--volumes"])?;
    Ok(())
}
