//! More cgroups than slots: nothing is lost, and those without a slot have no series of their own.

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
const STARTED: &str = "container_processes_started_total";
const USER: &str = "container_cpu_user_seconds_total";

fn overflow() -> Result<()> {
    let agent = Agent::start(&["--cgroup.max", "4"])?;
    let parent = Cgroup::new()?;
    let before = agent.scrape()?;
    same(
        "overflow before",
        before.get("cgmeter_overflow_events_total", &[])?,
        0.0,
    )?;
    let mut work = Vec::new();
    for n in 0..12 {
        let cgroup = parent.child(&format!("c{n}"))?;
        Worker::once(&cgroup, "spin 40")?;
        work.push((cgroup.cpu_seconds()?, cgroup));
    }
    let after = agent.scrape()?;
    ensure!(after.get("cgmeter_overflow_events_total", &[])? >= 8.0);
    let mut without = 0;
    for (expected, cgroup) in &work {
        // All of it, or no series: never a part.
        if after.has(RUN, &[("id", &cgroup.id)]) {
            agree(
                &cgroup.id,
                after.of(&cgroup.id, RUN)?,
                *expected,
                0.001,
                0.001,
            )?;
        } else {
            without += 1;
            ensure!(!after.has(STARTED, &[("id", &cgroup.id)]), "{}", cgroup.id);
        }
        // What the kernel keeps is there for each.
        ensure!(after.has(USER, &[("id", &cgroup.id)]), "{}", cgroup.id);
    }
    ensure!(without >= 8, "{without} cgroups without a slot");
    // The parent, too, may have no slot: then its own parent, the root, has all of it.
    let all: f64 = work.iter().map(|(seconds, _)| seconds).sum();
    if after.has(RUN, &[("id", &parent.id)]) {
        agree("the parent", after.of(&parent.id, RUN)?, all, 0.001, 0.002)?;
    }
    let gained = after.of("/", RUN)? - before.of("/", RUN)?;
    ensure!(
        gained >= all,
        "the host gained {gained} s while its cgroups ran for {all} s"
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
