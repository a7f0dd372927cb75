//! The stack of deploy/compose.
//!
//! Invariants of the file: every service has a health check (unless it runs once), limits, an image
//! of a fixed version and no privilege but those listed. Nothing is published off loopback. No
//! password has a default. What is mounted from the repository exists. The agent gets what
//! deploy/docker/README.md lists, and bpffs, where its state outlives it.

mod faults;
#[cfg(test)]
mod tests;

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{root, tool};

const FOLDER: &str = "deploy/compose";
/// A key that docker-compose 1.29, Debian's, doesn't know. The agent needs the host's cgroup namespace,
/// which is Docker's default only on hosts with cgroup v1.
const UNKNOWN_TO_1_29: &str = "    cgroup: host\n";

/// Checks the file by the rules above.
///
/// # Errors
///
/// Returns all faults.
pub fn check() -> Result<()> {
    let faults = faults::faults(&read()?);
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

fn read() -> Result<String> {
    tool::text(&root().join(FOLDER).join("compose.yaml"))
}

/// Checks that docker-compose accepts the file if all variables are set, and names the missing one if
/// one is not.
///
/// # Errors
///
/// Returns the message of docker-compose, or which variable it didn't ask for.
pub fn by_docker_compose() -> Result<()> {
    let text = read()?;
    ensure!(
        text.matches(UNKNOWN_TO_1_29).count() == 1,
        "the agent's `cgroup: host` is not there as it was"
    );
    let text = text.replace(UNKNOWN_TO_1_29, "");
    let names = variables(&text);
    config(&text, &names).context("with every variable set")?;
    for name in &names {
        let rest: Vec<&str> = names
            .iter()
            .copied()
            .filter(|other| other != name)
            .collect();
        let error = match config(&text, &rest) {
            Ok(()) => bail!("without {name} the stack would start all the same"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(error.contains(&format!("set {name} in .env")), "{error}");
    }
    Ok(())
}

/// Has docker-compose check a file with some variables set.
fn config(text: &str, set: &[&str]) -> Result<()> {
    let mut command = Command::new("docker-compose");
    // The caller's environment and its .env files must not matter.
    command
        .args([
            "--env-file",
            ".env.example",
            "--file",
            "-",
            "config",
            "--quiet",
        ])
        .current_dir(root().join(FOLDER))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(set.iter().map(|name| (*name, "only-for-this-check")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("running docker-compose")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(text.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", errors.trim());
    Ok(())
}

/// Names of the variables in a text.
fn variables(text: &str) -> Vec<&str> {
    let mut names: Vec<&str> = text
        .split("${")
        .skip(1)
        .filter_map(|rest| rest.split([':', '}', '?', '-']).next())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}
