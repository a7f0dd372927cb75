//! `cargo xtask demo`, run as a newcomer would. Oracle: Prometheus's answers, /proc, the cgroup file systems.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{Test, needs::Need, queried::json, runtimes::hierarchies};

const NEEDS: &[Need] = &[
    Need::Agent,
    Need::Variable(XTASK, "xtask's binary"),
    Need::Variable(BINARIES, "a folder with the programs cgmeter and shop"),
    Need::Program("prometheus"),
    Need::Program("prometheus-alertmanager"),
];

pub const TESTS: &[Test] = &[
    ("demo::an_alert_fires_and_resolves", NEEDS, alert),
    ("demo::a_part_that_fails_ends_it", NEEDS, failure),
];

const XTASK: &str = "CGMETER_XTASK";
const BINARIES: &str = "CGMETER_BINARIES";
/// The parts of the demo. Each is in a cgroup with this name.
const PARTS: [&str; 5] = ["agent", "shop", "customers", "alertmanager", "prometheus"];
/// Several times as long as any step takes.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running demo and its output.
struct Demo {
    child: Child,
    said: Arc<Mutex<String>>,
    binaries: PathBuf,
}

impl Demo {
    fn start() -> Result<Self> {
        let variable = |name| PathBuf::from(std::env::var_os(name).unwrap_or_default());
        let binaries = variable(BINARIES);
        let mut child = Command::new(variable(XTASK))
            .args(["demo", "--binaries"])
            .arg(&binaries)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("starting the demo")?;
        let said = Arc::new(Mutex::new(String::new()));
        let out = child.stdout.take().context("no stdout")?;
        let err = child.stderr.take().context("no stderr")?;
        let (both, more) = (Arc::clone(&said), Arc::clone(&said));
        std::thread::spawn(move || keep(BufReader::new(out), &both));
        std::thread::spawn(move || keep(BufReader::new(err), &more));
        Ok(Self {
            child,
            said,
            binaries,
        })
    }

    fn said(&self) -> String {
        self.said
            .lock()
            .map(|said| said.clone())
            .unwrap_or_default()
    }

    /// Waits for a line that contains all of the words and returns it.
    fn line(&mut self, words: &[&str]) -> Result<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait()?;
            let said = self.said();
            let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
            if let Some(line) = said.lines().find(has_all) {
                return Ok(line.to_owned());
            }
            if let Some(status) = ended {
                bail!("the demo ended ({status}): {said}");
            }
            ensure!(Instant::now() < until, "no line with {words:?}: {said}");
            sleep(Duration::from_millis(50));
        }
    }

    /// The port in the line that begins with this name.
    fn port(&mut self, name: &str) -> Result<u16> {
        let line = self.line(&[&format!("{name} "), "http://127.0.0.1:"])?;
        let rest = line.split("127.0.0.1:").nth(1).unwrap_or_default();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().with_context(|| format!("no port in {line}"))
    }

    fn chaos(&self, shop: u16, setting: &str) -> Result<()> {
        let output = Command::new(self.binaries.join("shop"))
            .args(["chaos", "--address", &format!("127.0.0.1:{shop}"), setting])
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "chaos {setting}: {errors}");
        Ok(())
    }

    /// The demo's cgroups, in every hierarchy.
    fn cgroups(&self) -> Vec<PathBuf> {
        let name = format!("cgmeter-demo-{}", self.child.id());
        hierarchies()
            .iter()
            .map(|mount| mount.join(&name))
            .filter(|path| path.exists())
            .collect()
    }

    /// The process of a part.
    fn pid(&self, part: &str) -> Result<u32> {
        let path = self.cgroups().into_iter().map(|path| path.join(part));
        let text = path
            .filter_map(|path| fs::read_to_string(path.join("cgroup.procs")).ok())
            .next();
        let text = text.with_context(|| format!("no cgroup of {part}"))?;
        let first = text.lines().next();
        let pid = first.and_then(|pid| pid.parse().ok());
        pid.with_context(|| format!("{part} has processes {text:?}"))
    }

    /// Waits until the demo exits. Returns whether its status was 0.
    fn end(&mut self) -> Result<bool> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            ensure!(
                Instant::now() < until,
                "the demo does not exit: {}",
                self.said()
            );
            sleep(Duration::from_millis(50));
        }
    }

    /// Fails unless nothing of the demo is left.
    fn is_gone(&self, pids: &[u32]) -> Result<()> {
        let cgroups = self.cgroups();
        ensure!(cgroups.is_empty(), "left behind: {cgroups:?}");
        for pid in pids {
            let alive = Path::new(&format!("/proc/{pid}")).exists();
            ensure!(!alive, "process {pid} is left behind");
        }
        let folder = std::env::temp_dir().join(format!("cgmeter-demo-{}", self.child.id()));
        ensure!(!folder.exists(), "{} is left behind", folder.display());
        Ok(())
    }

    fn signal(&self, pid: u32, signal: libc::c_int) {
        // SAFETY: the process is the demo, which has not been waited for, or one of its processes.
        unsafe { libc::kill(pid as libc::pid_t, signal) };
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(self.child.id(), libc::SIGTERM);
            let _ = self.end();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keep(reader: impl BufRead, said: &Mutex<String>) {
    for line in reader.lines().map_while(Result::ok) {
        if let Ok(mut said) = said.lock() {
            said.push_str(&line);
            said.push('\n');
        }
    }
}

/// Values of an instant query.
fn query(port: u16, escaped: &str) -> Result<Vec<Value>> {
    let answer = json(port, &format!("/api/v1/query?query={escaped}"))?;
    let result = answer["data"]["result"].as_array();
    Ok(result
        .with_context(|| format!("no result: {answer}"))?
        .clone())
}

/// Local addresses of a process's listening TCP sockets, as the kernel writes them.
fn listening(pid: u32) -> Result<Vec<String>> {
    let mut inodes = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // Descriptors may be closed during the reading.
        let Ok(target) = fs::read_link(entry?.path()) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        if let Some(inode) = target.strip_prefix("socket:[") {
            inodes.insert(inode.trim_end_matches(']').to_owned());
        }
    }
    let mut found = Vec::new();
    for file in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{file}"))?;
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, local, _, "0A", ..] = words[..]
                && words.get(9).is_some_and(|inode| inodes.contains(*inode))
            {
                found.push(local.to_owned());
            }
        }
    }
    Ok(found)
}

fn alert() -> Result<()> {
    let mut demo = Demo::start()?;
    let (prometheus, shop) = (demo.port("Prometheus")?, demo.port("Shop")?);
    let pids = PARTS
        .iter()
        .map(|part| demo.pid(part))
        .collect::<Result<Vec<_>>>()?;
    // 0100007F is 127.0.0.1 in the kernel's notation.
    let mut listeners = 0;
    for (part, pid) in PARTS.iter().zip(&pids) {
        let addresses = listening(*pid)?;
        listeners += addresses.len();
        let elsewhere = addresses
            .iter()
            .find(|address| !address.starts_with("0100007F:"));
        ensure!(elsewhere.is_none(), "{part} listens on {elsewhere:?}");
    }
    ensure!(listeners == 4, "{listeners} listening sockets");

    demo.chaos(shop, "inventory=3")?;
    demo.line(&["FIRING", "LowInventory"])?;
    demo.chaos(shop, "reset=true")?;
    demo.line(&["RESOLVED", "LowInventory"])?;

    // By now there are series of every part's cgroup, of the application, and of the recording
    // rules.
    let of_demo = format!(
        "container_last_seen%7Bid%3D~%22/cgmeter-demo-{}/.%2B%22%7D",
        demo.child.id()
    );
    let ids: BTreeSet<String> = query(prometheus, &of_demo)?
        .iter()
        .filter_map(|series| series["metric"]["id"].as_str())
        .filter_map(|id| id.rsplit('/').next())
        .map(str::to_owned)
        .collect();
    ensure!(ids == PARTS.map(str::to_owned).into(), "{ids:?}");
    for name in [
        "container_cpu_usage_percent",
        "container_network_io_bytes_total",
        "http_request_duration_seconds_count",
    ] {
        ensure!(!query(prometheus, name)?.is_empty(), "no {name}");
    }
    let down = query(prometheus, "up%3D%3D0")?;
    ensure!(down.is_empty(), "{down:?}");

    demo.signal(demo.child.id(), libc::SIGTERM);
    ensure!(demo.end()?, "{}", demo.said());
    demo.is_gone(&pids)
}

fn failure() -> Result<()> {
    let mut demo = Demo::start()?;
    demo.port("Shop")?;
    let pids = PARTS
        .iter()
        .map(|part| demo.pid(part))
        .collect::<Result<Vec<_>>>()?;
    demo.signal(demo.pid("shop")?, libc::SIGKILL);
    ensure!(
        !demo.end()?,
        "the demo exited with status 0: {}",
        demo.said()
    );
    let said = demo.said();
    ensure!(said.contains("shop ended (signal: 9"), "{said}");
    demo.is_gone(&pids)
}
