//! `cgmeter check`: reports what this host and kernel support, and what they don't and why.
//!
//! It starts the agent, which reads everything once, and stops it. Whether a program can be
//! attached is found by attaching it.

use std::io::Write;

use prometheus::Registry;

use crate::{
    agent::Agent,
    cgroup::Hierarchies,
    kernel::{self, load::BTF_PATH},
    runtime::{self, Directory},
    settings::Settings,
};

/// Prints the report. Returns whether everything that is switched on can run, apart from what this
/// host does not have.
///
/// # Errors
///
/// When the report can't be written.
pub fn run(settings: &Settings, mut out: impl Write) -> std::io::Result<bool> {
    let mut fine = true;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    writeln!(out, "kernel     {}", release.trim())?;
    match kernel::possible_cpus() {
        Ok(cpus) => writeln!(out, "cpus       {cpus} possible")?,
        Err(error) => {
            fine = false;
            writeln!(out, "cpus       FAILED: {error}")?;
        }
    }
    match std::fs::metadata(BTF_PATH) {
        Ok(file) => writeln!(out, "types      {BTF_PATH}, {} KiB", file.len() / 1024)?,
        Err(error) => {
            fine = false;
            writeln!(out, "types      FAILED: {BTF_PATH}: {error}")?;
        }
    }
    match Hierarchies::find(settings.agent.root.as_deref()) {
        Ok(found) => {
            writeln!(out, "cgroup2    {}", found.unified.path.display())?;
            for v1 in found.v1 {
                let controllers = v1.controllers.join(", ");
                writeln!(out, "cgroup v1  {}: {controllers}", v1.mount.path.display())?;
            }
        }
        Err(error) => {
            fine = false;
            writeln!(out, "cgroup2    FAILED: {error}")?;
        }
    }
    let (directory, _) = Directory::new();
    match runtime::ask(&directory, &settings.runtimes) {
        Ok(statuses) => {
            for status in statuses {
                let (reported, socket) = (status.reported(), status.socket());
                // A socket in its usual place that the user did not name may be a leftover.
                fine &= reported.up == Some(true) || !settings.runtimes.names(socket);
                let (word, text) = match reported.up {
                    Some(true) => ("up", format!("version {}", reported.text)),
                    Some(false) => ("down", reported.text),
                    None => ("off", reported.text),
                };
                let (name, socket) = (reported.runtime.name(), socket.display());
                writeln!(out, "runtime    {name:<10} {word}: {socket}: {text}")?;
            }
        }
        Err(error) => {
            fine = false;
            writeln!(out, "runtimes   FAILED: {error}")?;
        }
    }
    match Agent::start(
        settings.agent.clone().on_its_own(),
        Registry::new(),
        directory,
    ) {
        Ok(agent) => {
            for state in agent.availability() {
                let switched_on =
                    state.source == "cgroups" || settings.agent.sources.contains(&state.source);
                fine &= state.up || state.absent || !switched_on;
                let word = match (state.up, state.absent) {
                    (true, _) => "on",
                    (false, true) => "not on this host",
                    (false, false) => "off",
                };
                let reason = state
                    .reason
                    .map(|reason| format!(": {reason}"))
                    .unwrap_or_default();
                writeln!(out, "source     {:<10} {word}{reason}", state.source)?;
            }
        }
        Err(error) => {
            fine = false;
            writeln!(out, "agent      FAILED: {error:#}")?;
        }
    }
    writeln!(
        out,
        "{}",
        if fine {
            "everything can run"
        } else {
            "not everything can run"
        }
    )?;
    Ok(fine)
}
