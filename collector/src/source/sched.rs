//! Context switches: who ran, for how long, how long it had waited, and who took the CPU.
//!
//! Programs: `sched_switch`, `cgroup_attach_task`, `in_flight`, `baseline` (collector-ebpf/src/sched.rs).
//! Oracle: cpu.stat, /proc/PID/schedstat, /proc/PID/status (tests).

use std::ops::AddAssign;

use collector_common::{histogram::BUCKETS, sched::SchedCell};

use super::{
    Metric, Registration, Samples, add_histogram,
    counters::{Counters, Numbers},
};
use crate::{
    exposition::{Family, Histogram, Kind, Unit, Value},
    kernel::programs::Requirement,
};

/// A node's scheduler numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// CPU time before the agent came, ns, from the kernel's own books.
    earlier_ns: u64,
    /// CPU time since, ns.
    run_ns: u64,
    wait_ns: u64,
    voluntary: u64,
    preempted_by_self: u64,
    preempted_by_other: u64,
    preempted_by_system: u64,
    migrations: u64,
    wait_histogram: [u64; BUCKETS],
}

impl AddAssign<&SchedCell> for Totals {
    fn add_assign(&mut self, cell: &SchedCell) {
        self.run_ns += cell.run_ns;
        self.wait_ns += cell.wait_ns;
        self.voluntary += cell.voluntary;
        self.preempted_by_self += cell.preempted_by_self;
        self.preempted_by_other += cell.preempted_by_other;
        self.preempted_by_system += cell.preempted_by_system;
        self.migrations += cell.migrations;
        add_histogram(&mut self.wait_histogram, &cell.wait_histogram);
    }
}

impl AddAssign<&Totals> for Totals {
    fn add_assign(&mut self, other: &Totals) {
        self.earlier_ns += other.earlier_ns;
        self.run_ns += other.run_ns;
        self.wait_ns += other.wait_ns;
        self.voluntary += other.voluntary;
        self.preempted_by_self += other.preempted_by_self;
        self.preempted_by_other += other.preempted_by_other;
        self.preempted_by_system += other.preempted_by_system;
        self.migrations += other.migrations;
        add_histogram(&mut self.wait_histogram, &other.wait_histogram);
    }
}

impl Totals {
    fn involuntary(&self) -> u64 {
        self.preempted_by_self + self.preempted_by_other + self.preempted_by_system
    }

    fn periods(&self) -> u64 {
        self.wait_histogram.iter().sum()
    }
}

impl Numbers<SchedCell> for Totals {
    fn cpu_time(&self) -> u64 {
        self.run_ns
    }

    fn set_earlier(&mut self, ns: u64) {
        self.earlier_ns = ns;
    }

    fn runs(&self) -> Option<(&'static str, u64)> {
        Some(("sched_switch", self.voluntary + self.involuntary()))
    }
}

const fn counter(name: &'static str, help: &'static str, unit: Unit) -> Family {
    Family {
        name,
        help,
        kind: Kind::Counter,
        unit,
        labels: &[],
        origin: "sched_switch",
        oracle: "/proc/PID/schedstat",
    }
}

/// The source's families.
pub const METRICS: &[Metric<Totals>] = &[
    Metric {
        family: Family {
            labels: &["cpu"],
            origin: "sched_switch: task_struct.se.sum_exec_runtime; cgroup.bstat for what came before the agent",
            oracle: "cpu.stat usage_usec",
            ..counter(
                "container_cpu_usage_seconds_total",
                "CPU time used since the cgroup was made.",
                Unit::Seconds,
            )
        },
        samples: Samples::Scalars(&[(&[("cpu", "total")], |v| {
            Some(Value::Nanos(v.earlier_ns + v.run_ns))
        })]),
    },
    Metric {
        family: Family {
            origin: "sched_switch: task_struct.se.sum_exec_runtime",
            ..counter(
                "container_cpu_schedstat_run_seconds_total",
                "CPU time used since the agent first saw the cgroup.",
                Unit::Seconds,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Nanos(v.run_ns)))]),
    },
    Metric {
        family: Family {
            origin: "sched_switch: task_struct.sched_info.run_delay",
            ..counter(
                "container_cpu_schedstat_runqueue_seconds_total",
                "Time that tasks were runnable and waited for a CPU.",
                Unit::Seconds,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Nanos(v.wait_ns)))]),
    },
    Metric {
        family: Family {
            origin: "sched_switch: task_struct.sched_info.pcount",
            ..counter(
                "container_cpu_schedstat_run_periods_total",
                "Times that a task got a CPU.",
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.periods())))]),
    },
    Metric {
        family: Family {
            kind: Kind::Histogram,
            origin: "sched_switch: task_struct.sched_info.run_delay of each run period",
            ..counter(
                "container_sched_runqueue_latency_seconds",
                "Time that a task waited for a CPU before each run period.",
                Unit::Seconds,
            )
        },
        samples: Samples::Histograms(&[(&[], |v| {
            (v.periods() > 0).then_some(Histogram {
                buckets: &v.wait_histogram,
                sum: Value::Nanos(v.wait_ns),
            })
        })]),
    },
    Metric {
        family: Family {
            labels: &["type"],
            origin: "sched_switch: task_struct.nvcsw, nivcsw",
            oracle: "/proc/PID/status voluntary_ctxt_switches, nonvoluntary_ctxt_switches",
            ..counter(
                "container_sched_context_switches_total",
                "Times that a task left its CPU: voluntary to wait for something, involuntary because \
                 the CPU was taken from it.",
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[
            (&[("type", "voluntary")], |v| {
                Some(Value::Count(v.voluntary))
            }),
            (&[("type", "involuntary")], |v| {
                Some(Value::Count(v.involuntary()))
            }),
        ]),
    },
    Metric {
        family: Family {
            labels: &["by"],
            origin: "sched_switch: the task switched in at an involuntary switch",
            oracle: "/proc/PID/status nonvoluntary_ctxt_switches (their sum)",
            ..counter(
                "container_sched_preemptions_total",
                "Involuntary switches by who took the CPU: a task of the same cgroup (self), of \
                 another one (other), or a kernel thread, or nobody because a quota had run out (system).",
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[
            (&[("by", "self")], |v| {
                Some(Value::Count(v.preempted_by_self))
            }),
            (&[("by", "other")], |v| {
                Some(Value::Count(v.preempted_by_other))
            }),
            (&[("by", "system")], |v| {
                Some(Value::Count(v.preempted_by_system))
            }),
        ]),
    },
    Metric {
        family: Family {
            origin: "sched_switch: task_struct.se.nr_migrations",
            oracle: "sched_setaffinity: a known number of forced moves",
            ..counter(
                "container_sched_migrations_total",
                "Times that a task was moved to another CPU.",
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.migrations)))]),
    },
];

/// The source.
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "sched",
        required: &[
            "sched_process_fork",
            "baseline",
            "sched_switch",
            "in_flight",
        ],
        optional: &[(
            "cgroup_attach_task",
            "the time slice in which a running task changes cgroup is charged to the one it leaves",
        )],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        let cells = builder.kernel.cells::<SchedCell>()?;
        Ok(Box::new(Counters::new("sched", METRICS, cells)))
    },
};
