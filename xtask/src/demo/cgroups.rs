//! The demo's cgroups: one in cgroup2 for each part, and one in each v1 hierarchy that has a controller
//! which the demo sets limits by.
//!
//! Invariant: in each hierarchy all of them are below one cgroup with a unique name, and they are removed
//! on drop.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// The demo's top cgroup in each hierarchy.
pub struct Cgroups {
    name: String,
    hierarchies: Vec<Hierarchy>,
}

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// The v1 controller; `None` for cgroup2.
    v1: Option<&'static str>,
}

/// v1 controllers that the demo sets limits by.
const CONTROLLERS: &[&str] = &["cpu", "memory"];

impl Cgroups {
    /// Makes the demo's top cgroups.
    pub fn new() -> Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
        let hierarchies = parse(&mountinfo);
        anyhow::ensure!(
            hierarchies.iter().any(|hierarchy| hierarchy.v1.is_none()),
            "no cgroup2 hierarchy is mounted; mount one (mount -t cgroup2 none DIR)"
        );
        let cgroups = Self {
            name: format!("cgmeter-demo-{}", std::process::id()),
            hierarchies,
        };
        for directory in cgroups.directories() {
            fs::create_dir(&directory)
                .with_context(|| format!("making {}", directory.display()))?;
        }
        Ok(cgroups)
    }

    /// Its name, below the root of each hierarchy.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let named = |hierarchy: &Hierarchy| hierarchy.mount.join(&self.name);
        self.hierarchies.iter().map(named)
    }

    /// Makes the cgroup of a part. Returns the files that a process writes itself to in order to enter.
    pub fn part(&self, part: &str) -> Result<Vec<PathBuf>> {
        let made = self.directories().map(|directory| {
            let directory = directory.join(part);
            fs::create_dir(&directory)
                .with_context(|| format!("making {}", directory.display()))?;
            Ok(directory.join("cgroup.procs"))
        });
        made.collect()
    }

    /// Limits a part to hundredths of a CPU and to bytes of memory. Prints which limit can't be set.
    pub fn limit(&self, part: &str, percent: u32, bytes: u64) {
        let quota = percent * 1000;
        for (controller, v1, v2) in [
            (
                "cpu",
                ("cpu.cfs_quota_us", quota.to_string()),
                ("cpu.max", format!("{quota} 100000")),
            ),
            (
                "memory",
                ("memory.limit_in_bytes", bytes.to_string()),
                ("memory.max", bytes.to_string()),
            ),
        ] {
            if let Err(error) = self.set(part, controller, v1, v2) {
                println!("no {controller} limit for the {part}: {error}");
            }
        }
    }

    fn set(
        &self,
        part: &str,
        controller: &str,
        v1: (&str, String),
        v2: (&str, String),
    ) -> io::Result<()> {
        let of = |wanted: Option<&str>| {
            let found = self.hierarchies.iter().find(|found| found.v1 == wanted);
            found.map(|found| &found.mount)
        };
        if let Some(mount) = of(Some(controller)) {
            return fs::write(mount.join(&self.name).join(part).join(v1.0), v1.1);
        }
        let mount = of(None).ok_or(io::ErrorKind::NotFound)?;
        let own = mount.join(&self.name);
        // The root's file is not changed: a host that runs containers has enabled the controllers.
        fs::write(own.join("cgroup.subtree_control"), format!("+{controller}"))?;
        fs::write(own.join(part).join(v2.0), v2.1)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for directory in self.directories() {
            if let Err(error) = remove(&directory) {
                eprintln!(
                    "xtask: warning: {} can't be removed: {error}",
                    directory.display()
                );
            }
        }
    }
}

/// Removes a cgroup and those below. Retries while their last processes exit.
fn remove(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// cgroup2 and the v1 hierarchies of [`CONTROLLERS`], each once.
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mount = PathBuf::from(left.split(' ').nth(4).unwrap_or_default());
        let words: Vec<&str> = right.split(' ').collect();
        let options = words.get(2).copied().unwrap_or_default();
        let kinds: Vec<Option<&'static str>> = match words.first() {
            Some(&"cgroup2") => vec![None],
            Some(&"cgroup") => {
                let has = |name: &&&str| options.split(',').any(|option| option == **name);
                CONTROLLERS
                    .iter()
                    .filter(has)
                    .map(|name| Some(*name))
                    .collect()
            }
            _ => continue,
        };
        for v1 in kinds {
            let known = |other: &Hierarchy| other.v1 == v1 || other.mount == mount;
            if !found.iter().any(known) {
                let mount = mount.clone();
                found.push(Hierarchy { mount, v1 });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_once() {
        let text = "30 1 0:1 / /c/cpu rw - cgroup cgroup rw,cpu\n\
                    31 1 0:2 / /c/cpuset rw - cgroup cgroup rw,cpuset\n\
                    32 1 0:3 / /c/unified rw shared:4 - cgroup2 none rw\n\
                    33 1 0:3 / /again rw - cgroup2 none rw\n\
                    34 1 0:4 / / rw - ext4 /dev/x rw\n";
        let found = parse(text);
        let pairs: Vec<(&str, Option<&str>)> = found
            .iter()
            .map(|found| (found.mount.to_str().unwrap(), found.v1))
            .collect();
        assert_eq!(pairs, [("/c/cpu", Some("cpu")), ("/c/unified", None)]);
    }
}
