//! A Docker daemon of the test's own: folders, socket and cgroups apart from any other's, no bridge,
//! no firewall rules. All of it is gone with it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// A running daemon.
pub struct Daemon {
    child: Child,
    folder: PathBuf,
    /// The cgroup, below the root of each hierarchy, that its containers are in.
    parent: String,
}

impl Daemon {
    /// Starts it and waits until it answers.
    pub fn start() -> Result<Self> {
        let name = format!("cgmeter-test-dockerd-{}", std::process::id());
        // Short: its containerd's socket lies below, and a socket's path has 107 bytes at most.
        let folder = PathBuf::from("/tmp").join(&name);
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let log = File::create(folder.join("log"))?;
        let path = |part: &str| folder.join(part).display().to_string();
        let child = Command::new("dockerd")
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--host", &format!("unix://{}", path("socket"))])
            .args(["--pidfile", &path("pid"), "--cgroup-parent", &name])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                let _ = fs::remove_dir_all(&folder);
                return Err(error).context("starting dockerd");
            }
        };
        let mut daemon = Self {
            child,
            folder,
            parent: name,
        };
        let until = Instant::now() + Duration::from_secs(60);
        while daemon.docker(&["version"]).is_err() {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("dockerd ended ({status}): {}", daemon.log());
            }
            ensure!(
                Instant::now() < until,
                "dockerd does not answer: {}",
                daemon.log()
            );
            sleep(Duration::from_millis(100));
        }
        Ok(daemon)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// What it listens on.
    pub fn socket(&self) -> String {
        self.folder.join("socket").display().to_string()
    }

    /// A folder that ends with it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its containers' cgroup, below the root of each hierarchy.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// What a docker command that has to succeed says, on both of its outputs.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run("docker", arguments)?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// What a docker-compose command that has to succeed says on its standard output; every variable of
    /// the stack is set.
    pub fn compose(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run("docker-compose", arguments)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("DOCKER_HOST", format!("unix://{}", self.socket()))
            .env("DOCKER_CONFIG", &self.folder)
            .env("DOCKER_BUILDKIT", "0")
            .stdin(Stdio::null());
        for service in [
            "GRAFANA", "POSTGRES", "REDIS", "ELASTIC", "KIBANA", "FILEBEAT",
        ] {
            command.env(format!("{service}_PASSWORD"), "only-for-this-test");
        }
        let output = command
            .output()
            .with_context(|| format!("running {program}"))?;
        ensure!(
            output.status.success(),
            "{program} {} failed ({}): {}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(containers) = self.docker(&["ps", "--all", "--quiet"]) {
            for container in containers.lines() {
                let _ = self.docker(&["rm", "--force", "--volumes", container]);
            }
        }
        // Their bridges would outlive the daemon.
        let _ = self.docker(&["network", "prune", "--force"]);
        // SAFETY: our own child, not yet waited for. It ends its containerd.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let until = Instant::now() + Duration::from_secs(20);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for mount in mounts_below(&self.folder) {
            let _ = Command::new("umount").args(["--lazy", &mount]).status();
        }
        let _ = fs::remove_dir_all(&self.folder);
        for hierarchy in hierarchies() {
            let _ = remove_cgroups(&hierarchy.join(&self.parent));
        }
    }
}

/// Mount points below a folder, the innermost first.
fn mounts_below(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(folder))
        .map(str::to_owned)
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    points
}

/// Every hierarchy of cgroups, v1 and v2.
fn hierarchies() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_cgroup = |line: &&str| line.contains(" - cgroup");
    text.lines()
        .filter(is_cgroup)
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

/// Removes empty cgroups, the innermost first.
fn remove_cgroups(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
