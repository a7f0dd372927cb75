//! Kernel tracing as an oracle: counts events of one process in an instance of the tracing file
//! system.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

const ROOT: &str = "/sys/kernel/tracing";

/// Whether there is a tracing file system. Mounts it if necessary.
pub fn is_there() -> bool {
    let there = || fs::metadata(format!("{ROOT}/instances")).is_ok();
    there()
        || Command::new("mount")
            .args(["-t", "tracefs", "tracefs", ROOT])
            .output()
            .is_ok_and(|output| output.status.success())
            && there()
}

/// Trace events that are recorded.
pub struct Trace {
    directory: PathBuf,
}

impl Trace {
    /// Starts recording events (`system/name`) of a process.
    pub fn of(pid: u32, events: &[&str]) -> Result<Self> {
        let directory =
            PathBuf::from(ROOT).join(format!("instances/cgmeter-test-{}", std::process::id()));
        fs::create_dir(&directory).context("making a tracing instance")?;
        let trace = Self { directory };
        fs::write(trace.directory.join("buffer_size_kb"), "4096")?;
        fs::write(trace.directory.join("set_event_pid"), pid.to_string())?;
        for event in events {
            fs::write(trace.directory.join(format!("events/{event}/enable")), "1")
                .with_context(|| format!("enabling {event}"))?;
        }
        Ok(trace)
    }

    /// How often an event with this name has occurred.
    pub fn count(&self, name: &str) -> Result<usize> {
        let text = fs::read_to_string(self.directory.join("trace"))?;
        let head: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
        // `# entries-in-buffer/entries-written: 7/7`
        let complete = head.iter().any(|line| {
            line.split_once("entries-written:")
                .is_some_and(|(_, rest)| {
                    let numbers = rest.split_whitespace().next().unwrap_or_default();
                    numbers
                        .split_once('/')
                        .is_some_and(|(kept, written)| kept == written)
                })
        });
        ensure!(complete, "the trace has lost events");
        let event = format!(" {name}: ");
        Ok(text.lines().filter(|line| line.contains(&event)).count())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.directory);
    }
}
