//! The agent as a service: signals, what it tells the service manager, a log that nobody reads.
//! Oracle: a socket, a pipe and a configuration file of the test.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::{net::UnixDatagram, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    Test,
    agent::{Agent, binary, free_port, get},
    cgroup::Cgroup,
    metrics::Metrics,
    needs::Need,
    runtimes::eventually,
    state::{State, kill},
    twin::Twin,
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "service::signals_that_mean_nothing_end_nothing",
        &[Need::Agent],
        harmless,
    ),
    (
        "service::a_reload_takes_over_what_it_can_and_says_the_rest",
        &[Need::Agent],
        reload,
    ),
    ("service::the_manager_is_told_all", &[Need::Agent], told),
    (
        "service::a_stuck_thread_stops_the_watchdog",
        &[Need::Agent],
        stuck,
    ),
    ("service::a_log_that_nobody_reads", &[Need::Agent], unread),
    (
        "service::a_start_takes_little_memory_and_reads_the_kernels_types_once",
        &[Need::Agent, Need::Controller("memory")],
        small_start,
    ),
    (
        "service::the_unit_is_valid",
        &[Need::Program("systemd-analyze")],
        unit,
    ),
];

/// Signals that would end a program that does not handle them, and must not end the agent.
const HARMLESS: [(libc::c_int, &str); 4] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGALRM, "SIGALRM"),
];

fn harmless() -> Result<()> {
    let mut agent = Agent::begin(&[], &[])?;
    // From here on it handles them, long before it serves.
    eventually(|| Ok(TcpStream::connect(("127.0.0.1", agent.port)).map(drop)?))?;
    for (signal, _) in HARMLESS {
        agent.signal(signal);
    }
    agent.wait_until_ready()?;
    for (signal, name) in HARMLESS {
        agent.signal(signal);
        eventually(|| {
            ensure!(agent.log().contains(name), "{name}: {}", agent.log());
            Ok(())
        })?;
    }
    agent.scrape()?;
    let status = agent.stop(libc::SIGTERM)?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

/// A file of a test, removed at its end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        let name = format!("cgmeter-test-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Most memory of a start, bytes.
const START_PEAK: u64 = 40_000_000;
/// A limit under which the agent starts and serves, its maps in the kernel included, bytes.
const LIMIT: u64 = 64 << 20;

fn small_start() -> Result<()> {
    let group = Cgroup::new()?;
    let limited = Twin::of(&group, "memory")?;
    let name = if limited.v1 {
        "memory.limit_in_bytes"
    } else {
        "memory.max"
    };
    limited.write(name, &LIMIT.to_string())?;
    // As the unit starts it: a first time, and with what the one before has pinned.
    let state = State::new();
    for _ in 0..2 {
        let mut agent = Agent::begin(&[&state.flag()], &[])?;
        group.admit(agent.pid())?;
        limited.admit(agent.pid())?;
        agent.wait_until_ready()?;
        agent.scrape()?;
        let peak = agent.memory("VmHWM")?;
        ensure!(peak <= START_PEAK, "peak of {peak} bytes");
        // All that it has read by read(2). The types are the only large file.
        let io = fs::read_to_string(format!("/proc/{}/io", agent.pid()))?;
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        let read: u64 = read.context("no rchar")?.parse()?;
        let types = fs::metadata("/sys/kernel/btf/vmlinux")?.len();
        ensure!(
            read < types + types / 2,
            "{read} bytes read, the types have {types}"
        );
        kill(agent)?;
    }
    Ok(())
}

fn reload() -> Result<()> {
    let file = Temporary::new("reload.toml");
    fs::write(
        &file.0,
        "[log]\nlevel = \"info\"\n[cgroup]\nlinger = \"1h\"\n",
    )?;
    let agent = Agent::start(&["--config.file", &file.path(), "--web.min-interval", "0s"])?;
    let says = |text: &str| {
        eventually(|| {
            ensure!(agent.log().contains(text), "{text:?}: {}", agent.log());
            Ok(())
        })
    };
    let group = Cgroup::new()?;
    let (id, gone) = (group.id.clone(), group.child("gone")?);
    let below = format!("{id}/gone");
    // Without any task it would not be kept at all.
    Worker::once(&gone, "spin 2")?;
    ensure!(
        agent
            .scrape()?
            .has("container_last_seen", &[("id", &below)])
    );
    gone.remove()?;
    ensure!(
        agent
            .scrape()?
            .has("container_last_seen", &[("id", &below)])
    );
    ensure!(!agent.log().contains("level=debug"), "{}", agent.log());

    // What can't be used changes nothing.
    fs::write(&file.0, "[log]\nlevel = \"loud\"\n")?;
    agent.signal(libc::SIGHUP);
    says("nothing has changed")?;
    says("loud")?;
    ensure!(
        agent
            .scrape()?
            .has("container_last_seen", &[("id", &below)])
    );

    fs::write(
        &file.0,
        "[log]\nlevel = \"debug\"\n[cgroup]\nlinger = \"0s\"\nmax = 999\n",
    )?;
    agent.signal(libc::SIGHUP);
    says("setting=cgroup.max")?;
    says("restart the agent")?;
    says("the settings were read again")?;
    ensure!(
        agent.log().contains("cgroup.linger log.level"),
        "{}",
        agent.log()
    );
    eventually(|| {
        ensure!(
            !agent
                .scrape()?
                .has("container_last_seen", &[("id", &below)])
        );
        Ok(())
    })?;
    says("level=debug")
}

/// A socket that plays the service manager.
struct Manager {
    socket: UnixDatagram,
    file: Temporary,
}

impl Manager {
    fn new(name: &str) -> Result<Self> {
        let file = Temporary::new(name);
        let socket = UnixDatagram::bind(&file.0)?;
        Ok(Self { socket, file })
    }

    /// The next message; `None` if there is none for so long.
    fn next(&self, patience: Duration) -> Result<Option<String>> {
        self.socket.set_read_timeout(Some(patience))?;
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Ok(Some(String::from_utf8(buffer[..length].to_vec())?)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The next message that is no ping. Counts pings on the way.
    fn beside_pings(&self, pings: &mut u32) -> Result<String> {
        loop {
            let message = self.next(Duration::from_secs(180))?;
            match message.context("no message of the agent")? {
                ping if ping == "WATCHDOG=1" => *pings += 1,
                message => return Ok(message),
            }
        }
    }

    /// Forgets what has come.
    fn drain(&self) -> Result<()> {
        while self.next(Duration::from_millis(1))?.is_some() {}
        Ok(())
    }
}

/// Has the agent say every half a second that it is alive.
const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "1500000");

fn monotonic_us() -> Result<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is writable.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    ensure!(result == 0, "clock_gettime");
    Ok(time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000)
}

fn told() -> Result<()> {
    let manager = Manager::new("notify")?;
    let socket = manager.file.path();
    let agent = Agent::begin(&[], &[("NOTIFY_SOCKET", &socket), WATCHDOG])?;
    let mut pings = 0;
    ensure!(manager.beside_pings(&mut pings)? == "READY=1");
    // Ready is ready: no second attempt.
    agent.scrape()?;
    let answer = agent.get("/-/ready", "")?;
    ensure!(answer.status == 200, "{}", answer.status);
    let begin = Instant::now();
    for _ in 0..4 {
        let message = manager.next(Duration::from_secs(60))?;
        ensure!(message.as_deref() == Some("WATCHDOG=1"), "{message:?}");
    }
    ensure!(
        begin.elapsed() > Duration::from_secs(1),
        "they come too often"
    );

    let before = monotonic_us()?;
    agent.signal(libc::SIGHUP);
    let message = manager.beside_pings(&mut pings)?;
    let time = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    let time: u64 = time.with_context(|| message.clone())?.parse()?;
    ensure!((before..=monotonic_us()?).contains(&time), "{time}");
    ensure!(manager.beside_pings(&mut pings)? == "READY=1");

    // Without the agent's process there are no pings, of course, and it does not make up for them.
    agent.signal(libc::SIGTERM);
    ensure!(manager.beside_pings(&mut pings)? == "STOPPING=1");
    let status = agent.stop(libc::SIGTERM)?;
    ensure!(status.code() == Some(0), "{status}");

    // A manager that has gone, or that is no socket, keeps the agent from nothing.
    drop(manager);
    for path in [socket.as_str(), "nonsense"] {
        let mut agent = Agent::begin(&[], &[("NOTIFY_SOCKET", path), WATCHDOG])?;
        agent.wait_until_ready()?;
        ensure!(
            agent.log().contains("the service manager"),
            "{}",
            agent.log()
        );
    }
    Ok(())
}

/// A thread of another process that does not run until this is dropped.
struct Stopped(libc::pid_t);

impl Stopped {
    fn new(thread: libc::pid_t) -> Result<Self> {
        let ptrace = |request| {
            // SAFETY: these requests pass no memory.
            unsafe { libc::ptrace(request, thread, 0, 0) }
        };
        ensure!(ptrace(libc::PTRACE_SEIZE) == 0, "PTRACE_SEIZE {thread}");
        ensure!(ptrace(libc::PTRACE_INTERRUPT) == 0, "PTRACE_INTERRUPT");
        // SAFETY: null for the status is allowed.
        let found = unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) };
        ensure!(found == thread, "waitpid {thread}: {found}");
        Ok(Self(thread))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // SAFETY: this thread traces it, and it is stopped.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

/// Threads of the agent with this name.
fn threads(agent: &Agent, name: &str) -> Result<Vec<libc::pid_t>> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", agent.pid()))? {
        let path = task?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            let id = path.file_name().context("a thread's id")?;
            found.push(id.to_string_lossy().parse()?);
        }
    }
    ensure!(!found.is_empty(), "no thread {name}");
    Ok(found)
}

fn stuck() -> Result<()> {
    let manager = Manager::new("stuck")?;
    let socket = manager.file.path();
    let mut agent = Agent::begin(&[], &[("NOTIFY_SOCKET", &socket), WATCHDOG])?;
    agent.wait_until_ready()?;
    for name in ["cgmeter-web", "cgmeter-events"] {
        let pinged = |expected: bool, patience: u64| {
            let until = Instant::now() + Duration::from_secs(patience);
            loop {
                manager.drain()?;
                // Three times the pause between two pings.
                let mut pings = 0;
                let end = Instant::now() + Duration::from_millis(1500);
                while Instant::now() < end {
                    let message = manager.next(Duration::from_millis(100))?;
                    pings += u32::from(message.as_deref() == Some("WATCHDOG=1"));
                }
                if (pings > 0) == expected {
                    return Ok(());
                }
                ensure!(
                    Instant::now() < until,
                    "{name}: {pings} pings: {}",
                    agent.log()
                );
            }
        };
        pinged(true, 60)?;
        let stopped: Vec<Stopped> = threads(&agent, name)?
            .into_iter()
            .map(Stopped::new)
            .collect::<Result<_>>()?;
        // The thread that follows cgroups may sleep for ten seconds.
        pinged(false, 60)?;
        if name == "cgmeter-events" {
            eventually(|| {
                let answer = agent.get("/-/ready", "")?;
                ensure!(answer.status == 503, "ready: {}", answer.status);
                Ok(())
            })?;
        }
        drop(stopped);
        pinged(true, 60)?;
        let answer = agent.get("/-/ready", "")?;
        ensure!(answer.status == 200, "{name}: {}", answer.status);
        agent.scrape()?;
    }
    ensure!(
        agent.log().contains("the agent does not work"),
        "{}",
        agent.log()
    );
    Ok(())
}

/// A child that is killed at the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An agent whose standard error is a pipe, and the other end.
struct Piped {
    child: Killed,
    port: u16,
    read: File,
}

impl Piped {
    fn start() -> Result<Self> {
        let mut ends = [0; 2];
        // SAFETY: the array has room for both descriptors.
        ensure!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } == 0);
        // SAFETY: they are open, and nobody else owns them.
        let [read, write] = ends.map(|end| unsafe { File::from_raw_fd(end) });
        // SAFETY: passes a number.
        ensure!(unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) } > 0);
        let port = free_port()?;
        let child = Command::new(binary())
            .args(["--web.listen-address", &format!("127.0.0.1:{port}")])
            .args(["--log.level=debug", "--web.min-interval=0s"])
            .stderr(write)
            .process_group(0)
            .spawn()?;
        let child = Killed(child);
        let piped = Self { child, port, read };
        eventually(|| piped.scrape())?;
        Ok(piped)
    }

    fn scrape(&self) -> Result<Metrics> {
        Metrics::parse(get(self.port, "/metrics")?.ok_text()?)
    }

    /// Has the agent log until lines are lost. Scrapes go on all the time. Returns how many lines
    /// were lost.
    fn fill(&self) -> Result<f64> {
        for _ in 0..200 {
            for _ in 0..100 {
                // Each of these is a line at debug.
                let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
                stream.write_all(b"no request\r\n\r\n")?;
                stream.read_to_end(&mut Vec::new())?;
            }
            let begin = Instant::now();
            let lost = self.scrape()?.get("cgmeter_log_lines_lost_total", &[])?;
            let took = begin.elapsed();
            ensure!(took < Duration::from_secs(30), "a scrape took {took:?}");
            if lost > 100.0 {
                return Ok(lost);
            }
        }
        bail!("the log never fills the pipe and the queue")
    }
}

fn unread() -> Result<()> {
    let mut piped = Piped::start()?;
    piped.fill()?;
    // It ends as ever, whoever does not read.
    let begin = Instant::now();
    // SAFETY: the child has not been waited for.
    unsafe { libc::kill(piped.child.0.id() as libc::pid_t, libc::SIGTERM) };
    let status = piped.child.0.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    let took = begin.elapsed();
    ensure!(took < Duration::from_secs(10), "the end took {took:?}");
    let mut text = Vec::new();
    piped.read.read_to_end(&mut text)?;
    ensure!(text.len() <= 4096, "{} bytes in the pipe", text.len());

    // Where somebody begins to read, the log says how many lines are missing.
    let mut piped = Piped::start()?;
    let lost = piped.fill()?;
    let mut reader = BufReader::new(piped.read.try_clone()?).lines();
    let said = loop {
        let line = reader.next().context("the log has ended")??;
        if line.contains("lines of the log are missing here") {
            break line;
        }
    };
    let count = said.split("lines=").nth(1).context("no count")?;
    let count: f64 = count.split(' ').next().unwrap_or_default().parse()?;
    ensure!(count >= lost, "{lost} lines were lost: {said}");
    piped.child.0.kill()?;
    piped.child.0.wait()?;
    Ok(())
}

fn unit() -> Result<()> {
    let unit = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/systemd/cgmeter.service"
    );
    let text = fs::read_to_string(unit)?;
    for line in [
        "Type=notify",
        "WatchdogSec=30s",
        "Restart=on-failure",
        "Environment=CGMETER_STATE_PIN=/sys/fs/bpf/cgmeter",
    ] {
        ensure!(text.lines().any(|found| found == line), "no {line}");
    }
    // The program is not installed here: a copy names one that is there.
    let copy = Temporary::new("unit.service");
    fs::write(&copy.0, text.replace("/usr/local/bin/cgmeter", "/bin/true"))?;
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", &copy.path()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}");
    ensure!(!said.contains("cgmeter-test"), "{said}");
    Ok(())
}
