//! Cgroups that are created, removed, nested and created again, and that have strange names.

use std::{
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::{Cgroup, root},
    metrics::{Metrics, agree, same},
    needs::Need,
    twin::Twin,
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "tree::a_thousand_short_lived_cgroups",
        &[Need::Agent],
        short_lives,
    ),
    ("tree::nested_and_removed_cgroups", &[Need::Agent], nested),
    (
        "tree::created_and_removed_while_the_agent_was_down",
        &[Need::Agent],
        while_down,
    ),
    (
        "tree::removed_cgroups_linger_and_are_reaped",
        &[Need::Agent],
        linger,
    ),
    (
        "tree::empty_cgroups_leave_nothing_behind",
        &[Need::Agent],
        empty,
    ),
    (
        "tree::removed_cgroups_above_the_bound_count_in_their_parent",
        &[Need::Agent],
        bounded,
    ),
    (
        "tree::a_recreated_path_continues",
        &[Need::Agent],
        made_again,
    ),
    ("tree::include_and_exclude", &[Need::Agent], filters),
    (
        "tree::lost_events_are_recovered",
        &[Need::Agent],
        lost_events,
    ),
    (
        "tree::descendants_of_a_renamed_v1_cgroup",
        &[Need::Agent, Need::V1("pids")],
        renamed_v1,
    ),
];

const USAGE: &str = "container_cpu_usage_seconds_total";

/// Compares a cgroup's CPU time with its cpu.stat.
fn usage_agrees(metrics: &Metrics, cgroup: &Cgroup) -> Result<()> {
    let (found, expected) = (metrics.of(&cgroup.id, USAGE)?, cgroup.cpu_seconds()?);
    agree(&cgroup.id, found, expected, 0.001, 0.001)
}

/// Scrapes until a cgroup is not reported any more.
fn wait_until_gone(agent: &Agent, id: &str) -> Result<Metrics> {
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let metrics = agent.scrape()?;
        if !metrics.has(USAGE, &[("id", id)]) {
            return Ok(metrics);
        }
        ensure!(Instant::now() < until, "{id} is still reported");
        sleep(Duration::from_millis(100));
    }
}

fn short_lives() -> Result<()> {
    const LIVES: usize = 1000;
    let agent = Agent::start(&["--cgroup.dead-max=10000"])?;
    let parent = Cgroup::new()?;
    let mut work = 0.0;
    let mut longest = Duration::ZERO;
    for n in 0..LIVES {
        let begin = Instant::now();
        let cgroup = parent.child(&format!("job-{n}"))?;
        Worker::once(&cgroup, "spin 2")?;
        work += cgroup.cpu_seconds()?;
        cgroup.remove()?;
        longest = longest.max(begin.elapsed());
    }
    let metrics = agent.scrape()?;
    let prefix = format!("{}/", parent.id);
    let found = metrics
        .ids(USAGE)
        .iter()
        .filter(|id| id.starts_with(&prefix))
        .count();
    ensure!(
        found == LIVES,
        "{found} of {LIVES} cgroups (longest life {longest:?}) are reported"
    );
    let counted: f64 = (0..LIVES)
        .map(|n| metrics.of(&format!("{prefix}job-{n}"), USAGE))
        .sum::<Result<f64>>()?;
    agree("their work", counted, work, 0.01, 0.0)?;
    agree(
        "their parent's",
        metrics.of(&parent.id, USAGE)?,
        parent.cpu_seconds()?,
        0.01,
        0.0,
    )?;
    for reason in ["exited", "signaled"] {
        let labels = [("id", parent.id.as_str()), ("reason", reason)];
        let ended = metrics.get("container_processes_exited_total", &labels)?;
        same(
            reason,
            ended,
            if reason == "exited" {
                LIVES as f64
            } else {
                0.0
            },
        )?;
    }
    // Each creation is reported once. Other processes on this host may create cgroups meanwhile.
    let births = metrics.get("cgmeter_events_total", &[("program", "cgroup_mkdir")])?;
    let lives = LIVES as f64;
    ensure!(
        (lives..lives * 1.1).contains(&births),
        "{births} of {LIVES} creations were reported"
    );
    same(
        "lost events",
        metrics.get("cgmeter_lost_events_total", &[])?,
        0.0,
    )?;
    same(
        "overflow",
        metrics.get("cgmeter_overflow_events_total", &[])?,
        0.0,
    )
}

fn nested() -> Result<()> {
    let agent = Agent::start(&["--cgroup.linger", "1s"])?;
    let top = Cgroup::new()?;
    let middle = top.child("middle")?;
    let leaf = middle.child("leaf")?;
    for cgroup in [&top, &middle, &leaf] {
        Worker::once(cgroup, "spin 60")?;
    }
    let metrics = agent.scrape()?;
    for cgroup in [&top, &middle, &leaf] {
        usage_agrees(&metrics, cgroup)?;
    }
    leaf.remove()?;
    middle.remove()?;
    // Removed cgroups are reaped. Their counts stay in their living ancestors.
    let metrics = wait_until_gone(&agent, &middle.id)?;
    ensure!(!metrics.has(USAGE, &[("id", &leaf.id)]));
    usage_agrees(&metrics, &top)?;
    // Longer than a slot's quarantine, because recycling must not lose anything either.
    sleep(Duration::from_secs(4));
    let metrics = agent.scrape()?;
    usage_agrees(&metrics, &top)
}

fn while_down() -> Result<()> {
    let (stays, goes) = (Cgroup::new()?, Cgroup::new()?);
    let agent = Agent::start(&[])?;
    ensure!(agent.scrape()?.has(USAGE, &[("id", &goes.id)]));
    ensure!(agent.stop(libc::SIGTERM)?.success());
    goes.remove()?;
    let comes = Cgroup::new()?;
    let mut worker = Worker::start(&comes)?;
    worker.run("spin 100")?;
    let agent = Agent::start(&[])?;
    let metrics = agent.scrape()?;
    ensure!(metrics.has(USAGE, &[("id", &stays.id)]));
    ensure!(
        !metrics.has(USAGE, &[("id", &goes.id)]),
        "{} is gone",
        goes.id
    );
    agree(
        &comes.id,
        metrics.of(&comes.id, USAGE)?,
        comes.cpu_seconds()?,
        0.01,
        0.001,
    )
}

fn linger() -> Result<()> {
    let agent = Agent::start(&["--cgroup.linger", "3s"])?;
    let cgroup = Cgroup::new()?;
    let id = [("id", cgroup.id.as_str())];
    let mut worker = Worker::start(&cgroup)?;
    worker.run("spin 50")?;
    let alive = agent.scrape()?;
    let created = alive.of(&cgroup.id, "container_creation_time_seconds")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    ensure!(
        (0.0..60.0).contains(&(now - created)),
        "made at {created}, now is {now}"
    );
    worker.finish()?;
    cgroup.remove()?;
    let removed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let dead = agent.scrape()?;
    ensure!(dead.of(&cgroup.id, USAGE)? >= 0.05, "counters stay");
    ensure!(
        !dead.has("container_creation_time_seconds", &id),
        "gauges end"
    );
    ensure!(!dead.has("container_spec_cpu_shares", &id), "gauges end");
    let seen = dead.of(&cgroup.id, "container_last_seen")?;
    ensure!(
        (removed - seen).abs() <= 1.5,
        "last seen {seen}, removed {removed}"
    );
    sleep(Duration::from_millis(1200));
    let later = agent.scrape()?;
    same(
        "the time of last seen does not advance",
        later.of(&cgroup.id, "container_last_seen")?,
        seen,
    )?;
    wait_until_gone(&agent, &cgroup.id).map(drop)
}

/// 8,000 cgroups that never had a task were reported for as long as any other, and cost 16 MB of each
/// scrape.
fn empty() -> Result<()> {
    let agent = Agent::start(&[])?;
    let parent = Cgroup::new()?;
    let before = agent.scrape()?;
    let cost = || -> Result<[f64; 2]> {
        let text = agent.body("/metrics", "")?;
        Ok([text.len() as f64, agent.memory("VmRSS")? as f64])
    };
    let costs = cost()?;
    for n in 0..8000 {
        let child = root()?.join(&parent.id[1..]).join(format!("empty-{n}"));
        std::fs::create_dir(&child).context("making a cgroup")?;
        std::fs::remove_dir(&child).context("removing a cgroup")?;
    }
    // Other cgroups of the host may come and go.
    let [text, rss] = cost()?;
    println!("{costs:?} before, {text} bytes of text and {rss} of RSS after");
    agree("bytes of a scrape", text, costs[0], 0.05, 20e3)?;
    ensure!(
        rss <= costs[1] + 4e6,
        "RSS was {} bytes, is {rss}",
        costs[1]
    );
    let prefix = format!("{}/", parent.id);
    let last_seen = "container_last_seen";
    let metrics = agent.scrape()?;
    let kept = metrics.ids(last_seen);
    let kept = kept.iter().filter(|id| id.starts_with(&prefix)).count();
    same("cgroups kept", kept as f64, 0.0)?;
    let unreported = "cgmeter_cgroups_unreported_total";
    let count = |metrics: &Metrics| metrics.get(unreported, &[]);
    same("unreported", count(&metrics)?, count(&before)?)
}

/// However many cgroups come and go between two scrapes, only so many are reported by themselves, and
/// their parent has all that they counted.
fn bounded() -> Result<()> {
    const LIVES: usize = 60;
    let agent = Agent::start(&["--cgroup.dead-max=40"])?;
    let parent = Cgroup::new()?;
    for n in 0..LIVES {
        let cgroup = parent.child(&format!("job-{n}"))?;
        Worker::once(&cgroup, "spin 5")?;
        cgroup.remove()?;
    }
    let metrics = agent.scrape()?;
    let started = "container_processes_started_total";
    let prefix = format!("{}/", parent.id);
    let kept = metrics.ids(started);
    let kept = kept.iter().filter(|id| id.starts_with(&prefix)).count();
    ensure!(
        (1..=10).contains(&kept),
        "{kept} removed cgroups are reported, at most 10 may be"
    );
    let unreported = metrics.get("cgmeter_cgroups_unreported_total", &[])?;
    ensure!(
        unreported >= (LIVES - kept) as f64,
        "{unreported} cgroups were not reported, of {LIVES} only {kept} were"
    );
    // The workers start elsewhere and enter their cgroups.
    let exited = |id| {
        metrics.get(
            "container_processes_exited_total",
            &[("id", id), ("reason", "exited")],
        )
    };
    same(
        "processes that ended",
        exited(parent.id.as_str())?,
        LIVES as f64,
    )?;
    // Each worker moves itself while it runs: with the cpu controller in cgroup2 the kernel counts what
    // it used since its last tick for the cgroup that it enters. See docs/limits.md.
    let (found, expected) = (metrics.of(&parent.id, USAGE)?, parent.cpu_seconds()?);
    agree(&parent.id, found, expected, 0.05, 0.0)
}

fn made_again() -> Result<()> {
    let agent = Agent::start(&[])?;
    let name = format!("cgmeter-test-{}-again", std::process::id());
    let mut total = 0.0;
    for _ in 0..3 {
        let cgroup = Cgroup::named(&name)?;
        Worker::once(&cgroup, "spin 60")?;
        total += cgroup.cpu_seconds()?;
        let metrics = agent.scrape()?;
        same(
            "series",
            metrics.count(USAGE, &[("id", &cgroup.id)]) as f64,
            1.0,
        )?;
        agree(
            &cgroup.id,
            metrics.of(&cgroup.id, USAGE)?,
            total,
            0.001,
            0.001,
        )?;
        let parts = metrics.of(&cgroup.id, "container_cpu_user_seconds_total")?
            + metrics.of(&cgroup.id, "container_cpu_system_seconds_total")?;
        agree("user and system", parts, total, 0.01, 0.001)?;
        cgroup.remove()?;
    }
    Ok(())
}

fn filters() -> Result<()> {
    let (one, two) = (Cgroup::new()?, Cgroup::new()?);
    let child = two.child("kept")?;
    let exclude = format!("{}$", two.id);
    let agent = Agent::start(&[
        "--cgroup.include",
        "^/cgmeter-test-",
        "--cgroup.exclude",
        &exclude,
    ])?;
    let metrics = agent.scrape()?;
    let ids = metrics.ids(USAGE);
    for (id, exported) in [
        (&one.id, true),
        (&two.id, false),
        (&child.id, true),
        (&"/".to_owned(), false),
    ] {
        ensure!(ids.contains(&id.as_str()) == exported, "{id}: {ids:?}");
    }
    let first = ids.first().context("nothing is exported")?;
    ensure!(first.starts_with("/cgmeter-test-"));
    Ok(())
}

fn lost_events() -> Result<()> {
    // More events than fit into the ring buffer while the agent does not read it.
    const COUNT: usize = 2500;
    let agent = Agent::start(&[])?;
    let parent = Cgroup::new()?;
    let gone = parent.child("gone")?;
    ensure!(agent.scrape()?.has(USAGE, &[("id", &gone.id)]));
    agent.signal(libc::SIGSTOP);
    let cgroups = (0..COUNT)
        .map(|n| parent.child(&format!("c{n}")))
        .collect::<Result<Vec<_>>>();
    let removed = gone.remove();
    agent.signal(libc::SIGCONT);
    let (cgroups, ()) = (cgroups?, removed?);
    let mut worker = Worker::start(&cgroups[COUNT - 1])?;
    worker.run("spin 50")?;
    let metrics = agent.scrape()?;
    ensure!(
        metrics.get("cgmeter_lost_events_total", &[])? > 0.0,
        "the ring buffer had room for all events"
    );
    let prefix = format!("{}/c", parent.id);
    let found = metrics
        .ids(USAGE)
        .iter()
        .filter(|id| id.starts_with(&prefix))
        .count();
    same("cgroups", found as f64, COUNT as f64)?;
    let last = &cgroups[COUNT - 1];
    usage_agrees(&metrics, last)?;
    ensure!(
        !metrics.has("container_spec_cpu_shares", &[("id", &gone.id)]),
        "gauges end"
    );
    // The warning of the kernel program is in the log. Some thousand events were lost, and the kernel's program warned of each.
    let warnings = agent.log().matches("ring buffer full").count();
    ensure!(warnings == 1, "{warnings} lines: {}", agent.log());
    Ok(())
}

/// The limit on tasks that the agent reports for a cgroup, if any.
fn task_limit(metrics: &Metrics, id: &str) -> Option<f64> {
    metrics.of(id, "container_threads_max").ok()
}

/// The v1 pids hierarchy is matched with cgroup2 by path. Renaming an ancestor changes the path of
/// a cgroup.
fn renamed_v1() -> Result<()> {
    let (old, new) = (Cgroup::new()?, Cgroup::new()?);
    let (in_old, in_new) = (old.child("child")?, new.child("child")?);
    let (deep_old, deep_new) = (in_old.child("leaf")?, in_new.child("leaf")?);
    // In v1 only the old cgroup exists, with one child created before the agent's start and one
    // after it.
    let twin = Twin::of(&old, "pids")?;
    let child = Twin::of(&in_old, "pids")?;
    let agent = Agent::start(&[])?;
    let leaf = Twin::of(&deep_old, "pids")?;
    child.write("pids.max", "123")?;
    leaf.write("pids.max", "45")?;
    let check = |metrics: &Metrics, [there, gone]: [[&Cgroup; 2]; 2]| -> Result<()> {
        for (cgroup, limit) in there.into_iter().zip([123.0, 45.0]) {
            let found = task_limit(metrics, &cgroup.id);
            ensure!(found == Some(limit), "{}: {found:?}", cgroup.id);
        }
        for cgroup in gone {
            let found = task_limit(metrics, &cgroup.id);
            ensure!(found.is_none(), "{} still has {found:?}", cgroup.id);
        }
        Ok(())
    };
    let (olds, news) = ([&in_old, &deep_old], [&in_new, &deep_new]);
    check(&agent.scrape()?, [olds, news])?;
    let renamed = twin
        .directory
        .with_file_name(new.id.trim_start_matches('/'));
    std::fs::rename(&twin.directory, &renamed)?;
    let after = agent
        .scrape()
        .and_then(|metrics| check(&metrics, [news, olds]));
    std::fs::rename(&renamed, &twin.directory)?;
    after?;
    check(&agent.scrape()?, [olds, news])
}
