//! What the agent reports about itself and its tree.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::Serialize;

use super::{Agent, CgroupKind, Subject, lock};
use crate::cgroup::{Nodes, PlaceKind, printable};

/// The agent.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct AgentStatus {
    /// Version of the agent.
    pub version: String,
    /// Architecture and operating system that it was built for.
    pub target: String,
    /// Seconds since the agent started.
    pub uptime_seconds: f64,
    /// Release of the running kernel.
    pub kernel: String,
    /// When the last snapshot was taken. A request for the status does not take a new one.
    #[schemars(extend("format" = "date-time"))]
    pub snapshot: String,
    /// Whether every source could be read for that snapshot.
    pub complete: bool,
    /// Sources of metrics.
    pub sources: Vec<SourceStatus>,
    /// Container runtimes that are followed.
    pub runtimes: Vec<RuntimeStatus>,
    /// Cgroups in the tree.
    pub cgroups: Cgroups,
    /// Slots of cgroups.
    pub slots: SlotStates,
    /// Kernel memory of the agent's maps, bytes.
    pub kernel_memory_bytes: u64,
    /// Seconds taken by each stage of the last snapshot, and by the last encoding.
    pub stages: BTreeMap<String, f64>,
}

/// A source.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct SourceStatus {
    /// Name, as in --collector.NAME.
    pub name: String,
    /// Whether the source runs.
    pub up: bool,
    /// Whether the source is off because this host does not have what it reads. That is no fault.
    pub absent: bool,
    /// Why it does not run, or what is less exact.
    pub reason: Option<String>,
    /// Number of failed readings.
    pub errors: u64,
}

/// A container runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RuntimeStatus {
    /// Name of the runtime.
    pub name: String,
    /// Path of its socket, if known.
    pub socket: Option<String>,
    /// Whether the runtime answers.
    pub up: bool,
}

/// Cgroups by state.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Cgroups {
    /// Cgroups that exist.
    pub live: usize,
    /// Cgroups that were removed and are still reported.
    pub dead: usize,
}

/// Slots by state.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct SlotStates {
    /// Slots of live cgroups.
    pub used: usize,
    /// Free slots.
    pub free: usize,
    /// Slots of removed cgroups.
    pub quarantined: usize,
    /// Cgroups that got no slot and count in their ancestors alone.
    pub without: usize,
    /// The parents that have most of those, 16 at most.
    pub without_by_parent: Vec<ChildrenWithoutSlot>,
}

/// Children of a cgroup that got no slot.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChildrenWithoutSlot {
    /// Path of the parent.
    pub parent: String,
    /// Number of its children that got no slot.
    pub children: usize,
}

fn kind(kind: PlaceKind) -> CgroupKind {
    match kind {
        PlaceKind::Root => CgroupKind::Root,
        PlaceKind::Container => CgroupKind::Container,
        PlaceKind::Machine => CgroupKind::Machine,
        PlaceKind::Pod => CgroupKind::Pod,
        PlaceKind::Unit => CgroupKind::Unit,
        PlaceKind::Group => CgroupKind::Group,
        PlaceKind::Nested => CgroupKind::Nested,
        PlaceKind::Other => CgroupKind::Other,
    }
}

/// The exported cgroups of a tree, parents before children.
pub(super) fn subjects(nodes: &Nodes) -> Vec<Subject> {
    let mut places = vec![None; nodes.capacity()];
    let mut subjects = Vec::new();
    for (number, node) in nodes.exported() {
        // The nearest exported ancestor.
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
    /// Returns the state of the agent as of the latest frame.
    ///
    /// # Errors
    ///
    /// When the kernel's release can't be read, or when no frame exists yet and the first one can't
    /// be taken.
    pub fn status(&self) -> anyhow::Result<AgentStatus> {
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
            absent: state.absent,
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
        let parents = report.without_slot.parents.iter();
        let without_by_parent = parents.map(|(parent, children)| ChildrenWithoutSlot {
            parent: parent.clone(),
            children: *children,
        });
        Ok(AgentStatus {
            version: crate::VERSION.to_owned(),
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            uptime_seconds: self.health.started().elapsed().as_secs_f64(),
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
                without: report.without_slot.cgroups,
                without_by_parent: without_by_parent.collect(),
            },
            kernel_memory_bytes: report.kernel_memory,
            stages: report.stages().map(seconds).collect(),
        })
    }
}
