//! Processes, threads, descriptors, sockets. Oracle: cgroup.procs, cgroup.threads and /proc.

use std::{
    fs,
    net::TcpStream,
    ops::AddAssign,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use http_client::Request;

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    metrics::{Metrics, agree, same},
    needs::Need,
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    ("tasks::processes_files_and_sockets", &[Need::Agent], crowd),
    ("tasks::threads", &[Need::Agent], threads),
    ("tasks::states", &[Need::Agent], states),
    ("tasks::zombies_are_not_counted", &[Need::Agent], zombies),
    (
        "tasks::reserved_descriptors_are_not_open",
        &[Need::Agent],
        accepting,
    ),
    (
        "tasks::path_descriptors_are_not_sockets",
        &[Need::Agent],
        path_sockets,
    ),
    ("tasks::tables_of_threads", &[Need::Agent], own_tables),
    ("tasks::high_descriptors", &[Need::Agent], sparse),
    ("tasks::a_million_descriptors", &[Need::Agent], many),
    ("tasks::a_sleeping_process_is_moved", &[Need::Agent], moved),
    (
        "tasks::start_and_limit_of_the_oldest",
        &[Need::Agent],
        oldest,
    ),
    ("tasks::the_whole_host", &[Need::Agent], host),
];

const STATES: [&str; 5] = [
    "sleeping",
    "running",
    "stopped",
    "uninterruptible",
    "iowaiting",
];

/// Counts of processes and their resources, from any source.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Census {
    processes: f64,
    threads: f64,
    descriptors: f64,
    sockets: f64,
    /// In the order of [`STATES`]. /proc does not distinguish the last two.
    states: [f64; 5],
}

impl AddAssign for Census {
    fn add_assign(&mut self, other: Self) {
        self.processes += other.processes;
        self.threads += other.threads;
        self.descriptors += other.descriptors;
        self.sockets += other.sockets;
        for (sum, state) in self.states.iter_mut().zip(other.states) {
            *sum += state;
        }
    }
}

impl Census {
    /// The agent's counts.
    fn served(metrics: &Metrics, id: &str) -> Result<Self> {
        let mut states = [0.0; 5];
        for (value, state) in states.iter_mut().zip(STATES) {
            *value = metrics.get("container_tasks_state", &[("id", id), ("state", state)])?;
        }
        Ok(Self {
            processes: metrics.of(id, "container_processes")?,
            threads: metrics.of(id, "container_threads")?,
            descriptors: metrics.of(id, "container_file_descriptors")?,
            sockets: metrics.of(id, "container_sockets")?,
            states,
        })
    }

    /// The counts in the kernel's files, of one cgroup without its children.
    fn of(cgroup: &Cgroup) -> Result<Self> {
        let mut census = Self::default();
        let list = |name: &str| -> Result<Vec<String>> {
            let text = fs::read_to_string(cgroup.directory.join(name))?;
            Ok(text.lines().map(str::to_owned).collect())
        };
        for pid in list("cgroup.procs")? {
            census.processes += 1.0;
            census.add_files(&Path::new("/proc").join(pid).join("fd"))?;
        }
        for thread in list("cgroup.threads")? {
            census.threads += 1.0;
            // /proc/TID exists for threads too, although it is not listed.
            census.add_state(&Path::new("/proc").join(thread))?;
        }
        Ok(census)
    }

    fn add_files(&mut self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let target = fs::read_link(entry?.path())?;
            self.descriptors += 1.0;
            self.sockets += f64::from(target.to_string_lossy().starts_with("socket:"));
        }
        Ok(())
    }

    fn add_state(&mut self, thread: &Path) -> Result<()> {
        let stat = fs::read_to_string(thread.join("stat"))?;
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next())
            .context("no state")?;
        let state = match state {
            'S' | 'I' | 'P' => 0,
            'R' => 1,
            'T' | 't' => 2,
            'D' => 3,
            other => anyhow::bail!("{}: state {other}", thread.display()),
        };
        self.states[state] += 1.0;
        Ok(())
    }

    fn same(&self, expected: &Self) -> Result<()> {
        same("processes", self.processes, expected.processes)?;
        same("threads", self.threads, expected.threads)?;
        same("descriptors", self.descriptors, expected.descriptors)?;
        same("sockets", self.sockets, expected.sockets)?;
        let states = self.states.iter().zip(expected.states);
        for (state, (&found, expected)) in STATES.iter().zip(states).take(3) {
            same(state, found, expected)?;
        }
        same(
            "uninterruptible and iowaiting",
            self.states[3] + self.states[4],
            expected.states[3],
        )?;
        same("states", self.states.iter().sum(), self.threads)
    }
}

/// Repeats a comparison for up to a minute, until it succeeds. On a slow or busy machine one
/// comparison is not enough:
///
/// - After a slow walk over all tasks, the agent serves the values for a hundred times as long as the
///   walk took (collector/src/source/tasks.rs).
/// - A task reports before it sleeps, and may still run when its state is read.
fn in_time<T>(compare: impl Fn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match compare() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
            result => return result,
        }
    }
}

/// Fails unless the agent's counts equal those in the kernel's files, for a cgroup and its
/// descendants.
fn check(agent: &Agent, cgroup: &Cgroup, below: &[&Cgroup]) -> Result<Census> {
    in_time(|| {
        let mut expected = Census::of(cgroup)?;
        for child in below {
            expected += Census::of(child)?;
        }
        let served = Census::served(&agent.scrape()?, &cgroup.id)?;
        served
            .same(&expected)
            .with_context(|| format!("{}: {served:?} instead of {expected:?}", cgroup.id))?;
        Ok(served)
    })
}

/// Scrapes until a cgroup has so many processes.
fn scrape_with(agent: &Agent, cgroup: &Cgroup, processes: f64) -> Result<Metrics> {
    in_time(|| {
        let metrics = agent.scrape()?;
        let served = metrics.of(&cgroup.id, "container_processes")?;
        same("processes", served, processes)?;
        Ok(metrics)
    })
}

/// Waits until the tasks of a cgroup are in these states. A child reports that it is ready just before
/// it sleeps or stops.
fn wait_for_states(cgroup: &Cgroup, states: [f64; 5]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let census = Census::of(cgroup)?;
        if census.states == states {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{census:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn crowd() -> Result<()> {
    let agent = Agent::start(&[])?;
    let top = Cgroup::new()?;
    let orders = ["brood 100 7 3", "brood 60 80 2", "brood 36 5 40"];
    let (one, two) = (&top.child("one")?, &top.child("two")?);
    let three = &two.child("three")?;
    let mut workers = Vec::new();
    for (cgroup, order) in [one, two, three].into_iter().zip(orders) {
        let mut worker = Worker::start(cgroup)?;
        worker.run(order)?;
        workers.push(worker);
    }
    for (cgroup, tasks) in [(one, 101.0), (two, 61.0), (three, 37.0)] {
        wait_for_states(cgroup, [tasks, 0.0, 0.0, 0.0, 0.0])?;
    }
    let mut outside = Worker::start(&top)?;
    outside.run("sockets 3")?;
    let first = check(&agent, one, &[])?;
    same("processes", first.processes, 101.0)?;
    // 100 children with n mod 7 files and n mod 3 sockets, and the descriptors that each inherits.
    let files: u32 = (0..100).map(|n| n % 7).sum();
    let sockets: u32 = (0..100).map(|n| n % 3).sum();
    same("sockets", first.sockets, f64::from(sockets))?;
    ensure!(first.descriptors >= f64::from(files + sockets + 101 * 3));
    same("sleeping", first.states[0], 101.0)?;
    check(&agent, three, &[])?;
    check(&agent, two, &[three])?;
    let all = check(&agent, &top, &[one, two, three])?;
    same("processes", all.processes, 200.0)?;
    // Half of them end.
    drop(workers.remove(0));
    one.remove_tasks()?;
    check(&agent, &top, &[two, three])?;
    let gone = check(&agent, one, &[])?;
    same("processes", gone.processes, 0.0)?;
    let metrics = agent.scrape()?;
    same(
        "overflow",
        metrics.get("cgmeter_overflow_events_total", &[])?,
        0.0,
    )
}

fn threads() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("threads 30 1")?;
    worker.run("files 5")?;
    let census = check(&agent, &cgroup, &[])?;
    same("processes", census.processes, 1.0)?;
    same("threads", census.threads, 31.0)
}

fn states() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("stopped 4")?;
    worker.run("uninterruptible 3")?;
    worker.run("running 2")?;
    // Four sleep: the worker, and the children that the three in vfork wait for.
    wait_for_states(&cgroup, [4.0, 2.0, 4.0, 3.0, 0.0])?;
    let census = check(&agent, &cgroup, &[])?;
    // A task in vfork does not wait for a device.
    same("uninterruptible", census.states[3], 3.0)
}

fn zombies() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("zombies 7")?;
    let census = check(&agent, &cgroup, &[])?;
    same("processes", census.processes, 1.0)?;
    // A process whose first thread has exited is still a process and has descriptors, although
    // /proc/PID/fd doesn't show them.
    worker.run("leaderless 3")?;
    let before = census;
    let deadline = Instant::now() + Duration::from_secs(20);
    let procs = || fs::read_to_string(cgroup.directory.join("cgroup.threads"));
    while procs()?.lines().count() != 4 {
        ensure!(Instant::now() < deadline, "the leader does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut expected = Census::default();
    let threads = procs()?;
    let thread = threads.lines().last().context("no thread")?;
    expected.add_files(&Path::new("/proc").join(thread).join("fd"))?;
    in_time(|| {
        let census = Census::served(&agent.scrape()?, &cgroup.id)?;
        same("processes", census.processes, 2.0)?;
        same("threads", census.threads, 4.0)?;
        same(
            "descriptors",
            census.descriptors - before.descriptors,
            expected.descriptors,
        )
    })
}

fn accepting() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("accepting 6")?;
    let census = check(&agent, &cgroup, &[])?;
    same("sockets", census.sockets, 6.0)
}

fn path_sockets() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    let name = std::env::temp_dir().join(format!("cgmeter-test-{}.socket", std::process::id()));
    let result = worker.run(&format!("path-socket {}", name.display()));
    let _ = fs::remove_file(&name);
    result?;
    let census = check(&agent, &cgroup, &[])?;
    same("sockets", census.sockets, 0.0)
}

fn own_tables() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    let before = check(&agent, &cgroup, &[])?.descriptors;
    worker.run("own-tables 4 10")?;
    // Each thread has the descriptors that the process had when it separated, and ten more.
    let mut expected = Census::default();
    for thread in fs::read_to_string(cgroup.directory.join("cgroup.threads"))?.lines() {
        expected.add_files(&Path::new("/proc").join(thread).join("fd"))?;
    }
    same("by /proc", expected.descriptors, 5.0 * before + 40.0)?;
    in_time(|| {
        let served = Census::served(&agent.scrape()?, &cgroup.id)?;
        same("descriptors", served.descriptors, expected.descriptors)
    })
}

fn sparse() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("unlimited")?;
    let before = check(&agent, &cgroup, &[])?.descriptors;
    let limit = soft_limit(worker.pid())?;
    // Numbers on both sides of the edges of a word, a run and a table.
    let numbers = [63, 64, 127, 4095, 4096, 8191, 10_000, limit - 1];
    for number in numbers {
        worker.run(&format!("high {number}"))?;
    }
    let census = check(&agent, &cgroup, &[])?;
    same(
        "descriptors",
        census.descriptors,
        before + numbers.len() as f64,
    )
}

/// The soft limit of descriptors, from /proc.
fn soft_limit(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .context("no limit of open files")?;
    Ok(line
        .split_whitespace()
        .next()
        .context("no limit")?
        .parse()?)
}

fn many() -> Result<()> {
    const MANY: u64 = 1 << 20;
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run("unlimited")?;
    worker.run(&format!("fill {MANY}"))?;
    let limit = soft_limit(worker.pid())?;
    let census = check(&agent, &cgroup, &[])?;
    ensure!(
        census.descriptors >= limit.min(MANY) as f64,
        "{} descriptors with a limit of {limit}",
        census.descriptors
    );
    // A process may not be allowed a million descriptors. The tables of several threads reach a
    // million in any case.
    let tables = MANY.div_ceil(limit).max(2) - 1;
    worker.run(&format!("own-tables {tables} 0"))?;
    let times = (tables + 1) as f64;
    in_time(|| {
        let served = Census::served(&agent.scrape()?, &cgroup.id)?;
        same(
            "descriptors",
            served.descriptors,
            census.descriptors * times,
        )?;
        same("sockets", served.sockets, census.sockets * times)
    })
}

fn moved() -> Result<()> {
    let agent = Agent::start(&[])?;
    let (from, to) = (Cgroup::new()?, Cgroup::new()?);
    let mut worker = Worker::start(&from)?;
    worker.run("brood 1 1 1")?;
    let procs = fs::read_to_string(from.procs())?;
    let sleeper = procs
        .lines()
        .filter_map(|pid| pid.parse().ok())
        .find(|&pid: &u32| pid != worker.pid())
        .context("no child")?;
    // Nothing else happens in this cgroup, so no event has given it a slot.
    to.admit(sleeper)?;
    let census = check(&agent, &to, &[])?;
    same("processes", census.processes, 1.0)?;
    let census = check(&agent, &from, &[])?;
    same("processes", census.processes, 1.0)
}

fn oldest() -> Result<()> {
    let agent = Agent::start(&[])?;
    let top = Cgroup::new()?;
    let (one, two) = (top.child("one")?, top.child("two")?);
    let started = |metrics: &Metrics, id: &str| metrics.of(id, "container_start_time_seconds");
    ensure!(
        started(&agent.scrape()?, &one.id).is_err(),
        "the start of a cgroup in which nothing has started"
    );
    let mut first = Worker::start(&one)?;
    first.run("limit 300")?;
    std::thread::sleep(Duration::from_millis(50));
    let mut second = Worker::start(&two)?;
    second.run("limit 200")?;
    let metrics = scrape_with(&agent, &top, 2.0)?;
    let start = |worker: &Worker| start_time(worker.pid());
    // /proc has hundredths of a second, and the boot time in whole seconds.
    let (early, late) = (started(&metrics, &one.id)?, started(&metrics, &two.id)?);
    agree("start", early, start(&first)?, 0.0, 1.011)?;
    agree("start", late, start(&second)?, 0.0, 1.011)?;
    agree(
        "between them",
        late - early,
        start(&second)? - start(&first)?,
        0.0,
        0.011,
    )?;
    same("of the parent", started(&metrics, &top.id)?, early)?;
    let limit = |metrics: &Metrics, id: &str| {
        metrics.get(
            "container_ulimits_soft",
            &[("id", id), ("ulimit", "max_open_files")],
        )
    };
    same("limit", limit(&metrics, &one.id)?, 300.0)?;
    same("limit", limit(&metrics, &two.id)?, 200.0)?;
    same("limit", limit(&metrics, &top.id)?, 300.0)?;
    // The first process ends. The start of the cgroup stays the same, but the limit is that of the
    // remaining process.
    first.finish()?;
    let metrics = scrape_with(&agent, &top, 1.0)?;
    same("start", started(&metrics, &one.id)?, early)?;
    same("start", started(&metrics, &top.id)?, early)?;
    same("limit", limit(&metrics, &top.id)?, 200.0)?;
    // A process is moved into a younger cgroup. Its start there is the creation of the cgroup.
    let three = top.child("three")?;
    three.admit(second.pid())?;
    let metrics = scrape_with(&agent, &three, 1.0)?;
    same(
        "start",
        started(&metrics, &three.id)?,
        (metrics.of(&three.id, "container_creation_time_seconds")? * 1000.0).floor() / 1000.0,
    )?;
    // An agent that starts later reports the same start times.
    let other = Agent::start(&[])?;
    same(
        "start",
        started(&other.scrape()?, &two.id).unwrap_or(0.0),
        0.0,
    )?;
    let again = Worker::start(&two)?;
    let ours = scrape_with(&agent, &two, 1.0)?;
    let theirs = scrape_with(&other, &two, 1.0)?;
    agree(
        "start",
        started(&theirs, &two.id)?,
        start(&again)?,
        0.0,
        1.011,
    )?;
    same("start", started(&ours, &two.id)?, late)
}

/// Unix time at which a process started, from /proc.
fn start_time(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks: f64 = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(19))
        .context("no starttime")?
        .parse()?;
    let text = fs::read_to_string("/proc/stat")?;
    let boot: f64 = text
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.parse().ok())
        .context("no btime")?;
    // SAFETY: always allowed.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(boot + ticks / hertz as f64)
}

/// Counts for the whole host, except one process and its cgroup.
fn walk(except: &str) -> Result<Census> {
    let mut census = Census::default();
    // Collect the names, because entries keep the folder open, and this process is counted too.
    let names: Vec<String> = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && name != except)
        .collect();
    let own = std::process::id().to_string();
    for name in names {
        let folder = Path::new("/proc").join(&name);
        // Processes may end during the reading.
        let mut process = Census::default();
        let Ok(threads) = fs::read_dir(folder.join("task")) else {
            continue;
        };
        for thread in threads.flatten() {
            // This fails for a zombie.
            if process.add_state(&thread.path()).is_ok() {
                process.threads += 1.0;
            }
        }
        process.processes = f64::from(process.threads > 0.0);
        let hidden = fs::read_link(folder.join("ns/pid"));
        if hidden.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied) {
            // A process that this machine hides from root is hidden from BPF too.
            continue;
        }
        let _ = process.add_files(&folder.join("fd"));
        // Without the descriptor of the folder that is being read.
        process.descriptors -= f64::from(name == own);
        census += process;
    }
    Ok(census)
}

/// A name, and how to read it.
type Quantity = (&'static str, fn(&Census) -> f64);

/// Compares the sums at the root with a walk of /proc. Processes start and end on the host all the
/// time. So for each quantity there must be a moment at which two walks and the agent's value
/// between them agree.
fn host() -> Result<()> {
    let agent = Agent::start(&[])?;
    let own = Cgroup::new()?;
    // The agent has other descriptors while it answers than before and after.
    own.admit(agent.pid())?;
    let name = agent.pid().to_string();
    let quantities: [Quantity; 4] = [
        ("processes", |census| census.processes),
        ("threads", |census| census.threads),
        ("descriptors", |census| census.descriptors),
        ("sockets", |census| census.sockets),
    ];
    let mut agreed = [false; 4];
    let mut last = String::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while agreed != [true; 4] {
        ensure!(Instant::now() < deadline, "{last}");
        // A connection that exists before, during and after the scrape.
        let stream = TcpStream::connect(("127.0.0.1", agent.port))?;
        let before = walk(&name)?;
        let answer = Request::get("/metrics").send_over(&stream)?;
        let after = walk(&name)?;
        let metrics = Metrics::parse(answer.ok_text()?)?;
        let all = Census::served(&metrics, "/")?;
        let agents = Census::served(&metrics, &own.id)?;
        for (at, (what, of)) in quantities.iter().enumerate() {
            let served = of(&all) - of(&agents);
            if of(&before) == of(&after) {
                agreed[at] |= served == of(&before);
            }
            if !agreed[at] {
                last = format!("{what}: {} then {served} then {}", of(&before), of(&after));
            }
        }
    }
    drop(agent);
    own.remove_tasks()
}
