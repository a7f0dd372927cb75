//! An agent to be measured.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use http_client::Request;

/// A running agent, on a port of its own.
pub struct Agent {
    child: Child,
    port: u16,
    /// From the start of the process to its first metrics.
    pub start: Duration,
}

impl Agent {
    /// Starts it and waits for its first metrics.
    pub fn start() -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let begin = Instant::now();
        let child = Command::new(crate::shell::agent())
            .args(["--web.listen-address", &format!("127.0.0.1:{port}")])
            .args(["--web.min-interval", "0s", "--log.level", "error"])
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

    /// CPU time of all its threads, ns.
    pub fn cpu_ns(&self) -> Result<u64> {
        let mut sum = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // Threads end while this reads.
            let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else {
                continue;
            };
            sum += text
                .split_whitespace()
                .next()
                .and_then(|ns| ns.parse::<u64>().ok())
                .unwrap_or(0);
        }
        Ok(sum)
    }

    /// A size of /proc/PID/status, bytes.
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

/// The value of a series, by everything before its value.
pub fn value(text: &str, series: &str) -> f64 {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
        .unwrap_or_default()
}
