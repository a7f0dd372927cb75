//! Grafana's dashboards, from the definitions in the files below.
//!
//! Invariant: the files in deploy/grafana/dashboards are those that this module writes. Every metric in a
//! query is the agent's (docs/metrics.md), a recording rule's (deploy/prometheus/rules) or listed in
//! deploy/grafana/foreign-metrics.txt: see `check`. tests/live/panels.rs checks that the queries have
//! results.

mod agent;
mod applications;
#[cfg(test)]
mod check;
mod container;
mod disk;
mod fleet;
mod host;
mod model;
mod network;
mod words;

use std::fs;

use anyhow::{Context, Result, bail};
use model::Dashboard;

use crate::root;

/// The folder of the dashboards, from the root of the repository.
const FOLDER: &str = "deploy/grafana/dashboards";

/// All dashboards.
fn all() -> Vec<Dashboard> {
    vec![
        fleet::dashboard(),
        host::dashboard(),
        container::dashboard(),
        network::dashboard(),
        disk::dashboard(),
        applications::dashboard(),
        agent::dashboard(),
    ]
}

/// Writes them, or only says whether they are up to date.
///
/// # Errors
///
/// Returns the file that is out of date, that can't be written, or that no definition makes.
pub fn write(check: bool) -> Result<()> {
    let folder = root().join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut made = Vec::new();
    for dashboard in all() {
        let name = format!("{}.json", dashboard.uid);
        let (path, text) = (folder.join(&name), dashboard.text());
        if fs::read_to_string(&path).unwrap_or_default() != text {
            if check {
                bail!(
                    "{FOLDER}/{name} is out of date: run `cargo xtask dashboards` and commit the result"
                );
            }
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            println!("{FOLDER}/{name} is new");
        }
        made.push(name);
    }
    for entry in fs::read_dir(&folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !made.contains(&name) {
            bail!("{FOLDER}/{name} is made by no definition: remove it");
        }
    }
    Ok(())
}
