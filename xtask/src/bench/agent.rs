//! Agents that are measured.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use http_client::Request;

/// An agent that can be measured.
pub struct Binary {
    /// Its name in the results.
    pub name: &'static str,
    /// Its path.
    pub path: PathBuf,
}

/// A running agent, on a port of its own.
pub struct Agent {
    child: Child,
    port: u16,
    /// From the start of the process to its first metrics.
    pub start: Duration,
}

impl Agent {
    /// Starts an agent that takes a new frame at every scrape, and waits for its first metrics.
    pub fn start(binary: &Binary) -> Result<Self> {
        Self::start_with(binary, Duration::ZERO)
    }

    /// The same, with these environment variables.
    pub fn start_in(binary: &Binary, variables: &[(&str, &str)]) -> Result<Self> {
        Self::begin(binary, Duration::ZERO, variables)
    }

    /// Starts an agent that answers from one frame for `interval`, and waits for its first metrics.
    pub fn start_with(binary: &Binary, interval: Duration) -> Result<Self> {
        Self::begin(binary, interval, &[])
    }

    fn begin(binary: &Binary, interval: Duration, variables: &[(&str, &str)]) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let begin = Instant::now();
        let child = Command::new(&binary.path)
            .args(["--web.listen-address", &format!("127.0.0.1:{port}")])
            .args(["--web.min-interval", &format!("{}ms", interval.as_millis())])
            .args(["--log.level", "error"])
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .spawn()
            .context("starting the agent")?;
        let mut agent = Self {
            child,
            port,
            start: Duration::ZERO,
        };
        while agent.scrape().is_err() {
            ensure!(agent.child.try_wait()?.is_none(), "the agent ended");
            ensure!(
                begin.elapsed() < Duration::from_secs(30),
                "the agent does not serve"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        agent.start = begin.elapsed();
        Ok(agent)
    }

    /// The text of one scrape.
    pub fn scrape(&self) -> Result<String> {
        let answer = Request::get("/metrics").send(("127.0.0.1", self.port))?;
        Ok(answer.ok_text()?.to_owned())
    }

    /// CPU time of the process so far in ns, with that of threads that have ended.
    pub fn cpu_ns(&self) -> Result<u64> {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut clock: libc::clockid_t = 0;
        // SAFETY: `clock` and `time` live as long as the calls that write them.
        let failed = unsafe {
            libc::clock_getcpuclockid(self.child.id() as libc::pid_t, &raw mut clock) != 0
                || libc::clock_gettime(clock, &raw mut time) != 0
        };
        ensure!(!failed, "the CPU clock of the agent can't be read");
        Ok(u64::try_from(time.tv_sec)? * 1_000_000_000 + u64::try_from(time.tv_nsec)?)
    }

    /// A size from /proc/PID/status, in bytes.
    pub fn memory(&self, key: &str) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = text.lines().find_map(|line| {
            line.strip_prefix(key)?
                .trim_start_matches(':')
                .split_whitespace()
                .next()?
                .parse::<f64>()
                .ok()
        });
        Ok(kib.with_context(|| format!("no {key}"))? * 1024.0)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of a series, which is named by everything before its value; 0 if it is missing.
pub fn value(text: &str, series: &str) -> f64 {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
        .unwrap_or_default()
}
