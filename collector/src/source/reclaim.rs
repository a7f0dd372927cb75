//! Direct reclaim: how long tasks had to free memory before they got any.
//!
//! Programs: `mm_vmscan_direct_reclaim_begin` and `_end`, `mm_vmscan_memcg_reclaim_begin` and `_end`
//! (collector-ebpf/src/reclaim.rs). Oracle: memory.pressure, memory.events (tests/live/memory.rs).

use std::ops::AddAssign;

use collector_common::{histogram::BUCKETS, reclaim::ReclaimCell};

use super::{
    Metric, Registration, Samples, add_histogram,
    counters::{Counters, Numbers},
};
use crate::{
    exposition::{Family, Histogram, Kind, Unit, Value},
    kernel::programs::Requirement,
};

/// A node's stalls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    stall_ns: u64,
    histogram: [u64; BUCKETS],
}

impl Totals {
    fn add(&mut self, stall_ns: u64, histogram: &[u64; BUCKETS]) {
        self.stall_ns += stall_ns;
        add_histogram(&mut self.histogram, histogram);
    }
}

impl AddAssign<&ReclaimCell> for Totals {
    fn add_assign(&mut self, cell: &ReclaimCell) {
        self.add(cell.stall_ns, &cell.histogram);
    }
}

impl AddAssign<&Totals> for Totals {
    fn add_assign(&mut self, other: &Totals) {
        self.add(other.stall_ns, &other.histogram);
    }
}

impl Numbers<ReclaimCell> for Totals {}

/// The source's families.
pub const METRICS: &[Metric<Totals>] = &[Metric {
    family: Family {
        name: "container_memory_reclaim_seconds",
        help: "Time that a task was held up to free memory, because the host or its cgroup had none left.",
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        labels: &[],
        origin: "mm_vmscan_direct_reclaim_begin and _end, mm_vmscan_memcg_reclaim_begin and _end",
        oracle: "a cgroup at its memory limit; memory.pressure",
    },
    samples: Samples::Histograms(&[(&[], |v| {
        v.histogram
            .iter()
            .any(|&count| count > 0)
            .then_some(Histogram {
                buckets: &v.histogram,
                sum: Value::Nanos(v.stall_ns),
            })
    })]),
}];

/// The source.
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "reclaim",
        // Births give tasks the books in which a stall is noted.
        required: &[
            "sched_process_fork",
            "baseline",
            "mm_vmscan_direct_reclaim_begin",
            "mm_vmscan_direct_reclaim_end",
            "mm_vmscan_memcg_reclaim_begin",
            "mm_vmscan_memcg_reclaim_end",
        ],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        let cells = builder.kernel.cells::<ReclaimCell>()?;
        Ok(Box::new(Counters::new("reclaim", METRICS, cells)))
    },
};
