//! Cgroups of the test's own, and what the kernel says of them.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Mount points by file system type and option.
fn mount(kind: &str, option: Option<&str>) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    text.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let fits = right.next()? == kind
            && option.is_none_or(|option| {
                right
                    .nth(1)
                    .is_some_and(|options| options.split(',').any(|found| found == option))
            });
        fits.then(|| PathBuf::from(left.split(' ').nth(4).unwrap_or_default()))
    })
}

/// The root of cgroup2.
pub fn root() -> Result<PathBuf> {
    mount("cgroup2", None).context("no cgroup2 is mounted")
}

/// Where a controller is.
#[derive(Clone, Debug)]
pub enum Hierarchy {
    /// A v1 mount.
    V1(PathBuf),
    /// cgroup2's root.
    V2(PathBuf),
}

/// Where a controller is, `None` if it is nowhere.
pub fn controller(name: &str) -> Option<Hierarchy> {
    if let Some(path) = mount("cgroup", Some(name)) {
        return Some(Hierarchy::V1(path));
    }
    let root = root().ok()?;
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).ok()?;
    controllers
        .split_whitespace()
        .any(|found| found == name)
        .then_some(Hierarchy::V2(root))
}

/// Enables controllers for the cgroups below the root of cgroup2. False where it doesn't have them.
pub fn enable(controllers: &[&str]) -> Result<bool> {
    let unified = |name: &&str| matches!(controller(name), Some(Hierarchy::V2(_)));
    if !controllers.iter().all(unified) {
        return Ok(false);
    }
    let wanted: Vec<String> = controllers.iter().map(|name| format!("+{name}")).collect();
    fs::write(root()?.join("cgroup.subtree_control"), wanted.join(" "))?;
    Ok(true)
}

/// A cgroup, removed with all that is in it when the test ends.
#[derive(Debug)]
pub struct Cgroup {
    /// Its directory.
    pub directory: PathBuf,
    /// Its path below the root: label `id`.
    pub id: String,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Cgroup {
    /// A new cgroup below the root.
    pub fn new() -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("cgmeter-test-{}-{number}", std::process::id()))
    }

    /// A cgroup of that name below the root.
    pub fn named(name: &str) -> Result<Self> {
        Self::at(&root()?, "", name.as_bytes())
    }

    /// A cgroup whose name is any bytes; its `id` is for the caller to know.
    pub fn raw(name: &[u8]) -> Result<Self> {
        Self::at(&root()?, "", name)
    }

    /// A child.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::at(&self.directory, &self.id, name.as_bytes())
    }

    fn at(parent: &Path, parent_id: &str, name: &[u8]) -> Result<Self> {
        let directory = parent.join(OsStr::from_bytes(name));
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let id = format!("{parent_id}/{}", String::from_utf8_lossy(name));
        Ok(Self { directory, id })
    }

    /// The file that tasks are moved in by.
    pub fn procs(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    /// Moves a process in.
    pub fn admit(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.procs(), pid.to_string())?)
    }

    /// CPU time by cpu.stat, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        self.cpu_stat("usage_usec")
    }

    /// A time of cpu.stat, in seconds.
    pub fn cpu_stat(&self, key: &str) -> Result<f64> {
        let text = fs::read_to_string(self.directory.join("cpu.stat"))?;
        let usec = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse::<f64>().ok())
            .with_context(|| format!("no {key} in cpu.stat"))?;
        Ok(usec / 1e6)
    }

    /// Ends every process in it, and waits until they are gone.
    pub fn remove_tasks(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let pids = fs::read_to_string(self.procs())?;
            if pids.is_empty() {
                return Ok(());
            }
            end(&pids);
            anyhow::ensure!(Instant::now() < deadline, "{pids:?} don't end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Removes it now; it has to be empty, or to become so.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match fs::remove_dir(&self.directory) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                // EBUSY while its last tasks are on their way out.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Ends the processes that a cgroup's list of them has. A process that is being reaped has lost its
/// number and is listed as 0 (kernel/cgroup/cgroup.c, `__cgroup_procs_show`), which to kill(2) would
/// be the tests and all that started them.
pub fn end(pids: &str) {
    let pids = pids
        .lines()
        .filter_map(|pid| pid.parse::<libc::pid_t>().ok());
    for pid in pids.filter(|&pid| pid > 0) {
        // SAFETY: a process that this test has put there.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        end(&fs::read_to_string(self.procs()).unwrap_or_default());
        let _ = self.remove();
    }
}
