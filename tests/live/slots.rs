//! More cgroups than slots: nothing is lost, and the cgroups without a slot share one series.

use anyhow::{Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    metrics::{agree, same},
    needs::Need,
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    ("slots::more_cgroups_than_slots", &[Need::Agent], overflow),
    ("slots::slots_are_recycled", &[Need::Agent], recycling),
];

const RUN: &str = "container_cpu_schedstat_run_seconds_total";

fn overflow() -> Result<()> {
    let agent = Agent::start(&["--cgroup.max", "4"])?;
    let parent = Cgroup::new()?;
    let before = agent.scrape()?;
    same(
        "overflow before",
        before.get("cgmeter_overflow_events_total", &[])?,
        0.0,
    )?;
    ensure!(!before.has(RUN, &[("id", "(overflow)")]));
    let mut work = 0.0;
    let mut cgroups = Vec::new();
    for n in 0..12 {
        let cgroup = parent.child(&format!("c{n}"))?;
        Worker::once(&cgroup, "spin 40")?;
        work += cgroup.cpu_seconds()?;
        cgroups.push(cgroup);
    }
    let after = agent.scrape()?;
    ensure!(after.get("cgmeter_overflow_events_total", &[])? >= 8.0);
    let excess = after.of("(overflow)", RUN)?;
    ensure!(excess > 0.3, "only {excess} s are in the overflow");
    let own = after.of(&parent.id, RUN)?;
    agree("cgroups and overflow", own + excess, work, 0.05, 0.02)?;
    // The host's total includes everything.
    let gained = after.of("/", RUN)? - before.of("/", RUN)?;
    ensure!(
        gained >= work,
        "the host gained {gained} s while its cgroups ran for {work} s"
    );
    Ok(())
}

fn recycling() -> Result<()> {
    // Twelve cgroups one after the other, with room for six, so slots have to be recycled.
    let agent = Agent::start(&["--cgroup.max", "6"])?;
    let parent = Cgroup::new()?;
    for n in 0..12 {
        let cgroup = parent.child(&format!("c{n}"))?;
        Worker::once(&cgroup, "spin 20")?;
        let expected = cgroup.final_cpu_seconds()?;
        cgroup.remove()?;
        let metrics = agent.scrape()?;
        agree(
            &cgroup.id,
            metrics.of(&cgroup.id, RUN)?,
            expected,
            0.001,
            0.001,
        )?;
        if n % 3 == 2 {
            // Longer than the quarantine and the grace period together.
            std::thread::sleep(std::time::Duration::from_secs(4));
        }
    }
    let metrics = agent.scrape()?;
    same(
        "overflow",
        metrics.get("cgmeter_overflow_events_total", &[])?,
        0.0,
    )?;
    agree(
        &parent.id,
        metrics.of(&parent.id, RUN)?,
        parent.cpu_seconds()?,
        0.001,
        0.001,
    )
}
