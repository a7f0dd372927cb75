//! Grafana's dashboards, from the definitions in the files below.
//!
//! Invariant: what is committed in deploy/grafana/dashboards is what is made here, and every metric
//! that a query names is defined by the agent (docs/metrics.md), by a recording rule
//! (deploy/prometheus/rules) or by somebody named in deploy/grafana/foreign-metrics.txt: see
//! `check`. That the queries have answers is tests/live/panels.rs' business.

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

/// Where they are, from the root of the repository.
const FOLDER: &str = "deploy/grafana/dashboards";

/// All of them.
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
