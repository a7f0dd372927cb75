//! Runs an agent for a test. It is driven as a user would: by its command line and over HTTP.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    net::{TcpListener, ToSocketAddrs},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use http_client::{Request, Response};

use crate::{metrics::Metrics, needs};

/// The agent's binary.
pub fn binary() -> OsString {
    std::env::var_os("CGMETER_BIN").unwrap_or_default()
}

/// A port that no process listens on.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Runs the agent until it exits.
pub fn run(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(binary()).args(arguments).output()?)
}

/// Maximum time for an answer. Emulated CPUs are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends a GET request to a port on loopback and returns the answer.
pub fn get(port: u16, path: &str) -> Result<Response> {
    get_from(("127.0.0.1", port), path)
}

/// Sends a GET request and returns the answer.
pub fn get_from(address: impl ToSocketAddrs, path: &str) -> Result<Response> {
    Ok(Request::get(path).timeout(PATIENCE).send(address)?)
}

/// A size in a process's /proc/PID/status, bytes.
pub fn memory(pid: u32, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let size = status.lines().find_map(|line| {
        let size = line.strip_prefix(name)?.strip_prefix(':')?;
        size.split_whitespace().next()?.parse::<u64>().ok()
    });
    Ok(size.with_context(|| format!("no {name}"))? * 1024)
}

/// A running agent.
pub struct Agent {
    child: Child,
    /// The address that it listens on.
    pub port: u16,
    log: PathBuf,
}

impl Agent {
    /// Starts an agent and waits until it serves. It takes a new frame at every scrape, unless
    /// `arguments` say otherwise.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let mut agent = Self::begin(arguments, &[])?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts an agent that may open this many files, and waits until it serves.
    pub fn with_files(files: u64, arguments: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn(&[&binary()], arguments, &[], Some(files))?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts an agent with these environment variables. Does not wait until it serves.
    pub fn begin(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        Self::spawn(&[&binary()], arguments, variables, None)
    }

    /// Starts an agent by these words. If they begin with another program, it has to execute the agent in its own
    /// place, as setpriv does. Does not wait until it serves.
    pub fn begin_by(words: &[&OsStr], arguments: &[&str]) -> Result<Self> {
        Self::spawn(words, arguments, &[], None)
    }

    fn spawn(
        words: &[&OsStr],
        arguments: &[&str],
        variables: &[(&str, &str)],
        files: Option<u64>,
    ) -> Result<Self> {
        let port = free_port()?;
        let log =
            std::env::temp_dir().join(format!("cgmeter-test-{}-{port}.log", std::process::id()));
        let every = ["--web.min-interval", "0s"];
        let every = every.iter().filter(|_| !arguments.contains(&every[0]));
        let (program, words) = words.split_first().context("no program")?;
        let mut command = Command::new(program);
        command.args(words);
        if let Some(files) = files {
            let limit = libc::rlimit {
                rlim_cur: files,
                rlim_max: files,
            };
            let set = move || {
                // SAFETY: `limit` is readable.
                match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            };
            // SAFETY: only setrlimit is called between fork and exec.
            unsafe { command.pre_exec(set) };
        }
        let child = command
            .args(["--web.listen-address", &format!("127.0.0.1:{port}")])
            .args(every)
            .args(arguments)
            .envs(variables.iter().copied())
            .stderr(File::create(&log)?)
            // Run it in a new session, so that Ctrl-C in a terminal reaches only the test.
            .process_group(0)
            .spawn()
            .context("starting the agent")?;
        Ok(Self { child, port, log })
    }

    /// Waits until it serves.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        // Verifying the programs takes long on an emulated CPU.
        let patience = if needs::emulated() { 180 } else { 20 };
        let deadline = Instant::now() + Duration::from_secs(patience);
        while !self
            .get("/-/ready", "")
            .is_ok_and(|answer| answer.status == 200)
        {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended ({status}): {}", self.log());
            }
            if Instant::now() > deadline {
                bail!("the agent does not serve: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A size in its /proc/PID/status, such as VmRSS (resident memory) or VmHWM (the peak of that),
    /// bytes.
    pub fn memory(&self, name: &str) -> Result<u64> {
        memory(self.pid(), name)
    }

    /// The log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a GET request with these header lines and returns the answer.
    pub fn get(&self, path: &str, headers: &str) -> Result<Response> {
        let mut request = Request::get(path).timeout(PATIENCE);
        for line in headers.lines() {
            let (name, value) = line.split_once(": ").context("a line without a header")?;
            request = request.header(name, value);
        }
        Ok(request.send(("127.0.0.1", self.port))?)
    }

    /// Returns the body of the answer, whose status must be 200.
    pub fn body(&self, path: &str, headers: &str) -> Result<String> {
        let answer = self.get(path, headers)?;
        Ok(answer
            .ok_text()
            .with_context(|| path.to_owned())?
            .to_owned())
    }

    /// Scrapes the agent.
    pub fn scrape(&self) -> Result<Metrics> {
        Metrics::parse(&self.body("/metrics", "")?)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: the process is our child and has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Lowers the agent's limit of open files so that it can open one more: the next connection. The
    /// limit is as before once the returned value is dropped.
    pub fn allow_one_more_file(&self) -> Result<FileLimit> {
        let opened = || -> Result<Vec<u64>> {
            let mut numbers = Vec::new();
            for entry in std::fs::read_dir(format!("/proc/{}/fd", self.pid()))? {
                numbers.extend(entry?.file_name().to_string_lossy().parse::<u64>());
            }
            numbers.sort_unstable();
            Ok(numbers)
        };
        // Earlier connections have to be closed on the agent's side too.
        let mut before = opened()?;
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(200));
            let now = opened()?;
            if now == before {
                let mut free = (0..).filter(|number| now.binary_search(number).is_err());
                let second = free.nth(1).context("no free number")?;
                return FileLimit::set(self.pid(), second);
            }
            before = now;
        }
        bail!("the agent opens and closes files all the time")
    }

    /// Waits until the agent has ended by itself.
    pub fn ended(mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "the agent goes on: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal and waits until the agent exits.
    pub fn stop(mut self, signal: libc::c_int) -> Result<ExitStatus> {
        self.signal(signal);
        Ok(self.child.wait()?)
    }
}

/// A lowered limit of open files of a process.
pub struct FileLimit {
    pid: libc::pid_t,
    before: libc::rlimit,
}

impl FileLimit {
    /// Sets the soft limit of a process.
    pub fn set(pid: u32, soft: u64) -> Result<Self> {
        let pid = pid as libc::pid_t;
        let mut before = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: a null pointer leaves the limit as it is; `before` is writable.
        let read =
            unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut before) };
        ensure!(read == 0, "prlimit: {}", std::io::Error::last_os_error());
        let limit = Self { pid, before };
        limit.apply(libc::rlimit {
            rlim_cur: soft,
            ..before
        })?;
        Ok(limit)
    }

    fn apply(&self, limit: libc::rlimit) -> Result<()> {
        // SAFETY: `limit` is readable; a null pointer is allowed for the old one.
        let set = unsafe {
            libc::prlimit(
                self.pid,
                libc::RLIMIT_NOFILE,
                &raw const limit,
                std::ptr::null_mut(),
            )
        };
        ensure!(set == 0, "prlimit: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for FileLimit {
    fn drop(&mut self) {
        let _ = self.apply(self.before);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}
