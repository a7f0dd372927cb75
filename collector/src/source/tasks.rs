//! Current processes, threads, open files and sockets, by one run of the tasks iterator.
//!
//! Program: `tasks` (collector-ebpf/src/tasks.rs), run at a scrape. Oracle: cgroup.procs,
//! cgroup.threads and /proc (tests/live/tasks.rs). The `process` source counts what started and
//! ended in between.
//!
//! Values are exact at the time of the run. A run that took longer than [`CHEAP`] is not repeated
//! before [`REST`] times that duration has passed, so that a host with very many threads or
//! descriptors spends at most 1 % of a CPU on it. Meanwhile runs that do not look for sockets
//! continue by the same rule. With many descriptors they take a tenth of the time.

use std::{
    collections::HashSet,
    ops::AddAssign,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use collector_common::tasks::TasksCell;

use super::{
    Change, Inputs, Metric, Reading, Registration, Samples, Source, Table,
    values::{AddFrom, Column, PerNode, Retained, Words, roll_up},
};
use crate::{
    cgroup::{NodeId, Tree},
    exposition::{Family, MetricKind, Unit, Value},
    kernel::{
        cells::{Cells, SlotMemory},
        mapping::{Word, word},
        programs::Requirement,
        system,
        tasks::TasksIterator,
    },
};

/// A run up to this long is repeated at every frame: some 40,000 threads.
const CHEAP: Duration = Duration::from_millis(10);
/// The values of a longer run are used for this many times its duration.
const REST: u32 = 100;
/// The wall clock was set if it moved by more than this relative to CLOCK_BOOTTIME.
const CLOCK_SET: Duration = Duration::from_millis(50);
/// `RLIM_INFINITY`
const UNLIMITED: u64 = u64::MAX;

/// A node's values.
#[derive(Clone, Copy, Debug, Default)]
struct TaskNumbers {
    processes: u64,
    threads: u64,
    descriptors: u64,
    sockets: u64,
    sleeping: u64,
    running: u64,
    stopped: u64,
    uninterruptible: u64,
    iowaiting: u64,
    oldest: Option<Oldest>,
    /// Start time, Unix time in ns.
    started: Option<u64>,
}

/// The oldest process of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Oldest {
    /// Start time, CLOCK_BOOTTIME in ns.
    start: u64,
    nofile: u64,
}

/// Returns the older of two processes.
fn older(one: Option<Oldest>, other: Option<Oldest>) -> Option<Oldest> {
    match (one, other) {
        (Some(one), Some(other)) if other.start < one.start => Some(other),
        (Some(one), _) => Some(one),
        (None, other) => other,
    }
}

impl AddAssign<&TasksCell> for TaskNumbers {
    fn add_assign(&mut self, cell: &TasksCell) {
        self.processes += cell.processes;
        self.threads += cell.threads;
        self.descriptors += cell.descriptors;
        self.sockets += cell.sockets;
        self.sleeping += cell.sleeping;
        self.running += cell.running;
        self.stopped += cell.stopped;
        self.uninterruptible += cell.uninterruptible;
        self.iowaiting += cell.iowaiting;
        let oldest = (cell.oldest_start_ns != 0).then_some(Oldest {
            start: cell.oldest_start_ns,
            nofile: cell.oldest_nofile,
        });
        self.oldest = older(self.oldest, oldest);
    }
}

impl AddFrom for TaskNumbers {
    fn add_from(&mut self, other: &Self) {
        self.processes += other.processes;
        self.threads += other.threads;
        self.descriptors += other.descriptors;
        self.sockets += other.sockets;
        self.sleeping += other.sleeping;
        self.running += other.running;
        self.stopped += other.stopped;
        self.uninterruptible += other.uninterruptible;
        self.iowaiting += other.iowaiting;
        self.oldest = older(self.oldest, other.oldest);
    }
}

const fn gauge(
    name: &'static str,
    help: &'static str,
    origin: &'static str,
    oracle: &'static str,
) -> Family {
    Family {
        name,
        help,
        kind: MetricKind::Gauge,
        unit: Unit::None,
        labels: &[],
        origin,
        oracle,
    }
}

/// The source's families.
const METRICS: &[Metric<TaskNumbers>] = &[
    Metric {
        family: gauge(
            "container_processes",
            "Number of processes, without zombies.",
            "tasks: task_struct.exit_state, signal_struct.live",
            "cgroup.procs",
        ),
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.processes)))]),
    },
    Metric {
        family: gauge(
            "container_threads",
            "Number of threads, including the main thread of each process.",
            "tasks: task_struct.exit_state",
            "cgroup.threads",
        ),
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.threads)))]),
    },
    Metric {
        family: gauge(
            "container_file_descriptors",
            "Number of open file descriptors; a table shared by several threads counts once.",
            "tasks: fdtable.open_fds, fdtable.fd",
            "/proc/PID/fd",
        ),
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.descriptors)))]),
    },
    Metric {
        family: gauge(
            "container_sockets",
            "Number of file descriptors that are sockets.",
            "tasks: file.f_op",
            "/proc/PID/fd links to socket:",
        ),
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.sockets)))]),
    },
    Metric {
        family: Family {
            labels: &["state"],
            ..gauge(
                "container_tasks_state",
                "Threads by state: running (R), sleeping (S, I), stopped (T, t), uninterruptible and iowaiting (D, without and with a wait for I/O); their sum is the number of threads.",
                "tasks: task_struct.__state, in_iowait",
                "state in /proc/PID/task/TID/stat",
            )
        },
        samples: Samples::Scalars(&[
            (&[("state", "sleeping")], |v| Some(Value::Count(v.sleeping))),
            (&[("state", "running")], |v| Some(Value::Count(v.running))),
            (&[("state", "stopped")], |v| Some(Value::Count(v.stopped))),
            (&[("state", "uninterruptible")], |v| {
                Some(Value::Count(v.uninterruptible))
            }),
            (&[("state", "iowaiting")], |v| {
                Some(Value::Count(v.iowaiting))
            }),
        ]),
    },
    Metric {
        family: Family {
            unit: Unit::Seconds,
            ..gauge(
                "container_start_time_seconds",
                "Unix time at which the oldest process seen in the cgroup or its descendants was started, or at which the cgroup was created if that is later; for a container without such a process, as reported by its runtime.",
                "tasks: task_struct.start_boottime; cgroup_mkdir; the runtime",
                "starttime in /proc/PID/stat, btime in /proc/stat",
            )
        },
        samples: Samples::Scalars(&[(&[], |v| v.started.map(Value::Nanos))]),
    },
    Metric {
        family: Family {
            labels: &["ulimit"],
            ..gauge(
                "container_ulimits_soft",
                "Soft limit of open files of the oldest process; -1 if there is no limit.",
                "tasks: signal_struct.rlim",
                "/proc/PID/limits",
            )
        },
        samples: Samples::Scalars(&[(&[("ulimit", "max_open_files")], |v: &TaskNumbers| {
            Some(match v.oldest?.nofile {
                UNLIMITED => Value::Float(-1.0),
                limit => Value::Count(limit),
            })
        })]),
    },
];

/// Registers the source `tasks` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "tasks",
        required: &["tasks"],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        let cells = builder.kernel.cells()?;
        let iterator = TasksIterator::new(builder.kernel)?;
        if let Some(warning) = own_pid_namespace() {
            tracing::warn!(source = "tasks", "{warning}");
        }
        Ok(Box::new(Tasks {
            iterator,
            cells,
            numbers: Column::default(),
            without_slot: Arc::default(),
            first: Column::default(),
            boot: system::boot_time(),
            full: Budget::default(),
            light: Budget::default(),
        }))
    },
};

/// Returns a restriction if the agent is in its own PID namespace: a tasks iterator visits only the
/// tasks of the reader's PID namespace (kernel/bpf/task_iter.c, `init_seq_pidns`).
fn own_pid_namespace() -> Option<&'static str> {
    /// The host's: PROC_PID_INIT_INO (include/linux/proc_ns.h).
    const HOST: &str = "pid:[4026531836]";
    let own = std::fs::read_link("/proc/self/ns/pid").ok()?;
    (own.to_str() != Some(HOST)).then_some(
        "the agent runs in its own PID namespace and counts only the tasks in it; give it the \
         host's (--pid=host, hostPID: true)",
    )
}

impl Retained for TaskNumbers {}

/// The cgroup of a node, and the start of the oldest process ever seen in it (CLOCK_BOOTTIME, ns).
#[derive(Clone, Copy, Debug, Default)]
struct First(Option<(u64, u64)>);

impl Retained for First {
    const SHAPE: u64 = Option::<(u64, u64)>::SHAPE;

    fn save(&self, words: &mut Vec<u64>) {
        self.0.put(words);
    }

    fn restore(&mut self, words: &mut &[u64]) -> Option<()> {
        self.0 = Words::take(words)?;
        Some(())
    }
}

struct Tasks {
    iterator: TasksIterator,
    cells: Cells<TasksCell>,
    numbers: Column<TaskNumbers>,
    without_slot: Arc<HashSet<NodeId>>,
    first: Column<First>,
    /// Wall-clock time of the boot.
    boot: Duration,
    /// Runs that look for sockets.
    full: Budget,
    /// Runs that do not look for sockets.
    light: Budget,
}

/// Decides how often a run is allowed.
#[derive(Debug, Default)]
struct Budget {
    not_before: Option<Instant>,
}

impl Budget {
    fn allows(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|time| now >= time)
    }

    fn spend(&mut self, cost: Duration) {
        self.not_before = (cost > CHEAP).then(|| Instant::now() + cost * REST);
    }
}

impl Tasks {
    /// Takes the values of the last run. `sockets` is false if that run did not look for sockets;
    /// the numbers of sockets stay in that case.
    fn take(&mut self, tree: &Tree, sockets: bool) {
        let before = self.numbers.clone();
        let mut numbers = self.numbers.cleared_places(tree.capacity());
        // Uses the owners in the cells and not the slots of the frame: a cgroup whose first event
        // is this run gets its slot during the run.
        for cell in self.cells.with(GENERATION, self.iterator.generation()) {
            if let Some(number) = tree.by_id(cell.owner) {
                numbers[number] += &cell;
            }
        }
        roll_up(tree, &mut numbers);
        if !sockets {
            for (number, _) in tree.iter() {
                let sockets = before.get(number).map_or(0, |before| before.sockets);
                if sockets > 0 || numbers.held_mut(number).is_some() {
                    numbers[number].sockets = sockets;
                }
            }
        }
    }

    /// Sets the start time of each cgroup. Its first process may have exited, or be older than the
    /// cgroup.
    fn date(&mut self, tree: &Tree) {
        let boot = system::boot_time();
        if boot.abs_diff(self.boot) > CLOCK_SET {
            self.boot = boot;
        }
        let mut first = self.first.places(tree.capacity());
        let mut column = self.numbers.places(tree.capacity());
        // Gauges are served for living cgroups.
        for (number, node) in tree.iter().filter(|(_, node)| node.died.is_none()) {
            let seen = first[number].0;
            let seen = seen.and_then(|(id, start)| (id == node.id).then_some(start));
            let now = column[number].oldest.map(|oldest| oldest.start);
            let start = seen.into_iter().chain(now).min();
            let known = start.map(|start| (node.id, start));
            if first[number].0 != known {
                first[number] = First(known);
            }
            let started = start
                .map(|start| started(self.boot, start, node.created))
                .or_else(|| nanos(node.container.as_ref()?.started?));
            if column[number].started != started {
                column[number].started = started;
            }
        }
    }
}

/// Returns a Unix time in ns, rounded to milliseconds, so that two agents agree.
fn started(boot: Duration, start: u64, created: Option<SystemTime>) -> u64 {
    let created = created
        .and_then(|created| created.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    let start = (boot + Duration::from_nanos(start)).max(created);
    start.as_millis() as u64 * 1_000_000
}

/// Converts to Unix time in ns.
fn nanos(time: SystemTime) -> Option<u64> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}

const GENERATION: Word<TasksCell> = word!(TasksCell, generation);

impl Source for Tasks {
    fn name(&self) -> &'static str {
        "tasks"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        vec![&mut self.numbers, &mut self.first]
    }

    fn cells(&mut self) -> Option<&mut dyn SlotMemory> {
        Some(&mut self.cells)
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> anyhow::Result<()> {
        let tree = inputs.tree;
        self.without_slot = Arc::clone(inputs.without_slot);
        // Cgroups created since the last run have no values yet.
        self.numbers.places(tree.capacity());
        let now = Instant::now();
        let context = "running the tasks iterator";
        if self.full.allows(now) {
            let cost = self.iterator.run(true).context(context)?;
            tracing::debug!(?cost, "ran the tasks iterator");
            self.full.spend(cost);
            self.take(tree, true);
        } else if self.light.allows(now) {
            let cost = self.iterator.run(false).context(context)?;
            tracing::debug!(?cost, "ran the tasks iterator without sockets");
            self.light.spend(cost);
            self.take(tree, false);
        } else {
            return Ok(());
        }
        self.date(tree);
        Ok(())
    }

    fn change(&mut self, change: &Change<'_>) {
        // The tasks of the cgroup that had the path before are not those of the present one.
        if let Change::Made { node, again: true } = *change {
            self.numbers.forget(node);
        }
        // Another cgroup may have the path by now.
        if let Change::Removed { id, node, .. } = *change
            && let Some(node) = node
            && self
                .first
                .held(node)
                .and_then(|first| first.0)
                .is_some_and(|(of, _)| of == id)
        {
            self.first.forget(node);
        }
    }

    fn reading(&self) -> Box<dyn Reading> {
        Table::reading_except(METRICS, self.numbers.clone().into(), &self.without_slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_process_is_the_one_that_started_first() {
        let oldest = |start| Some(Oldest { start, nofile: 1 });
        assert_eq!(older(None, None), None);
        assert_eq!(older(oldest(5), None), oldest(5));
        assert_eq!(older(None, oldest(5)), oldest(5));
        assert_eq!(older(oldest(5), oldest(3)), oldest(3));
        assert_eq!(older(oldest(3), oldest(5)), oldest(3));
    }

    #[test]
    fn an_expensive_run_is_rare() {
        let now = Instant::now();
        let mut budget = Budget::default();
        assert!(budget.allows(now));
        budget.spend(CHEAP);
        assert!(budget.allows(now));
        budget.spend(CHEAP * 2);
        assert!(!budget.allows(now + CHEAP * 2 * (REST - 1)));
        assert!(budget.allows(Instant::now() + CHEAP * 2 * REST));
    }

    #[test]
    fn a_container_starts_with_its_first_process_but_not_before_its_creation() {
        let boot = Duration::from_secs(1_000);
        let second = 1_000_000_000;
        assert_eq!(started(boot, 5 * second + 999_999, None), 1_005 * second);
        let made = UNIX_EPOCH + Duration::from_secs(1_003);
        assert_eq!(started(boot, 5 * second, Some(made)), 1_005 * second);
        assert_eq!(started(boot, 2 * second, Some(made)), 1_003 * second);
    }
}
