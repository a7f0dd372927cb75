//! Compares each scrape with the previous ones.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use crate::{agent::Agent, metrics::Metrics};

/// Series that may be absent for a while, by the start of their name and a part of their labels.
/// When they return they must not be lower than before.
const MAY_BE_ABSENT: [(&str, &str); 2] = [
    // Absent while no quota is set.
    ("container_cpu_cfs_", ""),
    // Absent while the interface does not exist.
    ("container_network_", "interface="),
];

fn may_be_absent(name: &str, labels: &str) -> bool {
    let mut series = MAY_BE_ABSENT.iter();
    series.any(|(start, part)| name.starts_with(start) && labels.contains(part))
}

/// The last values of the counters of some cgroups, of the host and of the agent itself.
pub struct Watch {
    /// This cgroup and its descendants are watched.
    top: String,
    /// Names of samples that only rise, with their families.
    names: BTreeMap<String, String>,
    /// Whether its descendants are.
    descendants: bool,
    /// Whether what the agent counts of itself is watched.
    own: bool,
    /// Values by name and labels.
    last: BTreeMap<(String, String), f64>,
    /// Cgroups in the last scrape.
    ids: BTreeSet<String>,
}

/// The label `id`. Empty if there is none. The tests' paths need no escapes.
fn id(labels: &str) -> &str {
    let after = labels.strip_prefix("id=\"");
    after.and_then(|rest| rest.split('"').next()).unwrap_or("")
}

impl Watch {
    /// Watches these families, for `top` and its descendants.
    pub fn of(top: &str, families: &[String]) -> Self {
        let suffixes = ["", "_bucket", "_sum", "_count"];
        let names = families.iter().flat_map(|family| {
            suffixes.map(|suffix| (format!("{family}{suffix}"), family.clone()))
        });
        Self {
            top: top.to_owned(),
            names: names.collect(),
            descendants: true,
            own: true,
            last: BTreeMap::new(),
            ids: BTreeSet::new(),
        }
    }

    /// The same, without what the agent counts of itself, which begins anew with each agent.
    pub fn of_any_agent(top: &str, families: &[String]) -> Self {
        let own = false;
        Self {
            own,
            ..Self::of(top, families)
        }
    }

    /// The same, without the descendants.
    pub fn of_one(id: &str, families: &[String]) -> Self {
        let descendants = false;
        Self {
            descendants,
            ..Self::of_any_agent(id, families)
        }
    }

    fn watches(&self, name: &str, labels: &str) -> bool {
        let id = id(labels);
        let below = id.strip_prefix(self.top.as_str());
        let cgroup = id == "/"
            || below
                .is_some_and(|rest| rest.is_empty() || self.descendants && rest.starts_with('/'));
        let own = self.own && name.starts_with("cgmeter_") && name.ends_with("_total");
        own || cgroup && self.names.contains_key(name)
    }

    /// Scrapes. Fails if a counter has fallen, or has disappeared while its cgroup is still
    /// reported.
    pub fn scrape(&mut self, agent: &Agent) -> Result<()> {
        let metrics = agent.scrape()?;
        self.ids = metrics
            .ids("container_last_seen")
            .into_iter()
            .map(str::to_owned)
            .collect();
        let now = self.watched(&metrics);
        // The counters of a reaped cgroup start again at 0 if it is created again.
        self.last
            .retain(|(_, labels), _| id(labels).is_empty() || self.ids.contains(id(labels)));
        let mut problems = Vec::new();
        for ((name, labels), &before) in &self.last {
            match now.get(&(name.clone(), labels.clone())) {
                Some(&now) if now < before => {
                    problems.push(format!("{name}{{{labels}}} fell from {before} to {now}"));
                }
                Some(_) => {}
                // Devices of the host may be removed by other processes.
                None if id(labels).len() <= 1 || may_be_absent(name, labels) => {}
                None => problems.push(format!(
                    "{name}{{{labels}}} has disappeared, it was {before}"
                )),
            }
        }
        ensure!(
            problems.is_empty(),
            "{} series: {}",
            problems.len(),
            problems.join("; ")
        );
        self.last.extend(now);
        Ok(())
    }

    fn watched(&self, metrics: &Metrics) -> BTreeMap<(String, String), f64> {
        metrics
            .samples()
            .filter(|(name, labels, _)| self.watches(name, labels))
            .map(|(name, labels, value)| ((name.to_owned(), labels.to_owned()), value))
            .collect()
    }

    /// Whether a cgroup was in the last scrape.
    pub fn sees(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    /// A counter of the agent itself.
    pub fn metric(&self, name: &str) -> f64 {
        let series = self.last.iter().filter(|((found, _), _)| found == name);
        series.map(|(_, value)| value).sum()
    }

    /// Sum of a cgroup's series of each family.
    pub fn sums(&self, of: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for ((name, labels), value) in &self.last {
            if id(labels) == of
                && let Some(family) = self.names.get(name)
            {
                *sums.entry(family.clone()).or_default() += value;
            }
        }
        sums
    }

    /// Sum of a cgroup's series of a family.
    pub fn sum(&self, family: &str, of: &str) -> f64 {
        self.sums(of).get(family).copied().unwrap_or(0.0)
    }
}
