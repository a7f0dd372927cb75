//! Direct reclaim: how long tasks had to free memory before they could allocate.
//!
//! Programs: `mm_vmscan_direct_reclaim_begin` and `_end`, `mm_vmscan_memcg_reclaim_begin` and `_end`
//! (collector-ebpf/src/reclaim.rs). Oracle: memory.pressure, memory.events (tests/live/memory.rs).

use collector_common::{histogram::BUCKETS, reclaim::ReclaimCell};

use super::{Metric, Registration, Samples, counters::CellCounters, values::sums};
use crate::{
    exposition::{Family, Histogram, LOG2, MetricKind, Unit, Value},
    kernel::programs::Requirement,
};

sums! {
    /// A node's stalls in direct reclaim.
    pub struct Reclaims: ReclaimCell {
        stall_ns: u64,
        histogram: [u64; BUCKETS],
    }
}

/// The source's families.
pub const METRICS: &[Metric<Reclaims>] = &[Metric {
    family: Family {
        name: "container_memory_reclaim_seconds",
        help: "Time that a task spent in direct reclaim, because the host or its cgroup was short of memory.",
        kind: MetricKind::Histogram,
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
                layout: &LOG2,
                buckets: &v.histogram,
                sum: Value::Nanos(v.stall_ns),
            })
    })]),
}];

/// Registers the source `reclaim` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "reclaim",
        // The fork program creates the task state in which a stall is recorded.
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
        Ok(Box::new(CellCounters::new("reclaim", METRICS, cells)))
    },
};
