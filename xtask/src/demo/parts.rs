//! The demo's processes.
//!
//! Invariant: each process enters its cgroups before it runs its program, and ends with the demo: if need
//! be, the kernel kills it (`setpriv --pdeathsig`).

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use http_client::Request;

use super::{cgroups::Cgroups, config::Ports};
use crate::shell::program;

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// How long a part may take to say that it is ready.
const ANSWER: Duration = Duration::from_secs(2);

/// Whether a GET request is answered with 200.
fn is_ok(port: u16, path: &str) -> bool {
    let answer = Request::get(path)
        .timeout(ANSWER)
        .send_for_head(("127.0.0.1", port));
    answer.is_ok_and(|answer| answer.status == 200)
}

/// A process, and the port and path that show whether it is ready.
struct Part {
    name: &'static str,
    child: Child,
    ready: Option<(u16, &'static str)>,
}

/// All processes, in the order in which they were started.
pub struct Parts<'a> {
    running: Vec<Part>,
    cgroups: &'a Cgroups,
    folder: &'a Path,
    ports: &'a Ports,
    binaries: &'a Path,
    rate: u32,
}

impl<'a> Parts<'a> {
    /// Makes an empty list.
    pub fn new(
        cgroups: &'a Cgroups,
        folder: &'a Path,
        ports: &'a Ports,
        binaries: &'a Path,
        rate: u32,
    ) -> Self {
        Self {
            running: Vec::new(),
            cgroups,
            folder,
            ports,
            binaries,
            rate,
        }
    }

    /// Starts all parts.
    pub fn start(&mut self) -> Result<()> {
        let Ports {
            agent,
            prometheus,
            alertmanager,
            shop,
            ..
        } = *self.ports;
        let at = |port: u16| format!("127.0.0.1:{port}");
        let in_folder = |name: &str| self.folder.join(name).display().to_string();
        let (data, more_data) = (in_folder("prometheus"), in_folder("alertmanager"));
        let files = (in_folder("prometheus.yml"), in_folder("alertmanager.yml"));
        let (agent_binary, shop_binary) =
            (self.binaries.join("cgmeter"), self.binaries.join("shop"));
        let rate = self.rate.to_string();
        let on_path = |name: &str| program(name).with_context(|| format!("{name} is not there"));
        let ready = Some;
        self.run(
            "agent",
            &agent_binary,
            &["--web.listen-address", &at(agent)],
            ready((agent, "/-/ready")),
        )?;
        self.run(
            "shop",
            &shop_binary,
            &["--listen", &at(shop), "--max-memory", "128MiB"],
            ready((shop, "/healthz")),
        )?;
        self.cgroups.limit("shop", 50, 256 << 20);
        self.run(
            "customers",
            &shop_binary,
            &["load", "--address", &at(shop), "--rate", &rate],
            None,
        )?;
        self.run(
            "alertmanager",
            &on_path("prometheus-alertmanager")?,
            &[
                &format!("--config.file={}", files.1),
                &format!("--storage.path={more_data}"),
                &format!("--web.listen-address={}", at(alertmanager)),
                // No cluster, so no port for it.
                "--cluster.listen-address=",
            ],
            ready((alertmanager, "/-/ready")),
        )?;
        self.run(
            "prometheus",
            &on_path("prometheus")?,
            &[
                &format!("--config.file={}", files.0),
                &format!("--storage.tsdb.path={data}"),
                &format!("--web.listen-address={}", at(prometheus)),
            ],
            ready((prometheus, "/-/ready")),
        )
    }

    fn run(
        &mut self,
        name: &'static str,
        binary: &Path,
        arguments: &[&str],
        ready: Option<(u16, &'static str)>,
    ) -> Result<()> {
        let procs = self.cgroups.part(name)?;
        let log = File::create(self.log(name)).context("making a log")?;
        // Enters the cgroups, asks the kernel to be killed with its parent, and runs the program.
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                "count=$1; shift; while [ $count -gt 0 ]; do echo $$ >\"$1\" || exit; shift; \
                 count=$((count - 1)); done; exec setpriv --pdeathsig KILL -- \"$@\"",
                "sh",
            ])
            .arg(procs.len().to_string())
            .args(&procs)
            .arg(binary)
            .args(arguments)
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal must reach the demo alone, which ends the parts in order.
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        self.running.push(Part { name, child, ready });
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    /// The first part that is not ready yet.
    pub fn not_ready(&self) -> Option<&'static str> {
        let mut waiting = self
            .running
            .iter()
            .filter(|part| part.ready.is_some_and(|(port, path)| !is_ok(port, path)));
        waiting.next().map(|part| part.name)
    }

    /// Fails if a part has ended.
    pub fn check(&mut self) -> Result<()> {
        for index in 0..self.running.len() {
            let part = &mut self.running[index];
            if let Some(status) = part.child.try_wait()? {
                bail!(
                    "{}",
                    self.message(self.running[index].name, &format!("ended ({status})"))
                );
            }
        }
        Ok(())
    }

    /// A message about a part, with the end of its log.
    pub fn message(&self, name: &str, what: &str) -> String {
        let log = fs::read(self.log(name)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n  ");
        format!("{name} {what}. Its log's end:\n  {tail}")
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        // Clients end before their servers.
        self.running.reverse();
        for part in &mut self.running {
            let pid = part.child.id().to_string();
            let ended = !matches!(part.child.try_wait(), Ok(None));
            if !ended {
                let _ = Command::new("kill").args(["-TERM", &pid]).status();
            }
        }
        let until = Instant::now() + GRACE;
        for part in &mut self.running {
            while matches!(part.child.try_wait(), Ok(None)) && Instant::now() < until {
                sleep(Duration::from_millis(10));
            }
            let _ = part.child.kill();
            let _ = part.child.wait();
        }
    }
}
