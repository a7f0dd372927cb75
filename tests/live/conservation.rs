//! What a cgroup has counted is its parent's when it goes, whether the agent runs or not.
//! Oracle: cpu.stat, the number of processes that the test starts.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    born::Born,
    cgroup::Cgroup,
    metrics::{Metrics, agree, same},
    needs::{self, Need},
    runtimes::eventually,
    state::State,
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "conservation::births_while_the_agent_is_stopped",
        &[Need::Agent],
        stopped,
    ),
    (
        "conservation::births_while_the_agent_is_stopped_for_half_a_minute",
        &[
            Need::Agent,
            // An emulated CPU does not make so many births a second.
            Need::RealCpus,
            Need::LongTier("births for half a minute"),
        ],
        stopped_for_long,
    ),
    (
        "conservation::births_as_fast_as_they_come",
        &[Need::Agent, Need::LongTier("births for a minute")],
        fastest,
    ),
    (
        "conservation::a_parent_removed_with_its_children",
        &[Need::Agent],
        subtree,
    ),
    (
        "conservation::what_was_not_seen_in_time_is_not_served",
        &[Need::Agent],
        unseen,
    ),
    (
        "conservation::the_agent_is_stopped_while_it_reads",
        &[Need::Agent],
        interrupted,
    ),
    (
        "conservation::without_a_grace_period_time_is_lost",
        &[Need::Agent, Need::TwoCpus],
        control,
    ),
    (
        "conservation::few_slots_wait_for_their_grace_period",
        &[Need::Agent],
        waiting,
    ),
    (
        "conservation::with_the_cells_of_128_cpus",
        &[Need::Agent],
        many_cpus,
    ),
    (
        "conservation::a_process_that_moves_through_removed_cgroups",
        &[Need::Agent],
        mover,
    ),
];

const USAGE: &str = "container_cpu_usage_seconds_total";
pub const STARTED: &str = "container_processes_started_total";
pub const EXITED: &str = "container_processes_exited_total";

/// Makes cgroups below `parent` from two threads, each with one short process, and removes them. At
/// most `rate` a second in all. Returns how many.
pub fn births(parent: &Cgroup, rate: f64, time: Duration) -> Result<u64> {
    let number = AtomicU64::new(0);
    let begin = Instant::now();
    let birth = || -> Result<()> {
        while begin.elapsed() < time {
            let n = number.fetch_add(1, Ordering::Relaxed);
            let child = parent.child(&format!("b{n}"))?;
            run_in(&child, Duration::ZERO)?;
            child.remove()?;
            let due = begin + Duration::from_secs_f64(n as f64 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads = [scope.spawn(birth), scope.spawn(birth)];
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?
        })
    })?;
    Ok(number.into_inner())
}

/// The same until the flag is set.
pub fn births_until(over: &AtomicBool, parent: &Cgroup, rate: f64) -> Result<u64> {
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        number += births(parent, rate, Duration::from_millis(500))?;
    }
    Ok(number)
}

/// Runs a process that is born in a cgroup, uses so much CPU time, and executes a program.
pub fn run_in(cgroup: &Cgroup, time: Duration) -> Result<()> {
    let program = c"/bin/true";
    let argv = [program.as_ptr(), std::ptr::null()];
    let child = Born::start(cgroup, || {
        spin(time);
        // SAFETY: async-signal-safe, and `argv` ends with a null pointer.
        unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), argv[1..].as_ptr()) };
    })?;
    let status = child.wait()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// Uses so much CPU time of this thread. Calls nothing but clock_gettime.
fn spin(time: Duration) {
    let mut used = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let wanted = time.as_nanos() as i64;
    while used.tv_sec * 1_000_000_000 + used.tv_nsec < wanted {
        // SAFETY: `used` is writable.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut used) };
    }
}

/// Removes a cgroup once the kernel has switched away from its last process: what is counted later
/// is the parent's alone.
fn remove_settled(cgroup: &Cgroup) -> Result<()> {
    cgroup.final_cpu_seconds()?;
    cgroup.remove()
}

/// Started, exited, and CPU time that the agent has counted below a cgroup.
fn counts(metrics: &Metrics, id: &str) -> Result<[f64; 3]> {
    Ok([
        metrics.of(id, STARTED)?,
        metrics.get(EXITED, &[("id", id), ("reason", "exited")])?,
        metrics.of(id, USAGE)?,
    ])
}

/// Compares what a cgroup has with what its children did.
pub fn exact(metrics: &Metrics, parent: &Cgroup, births: u64) -> Result<()> {
    let [started, exited, usage] = counts(metrics, &parent.id)?;
    same("started", started, births as f64)?;
    same("exited", exited, births as f64)?;
    agree("CPU time", usage, parent.cpu_seconds()?, 0.001, 0.002)
}

/// Compares the CPU time of a cgroup with the kernel's.
fn same_time(metrics: &Metrics, cgroup: &Cgroup) -> Result<()> {
    let found = metrics.of(&cgroup.id, USAGE)?;
    agree("CPU time", found, cgroup.cpu_seconds()?, 0.001, 0.002)
}

/// Makes cgroups and removes them, without any process, until then. Returns how many.
fn empty_births(parent: &Cgroup, until: Instant) -> Result<u64> {
    let mut number = 0;
    while Instant::now() < until {
        parent.child(&format!("e{number}"))?.remove()?;
        number += 1;
    }
    Ok(number)
}

/// Makes a cgroup below `parent` with a process that uses so much CPU time, and removes it.
fn burnt(parent: &Cgroup, time: Duration) -> Result<()> {
    let child = parent.child("burnt")?;
    run_in(&child, time)?;
    child.remove()
}

/// Births with the agent stopped, one of them with more CPU time than the others, then as many empty ones as there can be. Returns the births a second.
fn stopped_for(time: Duration, empty: Duration) -> Result<f64> {
    let agent = Agent::start(&[])?;
    let top = Cgroup::new()?;
    let middle = top.child("middle")?;
    let parent = middle.child("parent")?;
    let all = [&top, &middle, &parent];
    agent.scrape()?;
    agent.signal(libc::SIGSTOP);
    let result = burnt(&parent, Duration::from_millis(300))
        .and_then(|()| births(&parent, 500.0, time))
        .and_then(|births| Ok((1 + births, empty_births(&parent, Instant::now() + empty)?)));
    agent.signal(libc::SIGCONT);
    let (births, without) = result?;
    let metrics = agent.scrape()?;
    let lost = metrics.get("cgmeter_lost_events_total", &[])?;
    println!("{births} births, {without} without a process, {lost} lost events");
    for cgroup in all {
        exact(&metrics, cgroup, births)?;
    }
    // An emulated CPU may not make so many births that events are lost.
    if lost > 0.0 {
        same("unequal cgroups", unequal(&agent)?, 0.0).with_context(|| agent.log())?;
    }
    ensure!(lost > 0.0 || needs::emulated(), "no events were lost");
    // It goes on where it was.
    let more = self::births(&parent, 100.0, Duration::from_secs(1))?;
    let metrics = agent.scrape()?;
    for cgroup in all {
        exact(&metrics, cgroup, births + more)?;
    }
    Ok(births as f64 / time.as_secs_f64())
}

/// The result of the agent's own comparison with the kernel's totals, which it makes after events were lost
/// and while no new cgroup is in the way.
fn unequal(agent: &Agent) -> Result<f64> {
    eventually(|| agent.scrape()?.get("cgmeter_cgroups_unequal", &[]))
}

fn stopped() -> Result<()> {
    stopped_for(Duration::from_secs(6), Duration::ZERO)?;
    Ok(())
}

fn stopped_for_long() -> Result<()> {
    let rate = stopped_for(Duration::from_secs(30), Duration::from_secs(5))?;
    ensure!(rate > 450.0, "{rate} births a second");
    Ok(())
}

/// Pins this thread to a CPU.
fn pin(cpu: usize) {
    // SAFETY: an all-zero set is empty, and the CPU is within it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// Lets nothing but the kernel's own work run before this thread on its CPU.
fn go_first() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: `parameters` is readable.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
}

/// Makes cgroups of two parents in turn, each with a process that runs on another CPU than the one that removes the
/// cgroup. Those of the first parent use so much CPU time. Returns how many each has had.
fn births_across(parents: &[Cgroup; 2], work: Duration, time: Duration) -> Result<u64> {
    let births = || -> Result<u64> {
        pin(0);
        let begin = Instant::now();
        let mut number = 0;
        while begin.elapsed() < time {
            for (parent, work) in parents.iter().zip([work, Duration::ZERO]) {
                let child = parent.child(&format!("b{number}"))?;
                let process = Born::start(&child, || {
                    pin(1);
                    // So that what it does is counted at its last switch.
                    go_first();
                    spin(work);
                    // SAFETY: always allowed.
                    unsafe { libc::_exit(0) }
                })?;
                // Possible as soon as the process has left it on its way to the end, before its last switch.
                while fs::remove_dir(&child.directory).is_err() {
                    ensure!(begin.elapsed() < 10 * time, "{} stays", child.id);
                }
                let status = process.wait()?;
                ensure!(status.success(), "{status}");
            }
            number += 1;
        }
        Ok(number)
    };
    thread::scope(|scope| scope.spawn(births).join())
        .map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

/// The control for the tests here: a switch program that waits between finding a cell and adding to it, while the
/// cgroup is removed. With the grace period nothing is lost, without it a part of the CPU time is: it goes to whoever
/// has the slot next.
fn control() -> Result<()> {
    // Emulated CPUs take turns of up to 100 ms: for the other one to remove the cgroup, the program has to wait longer.
    // The first parent gets what the second one loses: the few milliseconds that it takes a process there to begin and
    // to end. The work has to be more.
    let (wait_us, work, seconds, least) = if needs::emulated() {
        (150_000, 40, 15, 15)
    } else {
        (30, 1, 4, 200)
    };
    let (work, time) = (Duration::from_millis(work), Duration::from_secs(seconds));
    let parents = ["", ",no-grace"].map(|grace| -> Result<_> {
        let trial = format!("slow={wait_us}{grace}");
        let mut agent = Agent::begin(&[], &[("_CGMETER_TRIAL", &trial)])?;
        agent.wait_until_ready()?;
        let parents = [Cgroup::new()?, Cgroup::new()?];
        let births = births_across(&parents, work, time)?;
        let metrics = agent.scrape()?;
        ensure!(births > least, "{births} births");
        if needs::emulated() {
            // It does not make so many births that events are lost.
            return Ok((births, metrics, parents, None));
        }
        // The agent finds by itself what is missing, after it has lost events.
        agent.signal(libc::SIGSTOP);
        let empty = empty_births(&parents[1], Instant::now() + Duration::from_secs(2));
        agent.signal(libc::SIGCONT);
        empty?;
        let unequal = unequal(&agent).with_context(|| agent.log())?;
        let worst = agent.log().contains(&format!("worst={}", parents[0].id));
        Ok((births, metrics, parents, Some((unequal, worst))))
    });
    let [with, without] = parents;
    let (births, metrics, parents, unequal) = with?;
    ensure!(
        unequal.is_none_or(|unequal| unequal == (0.0, false)),
        "with the grace period: {unequal:?}"
    );
    for parent in &parents {
        println!(
            "{births} births, {} of {} s with the grace period",
            metrics.of(&parent.id, USAGE)?,
            parent.cpu_seconds()?
        );
        same_time(&metrics, parent)?;
        same("started", metrics.of(&parent.id, STARTED)?, births as f64)?;
    }
    let (births, metrics, [parent, _], unequal) = without?;
    ensure!(
        unequal.is_none_or(|(unequal, worst)| unequal >= 1.0 && worst),
        "without the grace period: {unequal:?}"
    );
    let (found, expected) = (metrics.of(&parent.id, USAGE)?, parent.cpu_seconds()?);
    println!("{births} births, {found} of {expected} s without the grace period");
    ensure!(found < 0.8 * expected, "{found} s of {expected} s");
    Ok(())
}

/// Simulated: each CPU has its own cells, and the others' are there as well. Loading takes the verifier longer, and a
/// removal looks at all of them.
fn many_cpus() -> Result<()> {
    let mut agent = Agent::begin(&[], &[("_CGMETER_TRIAL", "lanes=128")])?;
    agent.wait_until_ready()?;
    let parent = Cgroup::new()?;
    let births = births(&parent, 100.0, Duration::from_secs(3))?;
    exact(&agent.scrape()?, &parent, births)
}

/// With what is kept for the next agent.
fn fastest() -> Result<()> {
    let state = State::new();
    let agent = state.agent()?;
    let top = Cgroup::new()?;
    let middle = top.child("middle")?;
    let parent = middle.child("parent")?;
    let small = agent.body("/metrics", "")?.len();
    let time = Duration::from_secs(60);
    let births = thread::scope(|scope| {
        let births = scope.spawn(|| births(&parent, f64::INFINITY, time));
        let mut before = [0.0; 3];
        while !births.is_finished() {
            thread::sleep(Duration::from_secs(15));
            let now = counts(&agent.scrape()?, &parent.id)?;
            ensure!(
                now.iter().zip(&before).all(|(now, before)| now >= before),
                "{before:?} became {now:?}"
            );
            before = now;
        }
        births
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })?;
    let metrics = agent.scrape()?;
    let large = agent.body("/metrics", "")?.len();
    let most = agent.memory("VmHWM")?;
    println!(
        "{births} births in {time:?}, {} lost events, a scrape of {small} bytes became {large}, RSS of {most} \
         bytes at most",
        metrics.get("cgmeter_lost_events_total", &[])?,
    );
    ensure!(large <= small + 5_000_000, "{small} bytes became {large}");
    ensure!(most <= 64_000_000, "RSS of {most} bytes");
    // Nothing but lost events shows it.
    metrics.scrape_error(0.0)?;
    same("status", agent.get("/-/ready", "")?.status.into(), 200.0)?;
    let unequal = metrics.has("cgmeter_cgroups_unequal", &[]);
    ensure!(!unequal || metrics.get("cgmeter_cgroups_unequal", &[])? == 0.0);
    let least = if needs::emulated() { 0 } else { 30_000 };
    ensure!(births > least, "{births} births");
    [&top, &middle, &parent]
        .into_iter()
        .try_for_each(|ancestor| exact(&metrics, ancestor, births))
}

fn subtree() -> Result<()> {
    let agent = Agent::start(&[])?;
    let top = Cgroup::new()?;
    let mut expected = 0.0;
    for round in 0..20 {
        let middle = top.child("middle")?;
        let leaf = middle.child("leaf")?;
        run_in(&leaf, Duration::from_millis(10))?;
        run_in(&middle, Duration::from_millis(5))?;
        expected += 2.0;
        if round % 3 == 0 {
            agent.scrape()?;
        }
        remove_settled(&leaf)?;
        remove_settled(&middle)?;
        if round % 2 == 0 {
            let metrics = agent.scrape()?;
            let usage = top.cpu_seconds()?;
            agree("the top", metrics.of(&top.id, USAGE)?, usage, 0.001, 0.002)?;
            // The path was made again each time: it has what all of them did.
            let middle = metrics.of(&format!("{}/middle", top.id), USAGE)?;
            agree("the middle", middle, usage, 0.001, 0.002)?;
        }
    }
    let metrics = agent.scrape()?;
    let exited = [("id", top.id.as_str()), ("reason", "exited")];
    same("exited", metrics.get(EXITED, &exited)?, expected)
}

/// More cgroups are removed than are left for the agent to see, while it is stopped.
fn unseen() -> Result<()> {
    const WORK: Duration = Duration::from_millis(30);
    let agent = Agent::start(&[])?;
    let (parent, other) = (Cgroup::new()?, Cgroup::new()?);
    let child = parent.child("child")?;
    run_in(&child, WORK)?;
    remove_settled(&child)?;
    let usage = agent.scrape()?.of(&child.id, USAGE)?;
    let child = parent.child("child")?;
    run_in(&child, WORK)?;
    let shown = agent.scrape()?.of(&child.id, USAGE)?;
    ensure!(shown >= usage + WORK.as_secs_f64());
    agent.signal(libc::SIGSTOP);
    let churn = || -> Result<()> {
        remove_settled(&child)?;
        for n in 0..400 {
            let removed = other.child(&format!("r{n}"))?;
            run_in(&removed, Duration::ZERO)?;
            removed.remove()?;
        }
        Ok(())
    };
    let result = churn();
    agent.signal(libc::SIGCONT);
    result?;
    let metrics = agent.scrape()?;
    ensure!(metrics.get("cgmeter_cgroups_unreported_total", &[])? > 0.0);
    // What is known of it is less than what has been shown.
    let series = [("id", child.id.as_str())];
    ensure!(
        !metrics.has(USAGE, &series),
        "{} after {shown}",
        metrics.of(&child.id, USAGE)?
    );
    let usage = parent.cpu_seconds()?;
    agree(
        "the parent",
        metrics.of(&parent.id, USAGE)?,
        usage,
        0.001,
        0.002,
    )?;
    // A new one of this path is served.
    let child = parent.child("child")?;
    run_in(&child, WORK)?;
    ensure!(agent.scrape()?.of(&child.id, USAGE)? >= WORK.as_secs_f64());
    Ok(())
}

/// The agent is stopped at moments that a scrape may be in, for longer than programs wait for it.
fn interrupted() -> Result<()> {
    let agent = Agent::start(&["--web.min-interval", "0s"])?;
    let parent = Cgroup::new()?;
    let births = thread::scope(|scope| {
        let births = scope.spawn(|| births(&parent, 300.0, Duration::from_secs(15)));
        let mut before = [0.0; 3];
        let mut round = 0;
        while !births.is_finished() {
            let scrape = scope.spawn(|| agent.scrape());
            thread::sleep(Duration::from_micros(500 * (round % 12)));
            agent.signal(libc::SIGSTOP);
            thread::sleep(Duration::from_millis(250));
            agent.signal(libc::SIGCONT);
            let metrics = scrape
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            if round > 0 {
                let now = counts(&metrics, &parent.id)?;
                ensure!(
                    now.iter().zip(&before).all(|(now, before)| now >= before),
                    "round {round}: {before:?} became {now:?}"
                );
                before = now;
            }
            round += 1;
        }
        births
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })?;
    exact(&agent.scrape()?, &parent, births)
}

/// Removals a second at which at most 256 slots may wait.
const WANTED: u32 = 4000;

/// Moves a process of its own from one cgroup to the next, each of which is removed. The process never ends.
/// At half of [`WANTED`]. Returns the number of removals.
fn move_along(parent: &Cgroup, name: &str, until: Instant) -> Result<u64> {
    let mut last = parent.child(&format!("{name}home"))?;
    let worker = Worker::start(&last)?;
    let mut moves = 0;
    let begin = Instant::now();
    while Instant::now() < until {
        let due = begin + Duration::from_secs(1) * u32::try_from(moves)? / (WANTED / 2);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let next = parent.child(&format!("{name}{moves}"))?;
        next.admit(worker.pid())?;
        last.remove()?;
        (last, moves) = (next, moves + 1);
    }
    drop(worker);
    Ok(moves)
}

fn waiting() -> Result<()> {
    const TIME: Duration = Duration::from_secs(5);
    let agent = Agent::start(&[])?;
    let parent = Cgroup::new()?;
    let until = Instant::now() + TIME;
    let (removals, mut waiting) = thread::scope(|scope| -> Result<_> {
        let parent = &parent;
        let movers = ["a", "b"].map(|name| scope.spawn(move || move_along(parent, name, until)));
        let mut waiting = Vec::new();
        let mut before = [0.0; 3];
        while Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
            let metrics = agent.scrape()?;
            let slots = [("state", "quarantined")];
            waiting.push(metrics.get("cgmeter_slots", &slots)?);
            // Slots are swept all the time, and no reading goes back.
            let now = counts(&metrics, &parent.id)?;
            ensure!(
                now.iter().zip(&before).all(|(now, before)| now >= before),
                "{before:?} became {now:?}"
            );
            before = now;
        }
        let mut removals = 0;
        for mover in movers {
            removals += mover
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok((removals, waiting))
    })?;
    let rate = removals as f64 / TIME.as_secs_f64();
    waiting.sort_by(f64::total_cmp);
    let at = |part: f64| waiting[((waiting.len() - 1) as f64 * part) as usize];
    let (usual, most) = (at(0.9), at(1.0));
    println!(
        "{rate:.0} removals a second; slots waiting: {usual} or fewer in nine of ten scrapes, {most} at most"
    );
    // What an emulated CPU makes is what it is.
    let least = if needs::emulated() { 0.0 } else { 2000.0 };
    ensure!(rate > least, "{rate} removals a second");
    // How long a grace period takes is the kernel's business: longer while other processes take the CPUs.
    ensure!(
        usual <= 256.0 && most <= 512.0,
        "{usual}, {most} slots waiting"
    );
    let metrics = agent.scrape()?;
    same_time(&metrics, &parent)
}

/// One process goes through many cgroups, and each is removed once it has left.
fn mover() -> Result<()> {
    let agent = Agent::start(&[])?;
    let parent = Cgroup::new()?;
    let home = parent.child("home")?;
    let mut worker = Worker::start(&home)?;
    let mut last = home;
    const MOVES: u32 = 400;
    for n in 0..MOVES {
        let next = parent.child(&format!("m{n}"))?;
        next.admit(worker.pid())?;
        worker.order("spin 1")?;
        last.remove()?;
        last = next;
    }
    (0..MOVES).try_for_each(|_| worker.wait_done())?;
    let metrics = agent.scrape()?;
    same_time(&metrics, &parent)?;
    // Nothing has ended meanwhile, which would have let slots go at once: the kernel releases the
    // removed cgroups in its own time.
    eventually(|| {
        parent.child("another")?.remove()?;
        let metrics = agent.scrape()?;
        let slots = metrics.get("cgmeter_slots", &[("state", "quarantined")])?;
        ensure!(slots <= 128.0, "{slots} slots in quarantine");
        Ok(())
    })?;
    drop(worker);
    fs::metadata(&last.directory).context("the last cgroup")?;
    Ok(())
}
