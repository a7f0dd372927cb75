//! Processes. Oracle: known numbers of forks and execs, wait(2).

use anyhow::Result;

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    metrics::{Metrics, same},
    needs::Need,
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    ("process::forks_execs_and_exits", &[Need::Agent], forks),
    (
        "process::threads_do_not_count_as_processes",
        &[Need::Agent],
        threads,
    ),
];

const STARTED: &str = "container_processes_started_total";
const EXECUTED: &str = "container_processes_executed_total";
const EXITED: &str = "container_processes_exited_total";

fn counts(metrics: &Metrics, id: &str) -> Result<[f64; 4]> {
    Ok([
        metrics.of(id, STARTED)?,
        metrics.of(id, EXECUTED)?,
        metrics.get(EXITED, &[("id", id), ("reason", "exited")])?,
        metrics.get(EXITED, &[("id", id), ("reason", "signaled")])?,
    ])
}

fn check(agent: &Agent, cgroup: &Cgroup, before: [f64; 4], gained: [f64; 4]) -> Result<[f64; 4]> {
    let now = counts(&agent.scrape()?, &cgroup.id)?;
    for (at, what) in ["started", "executed", "exited", "signaled"]
        .iter()
        .enumerate()
    {
        same(what, now[at] - before[at], gained[at])?;
    }
    Ok(now)
}

fn forks() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    let counts = counts(&agent.scrape()?, &cgroup.id)?;
    worker.run("fork 150")?;
    let counts = check(&agent, &cgroup, counts, [150.0, 0.0, 150.0, 0.0])?;
    worker.run("kill 40")?;
    let counts = check(&agent, &cgroup, counts, [40.0, 0.0, 0.0, 40.0])?;
    worker.run("exec 30")?;
    let counts = check(&agent, &cgroup, counts, [30.0, 30.0, 30.0, 0.0])?;
    worker.finish()?;
    check(&agent, &cgroup, counts, [0.0, 0.0, 1.0, 0.0])?;
    Ok(())
}

fn threads() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    let counts = counts(&agent.scrape()?, &cgroup.id)?;
    worker.run("threads 25 1")?;
    let counts = check(&agent, &cgroup, counts, [0.0; 4])?;
    // A process with 26 threads that is killed by a signal counts as one exit.
    drop(worker);
    check(&agent, &cgroup, counts, [0.0, 0.0, 0.0, 1.0])?;
    Ok(())
}
