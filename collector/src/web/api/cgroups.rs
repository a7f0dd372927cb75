//! `/api/v1/cgroups`: the tree.

use bytes::Bytes;
use hyper::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Refusal, Served,
    parameters::{Parameter, ParameterKind, Query},
    reply,
};
use crate::agent::{CgroupKind, Inventory, Life, rfc3339};

/// Parameters of a tree.
pub(super) const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "root",
        about: "Path of the cgroup at the root of the tree. Default: all cgroups",
        kind: ParameterKind::Text,
    },
    Parameter {
        name: "depth",
        about: "Number of levels to show below the root",
        kind: ParameterKind::Number {
            min: 0,
            max: 32,
            default: 8,
        },
    },
    Parameter {
        name: "limit",
        about: "Maximum number of cgroups in the answer; those nearest to the root come first",
        kind: ParameterKind::Number {
            min: 1,
            max: 10_000,
            default: 1_000,
        },
    },
];

/// Trees of cgroups: one, or several if the host's root cgroup is not exported.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Forest {
    /// When the snapshot was taken.
    #[schemars(extend("format" = "date-time"))]
    timestamp: String,
    /// Number of cgroups in the answer.
    shown: usize,
    /// Number of cgroups left out because of depth or limit.
    left_out: usize,
    /// The trees.
    roots: Vec<Branch>,
}

/// A cgroup and its descendants. Its numbers include theirs.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Branch {
    /// Path of the cgroup: the label id of its series.
    cgroup: String,
    /// Kind of cgroup.
    kind: CgroupKind,
    /// Whether the cgroup still exists.
    state: Life,
    /// Full id of the container, if it is one.
    id: Option<String>,
    /// Name of the container or machine.
    name: Option<String>,
    /// Name of the systemd unit, if it is one.
    unit: Option<String>,
    /// CPU time used in the interval, in percent of one CPU.
    cpu_usage: Option<f64>,
    /// Memory in use, bytes.
    memory_usage: Option<u64>,
    /// Processes.
    process_count: Option<u64>,
    /// Number of descendants that are left out.
    left_out: usize,
    /// Cgroups directly below it.
    children: Vec<Branch>,
}

/// The tree of the inventory's cgroups.
struct Shape<'a> {
    inventory: &'a Inventory,
    children: Vec<Vec<usize>>,
    shown: Vec<bool>,
}

impl Shape<'_> {
    /// Number of cgroups in the tree below one, itself included.
    fn size(&self, at: usize) -> usize {
        let mut size = 0;
        let mut left = vec![at];
        while let Some(at) = left.pop() {
            size += 1;
            left.extend(&self.children[at]);
        }
        size
    }

    /// Makes the branch of a cgroup. The parameter bounds the depth.
    fn branch(&self, at: usize) -> Branch {
        let entry = &self.inventory.entries[at];
        let record = self.inventory.record(entry);
        let (shown, hidden): (Vec<usize>, Vec<usize>) = self.children[at]
            .iter()
            .partition(|&&child| self.shown[child]);
        let children: Vec<Branch> = shown.into_iter().map(|at| self.branch(at)).collect();
        let below = children.iter().map(|child| child.left_out).sum::<usize>();
        Branch {
            kind: record.kind,
            state: record.state,
            id: record.id,
            name: record.name,
            unit: record.unit,
            cpu_usage: record.cpu_usage,
            memory_usage: record.memory_usage,
            process_count: record.process_count,
            left_out: below + hidden.into_iter().map(|at| self.size(at)).sum::<usize>(),
            cgroup: record.cgroup,
            children,
        }
    }
}

/// Answers `/api/v1/cgroups`.
pub(super) fn tree(served: &Served, query: &Query) -> Result<Bytes, Refusal> {
    let inventory = served.metrics.inventory().map_err(Refusal::failure)?;
    let entries = &inventory.entries;
    let mut children = vec![Vec::new(); entries.len()];
    let mut roots = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        match entry.subject.parent {
            Some(parent) => children[parent].push(at),
            None => roots.push(at),
        }
    }
    if let Some(root) = query.text("root") {
        let found = inventory.by_path(root);
        let missing = || {
            Refusal::new(
                StatusCode::NOT_FOUND,
                format!("there is no cgroup with the path {root:?}"),
            )
        };
        roots = vec![found.ok_or_else(missing)?];
    }
    let mut shape = Shape {
        inventory: &inventory,
        shown: vec![false; entries.len()],
        children,
    };
    let all: usize = roots.iter().map(|&root| shape.size(root)).sum();
    // Goes level by level, so that a limit cuts off the deepest cgroups.
    let (depth, limit) = (query.number("depth"), query.number("limit"));
    let mut shown = 0;
    let mut level = roots.clone();
    for _ in 0..=depth {
        let mut next = Vec::new();
        for at in level {
            if shown < limit {
                shown += 1;
                shape.shown[at] = true;
                next.extend(&shape.children[at]);
            }
        }
        level = next;
    }
    let roots = roots.into_iter().filter(|&at| shape.shown[at]);
    reply(&Forest {
        timestamp: rfc3339(inventory.time),
        shown,
        left_out: all - shown,
        roots: roots.map(|at| shape.branch(at)).collect(),
    })
}
