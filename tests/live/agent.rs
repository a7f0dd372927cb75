//! An agent of the test's own, driven as a user would: by its command line and over HTTP.

use std::{
    ffi::OsString,
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream, ToSocketAddrs},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{metrics::Metrics, needs};

/// The agent's binary.
pub fn binary() -> OsString {
    std::env::var_os("CGMETER_BIN").unwrap_or_default()
}

/// A port that nobody listens on.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Runs the agent to its end.
pub fn run(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(binary()).args(arguments).output()?)
}

/// A GET request's whole answer, of whoever listens on a port of loopback.
pub fn get(port: u16, path: &str) -> Result<String> {
    get_with(("127.0.0.1", port), path, "")
}

/// The same of any address.
pub fn get_from(address: &str, path: &str) -> Result<String> {
    get_with(address, path, "")
}

fn get_with(address: impl ToSocketAddrs, path: &str, headers: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8(answer)?)
}

/// A running agent.
pub struct Agent {
    child: Child,
    /// Where it listens.
    pub port: u16,
    log: PathBuf,
}

impl Agent {
    /// Starts an agent that takes a new snapshot at every scrape, unless it is told otherwise, and
    /// waits until it serves.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let port = free_port()?;
        let log =
            std::env::temp_dir().join(format!("cgmeter-test-{}-{port}.log", std::process::id()));
        let every = ["--web.min-interval", "0s"];
        let every = every.iter().filter(|_| !arguments.contains(&every[0]));
        let child = Command::new(binary())
            .args(["--web.listen-address", &format!("127.0.0.1:{port}")])
            .args(every)
            .args(arguments)
            .stderr(File::create(&log)?)
            // A session of its own: a terminal's Ctrl-C is the test's business.
            .process_group(0)
            .spawn()
            .context("starting the agent")?;
        let mut agent = Self { child, port, log };
        // An emulated CPU takes its time to verify the programs.
        let patience = if needs::emulated() { 180 } else { 20 };
        let deadline = Instant::now() + Duration::from_secs(patience);
        while !agent
            .get("/-/ready", "")
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        {
            if let Some(status) = agent.child.try_wait()? {
                bail!("the agent ended ({status}): {}", agent.log());
            }
            if Instant::now() > deadline {
                bail!("the agent does not serve: {}", agent.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(agent)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A GET request's whole answer.
    pub fn get(&self, path: &str, headers: &str) -> Result<String> {
        get_with(("127.0.0.1", self.port), path, headers)
    }

    /// The body of an answer that has to be 200.
    pub fn body(&self, path: &str, headers: &str) -> Result<String> {
        let answer = self.get(path, headers)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("no end of the answer's head")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("{path}: {head}\n{body}");
        }
        Ok(body.to_owned())
    }

    /// A scrape.
    pub fn scrape(&self) -> Result<Metrics> {
        Metrics::parse(&self.body("/metrics", "")?)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: our own child, not yet waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Sends a signal and waits for the end.
    pub fn stop(mut self, signal: libc::c_int) -> Result<ExitStatus> {
        self.signal(signal);
        Ok(self.child.wait()?)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}
