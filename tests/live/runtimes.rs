//! Container runtimes for the tests: daemons with their own folders and sockets. The image is built
//! here, because there is no registry.
//!
//! Invariant: dropping a [`Folder`] removes its processes, mounts, cgroups and files, however the
//! daemons ended. It kills only processes with the folder on their command line, and their
//! descendants.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{agent::Agent, metrics::Metrics};

/// Name of the image.
pub const IMAGE: &str = "busybox:local";

/// Runs a program, which must succeed, and returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = succeed(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The same, followed by standard error.
pub fn both(command: &mut Command) -> Result<String> {
    let output = succeed(command)?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

fn succeed(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// Retries until it succeeds. After 90 s, returns the last failure.
pub fn eventually<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let until = Instant::now() + Duration::from_secs(90);
    loop {
        match attempt() {
            Err(_) if Instant::now() < until => sleep(Duration::from_millis(100)),
            result => return result,
        }
    }
}

/// Waits until the agent follows a runtime. On a busy machine the runtime's first answer takes
/// long.
pub fn followed(agent: &Agent, runtime: &str) -> Result<()> {
    eventually(|| {
        let up = agent
            .scrape()?
            .sum("cgmeter_runtime_up", &[("runtime", runtime)]);
        ensure!(up == 1.0, "{runtime} is not followed");
        Ok(())
    })
    .with_context(|| agent.log())
}

/// Starts containers one after the other with `start`, given a number and a name. As soon as one
/// has been started, `check` asks the agent for it once. Every first answer must be right. Some
/// containers stay, the others are removed in groups.
pub fn first_answers(
    count: usize,
    start: impl Fn(usize, &str) -> Result<String>,
    check: impl Fn(usize, &str, &str) -> Result<()>,
    remove: impl Fn(&[&str]) -> Result<()>,
) -> Result<()> {
    const GROUP: usize = 20;
    let names: Vec<String> = (0..count).map(|number| format!("late-{number}")).collect();
    let mut wrong = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let id = start(number, name)?;
        if let Err(error) = check(number, name, &id) {
            wrong.push(format!("{name}: {error:#}"));
        }
        if number % GROUP == GROUP - 1 && number + 1 < count {
            let group = &names[number + 1 - GROUP..number];
            remove(&group.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} of {count} first answers lack the name:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}

/// Fails unless all series of a cgroup have these labels, and there are as many as for a live
/// cgroup.
pub fn all_labelled(metrics: &Metrics, id: &str, labels: &[(&str, &str)]) -> Result<()> {
    let series = metrics.with("id", id)?;
    ensure!(series.len() > 25, "{id} has {} series", series.len());
    for series in series {
        for (name, value) in labels {
            ensure!(
                series.label(name) == *value,
                "{name} of {}{:?} is not {value:?}",
                series.name,
                series.labels
            );
        }
    }
    metrics.no_doubles()
}

/// Fails unless the JSON record of a container has these values. The key is its name, its id or a
/// prefix of the id.
pub fn in_json(agent: &Agent, key: &str, expected: &[(&str, &str)]) -> Result<()> {
    let text = agent.body(&format!("/api/v1/containers/{key}"), "")?;
    let record: serde_json::Value = serde_json::from_str(&text)?;
    for (field, value) in expected {
        let found = record[field].as_str();
        ensure!(
            found == Some(value),
            "{field} of {key} is {found:?} instead of {value}: {record}"
        );
    }
    Ok(())
}

/// A folder for daemons. It owns everything that they leave behind.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Top-level cgroups that existed before.
    tops: BTreeSet<PathBuf>,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Folder {
    /// Creates a folder.
    pub fn new(what: &str) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cgmeter-test-{what}-{}-{number}", std::process::id());
        // A short name, because some sockets are deep below, and a socket's path has at most 107
        // bytes.
        let path = Path::new("/tmp").join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        let mut tops = BTreeSet::new();
        for hierarchy in hierarchies() {
            tops.extend(fs::read_dir(hierarchy)?.flatten().map(|entry| entry.path()));
        }
        Ok(Self { path, tops })
    }

    /// A path in it.
    pub fn path(&self, part: &str) -> PathBuf {
        self.path.join(part)
    }

    /// A path in it, as text.
    pub fn text(&self, part: &str) -> String {
        self.path(part).display().to_string()
    }

    /// The id of a parent cgroup for the daemons' cgroups. It is removed with the folder.
    pub fn cgroup(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        format!("/{}", name.display())
    }

    /// Creates a tar archive of the image's file system, with busybox under the names that the
    /// tests use.
    pub fn rootfs(&self) -> Result<PathBuf> {
        let root = self.path("rootfs");
        fs::create_dir_all(root.join("bin"))?;
        fs::create_dir_all(root.join("tmp"))?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let busybox = std::env::split_paths(&path)
            .map(|folder| folder.join("busybox"))
            .find(|path| path.is_file())
            .context("no busybox")?;
        fs::copy(busybox, root.join("bin/busybox"))?;
        for name in ["sh", "sleep", "cat", "dd", "true", "test", "rm", "ping"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
        }
        let archive = self.path("rootfs.tar");
        output(
            Command::new("tar")
                .args(["--owner=0", "--group=0", "-c", "-f"])
                .arg(&archive)
                .arg("-C")
                .arg(&root)
                .arg("."),
        )?;
        Ok(archive)
    }

    /// Processes of this folder: their ids, and the text of /proc/PID/cgroup.
    fn processes(&self) -> BTreeMap<u32, String> {
        let folder = self.path.display().to_string();
        let mut parents: BTreeMap<u32, u32> = BTreeMap::new();
        let mut ours: BTreeSet<u32> = BTreeSet::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let text = |file: &str| String::from_utf8_lossy(&read(file)).into_owned();
            let stat = text("stat");
            let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
            let parent = after.split(' ').nth(1).and_then(|word| word.parse().ok());
            parents.insert(pid, parent.unwrap_or(0));
            // The agent has the socket on its command line too, but exits by itself.
            if text("comm").trim() != "cgmeter" && text("cmdline").contains(&folder) {
                ours.insert(pid);
            }
        }
        loop {
            let children = parents.iter().filter(|(_, parent)| ours.contains(parent));
            let children: BTreeSet<u32> = children.map(|(&pid, _)| pid).collect();
            let before = ours.len();
            ours.extend(children);
            if ours.len() == before {
                break;
            }
        }
        ours.remove(&std::process::id());
        ours.into_iter()
            .map(|pid| {
                let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
                (pid, cgroups.unwrap_or_default())
            })
            .collect()
    }

    /// Kills the processes and removes their cgroups, except the cgroup of this process.
    pub fn end_processes(&self) {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own: BTreeSet<&str> = own.lines().collect();
        let mut cgroups = BTreeSet::new();
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let mut living = 0;
            for (pid, lines) in self.processes() {
                let others = lines.lines().filter(|line| !own.contains(line));
                cgroups.extend(
                    others
                        .filter_map(|line| line.splitn(3, ':').nth(2))
                        .map(|path| path.trim_start_matches('/').to_owned()),
                );
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                // A zombie can't be killed. Its parent has to wait for it.
                if !stat.contains(") Z ") {
                    living += 1;
                    // SAFETY: the process is a daemon of this folder, or was started by one.
                    unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
                }
            }
            if living == 0 || Instant::now() > until {
                break;
            }
            sleep(Duration::from_millis(20));
        }
        for cgroup in cgroups.iter().filter(|path| !path.is_empty()) {
            for hierarchy in hierarchies() {
                self.remove_cgroup(&hierarchy, Path::new(cgroup));
            }
        }
    }

    /// Removes a cgroup and its descendants, the innermost first.
    fn remove_tree(&self, hierarchy: &Path, path: &Path) {
        let entries = fs::read_dir(hierarchy.join(path)).into_iter().flatten();
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            self.remove_tree(hierarchy, &path.join(entry.file_name()));
        }
        self.remove_cgroup(hierarchy, path);
    }

    /// Removes a cgroup, and its ancestors that are new and empty.
    pub fn remove_cgroup(&self, hierarchy: &Path, path: &Path) {
        let until = Instant::now() + Duration::from_secs(5);
        for path in path.ancestors().filter(|path| *path != Path::new("")) {
            let directory = hierarchy.join(path);
            if self.tops.contains(&directory) {
                return;
            }
            // EBUSY while its last tasks are exiting. A parent may stay in use.
            while let Err(error) = fs::remove_dir(&directory) {
                let busy = error.raw_os_error() == Some(libc::EBUSY);
                let empty = fs::read_dir(&directory)
                    .is_ok_and(|entries| !entries.flatten().any(|entry| entry.path().is_dir()));
                if !busy || !empty || Instant::now() > until {
                    break;
                }
                sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.end_processes();
        // If the last container ended by itself, the parent cgroup had no process and is still
        // there.
        let cgroup = self.cgroup();
        for hierarchy in hierarchies() {
            self.remove_tree(&hierarchy, Path::new(cgroup.trim_start_matches('/')));
        }
        for mount in mounts_below(&self.path) {
            let _ = Command::new("umount").args(["--lazy", &mount]).status();
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Mount points below a folder, the innermost first.
fn mounts_below(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    let below = points.filter(|point| Path::new(point).starts_with(folder));
    let mut points: Vec<String> = below.map(str::to_owned).collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    points
}

/// Every mounted hierarchy of cgroups, v1 and v2.
pub fn hierarchies() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter(|line| line.contains(" - cgroup"))
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

/// A daemon.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts the daemon and waits until `answers` succeeds.
    pub fn start(
        folder: &Folder,
        command: &mut Command,
        mut answers: impl FnMut() -> bool,
    ) -> Result<Self> {
        let log = folder.path("log");
        let file = File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let mut daemon = Self { child, log };
        let until = Instant::now() + Duration::from_secs(60);
        while !answers() {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("{command:?} ended ({status}): {}", daemon.log());
            }
            ensure!(
                Instant::now() < until,
                "{command:?} does not answer: {}",
                daemon.log()
            );
            sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: the process is our child and has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Whether the process exists. It may be stopped.
    pub fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it, to simulate a crash.
    pub fn crash(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
