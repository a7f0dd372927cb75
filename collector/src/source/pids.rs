//! The limit on tasks, from the pids controller.
//!
//! Program: `cgroup_iterator` (collector-ebpf/src/cgroup_iterator.rs). Oracle: pids.max
//! (tests/live/pids.rs).

use anyhow::Result;

use super::{
    Change, Inputs, Metric, Part, Reading, Registration, Samples, Source, Table,
    values::{Column, PerNode, Retained},
};
use crate::{
    exposition::{Family, MetricKind, Unit, Value},
    kernel::programs::Requirement,
};

/// Limits from here on mean no limit: PID_MAX_LIMIT of 64-bit kernels (include/linux/threads.h).
/// The kernel stores "max" as one more (kernel/cgroup/pids.c, PIDS_MAX).
const UNLIMITED: u64 = 4 * 1024 * 1024;

/// A node's limit; `None` without the controller.
type Limit = Option<u64>;

/// The source's families.
pub const METRICS: &[Metric<Limit>] = &[Metric {
    family: Family {
        name: "container_threads_max",
        help: "Maximum number of threads in the cgroup; 0 if there is no limit.",
        kind: MetricKind::Gauge,
        unit: Unit::None,
        labels: &[],
        origin: "cgroup_iterator: pids_cgroup.limit",
        oracle: "pids.max",
    },
    samples: Samples::Scalars(&[(&[], |limit| limit.map(Value::Count))]),
}];

/// Registers the source `pids` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "pids",
        required: &["cgroup_iterator"],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        builder.require_controller("pids", "pids_cgroup.limit")?;
        Ok(Box::new(Pids::default()))
    },
};

impl Retained for Limit {}

#[derive(Debug, Default)]
struct Pids {
    limits: Column<Limit>,
}

impl Source for Pids {
    fn name(&self) -> &'static str {
        "pids"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        vec![&mut self.limits]
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> Result<()> {
        let (tree, statistics) = (inputs.tree, inputs.statistics()?);
        let mut limits = self.limits.cleared_places(tree.capacity());
        for (number, _) in tree.iter() {
            if let Some(record) = statistics.part(number, Part::Pids) {
                let limit = record.pids_limit;
                limits[number] = Some(if limit < UNLIMITED { limit } else { 0 });
            }
        }
        Ok(())
    }

    fn change(&mut self, _: &Change<'_>) {}

    fn reading(&self) -> Box<dyn Reading> {
        Table::reading(METRICS, &self.limits)
    }
}
