//! Directories of `--state.pin`, and agents that are killed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Result, ensure};

use crate::agent::{self, Agent};

/// A directory for pins. What is in it goes with it.
pub struct State(PathBuf);

impl State {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cgmeter-test-{}-{number}", std::process::id());
        Self::at(&Path::new("/sys/fs/bpf").join(name))
    }

    /// A directory of another bpffs.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The agent's argument.
    pub fn flag(&self) -> String {
        format!("--state.pin={}", self.0.display())
    }

    pub fn agent(&self) -> Result<Agent> {
        Agent::start(&[&self.flag()])
    }

    /// Names of what is in the layout's directory, if they start with this.
    pub fn pinned(&self, start: &str) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for layout in fs::read_dir(&self.0)? {
            for entry in fs::read_dir(layout?.path())? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(start) {
                    found.push(entry.path());
                }
            }
        }
        Ok(found)
    }

    pub fn unload(&self) -> Result<String> {
        let output = agent::run(&["unload", &self.flag()])?;
        let text = String::from_utf8(output.stdout)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{text} {errors}");
        Ok(text)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Err(error) = self.unload() {
            eprintln!("{error:#}");
        }
    }
}

pub fn kill(agent: Agent) -> Result<()> {
    agent.stop(libc::SIGKILL).map(drop)
}
