//! CPU time. Oracle: the cgroup's cpu.stat; for the host, /proc/schedstat or /proc/stat.

use std::{thread::sleep, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    metrics::{Metrics, agree},
    needs::{Need, emulated},
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "cpu::a_task_that_never_sleeps",
        &[Need::Agent],
        never_sleeps,
    ),
    ("cpu::many_threads", &[Need::Agent], many_threads),
    ("cpu::moving_between_cgroups", &[Need::Agent], moving),
    (
        "cpu::threads_moving_between_cgroups",
        &[Need::Agent, Need::TwoCpus],
        moving_threads,
    ),
    ("cpu::realtime_and_idle_tasks", &[Need::Agent], policies),
    ("cpu::user_and_system", &[Need::Agent], user_and_system),
    (
        "cpu::user_and_system_of_a_short_life",
        &[Need::Agent],
        short_life,
    ),
    (
        "cpu::time_before_the_agent",
        &[Need::Agent],
        before_the_agent,
    ),
    ("cpu::sum_of_the_host", &[Need::Agent], conservation),
];

const USAGE: &str = "container_cpu_usage_seconds_total";
/// One tick at the lowest usual HZ. The kernel's statistics of a running task are at most that old.
const TICK: f64 = 0.010;

/// Compares the agent's CPU time of a cgroup with cpu.stat, read before and after the scrape.
fn check(agent: &Agent, cgroup: &Cgroup, fraction: f64, slack: f64) -> Result<Metrics> {
    let before = cgroup.cpu_seconds()?;
    let metrics = agent.scrape()?;
    let after = cgroup.cpu_seconds()?;
    let found = metrics.of(&cgroup.id, USAGE)?;
    let slack = slack + (after - before);
    agree(&cgroup.id, found, before, fraction, slack)?;
    Ok(metrics)
}

/// The same for two cgroups between which tasks were moved: for their sum, and for each.
///
/// If cgroup2 has the cpu controller, the kernel adds the time that a running task has used since
/// the last tick to the cgroup that it is moved to. The agent adds it to the cgroup that it leaves.
/// An emulated CPU may have no tick while the real CPU is busy, so only the sum is certain there.
fn check_both(agent: &Agent, both: [&Cgroup; 2], slack: f64) -> Result<()> {
    let statistics = || -> Result<f64> { Ok(both[0].cpu_seconds()? + both[1].cpu_seconds()?) };
    let before = statistics()?;
    let metrics = agent.scrape()?;
    let window = statistics()? - before;
    let found = metrics.of(&both[0].id, USAGE)? + metrics.of(&both[1].id, USAGE)?;
    agree("both", found, before, 0.01, TICK + window)?;
    if !emulated() {
        for cgroup in both {
            check(agent, cgroup, 0.01, slack)?;
        }
    }
    Ok(())
}

fn never_sleeps() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.order("forever")?;
    for _ in 0..4 {
        sleep(Duration::from_millis(500));
        let metrics = check(&agent, &cgroup, 0.01, TICK)?;
        ensure!(metrics.of(&cgroup.id, USAGE)? > 0.0);
    }
    Ok(())
}

fn many_threads() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("threads 40 50")?;
    let metrics = check(&agent, &cgroup, 0.001, 0.001)?;
    let run = metrics.of(&cgroup.id, "container_cpu_schedstat_run_seconds_total")?;
    ensure!(
        run >= 2.0,
        "40 threads ran 50 ms each, {run} s were counted"
    );
    Ok(())
}

fn moving() -> Result<()> {
    let agent = Agent::start(&[])?;
    let (first, second) = (Cgroup::new()?, Cgroup::new()?);
    let mut worker = Worker::start(&first)?;
    worker.order("forever")?;
    // Irregular intervals, which match neither switches nor scrapes.
    for wait in [310, 170, 230, 410, 130] {
        sleep(Duration::from_millis(wait));
        second.admit(worker.pid())?;
        sleep(Duration::from_millis(wait / 2));
        first.admit(worker.pid())?;
    }
    // Two moves in a row, too fast for a switch between them.
    for _ in 0..20 {
        second.admit(worker.pid())?;
        first.admit(worker.pid())?;
    }
    sleep(Duration::from_millis(50));
    check_both(&agent, [&first, &second], TICK)
}

fn moving_threads() -> Result<()> {
    let agent = Agent::start(&[])?;
    let (first, second) = (Cgroup::new()?, Cgroup::new()?);
    let mut worker = Worker::start(&first)?;
    worker.order("start-threads 2")?;
    for wait in [310, 170, 230] {
        sleep(Duration::from_millis(wait));
        second.admit(worker.pid())?;
        sleep(Duration::from_millis(wait));
        first.admit(worker.pid())?;
    }
    sleep(Duration::from_millis(50));
    // Each of the six moves may be noticed some milliseconds late on a busy machine.
    check_both(&agent, [&first, &second], 6.0 * TICK)
}

fn policies() -> Result<()> {
    let agent = Agent::start(&[])?;
    for policy in ["fifo", "idle"] {
        let cgroup = Cgroup::new()?;
        let mut worker = Worker::start(&cgroup)?;
        worker.run(&format!("policy {policy}"))?;
        // Short bursts, because the kernel throttles real-time tasks after 0.95 s.
        for _ in 0..5 {
            worker.run("spin 100")?;
        }
        let metrics = check(&agent, &cgroup, 0.001, 0.001)?;
        ensure!(metrics.of(&cgroup.id, USAGE)? >= 0.5);
    }
    Ok(())
}

fn user_and_system() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("spin 300")?;
    worker.run("fork 300")?;
    let metrics = agent.scrape()?;
    for (family, key) in [
        ("container_cpu_user_seconds_total", "user_usec"),
        ("container_cpu_system_seconds_total", "system_usec"),
    ] {
        // cpu.stat has a resolution of a microsecond.
        agree(
            family,
            metrics.of(&cgroup.id, family)?,
            cgroup.cpu_stat(key)?,
            0.0,
            2e-6,
        )?;
    }
    Ok(())
}

/// A cgroup that was never scraped while it existed, so the kernel was never asked to sum up its
/// per-CPU counts.
fn short_life() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("spin 300")?;
    worker.finish()?;
    cgroup.remove()?;
    let metrics = agent.scrape()?;
    let usage = metrics.of(&cgroup.id, USAGE)?;
    let user = metrics.of(&cgroup.id, "container_cpu_user_seconds_total")?;
    let system = metrics.of(&cgroup.id, "container_cpu_system_seconds_total")?;
    ensure!(user >= 0.25, "it ran for 300 ms, but {user} s in user mode");
    // Their sum is the kernel's time of the cgroup. The usage is the agent's own count.
    agree("user and system", user + system, usage, 0.01, 0.001)
}

fn before_the_agent() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("spin 400")?;
    let agent = Agent::start(&[])?;
    let metrics = check(&agent, &cgroup, 0.01, 0.001)?;
    ensure!(metrics.of(&cgroup.id, USAGE)? >= 0.4);
    let since = metrics.of(&cgroup.id, "container_cpu_schedstat_run_seconds_total")?;
    ensure!(
        since < 0.1,
        "{since} s are reported since the agent's start"
    );
    worker.run("spin 200")?;
    check(&agent, &cgroup, 0.01, 0.001)?;
    // The counter continues after a restart of the agent.
    drop(agent);
    worker.run("spin 200")?;
    let agent = Agent::start(&[])?;
    let metrics = check(&agent, &cgroup, 0.01, 0.001)?;
    ensure!(metrics.of(&cgroup.id, USAGE)? >= 0.8);
    Ok(())
}

/// Seconds that all CPUs have spent on tasks, without and with what the hypervisor has taken from
/// them meanwhile (steal): most kernels don't count that as a task's time. They are from
/// /proc/schedstat, which is exact up to the last switch, or from /proc/stat on kernels without
/// SCHEDSTATS. /proc/stat counts ticks, and some are lost while an emulated CPU waits for a real one.
fn host_seconds() -> Result<[f64; 2]> {
    if let Ok(text) = std::fs::read_to_string("/proc/schedstat") {
        // cpuN, then six counts of calls, then the nanoseconds that tasks have run.
        let run = text
            .lines()
            .filter(|line| line.starts_with("cpu"))
            .filter_map(|line| line.split_whitespace().nth(7)?.parse::<f64>().ok());
        return Ok([run.sum::<f64>() / 1e9; 2]);
    }
    let text = std::fs::read_to_string("/proc/stat")?;
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = first
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    ensure!(ticks.len() >= 8, "{first:?} is no cpu line");
    // user, nice, system, irq, softirq, steal; in 1/100 s.
    let tasks = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6];
    Ok([tasks / 100.0, (tasks + ticks[7]) / 100.0])
}

fn conservation() -> Result<()> {
    const RUN: &str = "container_cpu_schedstat_run_seconds_total";
    let agent = Agent::start(&[])?;
    let outer = Cgroup::new()?;
    let cgroups = [outer.child("a")?, outer.child("b")?, Cgroup::new()?];
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut workers = Vec::new();
    // Every CPU is always busy with tasks, so the ticks equal the time of the tasks.
    for (n, cgroup) in cgroups.iter().cycle().take(cpus * 2).enumerate() {
        let mut worker = Worker::start(cgroup)?;
        worker.run(&format!("pin {}", n % cpus))?;
        workers.push(worker);
    }
    for worker in &mut workers {
        worker.order("forever")?;
    }
    sleep(Duration::from_millis(200));
    // The CPUs keep running during a scrape, which takes long on a busy machine.
    let scrape = || -> Result<([f64; 2], Metrics, [f64; 2])> {
        let before = host_seconds()?;
        let metrics = agent.scrape()?;
        Ok((before, metrics, host_seconds()?))
    };
    let (before, metrics, after) = scrape()?;
    sleep(Duration::from_secs(3));
    let (end_before, end, end_after) = scrape()?;
    let counted = end.of("/", RUN)? - metrics.of("/", RUN)?;
    let (least, most) = (end_before[0] - after[0], end_after[1] - before[1]);
    let slack = 0.005 * most + 4.0 * TICK * cpus as f64;
    ensure!(
        least - slack <= counted && counted <= most + slack,
        "the host: {counted}, not between {least} and {most} (slack {slack})"
    );
    // The sum of the parts is the total: no time is counted twice, and none is missing.
    let parts = end.of(&outer.id, RUN)? + end.of(&cgroups[2].id, RUN)?
        - metrics.of(&outer.id, RUN)?
        - metrics.of(&cgroups[2].id, RUN)?;
    ensure!(
        parts <= counted,
        "{parts} s in cgroups, {counted} s on the host"
    );
    agree(
        "nested",
        end.of(&outer.id, RUN)?,
        end.of(&cgroups[0].id, RUN)? + end.of(&cgroups[1].id, RUN)?,
        0.0,
        1e-6,
    )
}
