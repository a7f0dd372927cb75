//! An agent of the test's own, driven as a user would: by its command line and over HTTP.

use std::{
    ffi::OsString,
    fs::File,
    net::{TcpListener, ToSocketAddrs},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use http_client::{Request, Response};

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

/// How long any answer may take: an emulated CPU needs its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// The answer to a GET request on a port of loopback.
pub fn get(port: u16, path: &str) -> Result<Response> {
    get_from(("127.0.0.1", port), path)
}

/// The answer to a GET request.
pub fn get_from(address: impl ToSocketAddrs, path: &str) -> Result<Response> {
    Ok(Request::get(path).timeout(PATIENCE).send(address)?)
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
            .is_ok_and(|answer| answer.status == 200)
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

    /// The answer to a GET request with some lines of headers.
    pub fn get(&self, path: &str, headers: &str) -> Result<Response> {
        let mut request = Request::get(path).timeout(PATIENCE);
        for line in headers.lines() {
            let (name, value) = line.split_once(": ").context("a line without a header")?;
            request = request.header(name, value);
        }
        Ok(request.send(("127.0.0.1", self.port))?)
    }

    /// The body of an answer whose status is 200.
    pub fn body(&self, path: &str, headers: &str) -> Result<String> {
        let answer = self.get(path, headers)?;
        Ok(answer
            .ok_text()
            .with_context(|| path.to_owned())?
            .to_owned())
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
