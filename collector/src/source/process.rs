//! Processes that were started, that executed a program, and that ended, by how they ended: exit(2),
//! a signal, or the OOM killer.
//!
//! Programs: `sched_process_fork`, `sched_process_exec`, `sched_process_exit`
//! (collector-ebpf/src/process.rs). Oracle: known workloads (tests).

use collector_common::process::ProcessCell;

use super::{Metric, Registration, Samples, counters::CellCounters, values::sums};
use crate::{
    exposition::{Family, MetricKind, Unit, Value},
    kernel::programs::Requirement,
};

sums! {
    /// A node's counters of processes.
    pub struct Processes: ProcessCell {
        started: u64,
        executed: u64,
        exited: u64,
        signaled: u64,
        oom_killed: u64,
    }
}

/// The source's families.
pub const METRICS: &[Metric<Processes>] = &[
    Metric {
        family: Family {
            name: "container_processes_started_total",
            help: "Processes started (fork, vfork, clone without CLONE_THREAD).",
            kind: MetricKind::Counter,
            unit: Unit::None,
            labels: &[],
            origin: "sched_process_fork",
            oracle: "a known number of forks",
        },
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.started)))]),
    },
    Metric {
        family: Family {
            name: "container_processes_executed_total",
            help: "Programs executed (execve).",
            kind: MetricKind::Counter,
            unit: Unit::None,
            labels: &[],
            origin: "sched_process_exec",
            oracle: "a known number of execs",
        },
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.executed)))]),
    },
    Metric {
        family: Family {
            name: "container_processes_exited_total",
            help: "Processes that ended: by exit (exited) or by a signal (signaled).",
            kind: MetricKind::Counter,
            unit: Unit::None,
            labels: &["reason"],
            origin: "sched_process_exit: task_struct.exit_code, signal_struct.live",
            oracle: "wait(2) of a known number of children",
        },
        samples: Samples::Scalars(&[
            (&[("reason", "exited")], |v| Some(Value::Count(v.exited))),
            (&[("reason", "signaled")], |v| {
                Some(Value::Count(v.signaled))
            }),
        ]),
    },
    Metric {
        family: Family {
            name: "container_oom_events_total",
            help: "Processes killed by the OOM killer.",
            kind: MetricKind::Counter,
            unit: Unit::None,
            labels: &[],
            origin: "sched_process_exit: signal_struct.oom_mm, task_struct.exit_code",
            oracle: "memory.events: oom_kill; memory.oom_control: oom_kill",
        },
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.oom_killed)))]),
    },
];

/// Registers the source `process` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "process",
        required: &[
            "sched_process_fork",
            "sched_process_exec",
            "sched_process_exit",
        ],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        let cells = builder.kernel.cells::<ProcessCell>()?;
        Ok(Box::new(CellCounters::new("process", METRICS, cells)))
    },
};
