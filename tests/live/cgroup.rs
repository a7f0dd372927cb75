//! Cgroups for the tests, and the kernel's files about them.

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

/// The hierarchy of a controller.
#[derive(Clone, Debug)]
pub enum Hierarchy {
    /// The controller is in a v1 hierarchy, mounted here.
    V1(PathBuf),
    /// The controller is in cgroup2, whose root is here.
    V2(PathBuf),
}

/// The hierarchy of a controller. `None` if the kernel has no such controller.
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

/// Enables controllers for the cgroups below the root of cgroup2. Returns false if the root doesn't
/// have them.
pub fn enable(controllers: &[&str]) -> Result<bool> {
    let unified = |name: &&str| matches!(controller(name), Some(Hierarchy::V2(_)));
    if !controllers.iter().all(unified) {
        return Ok(false);
    }
    let wanted: Vec<String> = controllers.iter().map(|name| format!("+{name}")).collect();
    fs::write(root()?.join("cgroup.subtree_control"), wanted.join(" "))?;
    Ok(true)
}

/// A cgroup. It is removed with everything in it when the test ends.
#[derive(Debug)]
pub struct Cgroup {
    /// Its directory.
    pub directory: PathBuf,
    /// Its path relative to the root, which is the label `id`.
    pub id: String,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Cgroup {
    /// Creates a cgroup below the root.
    pub fn new() -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("cgmeter-test-{}-{number}", std::process::id()))
    }

    /// Creates a cgroup with this name below the root.
    pub fn named(name: &str) -> Result<Self> {
        Self::at(&root()?, "", name.as_bytes())
    }

    /// Creates a cgroup whose name may be any bytes. The caller has to know its `id`.
    pub fn raw(name: &[u8]) -> Result<Self> {
        Self::at(&root()?, "", name)
    }

    /// Creates a child.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::at(&self.directory, &self.id, name.as_bytes())
    }

    fn at(parent: &Path, parent_id: &str, name: &[u8]) -> Result<Self> {
        let directory = parent.join(OsStr::from_bytes(name));
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let id = format!("{parent_id}/{}", String::from_utf8_lossy(name));
        Ok(Self { directory, id })
    }

    /// The file that moves tasks into the cgroup.
    pub fn procs(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    /// Moves a process into the cgroup.
    pub fn admit(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.procs(), pid.to_string())?)
    }

    /// CPU time in cpu.stat, seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        self.cpu_stat("usage_usec")
    }

    /// CPU time in cpu.stat once it stands still, seconds. A process may be waited for, and have left
    /// the cgroup's list, before the kernel has switched away from it for the last time.
    pub fn final_cpu_seconds(&self) -> Result<f64> {
        let mut before = self.cpu_seconds()?;
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.cpu_seconds()?;
            if now == before {
                return Ok(now);
            }
            before = now;
        }
    }

    /// A time in cpu.stat, seconds.
    pub fn cpu_stat(&self, key: &str) -> Result<f64> {
        let text = fs::read_to_string(self.directory.join("cpu.stat"))?;
        let usec = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse::<f64>().ok())
            .with_context(|| format!("no {key} in cpu.stat"))?;
        Ok(usec / 1e6)
    }

    /// Kills every process in the cgroup and waits until they are gone.
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

    /// Removes the cgroup now. It must be empty, or become empty soon.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match fs::remove_dir(&self.directory) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                // EBUSY while its last tasks are exiting.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Kills the processes in a cgroup's list. A process that is being reaped has no process id any
/// more and is listed as 0 (kernel/cgroup/cgroup.c, `__cgroup_procs_show`). For kill(2), 0 would
/// mean the tests and their whole process group.
pub fn end(pids: &str) {
    let pids = pids
        .lines()
        .filter_map(|pid| pid.parse::<libc::pid_t>().ok());
    for pid in pids.filter(|&pid| pid > 0) {
        // SAFETY: the process was put there by this test.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        end(&fs::read_to_string(self.procs()).unwrap_or_default());
        let _ = self.remove();
    }
}
