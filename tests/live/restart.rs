//! Agents that end and start again on the same `--state.pin`. Oracles: an agent that ran all the time, the
//! kernel's own counters, the number of processes that a test starts.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::{self, Agent},
    cgroup::Cgroup,
    conservation::{EXITED, STARTED, births, births_until, exact},
    counters::{
        life::{Group, Life},
        reference,
        watch::Watch,
    },
    metrics::{Metrics, agree, alike, same},
    mounted::unmount,
    needs::{self, Need},
    net,
    runtimes::eventually,
    state::{State, kill},
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "restart::as_if_there_had_been_none",
        &[Need::Agent, Need::Loop],
        lives,
    ),
    (
        "restart::maps_of_another_layout",
        &[Need::Agent, Need::Loop],
        another_layout,
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
        "restart::a_thousand_replacements_under_load",
        &[
            Need::Agent,
            // An emulated CPU verifies programs for ten seconds.
            Need::RealCpus,
            Need::LongTier("1,000 starts"),
        ],
        replaced_often,
    ),
    (
        "restart::packets_while_programs_are_replaced",
        &[Need::Agent],
        packets,
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
    (
        "restart::a_start_with_pins_of_the_same_programs",
        &[
            Need::Agent,
            // How long it takes is limited.
            Need::RealCpus,
        ],
        reopened,
    ),
    ("restart::what_is_kept_has_no_room", &[Need::Agent], no_room),
    ("restart::no_place_for_pins", &[Need::Agent], no_place),
    (
        "restart::bpffs_is_mounted_where_there_is_none",
        &[Need::Agent, Need::Guest("what is mounted")],
        mounts_bpffs,
    ),
    (
        "restart::no_bpffs_in_a_container",
        &[Need::Agent, Need::Program("unshare")],
        own_mounts,
    ),
];

/// A life of each kind of work while an agent runs, after it was killed, and under the next one; others end before
/// and while no agent runs. All counters are those of an agent that ran all the time.
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
    let mut before = Life::below(&group, "before")?;
    before.act()?;
    watch.scrape(&agent)?;
    before.end()?;
    let mut meanwhile = Life::below(&group, "meanwhile")?;
    meanwhile.act()?;
    for round in 0..2 {
        life.act()?;
        watch.scrape(&agent)?;
        kill(agent)?;
        if round == 0 {
            // Another one, which comes and goes while no agent runs.
            let mut other = Life::below(&group, "other")?;
            other.act()?;
            other.end()?;
        } else {
            steady.scrape()?;
            life.end()?;
            life = Life::below(&group, "life")?;
        }
        life.act()?;
        let begin = Instant::now();
        agent = state.agent()?;
        println!("started again in {:?}", begin.elapsed());
        watch.scrape(&agent)?;
    }
    kill(agent)?;
    steady.scrape()?;
    meanwhile.end()?;
    agent = state.agent()?;
    life.act()?;
    let [expected, found] = at_rest([&steady, &agent], &group.cgroup)?;
    // No restart has seen its birth.
    let id = format!("{}/life", group.cgroup.id);
    let created = |metrics: &Metrics| metrics.of(&id, "container_creation_time_seconds");
    agree(&id, created(&found)?, created(&expected)?, 0.0, 0.001)?;
    ["life", "before", "meanwhile"].iter().try_for_each(|name| {
        let id = format!("{}/{name}", group.cgroup.id);
        compare(&families, &id, None, &expected, &found)
    })
}

/// Starts an agent as if maps contained something else than those of other versions.
fn of_layout(state: &State, layout: u32) -> Result<Agent> {
    let trial = format!("layout={layout}");
    let mut agent = Agent::begin(&[&state.flag()], &[("_CGMETER_TRIAL", &trial)])?;
    agent.wait_until_ready()?;
    let layouts: Vec<_> = fs::read_dir(state.path())?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<_>>()?;
    ensure!(
        layouts == [format!("layout_{layout}").as_str()],
        "{layouts:?}"
    );
    Ok(agent)
}

/// A life while an agent runs, and under the next one, which can't read the maps of the one before. All counters are
/// those of an agent that ran all the time. What happens between the two is lost, so nothing may happen there.
fn another_layout() -> Result<()> {
    let state = State::new();
    let steady = Agent::start(&[])?;
    let mut families = reference()?;
    // What is in the kernel's own statistics as well can't be told apart from what the agent has counted.
    families.retain(|family| family != "container_cpu_schedstat_run_seconds_total");
    let agent = state.agent()?;
    let group = Group::new()?;
    let mut watch = Watch::of_any_agent(&group.cgroup.id, &families);
    let mut life = Life::below(&group, "life")?;
    life.act()?;
    watch.scrape(&agent)?;
    steady.scrape()?;
    life.end()?;
    let mut life = Life::below(&group, "life")?;
    life.act()?;
    agent.stop(libc::SIGTERM)?;
    let agent = of_layout(&state, 1000)?;
    ensure!(agent.log().contains("counters go on"), "{}", agent.log());
    watch.scrape(&agent)?;
    life.act()?;
    let [expected, found] = at_rest([&steady, &agent], &group.cgroup)?;
    compare(&families, life.id(), Some(OF_THE_KERNEL), &expected, &found)?;
    // Once more, with what the second one has from the first.
    agent.stop(libc::SIGTERM)?;
    let agent = of_layout(&state, 1001)?;
    watch.scrape(&agent)?;
    life.act()?;
    let [expected, found] = at_rest([&steady, &agent], &group.cgroup)?;
    compare(&families, life.id(), Some(OF_THE_KERNEL), &expected, &found)?;
    // A parent has what a removed child had counted under all of them.
    life.end()?;
    let [expected, found] = at_rest([&steady, &agent], &group.cgroup)?;
    let started = |metrics: &Metrics| metrics.of(&group.cgroup.id, STARTED);
    same("started", started(&found)?, started(&expected)?)?;
    // One that is killed has left no totals.
    kill(agent)?;
    let agent = of_layout(&state, 1002)?;
    ensure!(
        agent.log().contains("counters begin at 0"),
        "{}",
        agent.log()
    );
    agent.scrape()?.scrape_error(0.0)
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

/// What the kernel sends of its own accord some seconds after an interface has come up, such as router solicitations.
const OF_THE_KERNEL: &str = "family=\"ipv6\",protocol=\"icmp\"";

/// Compares all counters of a life's cgroup, without those that have such labels.
fn compare(
    families: &[String],
    id: &str,
    except: Option<&str>,
    expected: &Metrics,
    found: &Metrics,
) -> Result<()> {
    let label = format!("id=\"{id}\"");
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
    let left_out = |labels: &str| {
        labels.contains("interface=\"") || except.is_some_and(|except| labels.contains(except))
    };
    for (name, labels, value) in expected.iter().filter(|(_, labels, _)| !left_out(labels)) {
        let same = found.iter().find(|(n, l, _)| n == name && l == labels);
        let found = same.map(|(.., found)| *found);
        // When the kernel is asked decides what it calls user time, by some ticks. The sum is compared as it is.
        let split = ["container_cpu_user_", "container_cpu_system_"];
        let split = split.iter().any(|start| name.starts_with(start));
        let near = found.is_some_and(|found| (found - value).abs() <= 0.01 + 1e-3 * value);
        if !(alike(name, found, Some(*value)) || split && near) {
            different.push(format!("{name}{{{labels}}}: {found:?} instead of {value}"));
        }
    }
    ensure!(expected.len() > 200, "{} counters", expected.len());
    println!("{} counters compared", expected.len());
    ensure!(
        different.is_empty(),
        "{id}: {} differ: {}",
        different.len(),
        different.join("; ")
    );
    Ok(())
}

/// Does `load` in another thread while agents are ended and started. Returns the last one, and what `load` has returned
/// once its flag was set.
fn beside<T: Send>(
    load: impl FnOnce(&AtomicBool) -> Result<T> + Send,
    restarts: impl FnOnce() -> Result<Agent>,
) -> Result<(Agent, T)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| load(&over));
        let last = restarts();
        over.store(true, Ordering::Relaxed);
        let done = load.join();
        let done = done.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        Ok((last?, done))
    })
}

/// Births in a cgroup while `restarts` ends agents and starts others, beginning with the one that it gets.
/// Returns the last one, the cgroup and the number of births.
fn under_load(
    state: &State,
    rate: f64,
    restarts: impl FnOnce(Agent) -> Result<Agent>,
) -> Result<(Agent, Cgroup, u64)> {
    let parent = Cgroup::new()?;
    let first = state.agent()?;
    let load = |over: &AtomicBool| births_until(over, &parent, rate);
    let (last, births) = beside(load, || restarts(first))?;
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

/// The same, with few sources, so that a start takes a third of a second, and with datagrams.
fn replaced_often() -> Result<()> {
    const ROUNDS: u32 = 1000;
    let state = State::new();
    let mut datagrams = Datagrams::new()?;
    let restarts = |mut agent| -> Result<Agent> {
        for round in 0..ROUNDS {
            kill(agent)?;
            let other = match round % 2 {
                0 => "--collector.reclaim",
                _ => "--no-collector.reclaim",
            };
            agent = Agent::start(&[
                &state.flag(),
                "--collector.disable-defaults",
                "--collector.sched",
                "--collector.process",
                "--collector.net",
                other,
            ])?;
        }
        Ok(agent)
    };
    let (agent, parent, births) = under_load(&state, 500.0, |first| {
        let (last, ()) = beside(|over| datagrams.send(over), || restarts(first))?;
        Ok(last)
    })?;
    after_replacements(&state, &agent, &parent, births, ROUNDS)?;
    datagrams.check(&agent.scrape()?)
}

/// Datagrams from one cgroup to another.
struct Datagrams {
    sender: Cgroup,
    receiver: Cgroup,
    from: Worker,
    _at: Worker,
    port: u16,
    number: u64,
}

impl Datagrams {
    const PAYLOAD: usize = 300;

    fn new() -> Result<Self> {
        let (sender, receiver) = (Cgroup::new()?, Cgroup::new()?);
        let (mut from, mut at) = (Worker::start(&sender)?, Worker::start(&receiver)?);
        let port = net::free_port()?;
        at.run(&format!("udp-bind 127.0.0.1:{port}"))?;
        from.run("udp-bind 127.0.0.1:0")?;
        Ok(Self {
            sender,
            receiver,
            from,
            _at: at,
            port,
            number: 0,
        })
    }

    /// Sends until this is set.
    fn send(&mut self, over: &AtomicBool) -> Result<()> {
        const BATCH: u64 = 2_000;
        let order = format!("udp-send 127.0.0.1:{} {BATCH} {}", self.port, Self::PAYLOAD);
        while !over.load(Ordering::Relaxed) {
            // Those that find no room in the receiver's buffer are counted before that is known.
            self.from.run(&order)?;
            self.number += BATCH;
        }
        Ok(())
    }

    /// Each was counted once at either end.
    fn check(&self, metrics: &Metrics) -> Result<()> {
        let packets = self.number as f64;
        println!("{packets} datagrams");
        let bytes = packets * net::packet(Self::PAYLOAD, false);
        let check = |cgroup, expected| net::check(metrics, cgroup, "ipv4", "udp", expected);
        check(&self.sender, [0.0, 0.0, bytes, packets])?;
        check(&self.receiver, [bytes, packets, 0.0, 0.0])
    }
}

/// Packets are counted by links that get other programs, each in one step: none is lost, none counts twice.
fn packets() -> Result<()> {
    let rounds = if needs::emulated() { 4 } else { 8 };
    let state = State::new();
    let mut agent = state.agent()?;
    let mut datagrams = Datagrams::new()?;
    let restarts = || -> Result<Agent> {
        for round in 0..rounds {
            kill(agent)?;
            agent = Agent::start(&[&state.flag(), other_sources(round)])?;
            agent.scrape()?.scrape_error(0.0)?;
        }
        Ok(agent)
    };
    let (agent, ()) = beside(|over| datagrams.send(over), restarts)?;
    let sets = state.pinned("programs_")?;
    let last = sets.first().context("no programs")?.display().to_string();
    ensure!(last.contains(&format!("programs_{rounds}_")), "{last}");
    datagrams.check(&agent.scrape()?)
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
    agent.signal(libc::SIGTERM);
    let wanted = format!("`cgmeter unload {}` ends that", state.flag());
    eventually(|| {
        let said = agent.log().matches(&wanted).count();
        ensure!(said == 1, "{wanted}: said {said} times");
        Ok(())
    })?;
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
    ensure!(!state.path().exists());
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
        let layout = fs::read_dir(state.path())?.next().context("no layout")??;
        how(&layout.path())?;
        let agent = state.agent()?;
        let log = agent.log();
        ensure!(log.contains(said), "not in the log: {said}: {log}");
        same("started", agent.scrape()?.of(&parent.id, STARTED)?, 0.0)?;
        kill(agent)?;
        state.unload().map(drop)
    };
    spoil(
        &|layout| Ok(fs::remove_file(layout.join("whole"))?),
        "is incomplete, and is removed",
    )?;
    // Its agent was killed, so it has left no totals.
    spoil(
        &|layout| Ok(fs::rename(layout, layout.with_file_name("layout_0"))?),
        "counters begin at 0",
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

/// An agent that finds its own programs pinned is ready within 100 ms, from exec on.
fn reopened() -> Result<()> {
    const STARTS: usize = 11;
    const MOST: Duration = Duration::from_millis(100);
    let state = State::new();
    kill(state.agent()?)?;
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let begin = Instant::now();
        let mut agent = Agent::begin(&[&state.flag()], &[])?;
        agent.wait_until_ready()?;
        times.push(begin.elapsed());
        kill(agent)?;
    }
    times.sort();
    println!("ready after {times:?}");
    let median = times[STARTS / 2];
    ensure!(median <= MOST, "half of the starts take {median:?} or more");
    Ok(())
}

/// There is room for 256 parts. A hundred cgroups with long paths have more, and one has a path that is not kept at all. What
/// the kernel side counts goes on all the same.
fn no_room() -> Result<()> {
    let state = State::new();
    let flags = [
        &state.flag(),
        "--cgroup.max=64",
        "--cgroup.dead-max=0",
        "--cgroup.export-max=1000",
    ];
    let parent = Cgroup::new()?;
    let agent = Agent::start(&flags)?;
    let mut number = births(&parent, 1000.0, Duration::from_millis(100))?;
    // The inner ones first: they are removed in that order.
    let mut folders = VecDeque::from([Cgroup::new()?]);
    for _ in 0..5 {
        let inner = folders[0].child(&"x".repeat(240))?;
        folders.push_front(inner);
    }
    let (folder, holder) = (&folders[0], &folders[2]);
    let long = (0..100).map(|n| holder.child(&format!("{n}")));
    let long: Vec<Cgroup> = long.collect::<Result<_>>()?;
    let spun = |metrics: &Metrics| -> Result<()> {
        for cgroup in [&long[99], folder] {
            let seconds = metrics.of(&cgroup.id, "container_cpu_usage_seconds_total")?;
            agree("CPU time", seconds, cgroup.cpu_seconds()?, 0.001, 0.002)?;
        }
        Ok(())
    };
    for cgroup in [&long[99], folder] {
        Worker::once(cgroup, "spin 50")?;
    }
    let check = |agent: &Agent, number| -> Result<()> {
        let metrics = agent.scrape()?;
        metrics.scrape_error(0.0)?;
        exact(&metrics, &parent, number)?;
        spun(&metrics)
    };
    check(&agent, number)?;
    check(&agent, number)?;
    let said = |log: &str| log.matches("will be smaller after a restart").count();
    let log = agent.log();
    ensure!(said(&log) == 1, "{log}");
    kill(agent)?;
    number += births(&parent, 1000.0, Duration::from_millis(100))?;
    let agent = Agent::start(&flags)?;
    check(&agent, number)?;
    let log = agent.log();
    ensure!(
        !log.contains("not understood") && !log.contains("is removed"),
        "{log}"
    );
    kill(agent)
}

/// An agent mounts bpffs, pins there, and the next one goes on.
fn mounts_bpffs() -> Result<()> {
    let place = Path::new("/sys/fs/bpf");
    let is_mounted = || -> Result<bool> {
        let mounts = fs::read_to_string("/proc/thread-self/mounts")?;
        Ok(mounts
            .lines()
            .any(|line| line.contains(" /sys/fs/bpf bpf ")))
    };
    ensure!(is_mounted()?, "there is no bpffs before");
    unmount(place)?;
    ensure!(!is_mounted()?, "there still is a bpffs");
    let state = State::new();
    let parent = Cgroup::new()?;
    let agent = state.agent()?;
    ensure!(is_mounted()?, "{}", agent.log());
    ensure!(!state.pinned("map_")?.is_empty(), "nothing is pinned");
    let some = Duration::from_millis(500);
    let mut number = births(&parent, 100.0, some)?;
    kill(agent)?;
    number += births(&parent, 100.0, some)?;
    let agent = state.agent()?;
    number += births(&parent, 100.0, some)?;
    exact(&agent.scrape()?, &parent, number)
}

/// Where mounts are the agent's own, as in a container, it mounts no bpffs, which would end with it. It has to see
/// a process 1 whose mounts are others.
fn own_mounts() -> Result<()> {
    let inner = r#"umount -l /sys/fs/bpf && exec "$@""#;
    let outer = format!(r#"unshare -m sh -c '{inner}' sh "$@"; :"#);
    let words = "unshare -p -f --kill-child -m --mount-proc sh -c".split(' ');
    let words = words.chain([outer.as_str(), "sh"]).map(OsStr::new);
    let binary = agent::binary();
    let words: Vec<&OsStr> = words.chain([binary.as_os_str()]).collect();
    let mut agent = Agent::begin_by(&words, &["--state.pin=/sys/fs/bpf/cgmeter"])?;
    agent.wait_until_ready()?;
    let log = agent.log();
    let said = log
        .matches("mounted in this container would end with it")
        .count();
    ensure!(
        said == 1 && log.contains("counters will begin at 0"),
        "{log}"
    );
    ensure!(
        agent
            .scrape()?
            .has("container_cpu_usage_seconds_total", &[("id", "/")])
    );
    agent.stop(libc::SIGKILL).map(drop)
}
