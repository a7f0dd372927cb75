//! Processes: born, executed, ended, and why.
//!
//! Programs: `sched_process_fork`, `sched_process_exec`, `sched_process_exit`
//! (collector-ebpf/src/process.rs). Oracle: known workloads (tests).

use std::ops::AddAssign;

use collector_common::process::ProcessCell;

use super::{
    Metric, Registration, Samples,
    counters::{Counters, Numbers},
};
use crate::{
    exposition::{Family, Kind, Unit, Value},
    kernel::programs::Requirement,
};

/// A node's process numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    started: u64,
    executed: u64,
    exited: u64,
    signaled: u64,
    oom_killed: u64,
}

impl AddAssign<&ProcessCell> for Totals {
    fn add_assign(&mut self, cell: &ProcessCell) {
        self.started += cell.started;
        self.executed += cell.executed;
        self.exited += cell.exited;
        self.signaled += cell.signaled;
        self.oom_killed += cell.oom_killed;
    }
}

impl AddAssign<&Totals> for Totals {
    fn add_assign(&mut self, other: &Totals) {
        self.started += other.started;
        self.executed += other.executed;
        self.exited += other.exited;
        self.signaled += other.signaled;
        self.oom_killed += other.oom_killed;
    }
}

impl Numbers<ProcessCell> for Totals {}

/// The source's families.
pub const METRICS: &[Metric<Totals>] = &[
    Metric {
        family: Family {
            name: "container_processes_started_total",
            help: "Processes started (fork, vfork, clone without CLONE_THREAD).",
            kind: Kind::Counter,
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
            kind: Kind::Counter,
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
            kind: Kind::Counter,
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
            help: "Processes that the kernel killed for want of memory.",
            kind: Kind::Counter,
            unit: Unit::None,
            labels: &[],
            origin: "sched_process_exit: signal_struct.oom_mm, task_struct.exit_code",
            oracle: "memory.events: oom_kill; memory.oom_control: oom_kill",
        },
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.oom_killed)))]),
    },
];

/// The source.
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
        Ok(Box::new(Counters::new("process", METRICS, cells)))
    },
};
