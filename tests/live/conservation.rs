//! What a cgroup has counted is its parent's when it goes, whether the agent runs or not.
//! Oracle: cpu.stat, the number of processes that the test starts.

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    metrics::{Metrics, agree, same},
    needs::Need,
    runtimes::eventually,
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "conservation::births_while_the_agent_is_stopped",
        &[Need::Agent],
        stopped,
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
        "conservation::a_process_that_moves_through_removed_cgroups",
        &[Need::Agent],
        mover,
    ),
];

const USAGE: &str = "container_cpu_usage_seconds_total";
pub const STARTED: &str = "container_processes_started_total";
pub const EXITED: &str = "container_processes_exited_total";

/// Of clone3 (include/uapi/linux/sched.h). The crate's constant is 32 bits wide, which is too narrow.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

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

/// Runs a process that is born in a cgroup and uses so much CPU time. One that enters after its birth brings some time along:
/// with the cpu controller the kernel counts it for the cgroup that it enters, and cgmeter for the
/// one that it leaves (docs/limits.md).
fn run_in(cgroup: &Cgroup, time: Duration) -> Result<()> {
    let directory = File::open(&cgroup.directory)?;
    // SAFETY: `clone_args` consists of integers.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = directory.as_raw_fd() as u64;
    let program = c"/bin/true";
    let argv = [program.as_ptr(), std::ptr::null()];
    // SAFETY: the child, which has memory of its own, calls only clock_gettime, execve and _exit.
    let child = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    if child == 0 {
        spin(time);
        // SAFETY: both are async-signal-safe, and `argv` ends with a null pointer.
        unsafe {
            libc::execve(program.as_ptr(), argv.as_ptr(), argv[1..].as_ptr());
            libc::_exit(127);
        }
    }
    ensure!(child > 0, "clone3: {}", std::io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: `status` is writable.
    let waited = unsafe { libc::waitpid(child as libc::pid_t, &raw mut status, 0) };
    ensure!(
        i64::from(waited) == child && status == 0,
        "waitpid: {waited}, status {status}"
    );
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

fn stopped() -> Result<()> {
    let agent = Agent::start(&[])?;
    let parent = Cgroup::new()?;
    agent.scrape()?;
    agent.signal(libc::SIGSTOP);
    let result = births(&parent, 500.0, Duration::from_secs(6));
    agent.signal(libc::SIGCONT);
    let births = result?;
    let metrics = agent.scrape()?;
    println!(
        "{births} births, {} lost events",
        metrics.get("cgmeter_lost_events_total", &[])?
    );
    exact(&metrics, &parent, births)?;
    // It goes on where it was.
    let more = self::births(&parent, 100.0, Duration::from_secs(1))?;
    exact(&agent.scrape()?, &parent, births + more)
}

fn fastest() -> Result<()> {
    let agent = Agent::start(&[])?;
    let parent = Cgroup::new()?;
    let small = agent.body("/metrics", "")?.len();
    let time = Duration::from_secs(60);
    let births = thread::scope(|scope| {
        let births = scope.spawn(|| births(&parent, f64::INFINITY, time));
        let mut before = [0.0; 3];
        while !births.is_finished() {
            thread::sleep(Duration::from_secs(2));
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
    println!(
        "{births} births in {time:?}, {} lost events, a scrape of {small} bytes became {large}, RSS {}",
        metrics.get("cgmeter_lost_events_total", &[])?,
        agent.memory("VmRSS")?
    );
    exact(&metrics, &parent, births)
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
    let usage = parent.cpu_seconds()?;
    agree(
        "CPU time",
        metrics.of(&parent.id, USAGE)?,
        usage,
        0.001,
        0.002,
    )?;
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
