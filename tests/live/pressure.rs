//! Pressure. Oracle: cpu.pressure, memory.pressure, io.pressure.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    metrics::{agree, same},
    needs::Need,
    worker::Worker,
};

pub const TESTS: &[Test] = &[(
    "pressure::waiting_for_a_cpu",
    &[Need::Agent, Need::Pressure],
    cpu,
)];

/// Seconds of *some* and *full*.
fn totals(path: &std::path::Path) -> Result<[f64; 2]> {
    let text = fs::read_to_string(path)?;
    let total = |kind: &str| {
        let line = text.lines().find(|line| line.starts_with(kind))?;
        line.rsplit_once("total=")?.1.trim().parse::<f64>().ok()
    };
    let some = total("some").context("no `some`")?;
    Ok([some / 1e6, total("full").unwrap_or(0.0) / 1e6])
}

fn cpu() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("pin 0")?;
    // Two threads on one CPU, so one of them always waits.
    worker.run("threads 2 300")?;
    // Reading the file makes the kernel sum up the values. They don't change afterwards.
    std::thread::sleep(Duration::from_millis(2500));
    for (resource, some) in [("cpu", 0.2), ("memory", 0.0), ("io", 0.0)] {
        let expected = totals(&cgroup.directory.join(format!("{resource}.pressure")))?;
        let metrics = agent.scrape()?;
        let found = |kind: &str| {
            metrics.of(
                &cgroup.id,
                &format!("container_pressure_{resource}_{kind}_seconds_total"),
            )
        };
        // The file has whole microseconds.
        agree("waiting", found("waiting")?, expected[0], 0.0, 1.5e-6)?;
        agree("stalled", found("stalled")?, expected[1], 0.0, 1.5e-6)?;
        ensure!(expected[0] >= some, "{resource}: {} s", expected[0]);
    }
    let host = totals(std::path::Path::new("/proc/pressure/cpu"))?;
    let found = agent
        .scrape()?
        .of("/", "container_pressure_cpu_waiting_seconds_total")?;
    ensure!(
        found >= host[0] - 1e-6,
        "the host waited {} s, not {found}",
        host[0]
    );
    // The value is retained after the removal.
    let before = agent
        .scrape()?
        .of(&cgroup.id, "container_pressure_cpu_waiting_seconds_total")?;
    worker.finish()?;
    cgroup.remove()?;
    let after = agent
        .scrape()?
        .of(&cgroup.id, "container_pressure_cpu_waiting_seconds_total")?;
    same(
        "of the removed cgroup",
        f64::from(u8::from(after >= before)),
        1.0,
    )
}
