//! Families of the memory source.

use super::{Levels, MemoryNumbers};
use crate::{
    exposition::{Family, MetricKind, Unit, Value},
    source::{Metric, Samples},
};

const fn family(name: &'static str, help: &'static str, kind: MetricKind, unit: Unit) -> Family {
    Family {
        name,
        help,
        kind,
        unit,
        labels: &[],
        origin: "cgroup_iterator: mem_cgroup.vmstats",
        oracle: "memory.stat",
    }
}

/// A level; it ends with its cgroup.
macro_rules! level {
    ($name:literal, $help:literal, $unit:ident, $origin:literal, $oracle:literal, $read:expr) => {
        Metric {
            family: Family {
                origin: $origin,
                oracle: $oracle,
                ..family($name, $help, MetricKind::Gauge, Unit::$unit)
            },
            samples: Samples::Scalars(&[(&[], |v: &MemoryNumbers| {
                let read: fn(&Levels) -> Option<u64> = $read;
                v.levels.as_deref().and_then(read).map(Value::Count)
            })]),
        }
    };
}

/// The source's families.
pub const METRICS: &[Metric<MemoryNumbers>] = &[
    level!(
        "container_memory_usage_bytes",
        "Memory in use, including caches; for / the memory that is not free.",
        Bytes,
        "cgroup_iterator: mem_cgroup.memory.usage",
        "memory.current, memory.usage_in_bytes",
        |l| Some(l.usage)
    ),
    level!(
        "container_memory_working_set_bytes",
        "Memory in use without the inactive page cache.",
        Bytes,
        "cgroup_iterator: mem_cgroup.memory.usage, vmstats",
        "memory.current, memory.stat",
        Levels::working_set
    ),
    level!(
        "container_memory_max_usage_bytes",
        "Highest memory usage so far.",
        Bytes,
        "cgroup_iterator: mem_cgroup.memory.watermark",
        "memory.peak, memory.max_usage_in_bytes",
        |l| l.highest
    ),
    level!(
        "container_memory_rss",
        "Anonymous memory in bytes, including transparent huge pages.",
        None,
        "cgroup_iterator: mem_cgroup.vmstats",
        "memory.stat: anon, total_rss",
        |l| l.statistics.anon
    ),
    level!(
        "container_memory_cache",
        "Page cache in bytes, including shared memory and tmpfs.",
        None,
        "cgroup_iterator: mem_cgroup.vmstats",
        "memory.stat: file, total_cache",
        |l| l.statistics.file
    ),
    level!(
        "container_memory_mapped_file",
        "Mapped page cache in bytes.",
        None,
        "cgroup_iterator: mem_cgroup.vmstats",
        "memory.stat: file_mapped, total_mapped_file",
        |l| l.statistics.mapped
    ),
    level!(
        "container_memory_kernel_usage",
        "Kernel memory in bytes: slabs, stacks, page tables; without socket buffers.",
        None,
        "cgroup_iterator: mem_cgroup.vmstats",
        "memory.stat: kernel, memory.kmem.usage_in_bytes",
        |l| l.statistics.kernel
    ),
    level!(
        "container_memory_swap",
        "Swap space in use, in bytes.",
        None,
        "cgroup_iterator: mem_cgroup.swap.usage; vmstats in v1",
        "memory.swap.current, total_swap",
        |l| l.swap
    ),
    level!(
        "container_memory_file_dirty_bytes",
        "Dirty page cache.",
        Bytes,
        "cgroup_iterator: mem_cgroup.vmstats",
        "memory.stat: file_dirty",
        |l| l.statistics.dirty
    ),
    level!(
        "container_memory_file_writeback_bytes",
        "Page cache under writeback.",
        Bytes,
        "cgroup_iterator: mem_cgroup.vmstats",
        "memory.stat: file_writeback",
        |l| l.statistics.writeback
    ),
    level!(
        "container_memory_total_active_file_bytes",
        "Active page cache.",
        Bytes,
        "cgroup_iterator: mem_cgroup.vmstats",
        "memory.stat: active_file",
        |l| l.statistics.active_file
    ),
    level!(
        "container_memory_total_inactive_file_bytes",
        "Inactive page cache.",
        Bytes,
        "cgroup_iterator: mem_cgroup.vmstats",
        "memory.stat: inactive_file",
        |l| l.statistics.inactive_file
    ),
    level!(
        "container_spec_memory_limit_bytes",
        "Memory limit; 0 if there is none.",
        Bytes,
        "cgroup_iterator: mem_cgroup.memory.max",
        "memory.max, memory.limit_in_bytes",
        |l| Some(l.limit)
    ),
    level!(
        "container_spec_memory_reservation_limit_bytes",
        "Protected memory (memory.min or memory.low, whichever is more), in v1 the soft limit; 0 if there is none.",
        Bytes,
        "cgroup_iterator: mem_cgroup.memory.min, low, soft_limit",
        "memory.min, memory.low, memory.soft_limit_in_bytes",
        |l| Some(l.reservation)
    ),
    level!(
        "container_spec_memory_swap_limit_bytes",
        "Swap limit, in v1 of memory and swap together; 0 if there is none.",
        Bytes,
        "cgroup_iterator: mem_cgroup.swap.max",
        "memory.swap.max, memory.memsw.limit_in_bytes",
        |l| Some(l.swap_limit)
    ),
    Metric {
        family: Family {
            labels: &[],
            origin: "cgroup_iterator: mem_cgroup.memory_events, memory.failcnt in v1",
            oracle: "memory.events: max; memory.failcnt",
            ..family(
                "container_memory_failcnt",
                "Number of times that the memory limit was hit.",
                MetricKind::Counter,
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| v.counted(|c| Some(c.limit_hits)))]),
    },
    Metric {
        family: Family {
            labels: &["failure_type", "scope"],
            origin: "cgroup_iterator: mem_cgroup.vmstats->events, events_local",
            oracle: "memory.stat: pgfault, pgmajfault",
            ..family(
                "container_memory_failures_total",
                "Page faults by kind (pgmajfault: with a wait for a device; pgfault: all) and scope (container: the cgroup itself, if the kernel counts that; hierarchy: with its descendants).",
                MetricKind::Counter,
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[
            (
                &[("failure_type", "pgfault"), ("scope", "container")],
                |v| v.counted(|c| c.own_faults),
            ),
            (
                &[("failure_type", "pgfault"), ("scope", "hierarchy")],
                |v| v.counted(|c| c.faults),
            ),
            (
                &[("failure_type", "pgmajfault"), ("scope", "container")],
                |v| v.counted(|c| c.own_major_faults),
            ),
            (
                &[("failure_type", "pgmajfault"), ("scope", "hierarchy")],
                |v| v.counted(|c| c.major_faults),
            ),
        ]),
    },
    Metric {
        family: Family {
            labels: &[],
            origin: "cgroup_iterator: mem_cgroup.memory_events",
            oracle: "memory.events: high",
            ..family(
                "container_memory_events_high_total",
                "Number of times that memory.high was exceeded and the cgroup throttled; cgroup2 only.",
                MetricKind::Counter,
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| v.counted(|c| c.over_high))]),
    },
    Metric {
        family: Family {
            labels: &[],
            origin: "cgroup_iterator: mem_cgroup.memory_events",
            oracle: "memory.events: max",
            ..family(
                "container_memory_events_max_total",
                "Number of times that memory.max was about to be exceeded; cgroup2 only.",
                MetricKind::Counter,
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| v.counted(|c| c.over_max))]),
    },
    Metric {
        family: Family {
            labels: &[],
            origin: "cgroup_iterator: mem_cgroup.vmstats",
            oracle: "memory.stat: pgscan",
            ..family(
                "container_memory_pgscan_total",
                "Pages scanned by reclaim.",
                MetricKind::Counter,
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| v.counted(|c| c.scanned))]),
    },
    Metric {
        family: Family {
            labels: &[],
            origin: "cgroup_iterator: mem_cgroup.vmstats",
            oracle: "memory.stat: pgsteal",
            ..family(
                "container_memory_pgsteal_total",
                "Pages freed by reclaim.",
                MetricKind::Counter,
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| v.counted(|c| c.stolen))]),
    },
    Metric {
        family: Family {
            labels: &[],
            origin: "cgroup_iterator: mem_cgroup.vmstats",
            oracle: "memory.stat: workingset_refault_anon",
            ..family(
                "container_memory_workingset_refault_anon_total",
                "Refaults of anonymous pages that were swapped out recently.",
                MetricKind::Counter,
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| v.counted(|c| c.refault_anon))]),
    },
    Metric {
        family: Family {
            labels: &[],
            origin: "cgroup_iterator: mem_cgroup.vmstats",
            oracle: "memory.stat: workingset_refault_file",
            ..family(
                "container_memory_workingset_refault_file_total",
                "Refaults of page cache that was evicted recently.",
                MetricKind::Counter,
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| v.counted(|c| c.refault_file))]),
    },
];
