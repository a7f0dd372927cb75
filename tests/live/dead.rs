//! Removed cgroups: which are still reported, and what they and living ones cost.

use std::{
    ops::RangeInclusive,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    conservation::{births, run_in},
    metrics::{Metrics, same},
    needs::Need,
    state::{State, kill},
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "dead::who_is_reported_where_there_are_too_many",
        &[Need::Agent],
        precedence,
    ),
    (
        "dead::memory_of_a_removed_cgroup",
        &[Need::Agent, Need::LongTier("three minutes")],
        || {
            removed("removed", |parent, number| {
                let time = Duration::from_secs_f64(number as f64 / 400.0);
                births(parent, 400.0, time)
            })
        },
    ),
    (
        "dead::memory_of_a_removed_container",
        &[Need::Agent, Need::LongTier("three minutes")],
        || removed("removed container's", end_containers),
    ),
    (
        "dead::memory_of_a_living_cgroup",
        &[Need::Agent, Need::LongTier("three minutes")],
        living,
    ),
    (
        "dead::memory_goes_back_after_a_storm",
        &[Need::Agent, Need::LongTier("three minutes")],
        storm,
    ),
    (
        "dead::memory_after_a_storm_of_containers",
        // It limits how long a start may take.
        &[Need::Agent, Need::RealCpus, Need::LongTier("three minutes")],
        storm_of_containers,
    ),
];

const STARTED: &str = "container_processes_started_total";
const UNREPORTED: &str = "cgmeter_cgroups_unreported_total";

/// Name of the cgroup of one of Docker's containers.
fn container(n: usize) -> String {
    format!("docker-{n:064x}.scope")
}

/// Names of the cgroups below `parent` that have series.
fn reported(metrics: &Metrics, parent: &Cgroup) -> Vec<String> {
    let prefix = format!("{}/", parent.id);
    let ids = metrics.ids(STARTED);
    let names = ids.iter().filter_map(|id| id.strip_prefix(&prefix));
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

/// Four removed containers and one other removed cgroup may be reported.
fn precedence() -> Result<()> {
    let agent = Agent::start(&["--cgroup.dead-max=4"])?;
    let parent = Cgroup::new()?;
    let live = |name: &str, spin: u32| -> Result<()> {
        let cgroup = parent.child(name)?;
        Worker::once(&cgroup, &format!("spin {spin}"))?;
        cgroup.remove()
    };
    // These are shown while they live, and removed later than others.
    let shown = (1..=2).map(|n| parent.child(&container(n)));
    let shown: Vec<Cgroup> = shown.collect::<Result<_>>()?;
    for cgroup in &shown {
        Worker::once(cgroup, "spin 50")?;
    }
    let before = agent.scrape()?;
    ensure!(reported(&before, &parent) == [container(1), container(2)]);
    for n in 3..=6 {
        live(&container(n), 1)?;
    }
    for cgroup in shown {
        cgroup.remove()?;
    }
    for (name, spin) in [("a", 20), ("b", 150), ("c", 60), ("d", 1)] {
        live(name, spin)?;
    }
    let metrics = agent.scrape()?;
    let expected: Vec<String> = ["b".to_owned()]
        .into_iter()
        .chain((3..=6).map(container))
        .collect();
    let found = reported(&metrics, &parent);
    ensure!(
        found == expected,
        "{found:?} are reported, not {expected:?}"
    );
    // Of those that have left, `a`, `c` and `d` were never shown. Nobody else's cgroups may have come and
    // gone meanwhile, or they are more.
    let unreported = metrics.get(UNREPORTED, &[])? - before.get(UNREPORTED, &[])?;
    ensure!(unreported >= 3.0, "{unreported} were not reported");
    // Their numbers are in their parent.
    let exited = [("id", parent.id.as_str()), ("reason", "exited")];
    same(
        "processes that ended",
        metrics.get("container_processes_exited_total", &exited)?,
        10.0,
    )
}

/// Time after which the agent has returned what it had freed.
const RETURNED: Duration = Duration::from_secs(60);

/// RSS a minute after some scrapes, bytes.
fn at_rest(agent: &Agent) -> Result<f64> {
    for _ in 0..3 {
        agent.scrape()?;
    }
    sleep(RETURNED);
    Ok(agent.memory("VmRSS")? as f64)
}

/// Checks what so many cgroups more have cost each, KiB.
fn cost(what: &str, more: f64, cgroups: usize, allowed: RangeInclusive<f64>) -> Result<()> {
    let each = more / cgroups as f64 / 1024.0;
    println!("{cgroups} {what} cgroups: {each:.2} KiB of RSS each");
    ensure!(
        allowed.contains(&each),
        "a {what} cgroup costs {each:.2} KiB, which is not within {allowed:?}"
    );
    Ok(())
}

/// Runs a process in each of so many containers, and removes them.
fn end_containers(parent: &Cgroup, number: usize) -> Result<u64> {
    for n in 0..number {
        let cgroup = parent.child(&container(n))?;
        run_in(&cgroup, Duration::ZERO)?;
        cgroup.remove()?;
    }
    Ok(number as u64)
}

/// Each had a process. At rest the agent has no text of an exposition.
fn removed(what: &str, make: impl Fn(&Cgroup, usize) -> Result<u64>) -> Result<()> {
    let state = State::new();
    let agent = Agent::start(&[
        "--cgroup.dead-max=100000",
        "--cgroup.linger=1h",
        &state.flag(),
    ])?;
    let parent = Cgroup::new()?;
    // With the first ones come tables and buffers that later ones use as well.
    make(&parent, 1200)?;
    let before = at_rest(&agent)?;
    let second = parent.child("second")?;
    let made = make(&second, 4000)? as usize;
    let kept = reported(&agent.scrape()?, &second).len();
    ensure!(
        kept * 100 >= made * 99,
        "of {made} only {kept} are reported"
    );
    cost(what, at_rest(&agent)? - before, kept, 0.1..=2.0)
}

/// A process that sleeps in a cgroup of its own.
struct Sleeper {
    child: Child,
    _cgroup: Cgroup,
}

impl Sleeper {
    fn new(cgroup: Cgroup) -> Result<Self> {
        let child = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .spawn()?;
        let sleeper = Self {
            child,
            _cgroup: cgroup,
        };
        sleeper._cgroup.admit(sleeper.child.id())?;
        Ok(sleeper)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn living() -> Result<()> {
    const MORE: usize = 1000;
    let state = State::new();
    let agent = state.agent()?;
    let parent = Cgroup::new()?;
    let make = |name: &str, count: usize| -> Result<Vec<Sleeper>> {
        (0..count)
            .map(|n| Sleeper::new(parent.child(&format!("{name}-{n}"))?))
            .collect()
    };
    let _first = make("first", 500)?;
    let before = at_rest(&agent)?;
    let _second = make("second", MORE)?;
    let after = at_rest(&agent)?;
    cost("living", after - before, MORE, 0.1..=8.0)
}

/// With the settings that are the default, and what is kept for the next agent.
fn storm() -> Result<()> {
    let state = State::new();
    let agent = state.agent()?;
    let parent = Cgroup::new()?;
    births(&parent, 100.0, Duration::from_secs(1))?;
    let before = at_rest(&agent)?;
    let begin = Instant::now();
    let made = std::thread::scope(|scope| -> Result<u64> {
        let storm = scope.spawn(|| births(&parent, 500.0, Duration::from_secs(30)));
        while !storm.is_finished() {
            agent.scrape()?;
            sleep(Duration::from_secs(1));
        }
        let made = storm.join();
        made.map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })?;
    ensure!(made >= 3000, "only {made} cgroups in {:?}", begin.elapsed());
    let after = at_rest(&agent)?;
    let kept = reported(&agent.scrape()?, &parent).len();
    println!(
        "{made} births, {kept} still reported: {:.1} MB before, {:.1} MB a minute after",
        before / 1e6,
        after / 1e6
    );
    ensure!(kept <= 1000, "{kept} removed cgroups are reported");
    ensure!(
        after <= before * 1.2,
        "{before} bytes before, {after} a minute after a storm of {made} births"
    );
    Ok(())
}

/// More ended containers than are kept. What they cost is within their bound, and the next agent is ready
/// soon.
fn storm_of_containers() -> Result<()> {
    const MADE: usize = 5000;
    const KEPT: usize = 3800;
    let state = State::new();
    let flags = [&state.flag(), "--cgroup.linger=1h"];
    let agent = Agent::start(&flags)?;
    let parent = Cgroup::new()?;
    births(&parent, 100.0, Duration::from_secs(1))?;
    let before = at_rest(&agent)?;
    end_containers(&parent, MADE)?;
    let after = at_rest(&agent)?;
    let kept = reported(&agent.scrape()?, &parent);
    let kept = kept
        .iter()
        .filter(|name| name.starts_with("docker-"))
        .count();
    println!(
        "{MADE} containers, {kept} still reported: {:.1} MB before, {:.1} MB a minute after",
        before / 1e6,
        after / 1e6
    );
    // Others of the host may have ended as well.
    ensure!(
        (KEPT - 20..=KEPT).contains(&kept),
        "{kept} ended containers are reported"
    );
    let most = before * 1.2 + (KEPT * 2048) as f64;
    ensure!(
        after <= most,
        "{before} bytes before, {after} a minute after"
    );

    kill(agent)?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let begin = Instant::now();
        let mut agent = Agent::begin(&flags, &[])?;
        agent.wait_until_ready()?;
        times.push(begin.elapsed());
        let found = reported(&agent.scrape()?, &parent);
        let found = found
            .iter()
            .filter(|name| name.starts_with("docker-"))
            .count();
        ensure!(
            (KEPT - 20..=kept).contains(&found),
            "{found} are reported after a restart"
        );
        kill(agent)?;
    }
    times.sort();
    println!("ready after {times:?}");
    ensure!(times[2] <= Duration::from_millis(200), "{times:?}");
    Ok(())
}
