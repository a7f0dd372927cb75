//! A cgroup in a controller's hierarchy: itself, or its twin with the same path in a v1 hierarchy.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::cgroup::{self, Cgroup, Hierarchy, controller};

/// The controller's directory of a cgroup. A twin is removed with its processes on drop.
#[derive(Debug)]
pub struct Twin {
    /// The directory with the controller's files.
    pub directory: PathBuf,
    /// Whether it is a twin in v1.
    pub v1: bool,
}

impl Twin {
    /// The controller's directory of a cgroup. In v1 it is created; in cgroup2 the controller is
    /// enabled at every level.
    pub fn of(cgroup: &Cgroup, name: &str) -> Result<Self> {
        match controller(name).with_context(|| format!("no {name} controller"))? {
            Hierarchy::V1(mount) => {
                let directory = mount.join(cgroup.id.trim_start_matches('/'));
                fs::create_dir(&directory)
                    .with_context(|| format!("making {}", directory.display()))?;
                Ok(Self {
                    directory,
                    v1: true,
                })
            }
            Hierarchy::V2(root) => {
                let mut at = root;
                let mut parts = cgroup.id.trim_start_matches('/').split('/').peekable();
                while let Some(part) = parts.next() {
                    fs::write(at.join("cgroup.subtree_control"), format!("+{name}"))
                        .with_context(|| format!("enabling {name} in {}", at.display()))?;
                    at = at.join(part);
                    if parts.peek().is_none() {
                        break;
                    }
                }
                Ok(Self {
                    directory: cgroup.directory.clone(),
                    v1: false,
                })
            }
        }
    }

    /// Moves a process into a twin. In cgroup2 it is already there.
    pub fn admit(&self, pid: u32) -> Result<()> {
        if self.v1 {
            self.write("cgroup.procs", &pid.to_string())?;
        }
        Ok(())
    }

    /// Writes a file.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.directory.join(name), text)
            .with_context(|| format!("writing {text} to {name}"))
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.directory.join(name)).with_context(|| format!("reading {name}"))
    }

    /// The number in a file.
    pub fn number(&self, name: &str) -> Result<f64> {
        let text = self.read(name)?;
        text.trim()
            .parse()
            .with_context(|| format!("{name} says {text:?}"))
    }

    /// The number in the file of cgroup2 or of v1.
    pub fn either(&self, v2: &str, v1: &str) -> Result<f64> {
        self.number(if self.v1 { v1 } else { v2 })
    }

    /// The value of a key in a file of lines `key value`.
    pub fn stat(&self, name: &str, key: &str) -> Result<f64> {
        let text = self.read(name)?;
        text.lines()
            .find_map(|line| {
                line.strip_prefix(key)?
                    .strip_prefix(' ')?
                    .trim()
                    .parse()
                    .ok()
            })
            .with_context(|| format!("no {key} in {name}"))
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        if !self.v1 {
            return;
        }
        cgroup::end(&self.read("cgroup.procs").unwrap_or_default());
        for _ in 0..5000 {
            if fs::remove_dir(&self.directory).is_ok() || !self.directory.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}
