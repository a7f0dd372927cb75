//! Every counter and histogram of the reference, through everything that can happen to a cgroup.
//! None may fall, none may stay the same while its cgroup works, and none may be served for another
//! cgroup.
//!
//! Oracle: the previous scrapes. The families are those of `cgmeter metrics`. A family that is 0
//! after a [`life`] fails the test, unless the machine lacks what its act needs, or [`NEVER`] gives
//! a reason.

pub mod life;
pub mod watch;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use life::{ACTS, Group, Life};
use watch::Watch;

use crate::{
    Test,
    agent::{self, Agent},
    cgroup::{self, Cgroup, Hierarchy},
    metrics::{Metrics, agree},
    needs::{self, Need},
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "counters::a_recreated_path_continues",
        &[Need::Agent, Need::Loop],
        made_again,
    ),
    (
        "counters::after_lost_events_none_falls_or_stops",
        &[Need::Agent, Need::Loop],
        lost_events,
    ),
    (
        "counters::a_parent_removed_with_its_children_loses_nothing",
        &[Need::Agent, Need::Loop],
        together,
    ),
    (
        "counters::values_of_a_removed_cgroup_are_served_for_no_other",
        &[Need::Agent, Need::Loop],
        number_reused,
    ),
    (
        "counters::a_failed_reading_serves_values_of_no_other_cgroup",
        &[Need::Agent],
        failed_reading,
    ),
    (
        "counters::a_source_that_fails_is_absent_and_counted",
        &[Need::Agent],
        failed_source,
    ),
];

/// Counters that no act increases, with the reason.
const NEVER: &[(&str, &str)] = &[
    (
        "container_restarts_total",
        "counted by a container's runtime, see `runtimes`",
    ),
    (
        "container_memory_workingset_refault_anon_total",
        "the machines that run the tests have no swap",
    ),
    (
        "container_network_receive_errors_total",
        "a veth has no errors",
    ),
    (
        "container_network_transmit_errors_total",
        "a veth has no errors",
    ),
    (
        "container_network_transmit_packets_dropped_total",
        "a veth drops only packets that it can't deliver, which is not predictable",
    ),
    (
        "container_fs_io_time_seconds_total",
        "only the host has it, see `disk`",
    ),
    (
        "container_fs_io_time_weighted_seconds_total",
        "only the host has it, see `disk`",
    ),
    (
        "container_fs_reads_merged_total",
        "only the host has it, see `disk`",
    ),
    (
        "container_fs_writes_merged_total",
        "only the host has it, see `disk`",
    ),
    (
        "container_pressure_memory_waiting_seconds_total",
        "stalls of this length are not predictable, see `pressure`",
    ),
    (
        "container_pressure_memory_stalled_seconds_total",
        "stalls of this length are not predictable, see `pressure`",
    ),
    (
        "container_pressure_io_waiting_seconds_total",
        "stalls of this length are not predictable, see `pressure`",
    ),
    (
        "container_pressure_io_stalled_seconds_total",
        "stalls of this length are not predictable, see `pressure`",
    ),
];

/// Families that need not rise in each life, because caching and preemption are not predictable, and
/// the kernel updates pressure every two seconds.
const LUCK: &[&str] = &[
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_memory_workingset_refault_file_total",
    "container_cpu_cfs_burst_periods_total",
    "container_cpu_cfs_burst_seconds_total",
    "container_sched_preemptions_total",
    "container_memory_events_max_total",
    "container_memory_events_high_total",
    "container_cpu_system_seconds_total",
];

/// Counters and histograms of cgroups in the reference.
pub fn reference() -> Result<Vec<String>> {
    let output = agent::run(&["metrics"])?;
    let text = String::from_utf8(output.stdout)?;
    let family = |line: &str| {
        let (name, kind) = line.strip_prefix("  ")?.rsplit_once(" (")?;
        let name = name.split('{').next()?;
        let counts = ["counter)", "histogram)"].contains(&kind);
        (counts && name.starts_with("container_")).then(|| name.to_owned())
    };
    let families: Vec<String> = text.lines().filter_map(family).collect();
    ensure!(families.len() > 50, "only {} families", families.len());
    Ok(families)
}

/// Why this kernel does not count a family, although the machine has what it needs.
fn uncounted(family: &str) -> Option<&'static str> {
    let unified = matches!(cgroup::controller("hugetlb"), Some(Hierarchy::V2(_)));
    let recent = needs::missing(&[Need::Kernel(6, 15)]).is_none();
    (family == "container_hugetlb_failcnt" && unified && recent).then_some(
        "since 6.15 the kernel counts this only in v1 (mm/page_counter.c, track_failcnt)",
    )
}

/// Why a family may be 0 on this machine: it can't run the act that increases it, or its kernel does not
/// count it.
fn lacks(family: &str) -> Option<String> {
    let mut acts = ACTS.iter().filter(|act| act.families.contains(&family));
    acts.find_map(|act| needs::missing(act.needs))
        .or_else(|| uncounted(family).map(str::to_owned))
}

/// Whether no act increases a family.
fn never_rises(family: &str) -> bool {
    NEVER.iter().any(|(never, _)| *never == family)
}

/// Fails unless every family that can rise on this machine has risen. Prints those that can't.
fn all_rose(watch: &Watch, id: &str) -> Result<()> {
    let mut problems = Vec::new();
    for family in reference()? {
        if never_rises(&family) {
            continue;
        }
        if watch.sum(&family, id) > 0.0 {
            continue;
        }
        match lacks(&family) {
            Some(reason) => println!("{family}: 0, {reason}"),
            None => problems.push(format!("{family}: 0 after a life")),
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(())
}

/// Whether a family may rise in one life and not in another.
fn is_luck(family: &str) -> bool {
    LUCK.contains(&family) || never_rises(family)
}

/// Runs a life and scrapes. Every family that rose in an earlier life must rise again.
fn live(life: &mut Life, agent: &Agent, watch: &mut Watch) -> Result<()> {
    let id = life.id().to_owned();
    let before = watch.sums(&id);
    life.act()?;
    watch.scrape(agent)?;
    let still: Vec<&String> = before
        .iter()
        .filter(|(family, before)| {
            **before > 0.0 && !is_luck(family) && watch.sum(family, &id) <= **before
        })
        .map(|(family, _)| family)
        .collect();
    ensure!(
        still.is_empty(),
        "{id} did everything again, but these did not rise: {still:?}"
    );
    Ok(())
}

fn made_again() -> Result<()> {
    let agent = Agent::start(&[])?;
    let parent = Group::new()?;
    let mut watch = Watch::of(&parent.cgroup.id, &reference()?);
    let child = || Life::below(&parent, "again");
    let mut life = child()?;
    let id = life.id().to_owned();
    watch.scrape(&agent)?;
    live(&mut life, &agent, &mut watch)?;
    all_rose(&watch, &id)?;
    life.end()?;
    watch.scrape(&agent)?;
    // The next cgroup does nothing at first and has no quota.
    let mut life = child()?;
    watch.scrape(&agent)?;
    live(&mut life, &agent, &mut watch)?;
    // There is no scrape while it works, ends, and is followed by two more cgroups.
    life.act()?;
    life.end()?;
    child()?.end()?;
    let mut life = child()?;
    watch.scrape(&agent)?;
    live(&mut life, &agent, &mut watch)?;
    life.end()?;
    watch.scrape(&agent)
}

/// Counters that the kernel has in a file too, in which unseen work is looked for.
const UNSEEN: [&str; 3] = [
    "container_cpu_user_seconds_total",
    "container_memory_failcnt",
    "container_cpu_cfs_periods_total",
];

/// Creates and removes more cgroups than the ring buffer has room for.
fn overflow_events(parent: &Cgroup) -> Result<()> {
    for n in 0..2500 {
        parent.child(&format!("c{n}"))?.remove()?;
    }
    Ok(())
}

fn lost_events() -> Result<()> {
    let agent = Agent::start(&[])?;
    let parent = Group::new()?;
    let mut watch = Watch::of(&parent.cgroup.id, &reference()?);
    let child = || Life::below(&parent, "again");
    let mut life = child()?;
    live(&mut life, &agent, &mut watch)?;
    all_rose(&watch, life.id())?;
    let before = watch.sums(life.id());
    // The events of the removal and of the creation of the next cgroup with this path are lost.
    agent.signal(libc::SIGSTOP);
    let overflown = overflow_events(&parent.cgroup);
    let next = overflown.and_then(|()| {
        life.act()?;
        let ended = UNSEEN.map(|family| life.kernel_count(family));
        life.end()?;
        Ok((ended, child()?))
    });
    agent.signal(libc::SIGCONT);
    let (ended, mut life) = next?;
    watch.scrape(&agent)?;
    ensure!(
        watch.metric("cgmeter_lost_events_total") > 0.0,
        "the ring buffer had room for all events"
    );
    live(&mut life, &agent, &mut watch)?;
    // The unseen work of the first cgroup is in its final record.
    for (family, ended) in UNSEEN.into_iter().zip(ended) {
        let (Some(ended), Some(present)) = (ended?, life.kernel_count(family)?) else {
            continue;
        };
        let first = before.get(family).copied().unwrap_or(0.0);
        let unseen = ended - first;
        let now = watch.sum(family, life.id());
        // A period may have ended after the scrape.
        ensure!(
            unseen > 0.0 && now > ended + present - unseen / 10.0,
            "{family}: {now}, where the kernel counted {ended} and {present}, of which {unseen} while \
             the agent was stopped"
        );
    }
    life.end()?;
    watch.scrape(&agent)
}

fn together() -> Result<()> {
    let agent = Agent::start(&["--cgroup.linger", "4s"])?;
    let top = Group::new()?;
    let mut watch = Watch::of(&top.cgroup.id, &reference()?);
    for _ in 0..2 {
        let parent = top.child("parent")?;
        let id = parent.cgroup.id.clone();
        let mut lives = [Life::below(&parent, "a")?, Life::below(&parent, "b")?];
        for life in &mut lives {
            life.act()?;
        }
        watch.scrape(&agent)?;
        all_rose(&watch, lives[0].id())?;
        for life in &mut lives {
            life.act()?;
        }
        // All of them are removed before the next scrape.
        for life in lives {
            life.end()?;
        }
        parent.remove()?;
        watch.scrape(&agent)?;
        // They are reaped, and their slots are recycled.
        let end = Instant::now() + Duration::from_secs(30);
        while watch.sees(&id) {
            ensure!(Instant::now() < end, "{id} is still reported");
            sleep(Duration::from_millis(500));
            watch.scrape(&agent)?;
        }
        sleep(Duration::from_secs(4));
        watch.scrape(&agent)?;
    }
    Ok(())
}

fn number_reused() -> Result<()> {
    // Longer than it takes until the cgroups are reaped and others have their node numbers.
    const INTERVAL: Duration = Duration::from_secs(40);
    let interval = format!("{}s", INTERVAL.as_secs());
    let agent = Agent::start(&["--web.min-interval", &interval, "--cgroup.linger", "1s"])?;
    let top = Group::new()?;
    let mut watch = Watch::of(&top.cgroup.id, &reference()?);
    let mut lives = [Life::below(&top, "a")?, Life::below(&top, "b")?];
    for life in &mut lives {
        life.act()?;
    }
    let begin = Instant::now();
    watch.scrape(&agent)?;
    all_rose(&watch, lives[0].id())?;
    for life in lives {
        life.end()?;
    }
    sleep(Duration::from_secs(5));
    let fresh = (0..8)
        .map(|n| top.child(&format!("fresh-{n}")))
        .collect::<Result<Vec<_>>>()?;
    sleep(Duration::from_millis(500));
    let none = |watch: &Watch| {
        for Group { cgroup, .. } in &fresh {
            let sums = watch.sums(&cgroup.id);
            let foreign: Vec<_> = sums.iter().filter(|(_, sum)| **sum > 0.0).collect();
            ensure!(
                foreign.is_empty(),
                "{} has done nothing, but is served {foreign:?}",
                cgroup.id
            );
        }
        Ok(())
    };
    watch.scrape(&agent)?;
    ensure!(
        begin.elapsed() < INTERVAL,
        "this machine is too slow for this test"
    );
    none(&watch)?;
    // The same for the next frame.
    sleep(INTERVAL.saturating_sub(begin.elapsed()) + Duration::from_millis(500));
    watch.scrape(&agent)?;
    for Group { cgroup, .. } in &fresh {
        ensure!(watch.sees(&cgroup.id), "{} is not reported", cgroup.id);
    }
    none(&watch).context("after the next frame")
}

/// While the kernel statistics could not be read, a cgroup was served the values of the removed one
/// that had its node number before, and kept them for good.
fn failed_reading() -> Result<()> {
    let agent = Agent::start(&["--cgroup.linger=0s"])?;
    let parent = Cgroup::new()?;
    let old = parent.child("old")?;
    let mut worker = Worker::start(&old)?;
    worker.run("spin 300")?;
    let usage = |metrics: &Metrics, cgroup: &Cgroup| -> Result<f64> {
        let of = |mode| metrics.of(&cgroup.id, &format!("container_cpu_{mode}_seconds_total"));
        Ok(of("user")? + of("system")?)
    };
    ensure!(usage(&agent.scrape()?, &old)? > 0.1);
    worker.finish()?;
    old.remove()?;
    // The node is reaped within one round of the agent. Nothing may be scraped until then.
    sleep(Duration::from_secs(1));
    let new = parent.child("new")?;
    let mut worker = Worker::start(&new)?;
    worker.run("spin 20")?;
    let limit = agent.allow_one_more_file()?;
    let during = agent.scrape()?;
    drop(limit);
    during.scrape_error(1.0)?;
    let metrics = agent.scrape()?;
    metrics.scrape_error(0.0)?;
    let own = new.cpu_stat("user_usec")? + new.cpu_stat("system_usec")?;
    agree("the new cgroup", usage(&metrics, &new)?, own, 0.01, 0.002)
}

/// Sources, each with its families of cgroups.
fn families_by_source() -> Result<Vec<(String, Vec<String>)>> {
    let text = String::from_utf8(agent::run(&["metrics"])?.stdout)?;
    let mut sources: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with("   ")) {
        match line.strip_prefix("  ") {
            None => sources.push((line.to_owned(), Vec::new())),
            Some(family) => {
                let name = family.split(['{', ' ']).next().unwrap_or_default();
                let families = sources.last_mut().map(|(_, families)| families);
                families.context("no source")?.push(name.to_owned());
            }
        }
    }
    Ok(sources)
}

/// A failed source served its last values, which nobody could tell from new ones. Oracle: cpu.stat before
/// and after, and the families that `cgmeter metrics` lists by source.
fn failed_source() -> Result<()> {
    let agent = Agent::start(&[])?;
    let parent = Cgroup::new()?;
    let one = parent.child("one")?;
    let mut worker = Worker::start(&one)?;
    worker.run("spin 200")?;
    let time = |metrics: &Metrics| -> Result<f64> {
        let of = |mode| metrics.of(&one.id, &format!("container_cpu_{mode}_seconds_total"));
        Ok(of("user")? + of("system")?)
    };
    let before = agent.scrape()?;
    before.scrape_error(0.0)?;
    let shown = time(&before)?;
    // The files of a new cgroup below the root have to be opened.
    let _new = Cgroup::new()?;
    worker.run("spin 100")?;
    let limit = agent.allow_one_more_file()?;
    let during = agent.scrape()?;
    drop(limit);
    during.scrape_error(1.0)?;
    let errors = |source: &str| during.get("cgmeter_source_errors_total", &[("source", source)]);
    let mut failed = Vec::new();
    for (source, families) in families_by_source()? {
        // A source that is off, and what no source serves, are not counted.
        let Ok(errors) = errors(&source) else {
            continue;
        };
        for family in &families {
            let names = ["", "_bucket"].map(|end| format!("{family}{end}"));
            let [had, has] =
                [&before, &during].map(|metrics| names.iter().any(|name| metrics.has(name, &[])));
            // A family may have its first series now.
            let right = if errors > 0.0 { !has } else { has || !had };
            ensure!(
                right,
                "{family}: served before: {had}, now: {has}; failed readings of {source}: {errors}"
            );
        }
        failed.extend((errors > 0.0).then_some(source));
    }
    println!("failed: {failed:?}");
    for source in ["cpu", "pressure", "memory", "pids"] {
        let off = during.get("cgmeter_source_up", &[("source", source)])? != 1.0;
        ensure!(
            off || failed.iter().any(|name| name == source),
            "{source} has not failed"
        );
    }
    // What cgmeter counts itself is as right as ever.
    let used = one.cpu_stat("usage_usec")?;
    let found = during.get(
        "container_cpu_usage_seconds_total",
        &[("id", &one.id), ("cpu", "total")],
    )?;
    agree("CPU time meanwhile", found, used, 0.01, 0.002)?;
    let after = agent.scrape()?;
    after.scrape_error(0.0)?;
    let own = one.cpu_stat("user_usec")? + one.cpu_stat("system_usec")?;
    agree("afterwards", time(&after)?, own, 0.01, 0.002)?;
    ensure!(time(&after)? > shown, "{} after {shown}", time(&after)?);
    for source in &failed {
        let errors = after.get("cgmeter_source_errors_total", &[("source", source)])?;
        ensure!(errors == 1.0, "{source}: {errors} failed readings");
    }
    Ok(())
}
