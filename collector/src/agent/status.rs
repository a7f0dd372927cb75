//! What the agent says of itself and of its tree.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::Serialize;

use super::{Agent, CgroupKind, Subject, lock};
use crate::cgroup::{Kind, Nodes, printable};

/// The agent.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// What it was built for: architecture and operating system.
    pub target: String,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// Release of the running kernel.
    pub kernel: String,
    /// When the last snapshot was taken; a request for the status takes none.
    #[schemars(extend("format" = "date-time"))]
    pub snapshot: String,
    /// Whether every source could be read for it.
    pub complete: bool,
    /// Sources of metrics.
    pub sources: Vec<SourceStatus>,
    /// Container runtimes that are followed.
    pub runtimes: Vec<RuntimeStatus>,
    /// Cgroups in the tree.
    pub cgroups: Cgroups,
    /// Slots for cgroups.
    pub slots: SlotStates,
    /// Kernel memory of the agent's maps, bytes.
    pub kernel_memory_bytes: u64,
    /// Seconds that each stage of the last snapshot, and the last encoding, took.
    pub stages: BTreeMap<String, f64>,
}

/// A source.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct SourceStatus {
    /// Its name, as in --collector.NAME.
    pub name: String,
    /// Whether it runs.
    pub up: bool,
    /// Why it does not, or what is less exact.
    pub reason: Option<String>,
    /// Readings that failed.
    pub errors: u64,
}

/// A container runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RuntimeStatus {
    /// Its name.
    pub name: String,
    /// Its socket, where the metric tells it.
    pub socket: Option<String>,
    /// Whether it answers.
    pub up: bool,
}

/// Cgroups by state.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Cgroups {
    /// Those that are there.
    pub live: usize,
    /// Those that are gone and still told of.
    pub dead: usize,
}

/// Slots by state.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct SlotStates {
    /// Those of cgroups.
    pub used: usize,
    /// Those that are free.
    pub free: usize,
    /// Those of cgroups that are gone.
    pub quarantined: usize,
}

fn kind(kind: Kind) -> CgroupKind {
    match kind {
        Kind::Root => CgroupKind::Root,
        Kind::Container => CgroupKind::Container,
        Kind::Machine => CgroupKind::Machine,
        Kind::Pod => CgroupKind::Pod,
        Kind::Unit => CgroupKind::Unit,
        Kind::Group => CgroupKind::Group,
        Kind::Nested => CgroupKind::Nested,
        Kind::Other => CgroupKind::Other,
    }
}

/// What is exported of a tree, parents before children.
pub(super) fn subjects(nodes: &Nodes) -> Vec<Subject> {
    let mut places = vec![None; nodes.capacity()];
    let mut subjects = Vec::new();
    for (number, node) in nodes.exported() {
        // The next of those above that is exported.
        let mut above = node.parent;
        while let Some(parent) = above.filter(|&parent| places[parent].is_none()) {
            above = nodes.node(parent).and_then(|node| node.parent);
        }
        places[number] = Some(subjects.len());
        subjects.push(Subject {
            cgroup: printable(&node.path),
            parent: above.and_then(|parent| places[parent]),
            died: node.died,
            kind: kind(node.place.kind),
            container_id: node.place.container.as_deref().map(str::to_owned),
            runtime: node.place.runtime.map(|runtime| runtime.name()),
            pod_uid: node.place.pod.as_deref().map(str::to_owned),
            container: node.container.clone(),
        });
    }
    subjects
}

impl Agent {
    /// What there is to say of the agent, of the last frame.
    ///
    /// # Errors
    ///
    /// When the kernel's release can't be read, or a first frame can't be taken.
    pub fn status(&self) -> anyhow::Result<Status> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let latest = lock(&self.latest).clone();
        let frame = match latest {
            Some(frame) => frame,
            None => self.frame()?,
        };
        let report = frame.report();
        let errors = |source: &str| {
            let found = report.errors.iter().find(|(name, _)| *name == source);
            found.map_or(0, |(_, errors)| *errors)
        };
        let sources = report.sources.iter().map(|state| SourceStatus {
            name: state.source.to_owned(),
            up: state.up,
            reason: state.reason.clone(),
            errors: errors(state.source),
        });
        let runtimes = report
            .runtimes
            .up()
            .map(|(name, socket, up)| RuntimeStatus {
                name: name.to_owned(),
                socket: Some(socket.to_owned()),
                up,
            });
        let seconds = |(name, time): (&str, Duration)| (name.to_owned(), time.as_secs_f64());
        let (live, dead) = report.cgroups;
        let (used, free, quarantined) = report.slots;
        Ok(Status {
            version: crate::VERSION.to_owned(),
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            kernel: kernel.trim().to_owned(),
            snapshot: super::rfc3339(frame.time),
            complete: report.complete,
            sources: sources.collect(),
            runtimes: runtimes.collect(),
            cgroups: Cgroups { live, dead },
            slots: SlotStates {
                used,
                free,
                quarantined,
            },
            kernel_memory_bytes: report.kernel_memory,
            stages: report.stages().map(seconds).collect(),
        })
    }
}
