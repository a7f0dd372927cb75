//! The limit on tasks, from the pids controller's books.
//!
//! Program: `pass` (collector-ebpf/src/pass.rs). Oracle: pids.max (tests/live/limits.rs).

use anyhow::Result;

use super::{Metric, Part, Registration, Samples, Snapshot, Source, encode};
use crate::{
    cgroup::Tree,
    exposition::{Family, Kind, Unit, Value, Writer},
    kernel::programs::Requirement,
};

/// No limit from here on: PID_MAX_LIMIT of 64-bit kernels (include/linux/threads.h); "max" is kept
/// as one more (kernel/cgroup/pids.c, PIDS_MAX).
const UNLIMITED: u64 = 4 * 1024 * 1024;

/// A node's limit; `None` without the controller.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers(Option<u64>);

/// The source's families.
pub const METRICS: &[Metric<Numbers>] = &[Metric {
    family: Family {
        name: "container_threads_max",
        help: "Threads that the cgroup may have, 0 if there is no limit.",
        kind: Kind::Gauge,
        unit: Unit::None,
        labels: &[],
        origin: "pass: pids_cgroup.limit",
        oracle: "pids.max",
    },
    samples: Samples::Scalars(&[(&[], |v| v.0.map(Value::Count))]),
}];

/// The source.
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "pids",
        required: &["pass"],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        builder.require_controller("pids", "pids_cgroup.limit")?;
        Ok(Box::new(Pids::default()))
    },
};

#[derive(Debug, Default)]
struct Pids {
    numbers: Vec<Numbers>,
}

impl Source for Pids {
    fn name(&self) -> &'static str {
        "pids"
    }

    fn families(&self) -> Vec<&'static Family> {
        METRICS.iter().map(|metric| &metric.family).collect()
    }

    fn collect(&mut self, snapshot: &Snapshot<'_>) -> Result<()> {
        let (tree, books) = (snapshot.tree, snapshot.books()?);
        self.numbers.clear();
        self.numbers.resize(tree.capacity(), Numbers::default());
        for (number, _) in tree.iter() {
            if let Some(record) = books.part(number, Part::Pids) {
                let limit = record.pids_limit;
                self.numbers[number] = Numbers(Some(if limit < UNLIMITED { limit } else { 0 }));
            }
        }
        Ok(())
    }

    fn encode(&self, tree: &Tree, writer: &mut Writer) {
        encode(METRICS, tree, &self.numbers, writer);
    }
}
