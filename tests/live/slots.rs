//! More cgroups than slots: nothing is lost, and those without a slot have no series of their own.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    conservation::run_in,
    metrics::{Metrics, agree, same},
    needs::Need,
    runtimes::eventually,
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    ("slots::more_cgroups_than_slots", &[Need::Agent], overflow),
    ("slots::slots_are_recycled", &[Need::Agent], recycling),
    ("slots::shares_and_precedence", &[Need::Agent], shares),
    (
        "slots::more_cgroups_without_a_slot_than_entries",
        // Emulated CPUs take minutes for so many processes.
        &[Need::Agent, Need::RealCpus],
        unnoted,
    ),
    (
        "slots::more_new_cgroups_than_are_free_while_the_agent_is_stopped",
        &[Need::Agent],
        stopped,
    ),
];

const RUN: &str = "container_cpu_schedstat_run_seconds_total";
const STARTED: &str = "container_processes_started_total";
const USER: &str = "container_cpu_user_seconds_total";

/// What programs count by cgroup of a task.
const OWN: [&str; 4] = [
    RUN,
    STARTED,
    "container_cpu_usage_seconds_total",
    "container_sched_context_switches_total",
];

fn overflow() -> Result<()> {
    let agent = Agent::start(&["--cgroup.max", "64"])?;
    let parent = Cgroup::new()?;
    let before = agent.scrape()?;
    same(
        "overflow before",
        before.get("cgmeter_overflow_events_total", &[])?,
        0.0,
    )?;
    let mut work = Vec::new();
    for n in 0..70 {
        let cgroup = parent.child(&format!("c{n}"))?;
        let time = Duration::from_millis(if n == 69 { 400 } else { 5 });
        run_in(&cgroup, time)?;
        work.push((cgroup.final_cpu_seconds()?, cgroup));
    }
    let after = agent.scrape()?;
    ensure!(after.get("cgmeter_overflow_events_total", &[])? >= 6.0);
    let mut without = 0;
    for (expected, cgroup) in &work {
        // All of it, or no series: never a part.
        if after.has(RUN, &[("id", &cgroup.id)]) {
            agree(
                &cgroup.id,
                after.of(&cgroup.id, RUN)?,
                *expected,
                0.001,
                0.002,
            )?;
        } else {
            without += 1;
            for family in OWN {
                ensure!(
                    !after.has(family, &[("id", &cgroup.id)]),
                    "{family} of {}",
                    cgroup.id
                );
            }
        }
        // What the kernel keeps is there for each.
        ensure!(after.has(USER, &[("id", &cgroup.id)]), "{}", cgroup.id);
    }
    ensure!(without >= 6, "{without} cgroups without a slot");
    let (_, last) = &work[69];
    ensure!(
        !after.has(RUN, &[("id", &last.id)]),
        "the last one has a slot"
    );
    // The parent has all of it.
    let all: f64 = work.iter().map(|(seconds, _)| seconds).sum();
    agree("the parent", after.of(&parent.id, RUN)?, all, 0.001, 0.002)?;
    same("started", after.of(&parent.id, STARTED)?, 70.0)?;
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

/// Makes cgroups, each with a process that is born there. Returns them with their CPU time.
fn spinning(parent: &Cgroup, names: impl Iterator<Item = String>) -> Result<Vec<(f64, Cgroup)>> {
    let mut made = Vec::new();
    for name in names {
        let cgroup = parent.child(&name)?;
        run_in(&cgroup, Duration::from_millis(10))?;
        made.push((cgroup.final_cpu_seconds()?, cgroup));
    }
    Ok(made)
}

/// Makes so many cgroups, in each of which a process has worked.
fn worked(parent: &Cgroup, number: usize) -> Result<Vec<Cgroup>> {
    let made = (0..number).map(|n| {
        let cgroup = parent.child(&format!("c{n}"))?;
        run_in(&cgroup, Duration::from_millis(3))?;
        Ok(cgroup)
    });
    made.collect()
}

/// Whether a cgroup has series. If it has any, they have all of its CPU time.
fn is_served(metrics: &Metrics, cgroup: &Cgroup, expected: f64) -> Result<bool> {
    if !metrics.has(RUN, &[("id", &cgroup.id)]) {
        return Ok(false);
    }
    let found = metrics.of(&cgroup.id, RUN)?;
    agree(&cgroup.id, found, expected, 0.001, 0.002)?;
    Ok(true)
}

/// How many of these cgroups have series.
fn served(metrics: &Metrics, cgroups: &[(f64, Cgroup)]) -> Result<usize> {
    let mut served = 0;
    for (expected, cgroup) in cgroups {
        served += usize::from(is_served(metrics, cgroup, *expected)?);
    }
    Ok(served)
}

/// The same by what cpu.stat has now.
fn served_now(metrics: &Metrics, cgroups: &[Cgroup]) -> Result<usize> {
    let mut served = 0;
    for cgroup in cgroups
        .iter()
        .filter(|it| metrics.has(RUN, &[("id", &it.id)]))
    {
        served += usize::from(is_served(metrics, cgroup, cgroup.final_cpu_seconds()?)?);
    }
    Ok(served)
}

/// Of 80 slots 20 are for units, pods and containers, and one parent of other cgroups may have 30.
fn shares() -> Result<()> {
    let slice = Cgroup::named(&format!("cgmeter{}.slice", std::process::id()))?;
    let user = slice.child("user@7.service")?;
    let agent = Agent::start(&["--cgroup.max", "80"])?;
    let (greedy, modest) = (Cgroup::new()?, Cgroup::new()?);
    let many = spinning(&greedy, (0..50).map(|n| format!("c{n}")))?;
    let few = spinning(&modest, (0..5).map(|n| format!("c{n}")))?;
    let metrics = agent.scrape()?;
    // Two CPUs at the same time may go beyond by one, and the first child counts before the parent has a slot.
    let of_many = served(&metrics, &many)?;
    ensure!((30..=33).contains(&of_many), "{of_many} of one parent");
    ensure!(served(&metrics, &few)? == 5, "a parent with few has all");

    // Others take what is left for everybody. Units still get slots, but not those of a user's own.
    let other = Cgroup::new()?;
    let rest = spinning(&other, (0..40).map(|n| format!("c{n}")))?;
    let units = spinning(&slice, (0..10).map(|n| format!("unit{n}.service")))?;
    let containers = spinning(&slice, (0..4).map(|n| format!("docker-{n:064x}.scope")))?;
    let own = spinning(&user, (0..10).map(|n| format!("own{n}.service")))?;
    let metrics = agent.scrape()?;
    let of_rest = served(&metrics, &rest)?;
    ensure!(of_rest < 30, "{of_rest} of the others");
    ensure!(served(&metrics, &units)? == 10, "units have precedence");
    ensure!(
        served(&metrics, &containers)? == 4,
        "containers have precedence"
    );
    ensure!(served(&metrics, &own)? == 0, "a user's units have none");

    // Whose they are is said, and nothing is lost.
    let without = many.len() - of_many + rest.len() - of_rest + own.len();
    let found = metrics.sum("cgmeter_cgroups_without_slot", &[]);
    // A parent that came late may have no slot either.
    ensure!(
        (without as f64..=without as f64 + 4.0).contains(&found),
        "{found} cgroups without a slot instead of {without}"
    );
    let of_parent = metrics.get("cgmeter_cgroups_without_slot", &[("parent", &greedy.id)])?;
    same("without a slot", of_parent, (many.len() - of_many) as f64)?;
    let status: serde_json::Value = serde_json::from_str(&agent.body("/api/v1/status", "")?)?;
    let parents = &status["slots"]["without_by_parent"];
    let listed = |cgroup: &Cgroup, children: usize| {
        let parents = parents.as_array().into_iter().flatten();
        parents
            .filter(|found| found["parent"] == cgroup.id)
            .any(|found| found["children"] == children)
    };
    ensure!(listed(&greedy, many.len() - of_many), "{parents}");
    ensure!(listed(&other, rest.len() - of_rest), "{parents}");
    ensure!(agent.log().contains(&greedy.id), "{}", agent.log());
    for parent in [&greedy, &modest] {
        let expected = parent.cpu_seconds()?;
        agree(
            &parent.id,
            metrics.of(&parent.id, RUN)?,
            expected,
            0.001,
            0.002,
        )?;
    }

    // What goes makes room for others of the same parent.
    for (_, cgroup) in many {
        cgroup.remove()?;
    }
    eventually(|| {
        // Ends of processes are evidence that the slots' grace period is over.
        Worker::once(&modest, "spin 1")?;
        let metrics = agent.scrape()?;
        let retired = metrics.get("cgmeter_slots", &[("state", "quarantined")])?;
        same("slots of removed cgroups", retired, 0.0)
    })?;
    let again = spinning(&greedy, (0..5).map(|n| format!("d{n}")))?;
    ensure!(served(&agent.scrape()?, &again)? == 5);
    Ok(())
}

/// Of 4,200 cgroups of one parent nobody can note them all. A container gets its slot all the same, and nobody is served a part
/// of what it has used, also when there are free slots again.
fn unnoted() -> Result<()> {
    let slice = Cgroup::named(&format!("cgmeter{}.slice", std::process::id()))?;
    let agent = Agent::start(&["--cgroup.max", "64"])?;
    let parent = Cgroup::new()?;
    let mut many = worked(&parent, 4200)?;
    let container = slice.child(&format!("docker-{:064x}.scope", 7))?;
    run_in(&container, Duration::from_millis(50))?;
    let metrics = agent.scrape()?;
    ensure!(
        metrics.has(RUN, &[("id", &container.id)]),
        "the container has no slot"
    );
    served_now(&metrics, &[container])?;
    let with_slot = served_now(&metrics, &many)?;
    ensure!((1..=48).contains(&with_slot), "{with_slot} are served");
    same("started", metrics.of(&parent.id, STARTED)?, 4200.0)?;
    let without = metrics.get("cgmeter_cgroups_without_slot", &[("parent", &parent.id)])?;
    same("without a slot", without, (4200 - with_slot) as f64)?;

    // The first ones had the slots.
    many.drain(..100);
    eventually(|| {
        Worker::once(&parent, "spin 1")?;
        let free = agent.scrape()?.get("cgmeter_slots", &[("state", "free")])?;
        ensure!(free >= 10.0, "{free} slots are free");
        Ok(())
    })?;
    for cgroup in many.iter().rev().take(20) {
        run_in(cgroup, Duration::from_millis(10))?;
    }
    let metrics = agent.scrape()?;
    same("served again", served_now(&metrics, &many)? as f64, 0.0)?;
    let new = spinning(&parent, (0..5).map(|n| format!("new{n}")))?;
    ensure!(served(&agent.scrape()?, &new)? == 5, "new ones get slots");
    let seconds = agent.scrape()?.of(&parent.id, RUN)?;
    agree("the parent", seconds, parent.cpu_seconds()?, 0.001, 0.002)
}

/// More cgroups than there are free slots begin to work while nobody makes slots, and go on afterwards.
fn stopped() -> Result<()> {
    const MADE: usize = 700;
    let agent = Agent::start(&[])?;
    let parent = Cgroup::new()?;
    agent.scrape()?;
    agent.signal(libc::SIGSTOP);
    let made = worked(&parent, MADE);
    agent.signal(libc::SIGCONT);
    let made = made?;
    for cgroup in &made {
        run_in(cgroup, Duration::ZERO)?;
    }
    let metrics = agent.scrape()?;
    let served = served_now(&metrics, &made)?;
    println!("{served} of {MADE} have a slot");
    let without = metrics.get("cgmeter_cgroups_without_slot", &[("parent", &parent.id)])?;
    same("without a slot", without, (MADE - served) as f64)?;
    ensure!(served >= 128, "only {served} have a slot");
    same(
        "started",
        metrics.of(&parent.id, STARTED)?,
        (2 * MADE) as f64,
    )?;
    let seconds = metrics.of(&parent.id, RUN)?;
    agree("the parent", seconds, parent.cpu_seconds()?, 0.001, 0.002)
}
