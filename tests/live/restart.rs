//! Agents that end and start again on the same `--state.pin`. Oracles: an agent that ran all the time, the
//! kernel's own counters, the number of processes that a test starts.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::{self, Agent},
    cgroup::Cgroup,
    conservation::{EXITED, STARTED, births, exact},
    counters::{
        life::{Group, Life},
        reference,
        watch::Watch,
    },
    metrics::{Metrics, agree, alike, same},
    needs::{self, Need},
};

pub const TESTS: &[Test] = &[
    (
        "restart::as_if_there_had_been_none",
        &[Need::Agent, Need::Loop],
        lives,
    ),
    (
        "restart::twenty_kills_under_load",
        &[Need::Agent, Need::LongTier("20 kills in 100 s of load")],
        kills,
    ),
    (
        "restart::programs_are_replaced_under_load",
        &[Need::Agent],
        replaced,
    ),
    (
        "restart::an_agent_that_is_killed_while_it_takes_over",
        &[Need::Agent],
        killed_at_any_time,
    ),
    (
        "restart::nothing_stays_without_the_setting",
        &[Need::Agent],
        nothing_stays,
    ),
    (
        "restart::a_second_agent_waits_then_refuses",
        &[Need::Agent],
        second,
    ),
    (
        "restart::what_cannot_be_used_is_replaced",
        &[Need::Agent],
        unusable,
    ),
    (
        "restart::the_number_of_slots_stays",
        &[Need::Agent],
        fewer_slots,
    ),
    ("restart::no_place_for_pins", &[Need::Agent], no_place),
];

/// A directory for pins. What is in it goes with it.
pub struct State(PathBuf);

impl State {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cgmeter-test-{}-{number}", std::process::id());
        Self(Path::new("/sys/fs/bpf").join(name))
    }

    fn flag(&self) -> String {
        format!("--state.pin={}", self.0.display())
    }

    pub fn agent(&self) -> Result<Agent> {
        Agent::start(&[&self.flag()])
    }

    /// Names of what is in the layout's directory, if they start with this.
    fn pinned(&self, start: &str) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for layout in fs::read_dir(&self.0)? {
            for entry in fs::read_dir(layout?.path())? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(start) {
                    found.push(entry.path());
                }
            }
        }
        Ok(found)
    }

    fn unload(&self) -> Result<String> {
        let output = agent::run(&["unload", &self.flag()])?;
        let text = String::from_utf8(output.stdout)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{text} {errors}");
        Ok(text)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Err(error) = self.unload() {
            eprintln!("{error:#}");
        }
    }
}

pub fn kill(agent: Agent) -> Result<()> {
    agent.stop(libc::SIGKILL).map(drop)
}

/// A life of each kind of work while an agent runs, after it was killed, and under the next one. All counters
/// are those of an agent that ran all the time.
fn lives() -> Result<()> {
    let state = State::new();
    let steady = Agent::start(&[])?;
    let families = reference()?;
    let mut agent = state.agent()?;
    let group = Group::new()?;
    let mut watch = Watch::of_any_agent(&group.cgroup.id, &families);
    let mut life = Life::below(&group, "life")?;
    life.act()?;
    watch.scrape(&agent)?;
    // What the kernel counts by device is known from scrapes alone.
    steady.scrape()?;
    // The path is made again. What its earlier cgroup has counted, the agents alone know.
    life.end()?;
    let mut life = Life::below(&group, "life")?;
    for round in 0..2 {
        life.act()?;
        watch.scrape(&agent)?;
        kill(agent)?;
        if round == 0 {
            // Another one, which comes and goes while no agent runs.
            let mut other = Life::below(&group, "other")?;
            other.act()?;
            other.end()?;
        }
        life.act()?;
        let begin = Instant::now();
        agent = state.agent()?;
        println!("started again in {:?}", begin.elapsed());
        watch.scrape(&agent)?;
    }
    life.act()?;
    let [expected, found] = at_rest([&steady, &agent], &group.cgroup)?;
    compare(&families, &life, &expected, &found)
}

/// Scrapes two agents while a cgroup does nothing.
fn at_rest(agents: [&Agent; 2], cgroup: &Cgroup) -> Result<[Metrics; 2]> {
    for _ in 0..100 {
        let before = cgroup.cpu_stat("usage_usec")?;
        let scrapes = [agents[0].scrape()?, agents[1].scrape()?];
        if cgroup.cpu_stat("usage_usec")? == before {
            return Ok(scrapes);
        }
        sleep(Duration::from_millis(20));
    }
    anyhow::bail!("the cgroup is never at rest")
}

/// Compares all counters of a life's cgroup.
fn compare(families: &[String], life: &Life, expected: &Metrics, found: &Metrics) -> Result<()> {
    let label = format!("id=\"{}\"", life.id());
    let is_counter = |name: &str| {
        families.iter().any(|family| {
            name.strip_prefix(family.as_str())
                .is_some_and(|rest| ["", "_bucket", "_sum", "_count"].contains(&rest))
        })
    };
    let of = |metrics: &Metrics| -> Vec<(String, String, f64)> {
        metrics
            .samples()
            .filter(|(name, labels, _)| is_counter(name) && labels.contains(&label))
            .map(|(name, labels, value)| (name.to_owned(), labels.to_owned(), value))
            .collect()
    };
    let (expected, found) = (of(expected), of(found));
    let mut different = Vec::new();
    // An agent sees the interfaces of a namespace when it is scraped, and each act has a namespace of its
    // own. That these don't fall is watched.
    let interface = |labels: &str| labels.contains("interface=\"");
    for (name, labels, value) in expected.iter().filter(|(_, labels, _)| !interface(labels)) {
        let same = found.iter().find(|(n, l, _)| n == name && l == labels);
        let found = same.map(|(.., found)| *found);
        // When the kernel is asked decides what it calls user time.
        let split = ["container_cpu_user_", "container_cpu_system_"];
        let split = split.iter().any(|start| name.starts_with(start));
        let near = found.is_some_and(|found| (found - value).abs() <= 1e-3 * value);
        if !(alike(name, found, Some(*value)) || split && near) {
            different.push(format!("{name}{{{labels}}}: {found:?} instead of {value}"));
        }
    }
    ensure!(expected.len() > 200, "{} counters", expected.len());
    println!("{} counters compared", expected.len());
    ensure!(
        different.is_empty(),
        "{} differ: {}",
        different.len(),
        different.join("; ")
    );
    Ok(())
}

/// Births in a cgroup while `restarts` ends agents and starts others, beginning with the one that it gets.
/// Returns the last one, the cgroup and the number of births.
fn under_load(
    state: &State,
    rate: f64,
    restarts: impl Fn(Agent) -> Result<Agent>,
) -> Result<(Agent, Cgroup, u64)> {
    let parent = Cgroup::new()?;
    let over = AtomicBool::new(false);
    let first = state.agent()?;
    let (last, births) = thread::scope(|scope| -> Result<(Agent, u64)> {
        let load = scope.spawn(|| -> Result<u64> {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                number += births(&parent, rate, Duration::from_millis(500))?;
            }
            Ok(number)
        });
        let last = restarts(first);
        over.store(true, Ordering::Relaxed);
        let number = load.join();
        let number = number.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        Ok((last?, number))
    })?;
    Ok((last, parent, births))
}

fn kills() -> Result<()> {
    let state = State::new();
    let (agent, parent, births) = under_load(&state, 200.0, |mut agent| {
        for _ in 0..20 {
            sleep(Duration::from_secs(4));
            agent.scrape()?.scrape_error(0.0)?;
            kill(agent)?;
            sleep(Duration::from_secs(1));
            agent = state.agent()?;
        }
        Ok(agent)
    })?;
    println!("{births} births");
    exact(&agent.scrape()?, &parent, births)
}

/// Flags of agents that follow each other: each has other sources, and so other programs, than the one
/// before.
fn other_sources(round: u32) -> &'static str {
    if round.is_multiple_of(2) {
        "--no-collector.tcp"
    } else {
        "--collector.tcp"
    }
}

/// Each agent puts its own programs in the place of those before.
fn replaced() -> Result<()> {
    // An emulated CPU verifies programs for ten seconds.
    let rounds = if needs::emulated() { 4 } else { 10 };
    let state = State::new();
    let (agent, parent, births) = under_load(&state, 500.0, |mut agent| {
        for round in 0..rounds {
            kill(agent)?;
            agent = Agent::start(&[&state.flag(), other_sources(round)])?;
            agent.scrape()?.scrape_error(0.0)?;
        }
        Ok(agent)
    })?;
    after_replacements(&state, &agent, &parent, births, rounds)
}

/// Each agent is killed a bit later in its start.
fn killed_at_any_time() -> Result<()> {
    const ROUNDS: u32 = 24;
    let state = State::new();
    let (agent, parent, births) = under_load(&state, 100.0, |agent| {
        drop(agent);
        for round in 0..ROUNDS {
            let started = Agent::begin(&[&state.flag(), other_sources(round)], &[])?;
            sleep(Duration::from_millis(u64::from(round) * 20));
            kill(started)?;
        }
        state.agent()
    })?;
    after_replacements(&state, &agent, &parent, births, ROUNDS)
}

/// What is counted by events may differ by one for each replacement: an event that is being counted at that
/// moment counts twice, or not at all. What is counted by clocks may not.
fn after_replacements(
    state: &State,
    agent: &Agent,
    parent: &Cgroup,
    births: u64,
    replacements: u32,
) -> Result<()> {
    let sets = state.pinned("programs_")?;
    ensure!(sets.len() == 1, "{sets:?}");
    let metrics = agent.scrape()?;
    let started = metrics.of(&parent.id, STARTED)?;
    let exited = [("id", parent.id.as_str()), ("reason", "exited")];
    let exited = metrics.get(EXITED, &exited)?;
    println!("{births} births, {started} started and {exited} exited");
    let slack = f64::from(replacements);
    agree("started", started, births as f64, 0.0, slack)?;
    agree("exited", exited, births as f64, 0.0, slack)?;
    let usage = metrics.of(&parent.id, "container_cpu_usage_seconds_total")?;
    agree("CPU time", usage, parent.cpu_seconds()?, 0.001, 0.002)
}

fn nothing_stays() -> Result<()> {
    let parent = Cgroup::new()?;
    let agent = Agent::start(&[])?;
    births(&parent, 100.0, Duration::from_millis(200))?;
    ensure!(agent.scrape()?.of(&parent.id, STARTED)? > 0.0);
    let status = agent.stop(libc::SIGINT)?;
    ensure!(status.success(), "{status}");
    let agent = Agent::start(&[])?;
    same("started", agent.scrape()?.of(&parent.id, STARTED)?, 0.0)?;
    drop(agent);
    // With the setting, `unload` ends it.
    let state = State::new();
    let agent = state.agent()?;
    births(&parent, 100.0, Duration::from_millis(200))?;
    let before = agent.scrape()?.of(&parent.id, STARTED)?;
    let status = agent.stop(libc::SIGTERM)?;
    ensure!(status.success(), "{status}");
    let agent = state.agent()?;
    ensure!(agent.scrape()?.of(&parent.id, STARTED)? >= before);
    drop(agent);
    let text = state.unload()?;
    ensure!(
        text.starts_with("removed ") && !text.contains(" 0 programs"),
        "{text}"
    );
    ensure!(!state.0.exists());
    let text = state.unload()?;
    ensure!(text.contains("nothing is pinned"), "{text}");
    let agent = state.agent()?;
    same("started", agent.scrape()?.of(&parent.id, STARTED)?, 0.0)
}

fn second() -> Result<()> {
    let state = State::new();
    let first = state.agent()?;
    let begin = Instant::now();
    let output = agent::run(&[&state.flag(), "--web.listen-address=127.0.0.1:0"])?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "it started: {text}");
    ensure!(
        text.contains("another agent uses") && text.contains("--state.pin"),
        "{text}"
    );
    ensure!(begin.elapsed() >= Duration::from_secs(9));
    first.scrape()?.scrape_error(0.0)?;
    // One that ends in time leaves its place.
    thread::scope(|scope| {
        let next = scope.spawn(|| state.agent());
        sleep(Duration::from_secs(2));
        kill(first)?;
        let next = next
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        next.scrape()?.scrape_error(0.0)
    })
}

/// What an agent left that was killed while it started for the first time; pins of another layout; a map of
/// somebody else's in the place of one of ours.
fn unusable() -> Result<()> {
    let parent = Cgroup::new()?;
    let state = State::new();
    let spoil = |how: &dyn Fn(&Path) -> Result<()>, said: &str| -> Result<()> {
        let agent = state.agent()?;
        births(&parent, 100.0, Duration::from_millis(200))?;
        kill(agent)?;
        let layout = fs::read_dir(&state.0)?.next().context("no layout")??;
        how(&layout.path())?;
        let agent = state.agent()?;
        let log = agent.log();
        ensure!(log.contains(said), "not in the log: {said}: {log}");
        same("started", agent.scrape()?.of(&parent.id, STARTED)?, 0.0)?;
        kill(agent)?;
        state.unload().map(drop)
    };
    let incomplete = "of another version or incomplete";
    spoil(
        &|layout| Ok(fs::remove_file(layout.join("whole"))?),
        incomplete,
    )?;
    spoil(
        &|layout| Ok(fs::rename(layout, layout.with_file_name("layout_0"))?),
        incomplete,
    )?;
    spoil(
        &|layout| {
            let [tasks, slots] = ["map_TASKS", "map_SLOTS"].map(|name| layout.join(name));
            Ok(fs::rename(tasks, slots)?)
        },
        "cannot be used and is removed",
    )?;
    spoil(
        &|layout| {
            let entries = fs::read_dir(layout)?.flatten();
            let mut programs = entries.filter(|entry| entry.path().is_dir());
            let programs = programs.next().context("no programs")?.path();
            Ok(fs::remove_file(programs.join("whole"))?)
        },
        "cannot be used and is removed",
    )
}

fn fewer_slots() -> Result<()> {
    let parent = Cgroup::new()?;
    let state = State::new();
    let agent = state.agent()?;
    births(&parent, 100.0, Duration::from_millis(200))?;
    let before = agent.scrape()?.of(&parent.id, STARTED)?;
    kill(agent)?;
    let agent = Agent::start(&[&state.flag(), "--cgroup.max=100"])?;
    let log = agent.log();
    ensure!(log.contains("--cgroup.max stays what it was"), "{log}");
    same("started", agent.scrape()?.of(&parent.id, STARTED)?, before)
}

fn no_place() -> Result<()> {
    let directory = std::env::temp_dir().join("cgmeter-test-no-bpffs");
    let agent = Agent::start(&[&format!("--state.pin={}", directory.display())])?;
    let log = agent.log();
    ensure!(
        log.contains("it is in no bpffs") && log.contains("counters will begin at 0"),
        "{log}"
    );
    ensure!(!directory.exists());
    agent.scrape()?.scrape_error(0.0)
}
