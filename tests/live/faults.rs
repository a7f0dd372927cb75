//! What the agent does when the kernel refuses something: calls that fail, a bpffs that can't be written, a user
//! who may do less. Oracle: the number of processes that a test starts, cpu.stat.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::{Agent, binary},
    cgroup::Cgroup,
    conservation::{STARTED, births, exact},
    counters::{reference, watch::Watch},
    metrics::{Metrics, agree, same},
    mounted::{Folder, fuse, isolated, mount, unmount},
    needs::Need,
    runtimes::eventually,
    state::{State, kill},
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "faults::some_calls_of_bpf_that_fail",
        &[Need::Agent, Need::Program("strace")],
        || every_call(13),
    ),
    (
        "faults::every_call_of_bpf_that_fails",
        &[
            Need::Agent,
            Need::Program("strace"),
            Need::LongTier("hundreds of starts"),
        ],
        || every_call(1),
    ),
    (
        "faults::lists_of_interfaces_that_are_lost",
        &[Need::Agent, Need::Program("strace")],
        lost_lists,
    ),
    ("faults::a_source_that_panics", &[Need::Agent], torn),
    ("faults::a_snapshot_that_panics", &[Need::Agent], broken),
    ("faults::a_bpffs_that_is_read_only", &[Need::Agent], || {
        isolated(read_only)
    }),
    (
        "faults::a_user_with_capabilities",
        &[Need::Agent, Need::Program("setpriv")],
        || isolated(user),
    ),
    (
        "faults::a_log_on_a_full_disk",
        &[Need::Agent, Need::File("/dev/full")],
        full,
    ),
    (
        "faults::text_files_on_a_disk_that_hangs",
        &[Need::Agent, Need::File("/dev/fuse")],
        || isolated(hang),
    ),
    (
        "faults::the_clock_is_set",
        &[Need::Agent, Need::Guest("the clock")],
        clock,
    ),
    (
        "faults::a_cpu_goes_and_comes_back",
        &[
            Need::Agent,
            Need::Guest("which CPUs are online"),
            Need::File(CPU),
        ],
        cpu,
    ),
];

/// A rate of births that is not reached.
const FAST: f64 = 1000.0;

/// Where a fault was, and what became of the agent.
#[derive(Debug)]
enum Outcome {
    /// There was no such call before it served.
    None,
    /// It has ended.
    Ended,
    /// It served all the same.
    Served,
}

/// strace, which makes system calls fail.
struct Injector {
    log: PathBuf,
}

impl Injector {
    fn new() -> Self {
        let name = format!("cgmeter-test-strace-{}", std::process::id());
        Self {
            log: std::env::temp_dir().join(name),
        }
    }

    /// Starts an agent, and writes the calls of its first thread to the log: strace counts those of each thread by
    /// themselves, so that a rule would fit a call of each. Does not wait until it serves.
    fn trace(&self, rules: &[&str], flags: &[&str]) -> Result<Agent> {
        let log = self.log.display().to_string();
        // As a grandchild, so that the agent is a child of the test.
        let tracer = ["strace", "-D", "-qq", "-o", &log];
        let binary = binary();
        let words: Vec<&OsStr> = tracer.iter().chain(rules).map(OsStr::new).collect();
        Agent::begin_by(&[&words[..], &[&binary]].concat(), flags)
    }

    /// Numbers of the calls that a start makes: of many of one kind in a row, some.
    fn calls(&self, flags: &[&str]) -> Result<Vec<usize>> {
        let mut agent = self.trace(&["-e", "trace=bpf"], flags)?;
        agent.wait_until_ready()?;
        let text = fs::read_to_string(&self.log)?;
        kill(agent)?;
        // Lines such as `bpf(BPF_MAP_CREATE, {…`.
        let commands: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("bpf("))
            .filter_map(|call| call.split(',').next())
            .collect();
        ensure!(commands.len() > 100, "{} calls", commands.len());
        let mut chosen = Vec::new();
        let mut begin = 0;
        for run in commands.chunk_by(|one, other| one == other) {
            let some = |at: &usize| {
                *at < 2 || *at + 2 >= run.len() || (run.len() < 100 && at.is_multiple_of(8))
            };
            chosen.extend((0..run.len()).filter(some).map(|at| begin + at + 1));
            begin += run.len();
        }
        println!("{} of {} calls", chosen.len(), commands.len());
        Ok(chosen)
    }

    /// Starts an agent whose `number`th call fails. Returns it if it serves.
    fn start(&self, number: usize, flags: &[&str]) -> Result<(Option<Agent>, Outcome)> {
        let inject = format!("inject=bpf:error=ENOMEM:when={number}");
        let mut agent = self.trace(&["-e", "trace=bpf", "-e", &inject], flags)?;
        let ready = agent.wait_until_ready();
        let injected =
            || -> Result<bool> { Ok(fs::read_to_string(&self.log)?.contains("(INJECTED)")) };
        match ready {
            Ok(()) if injected()? => Ok((Some(agent), Outcome::Served)),
            Ok(()) => Ok((Some(agent), Outcome::None)),
            Err(error) => {
                let text = format!("{error:#}");
                // Of a call by which the loader finds out what the kernel can do, the error is another one's.
                ensure!(text.contains("cgmeter: error: ") && injected()?, "{text}");
                Ok((None, Outcome::Ended))
            }
        }
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.log);
    }
}

/// Starts agents with a fault in each `step`th of some calls.
fn with_faults(
    calls: &[usize],
    step: usize,
    mut start: impl FnMut(usize) -> Result<Outcome>,
) -> Result<()> {
    let (mut none, mut ended, mut served) = (0, 0, 0);
    for &number in calls.iter().step_by(step) {
        match start(number).with_context(|| format!("with call {number} failing"))? {
            Outcome::None => none += 1,
            Outcome::Ended => ended += 1,
            Outcome::Served => served += 1,
        }
    }
    println!("{ended} starts failed, {served} served, {none} had no such call");
    ensure!(ended > none, "hardly a start has failed");
    Ok(())
}

/// Calls of bpf(2) fail with ENOMEM, each `step`th of those that a start makes.
fn every_call(step: usize) -> Result<()> {
    let injector = Injector::new();
    first_starts(&injector, step).context("first starts")?;
    without_pins(&injector, step).context("without pins")?;
    later_starts(&injector, step, "--collector.tcp").context("the same programs")?;
    later_starts(&injector, step, "--no-collector.tcp").context("other programs")
}

/// Whether it counts what happens from now on.
fn serves(agent: &Agent) -> Result<()> {
    let parent = Cgroup::new()?;
    let number = births(&parent, FAST, Duration::from_millis(20))?;
    let metrics = agent.scrape()?;
    metrics.scrape_error(0.0)?;
    exact(&metrics, &parent, number)
}

/// Nothing outlives the agent.
fn without_pins(injector: &Injector, step: usize) -> Result<()> {
    println!("without pins");
    let calls = injector.calls(&[])?;
    with_faults(&calls, step, |number| {
        let (agent, outcome) = injector.start(number, &[])?;
        if let (Some(agent), Outcome::Served) = (agent, &outcome) {
            let log = agent.log();
            let named = log.contains("source off") || log.contains("less exact");
            ensure!(named || serves(&agent).is_ok(), "{log}");
        }
        Ok(outcome)
    })
}

/// Nothing is pinned yet.
fn first_starts(injector: &Injector, step: usize) -> Result<()> {
    println!("first starts");
    let state = State::new();
    let calls = injector.calls(&[&state.flag()])?;
    drop(state);
    with_faults(&calls, step, |number| {
        let state = State::new();
        let (agent, outcome) = injector.start(number, &[&state.flag()])?;
        match agent {
            Some(agent) => {
                serves(&agent)?;
                kill(agent)?;
            }
            None => {
                // It may have ended after everything was in its place.
                for left in fs::read_dir(state.path())? {
                    let left = left?.path();
                    ensure!(left.join("whole").exists(), "half of {}", left.display());
                }
            }
        }
        let agent = state.agent()?;
        let log = agent.log();
        ensure!(!log.contains("is removed"), "{log}");
        serves(&agent)?;
        kill(agent)?;
        Ok(outcome)
    })
}

/// An earlier agent's programs count.
fn later_starts(injector: &Injector, step: usize, setting: &str) -> Result<()> {
    println!("later starts with {setting}");
    let state = State::new();
    let parent = Cgroup::new()?;
    kill(state.agent()?)?;
    let mut number = 0;
    let mut born = || -> Result<u64> {
        number += births(&parent, FAST, Duration::from_millis(20))?;
        Ok(number)
    };
    let calls = injector.calls(&[&state.flag(), setting])?;
    kill(state.agent()?)?;
    with_faults(&calls, step, |call| {
        born()?;
        let (agent, outcome) = injector.start(call, &[&state.flag(), setting])?;
        if let Some(agent) = agent {
            let number = born()?;
            let metrics = agent.scrape()?;
            metrics.scrape_error(0.0)?;
            exact(&metrics, &parent, number)?;
            kill(agent)?;
        }
        born()?;
        let agent = state.agent()?;
        let log = agent.log();
        ensure!(!log.contains("is removed"), "{log}");
        let sets = state.pinned("programs_")?;
        ensure!(sets.len() == 1, "{sets:?}");
        let number = born()?;
        exact(&agent.scrape()?, &parent, number)?;
        kill(agent)?;
        Ok(outcome)
    })
}

const PANICS: (&str, &str) = ("_CGMETER_TRIAL", "panic=tcp");
const ENDS: (&str, &str) = ("_CGMETER_TRIAL", "panic=snapshot");

/// The source is off from then on, and says so. The others go on.
fn torn() -> Result<()> {
    const OF_TCP: &str = "container_tcp_connections_opened_total";
    let mut agent = Agent::begin(&[], &[PANICS])?;
    agent.wait_until_ready()?;
    let up = |metrics: &Metrics| metrics.get("cgmeter_source_up", &[("source", "tcp")]);
    agent.scrape()?.scrape_error(1.0)?;
    for _ in 0..3 {
        serves(&agent)?;
    }
    let metrics = agent.scrape()?;
    same("up", up(&metrics)?, 0.0)?;
    ensure!(!metrics.has(OF_TCP, &[]), "{OF_TCP} is served");
    let counted = metrics.get("cgmeter_source_errors_total", &[("source", "tcp")])?;
    same("errors", counted, 1.0)?;
    same("panics", metrics.sum("cgmeter_panics_total", &[]), 1.0)?;
    let log = agent.log();
    ensure!(log.contains("please report it"), "{log}");
    // The control: it was there.
    let metrics = Agent::start(&[])?.scrape()?;
    ensure!(metrics.has(OF_TCP, &[]), "there is no {OF_TCP}");
    same("up", up(&metrics)?, 1.0)
}

/// The agent ends with the status that has it started again, and the next one goes on.
fn broken() -> Result<()> {
    let state = State::new();
    let parent = Cgroup::new()?;
    let mut agent = Agent::begin(&[&state.flag()], &[ENDS])?;
    agent.wait_until_ready()?;
    let mut number = births(&parent, FAST, Duration::from_millis(100))?;
    // It may end before it answers.
    if let Ok(answer) = agent.get("/metrics", "") {
        ensure!(answer.status == 500, "{}", answer.status);
    }
    let status = agent.ended()?;
    ensure!(status.code() == Some(70), "{status}");
    number += births(&parent, FAST, Duration::from_millis(100))?;
    let agent = state.agent()?;
    exact(&agent.scrape()?, &parent, number)?;
    kill(agent)
}

/// Mounts a bpffs of the test's own.
fn bpffs(folder: &Folder) -> Result<PathBuf> {
    let point = folder.folder("bpf")?;
    mount(Some(Path::new("bpf")), &point, Some(c"bpf"), 0, "")?;
    Ok(point)
}

/// What is pinned there goes on counting, and an agent that can write again goes on with it.
fn read_only() -> Result<()> {
    let folder = Folder::new("read-only")?;
    let point = bpffs(&folder)?;
    let remount = |flags| mount(None, &point, None, libc::MS_REMOUNT | flags, "");
    let state = State::at(&point.join("cgmeter"));
    let refused = |said: &str| -> Result<()> {
        remount(libc::MS_RDONLY)?;
        let agent = state.agent()?;
        let log = agent.log();
        ensure!(
            log.contains("Read-only file system") && log.contains(said),
            "{log}"
        );
        serves(&agent)?;
        kill(agent)?;
        remount(0)
    };
    let said = "counters will begin at 0 after a restart";
    refused(said)?;
    let parent = Cgroup::new()?;
    let agent = state.agent()?;
    let mut number = births(&parent, FAST, Duration::from_millis(100))?;
    kill(agent)?;
    refused(said)?;
    number += births(&parent, FAST, Duration::from_millis(100))?;
    let agent = state.agent()?;
    exact(&agent.scrape()?, &parent, number)?;
    kill(agent)?;
    drop(state);
    unmount(&point)
}

const NOBODY: u32 = 65534;

/// An agent of `nobody`, which has the capabilities to load programs and to attach them.
fn nobody(agent: &Path, state: &State) -> Result<Agent> {
    const CAPABILITIES: &str = "+bpf,+perfmon,+net_admin";
    let bounding = format!("-all,{CAPABILITIES}");
    let user = NOBODY.to_string();
    let words = [
        "setpriv",
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--inh-caps",
        CAPABILITIES,
        "--ambient-caps",
        CAPABILITIES,
        "--bounding-set",
        &bounding,
    ];
    let mut words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    words.push(agent.as_os_str());
    Agent::begin_by(&words, &[&state.flag()])
}

/// In a directory of bpffs that somebody has made for it, an agent that is not root goes on with its counters. What
/// is root's it can neither use nor spoil.
fn user() -> Result<()> {
    let folder = Folder::new("user")?;
    let point = bpffs(&folder)?;
    // Where any user can execute it.
    let agent = folder.0.join("cgmeter");
    fs::copy(binary(), &agent)?;
    let made = point.join("cgmeter");
    fs::create_dir(&made)?;
    std::os::unix::fs::chown(&made, Some(NOBODY), Some(NOBODY))?;
    let state = State::at(&made);
    let parent = Cgroup::new()?;
    let mut number = 0;
    let mut born = || -> Result<u64> {
        number += births(&parent, FAST, Duration::from_millis(100))?;
        Ok(number)
    };
    for round in 0..3 {
        let mut agent = nobody(&agent, &state)?;
        agent.wait_until_ready()?;
        let log = agent.log();
        ensure!(
            !log.contains("--state.pin") && !log.contains("is removed"),
            "{log}"
        );
        if round == 0 {
            // Up to here nobody has counted.
            same("started", agent.scrape()?.of(&parent.id, STARTED)?, 0.0)?;
        }
        let number = born()?;
        exact(&agent.scrape()?, &parent, number)?;
        kill(agent)?;
        born()?;
    }
    // They were the first one's programs all the time.
    let sets = state.pinned("programs_0_")?;
    ensure!(sets.len() == 1, "{:?}", state.pinned("programs_"));
    drop(state);

    // Root's, where another user may not write.
    let state = State::at(&point.join("root"));
    kill(state.agent()?)?;
    let other = Cgroup::new()?;
    let mut agent = nobody(&folder.0.join("cgmeter"), &state)?;
    agent.wait_until_ready()?;
    let log = agent.log();
    ensure!(log.contains("be written: Permission denied"), "{log}");
    kill(agent)?;
    // Root's, in a directory of that user.
    std::os::unix::fs::chown(state.path(), Some(NOBODY), Some(NOBODY))?;
    let error = nobody(&folder.0.join("cgmeter"), &state)?.wait_until_ready();
    let error = format!("{:#}", error.err().context("it has started")?);
    ensure!(
        error.contains("is left as it is") && error.contains("Permission denied"),
        "{error}"
    );
    let number = births(&other, FAST, Duration::from_millis(100))?;
    let agent = state.agent()?;
    exact(&agent.scrape()?, &other, number)?;
    kill(agent)?;
    drop(state);
    unmount(&point)
}

/// Each write to /dev/full fails with ENOSPC. Beside the log, the agent writes nothing.
fn full() -> Result<()> {
    let binary = binary();
    let words = ["sh", "-c", "exec \"$0\" \"$@\" 2>/dev/full"];
    let mut words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    words.push(&binary);
    let mut agent = Agent::begin_by(&words, &["--log.level=debug"])?;
    agent.wait_until_ready()?;
    serves(&agent)?;
    ensure!(agent.log().is_empty(), "{}", agent.log());
    let lost = eventually(|| {
        let lost = agent.scrape()?.get("cgmeter_log_lines_lost_total", &[])?;
        ensure!(lost > 0.0, "no lines are counted as lost");
        Ok(lost)
    })?;
    println!("{lost} lines lost");
    let status = agent.stop(libc::SIGTERM)?;
    ensure!(status.success(), "{status}");
    let dump = Command::new(&binary)
        .arg("dump")
        .stdout(fs::File::create("/dev/full")?)
        .output()?;
    let error = String::from_utf8_lossy(&dump.stderr);
    ensure!(
        !dump.status.success() && error.contains("No space left on device"),
        "{dump:?}"
    );
    Ok(())
}

/// A FUSE file system whose server, this test, never answers.
fn hang() -> Result<()> {
    let folder = Folder::new("hanging-files")?;
    let point = folder.folder("files")?;
    let (server, options) = fuse("40000")?;
    mount(Some(Path::new("hang")), &point, Some(c"fuse"), 0, &options)?;
    let state = State::new();
    let flags = [
        state.flag(),
        format!("--custom.textfile-directory={}", point.display()),
    ];
    let flags = [flags[0].as_str(), flags[1].as_str()];
    let agent = Agent::start(&flags)?;
    for _ in 0..3 {
        serves(&agent)?;
    }
    // Its thread waits in the kernel.
    let status = agent.stop(libc::SIGTERM)?;
    ensure!(status.success(), "{status}");
    let agent = Agent::start(&flags)?;
    serves(&agent)?;
    kill(agent)?;
    drop(server);
    unmount(&point)
}

const START: &str = "container_start_time_seconds";
const CREATED: &str = "container_creation_time_seconds";
const SEEN: &str = "container_last_seen";

/// The wall clock, s.
fn now() -> Result<f64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(now.as_secs_f64())
}

/// The wall clock, which is set by some hours. It is right again at the end.
struct Clock {
    shift: i64,
}

impl Clock {
    fn shift(&mut self, hours: i64) -> Result<()> {
        let by = hours * 3600;
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `time` is writable, and then readable.
        let result = unsafe {
            libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut time);
            time.tv_sec += by;
            libc::clock_settime(libc::CLOCK_REALTIME, &raw const time)
        };
        ensure!(
            result == 0,
            "clock_settime: {}",
            std::io::Error::last_os_error()
        );
        self.shift += hours;
        Ok(())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if let Err(error) = self.shift(-self.shift) {
            eprintln!("{error:#}");
        }
    }
}

/// When a process was started, as the kernel says now: `btime` of /proc/stat moves with the clock.
fn started(pid: u32) -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let boot = text.lines().find_map(|line| line.strip_prefix("btime "));
    let boot: f64 = boot.context("no btime")?.trim().parse()?;
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(") ").context("no command")?;
    // The 22nd field; the rest begins with the third. In 1/100 s.
    let ticks: f64 = rest.split(' ').nth(19).context("too few")?.parse()?;
    Ok(boot + ticks / 100.0)
}

/// Counters go on, what was removed is served as long as before, times are those of one clock or the other.
fn clock() -> Result<()> {
    let families = reference()?;
    let state = State::new();
    let mut agent = state.agent()?;
    let parent = Cgroup::new()?;
    let mut watch = Watch::of_one(&parent.id, &families);
    let living = parent.child("living")?;
    let mut worker = Worker::start(&living)?;
    let gone = parent.child("gone")?;
    Worker::once(&gone, "spin 5")?;
    gone.remove()?;
    watch.scrape(&agent)?;
    let created = agent.scrape()?.of(&living.id, CREATED)?;
    agree("created", created, now()?, 0.0, 120.0)?;
    let mut clock = Clock { shift: 0 };
    // The last one is the right time again.
    for (round, hours) in [5, -11, 48, -42].into_iter().enumerate() {
        clock.shift(hours)?;
        worker.run("spin 20")?;
        if round == 1 {
            // One that starts when the clock is wrong.
            kill(agent)?;
            agent = state.agent()?;
        }
        watch.scrape(&agent)?;
        let metrics = agent.scrape()?;
        metrics.scrape_error(0.0)?;
        let (used, usage) = (metrics.of(&parent.id, USAGE)?, parent.cpu_seconds()?);
        agree("CPU time", used, usage, 0.001, 0.002)?;
        let seen = metrics.of(&living.id, SEEN)?;
        agree("last seen", seen, now()?, 0.0, 60.0)?;
        if round == 0 {
            // Five hours are not the five minutes for which it is served.
            ensure!(
                metrics.has(USAGE, &[("id", &gone.id)]),
                "the removed cgroup has gone"
            );
            same("created", metrics.of(&living.id, CREATED)?, created)?;
        }
        let since = metrics.of(&living.id, START)?;
        let expected = started(worker.pid())?;
        println!("{hours:+} h: started {since}, by the kernel {expected}, created {created}");
        let latest = expected.max(metrics.get(CREATED, &[("id", &living.id)]).unwrap_or(0.0));
        agree("started", since, latest, 0.0, 2.0)?;
    }
    Ok(())
}

const USAGE: &str = "container_cpu_usage_seconds_total";
/// The file by which a CPU goes and comes.
const CPU: &str = "/sys/devices/system/cpu/cpu1/online";

/// A CPU that is online again at the end.
struct Online;

impl Online {
    fn set(&self, online: bool) -> Result<()> {
        let text = if online { "1" } else { "0" };
        fs::write(CPU, text).with_context(|| format!("writing {text} to {CPU}"))
    }
}

impl Drop for Online {
    fn drop(&mut self) {
        if let Err(error) = self.set(true) {
            eprintln!("{error:#}");
        }
    }
}

/// Under load, and with an agent that starts while the CPU is offline.
fn cpu() -> Result<()> {
    const ROUNDS: u32 = 6;
    let families = reference()?;
    let state = State::new();
    let mut agent = state.agent()?;
    let (parent, busy) = (Cgroup::new()?, Cgroup::new()?);
    let mut watch = Watch::of_one(&busy.id, &families);
    let mut worker = Worker::start(&busy)?;
    worker.order("start-threads 3")?;
    let cpu = Online;
    let mut number = 0;
    for round in 0..ROUNDS {
        number += births(&parent, FAST, Duration::from_millis(200))?;
        cpu.set(false)?;
        number += births(&parent, FAST, Duration::from_millis(200))?;
        watch.scrape(&agent)?;
        if round == 1 {
            kill(agent)?;
            number += births(&parent, FAST, Duration::from_millis(200))?;
            agent = state.agent()?;
            watch.scrape(&agent)?;
        }
        exact(&agent.scrape()?, &parent, number)?;
        cpu.set(true)?;
        number += births(&parent, FAST, Duration::from_millis(200))?;
        watch.scrape(&agent)?;
        exact(&agent.scrape()?, &parent, number)?;
    }
    drop(worker);
    busy.remove_tasks()?;
    let usage = busy.final_cpu_seconds()?;
    let metrics = agent.scrape()?;
    metrics.scrape_error(0.0)?;
    println!("{number} births, {usage} s of CPU time over {ROUNDS} rounds");
    agree(
        "CPU time",
        metrics.of(&busy.id, USAGE)?,
        usage,
        0.001,
        0.002,
    )
}

/// The kernel's answer to the agent's first question about interfaces is lost: recv(2) says so, there is none, or
/// it is a message that says so. It is asked again, and a list that never comes is an error.
fn lost_lists() -> Result<()> {
    const INTERFACES: &str = "container_network_receive_packets_total";
    let of_host = |agent: &Agent| -> Result<Vec<String>> {
        let metrics = agent.scrape()?;
        let series = metrics
            .samples()
            .filter(|(name, labels, _)| *name == INTERFACES && labels.contains("id=\"/\""));
        Ok(series.map(|(_, labels, _)| labels.to_owned()).collect())
    };
    let expected = of_host(&Agent::start(&[])?)?;
    ensure!(!expected.is_empty(), "the host has no interfaces");
    // struct nlmsghdr: length 36, NLMSG_ERROR, no flags, the first request's number, a port; struct nlmsgerr: -ENOBUFS
    let refusal = "24000000020000000100000000000000";
    let refusal: String = (-libc::ENOBUFS)
        .to_ne_bytes()
        .iter()
        .fold(refusal.to_owned(), |text, byte| format!("{text}{byte:02x}"));
    let refused = format!("poke_exit=@arg2={refusal}:when=1");
    // The fault, what shows it in the log, how often the list is asked for then, and whether that is an error in the end.
    for (fault, shown, requests, errors) in [
        ("error=ENOBUFS:when=1", "(INJECTED)", 1, 0.0),
        ("error=EAGAIN:when=1", "(INJECTED)", 2, 0.0),
        (&refused, "{error=-ENOBUFS", 2, 0.0),
        // Two readings of five requests each.
        ("error=EAGAIN:when=1+", "(INJECTED)", 10, 1.0),
    ] {
        let check = || -> Result<()> {
            let injector = Injector::new();
            let inject = format!("inject=recvfrom:{fault}");
            let rules = ["-e", "trace=sendto,recvfrom", "-e", &inject];
            let mut agent = injector.trace(&rules, &[])?;
            agent.wait_until_ready()?;
            let calls = fs::read_to_string(&injector.log)?;
            ensure!(calls.contains(shown), "{calls}");
            let found = calls.matches("nlmsg_type=RTM_GETSTATS").count();
            ensure!(
                found == requests,
                "{found} requests instead of {requests}: {calls}"
            );
            let metrics = agent.scrape()?;
            let counted = metrics.get("cgmeter_source_errors_total", &[("source", "netdev")])?;
            same("errors", counted, errors)?;
            metrics.scrape_error(0.0)?;
            let found = of_host(&agent)?;
            ensure!(found == expected, "{found:?} instead of {expected:?}");
            Ok(())
        };
        check().with_context(|| fault.to_owned())?;
    }
    Ok(())
}
