//! The configuration and the routes of Alertmanager, by amtool.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Result, bail, ensure};

use crate::{
    root, rules,
    tool::{output, run, text},
};

/// Checks the configuration, and that each case of routes.test reaches its receivers, each alert has a
/// case and each receiver is reached. Returns how many cases there are.
///
/// # Errors
///
/// Returns the first fault.
pub fn check() -> Result<u64> {
    let folder = root().join("deploy/alertmanager");
    let config = folder.join("alertmanager.yml");
    run(Command::new("amtool").arg("check-config").arg(&config))?;
    let routes = text(&folder.join("routes.test"))?;
    let cases = route_cases(&routes)?;
    let mut reached = BTreeSet::new();
    for (labels, receivers) in &cases {
        let found = output(
            Command::new("amtool")
                .args(["config", "routes", "test", "--config.file"])
                .arg(&config)
                .args(labels),
        )?;
        ensure!(
            found.trim() == *receivers,
            "{} goes to {} instead of {receivers}: see routes.test",
            labels.join(" "),
            found.trim()
        );
        reached.extend(found.trim().split(',').map(str::to_owned));
    }
    for labels in rules::routed_labels(&root())? {
        ensure!(
            cases
                .iter()
                .any(|(case, _)| labels.iter().all(|label| case.contains(&label.as_str()))),
            "no case of routes.test has the labels {}, which an alert has",
            labels.join(" ")
        );
    }
    let config = text(&config)?;
    let receivers = config
        .lines()
        .skip_while(|line| *line != "receivers:")
        .filter_map(|line| line.strip_prefix("- name: "));
    for receiver in receivers {
        ensure!(
            reached.contains(receiver),
            "no case of routes.test reaches the receiver {receiver}"
        );
    }
    Ok(cases.len().try_into()?)
}

/// (labels, receivers) of the lines `labels -> receivers`.
fn route_cases(text: &str) -> Result<Vec<(Vec<&str>, &str)>> {
    let mut cases = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((labels, receivers)) = line.split_once(" -> ") else {
            bail!("routes.test: {line:?} is not `labels -> receivers`");
        };
        cases.push((labels.split_whitespace().collect(), receivers.trim()));
    }
    ensure!(!cases.is_empty(), "routes.test has no case");
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_of_routes() {
        let cases = route_cases("# note\na=b c=d -> x,y\n").unwrap();
        assert_eq!(cases, [(vec!["a=b", "c=d"], "x,y")]);
        assert!(route_cases("a=b").is_err());
        assert!(route_cases("# nothing").is_err());
    }
}
