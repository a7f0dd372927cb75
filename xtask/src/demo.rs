//! `demo`: runs the agent, Prometheus, Alertmanager and the example shop under load, each in a cgroup of
//! its own.
//!
//! Invariants: everything listens and connects on loopback only. However the demo ends (Ctrl-C, SIGTERM,
//! a part that fails), its processes, cgroups and folder are removed; if it is killed by SIGKILL, at
//! least its processes end. Checked by tests/live/demo.rs.

mod cgroups;
mod config;
mod parts;
mod webhook;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::{cgroups::Cgroups, config::Ports, parts::Parts, webhook::Webhook};
use crate::{
    apt,
    build::{build, build_example},
    shell::{program, require_root, target},
};

/// Options of the demo.
#[derive(Debug, clap::Args)]
pub struct DemoOptions {
    /// End after this many seconds, rather than at Ctrl-C
    #[arg(long, value_name = "SECONDS")]
    duration: Option<u64>,
    /// Requests a second to the shop
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Use the programs cgmeter and shop in this folder, rather than build them
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
}

/// Debian's packages of the other programs.
const PROGRAMS: &[(&str, &str)] = &[
    ("prometheus", "prometheus"),
    ("prometheus-alertmanager", "prometheus-alertmanager"),
    ("setpriv", "util-linux"),
];
/// How long a part may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// Builds and starts all parts, prints their addresses, and waits for the end.
pub fn demo(options: &DemoOptions) -> Result<()> {
    require_root(
        "demo",
        "the agent loads BPF programs, and the demo makes cgroups",
    )?;
    // From here on, a signal ends the demo in order.
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("watching for signals")?;
    }
    install()?;
    let binaries = match &options.binaries {
        Some(folder) => folder.clone(),
        None => {
            build()?;
            build_example()?;
            target().join("release")
        }
    };
    let begin = Instant::now();
    let over = || {
        let limit = options.duration.map(Duration::from_secs);
        ended.load(Ordering::Relaxed) || limit.is_some_and(|limit| begin.elapsed() >= limit)
    };
    let ports = Ports::choose()?;
    let webhook = Webhook::start(ports.webhook)?;
    // Dropped in reverse order: processes first, then their cgroups and files.
    let cgroups = Cgroups::new()?;
    let folder = config::Folder::new(&ports)?;
    let mut parts = Parts::new(&cgroups, folder.path(), &ports, &binaries, options.rate);
    parts.start()?;
    let deadline = Instant::now() + PATIENCE;
    while let Some(missing) = parts.not_ready() {
        if over() {
            return Ok(());
        }
        parts.check()?;
        if Instant::now() > deadline {
            bail!("{}", parts.message(missing, "is not ready"));
        }
        sleep(Duration::from_millis(100));
    }
    print_guide(&ports, &cgroups, &binaries);
    webhook.print();
    while !over() {
        parts.check()?;
        sleep(Duration::from_millis(100));
    }
    println!(
        "ending: removing processes, cgroups and {}",
        folder.path().display()
    );
    Ok(())
}

/// Installs what is missing.
fn install() -> Result<()> {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(name, _)| program(name).is_none())
        .map(|&(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if let Err(why) = apt::usable() {
        bail!(
            "the demo needs {} ({why}): install them and put them on the path",
            missing.join(", ")
        );
    }
    apt::install(&missing)
}

/// Prints what to look at and what to try.
fn print_guide(ports: &Ports, cgroups: &Cgroups, binaries: &std::path::Path) {
    let Ports {
        agent,
        prometheus,
        alertmanager,
        shop,
        ..
    } = ports;
    let name = cgroups.name();
    let graph = |expression: &str| {
        format!(
            "http://127.0.0.1:{prometheus}/graph?g0.range_input=15m&g0.tab=0&g0.expr={}",
            http_client::escaped(expression)
        )
    };
    let chaos = format!(
        "{} chaos --address 127.0.0.1:{shop}",
        binaries.join("shop").display()
    );
    println!(
        "
Agent         http://127.0.0.1:{agent}/metrics
Prometheus    http://127.0.0.1:{prometheus}/
Alertmanager  http://127.0.0.1:{alertmanager}
Shop          http://127.0.0.1:{shop}/products

CPU by cgroup
  {}
Run-queue latency, 99 %
  {}
Requests by route and status
  {}

The rules are those of deploy/prometheus/rules, but that alerts wait for {} instead of minutes. In another terminal:
  {chaos} inventory=3          LowInventory fires in half a minute
  {chaos} reset=true           and resolves
  {chaos} error_rate=0.3       HighErrorRate
  {chaos} cpu=1                CPU above the shop's quota: throttled
Alerts are printed here as Alertmanager sends them. Ctrl-C ends it all.
",
        graph(&format!(
            "rate(container_cpu_usage_seconds_total{{id=~\"/{name}/.+\"}}[1m])"
        )),
        graph(&format!(
            "histogram_quantile(0.99, sum by (id, le) (rate(container_sched_runqueue_latency_seconds_bucket{{id=~\"/{name}/.+\"}}[1m])))"
        )),
        graph("sum by (route, status_code) (rate(http_request_duration_seconds_count[1m]))"),
        config::WAIT,
    );
}
