//! CFS bandwidth and shares, and the limit on tasks. Oracle: the files of the cpu and pids
//! controllers.

use anyhow::{Result, ensure};

use crate::{
    Test, agent::Agent, cgroup::Cgroup, metrics::same, needs::Need, twin::Twin, worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "pids::a_quota_and_its_throttling",
        &[Need::Agent, Need::Controller("cpu")],
        quota,
    ),
    (
        "pids::tasks",
        &[Need::Agent, Need::Controller("pids")],
        tasks,
    ),
];

fn set_quota(twin: &Twin, quota_us: u64, period_us: u64) -> Result<()> {
    if twin.v1 {
        twin.write("cpu.cfs_period_us", &period_us.to_string())?;
        twin.write("cpu.cfs_quota_us", &quota_us.to_string())
    } else {
        twin.write("cpu.max", &format!("{quota_us} {period_us}"))
    }
}

/// Throttled time in seconds. The file has nanoseconds in v1, microseconds in cgroup2.
fn throttled_seconds(twin: &Twin) -> Result<f64> {
    if twin.v1 {
        Ok(twin.stat("cpu.stat", "throttled_time")? / 1e9)
    } else {
        Ok(twin.stat("cpu.stat", "throttled_usec")? / 1e6)
    }
}

fn quota() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let twin = Twin::of(&cgroup, "cpu")?;
    let mut worker = Worker::start(&cgroup)?;
    twin.admit(worker.pid())?;
    let metrics = agent.scrape()?;
    let periods = "container_cpu_cfs_periods_total";
    ensure!(
        !metrics.has(periods, &[("id", &cgroup.id)]),
        "families of a quota exist without a quota"
    );
    set_quota(&twin, 20_000, 100_000)?;
    worker.run("spin 200")?;
    // The cgroup is idle now. The kernel counts periods only while a quota is enforced on running
    // tasks.
    worker.run("sleeps 1")?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let metrics = agent.scrape()?;
    let found = |name: &str| metrics.of(&cgroup.id, name);
    same("quota", found("container_spec_cpu_quota")?, 20_000.0)?;
    same("period", found("container_spec_cpu_period")?, 100_000.0)?;
    same(
        "periods",
        found(periods)?,
        twin.stat("cpu.stat", "nr_periods")?,
    )?;
    let throttled = found("container_cpu_cfs_throttled_periods_total")?;
    same(
        "throttled periods",
        throttled,
        twin.stat("cpu.stat", "nr_throttled")?,
    )?;
    ensure!(
        throttled >= 5.0,
        "200 ms at 20 ms a period were throttled {throttled} times"
    );
    let seconds = found("container_cpu_cfs_throttled_seconds_total")?;
    crate::metrics::agree("throttled", seconds, throttled_seconds(&twin)?, 0.0, 2e-6)?;
    same(
        "bursts",
        found("container_cpu_cfs_burst_periods_total")?,
        twin.stat("cpu.stat", "nr_bursts")?,
    )?;
    let shares = found("container_spec_cpu_shares")?;
    if twin.v1 {
        same("shares", shares, twin.number("cpu.shares")?)?;
    } else {
        let weight = twin.number("cpu.weight")?;
        same(
            "shares",
            shares,
            (2.0 + (weight - 1.0) * 262_142.0 / 9_999.0).floor(),
        )?;
    }
    Ok(())
}

fn tasks() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let twin = Twin::of(&cgroup, "pids")?;
    let limit = || agent.scrape()?.of(&cgroup.id, "container_threads_max");
    same("no limit", limit()?, 0.0)?;
    twin.write("pids.max", "17")?;
    same("limit", limit()?, twin.number("pids.max")?)?;
    twin.write("pids.max", "max")?;
    same("no limit after its removal", limit()?, 0.0)
}
