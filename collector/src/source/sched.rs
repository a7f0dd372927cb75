//! Context switches: run time, wait time, preemptions and migrations.
//!
//! Programs: `sched_switch`, `cgroup_attach_task`, `in_flight`, `baseline` (collector-ebpf/src/sched.rs).
//! Oracle: cpu.stat, /proc/PID/schedstat, /proc/PID/status (tests).

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    iter::successors,
};

use collector_common::{histogram::BUCKETS, kept::Earlier, sched::SchedCell};

use super::{
    Change, Inputs, Metric, Pair, Part, Partly, Reading, Registration, Samples, Source,
    SourceReport,
    counters::CellCounters,
    values::{PerNode, Words, sums},
};
use crate::{
    cgroup::{Node, NodeId, ROOT, Tree},
    exposition::{Family, Histogram, LOG2, MetricKind, Unit, Value},
    kernel::{cells::SlotMemory, map::Map, programs::Requirement},
};

sums! {
    /// A node's scheduler counters.
    pub struct Scheduling: SchedCell {
        /// CPU time since the agent first saw the cgroup, ns.
        run_ns: u64,
        wait_ns: u64,
        voluntary: u64,
        preempted_by_self: u64,
        preempted_by_other: u64,
        preempted_by_system: u64,
        migrations: u64,
        wait_histogram: [u64; BUCKETS],
    }
    beside {
        /// CPU time before that, ns, from the kernel statistics.
        earlier_ns: u64,
    }
}

impl Scheduling {
    fn involuntary(&self) -> u64 {
        self.preempted_by_self + self.preempted_by_other + self.preempted_by_system
    }

    fn periods(&self) -> u64 {
        self.wait_histogram.iter().sum()
    }
}

const fn counter(name: &'static str, help: &'static str, unit: Unit) -> Family {
    Family {
        name,
        help,
        kind: MetricKind::Counter,
        unit,
        labels: &[],
        origin: "sched_switch",
        oracle: "/proc/PID/schedstat",
    }
}

/// The source's families.
pub const METRICS: &[Metric<Scheduling>] = &[
    Metric {
        family: Family {
            labels: &["cpu"],
            origin: "sched_switch: task_struct.se.sum_exec_runtime; cgroup.bstat for the time before the agent",
            oracle: "cpu.stat usage_usec",
            ..counter(
                "container_cpu_usage_seconds_total",
                "CPU time used since the cgroup was created.",
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
                "Time that runnable tasks waited for a CPU.",
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
                "Number of times that a task was scheduled on a CPU.",
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.periods())))]),
    },
    Metric {
        family: Family {
            kind: MetricKind::Histogram,
            origin: "sched_switch: task_struct.sched_info.run_delay of each run period",
            ..counter(
                "container_sched_runqueue_latency_seconds",
                "Time that a task waited for a CPU before each run period.",
                Unit::Seconds,
            )
        },
        samples: Samples::Histograms(&[(&[], |v| {
            (v.periods() > 0).then_some(Histogram {
                layout: &LOG2,
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
                "Context switches away from a task: voluntary if it waits for something, involuntary if \
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
                "Involuntary switches by what took the CPU: a task of the same cgroup (self), of \
                 another cgroup (other), or a kernel thread or an exhausted quota (system).",
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
                "Number of times that a task was moved to another CPU.",
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.migrations)))]),
    },
];

/// Registers the source `sched` in [`super::SOURCES`].
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
            "if a running task changes cgroup, its whole time slice counts for the old cgroup",
        )],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        let cells = builder.kernel.cells::<SchedCell>()?;
        Ok(Box::new(Sched {
            counters: CellCounters::new("sched", METRICS, cells),
            earlier: builder.kernel.earlier()?,
            continues: builder.kernel.continues(),
            entries: HashMap::new(),
            ids: HashMap::new(),
            remade: Vec::new(),
            joined: false,
            joining: false,
            again: HashSet::new(),
        }))
    },
};

struct Sched {
    counters: CellCounters<SchedCell, Scheduling>,
    /// CPU time before the first agent's start, by cgroup id.
    earlier: Option<Map<u64, Earlier>>,
    /// Whether that is known from an earlier agent.
    continues: bool,
    /// What is in that map.
    entries: HashMap<u64, Earlier>,
    /// Ids, as entries have them, of the cgroups that nodes had when they were last looked at.
    ids: HashMap<NodeId, u64>,
    /// Nodes of those whose path has been made again since.
    remade: Vec<NodeId>,
    /// Whether the CPU time before the agent's start was added.
    joined: bool,
    /// Whether the last reading added it.
    joining: bool,
    /// Nodes that have had an earlier cgroup.
    again: HashSet<NodeId>,
}

impl Sched {
    /// Adds the CPU time before the first agent's start, as an earlier agent has noted it. What removed
    /// cgroups had used is their nearest living ancestor's.
    fn recall(&mut self, inputs: &Inputs<'_>) -> anyhow::Result<()> {
        let (mut ids, mut entries) = (Vec::new(), Vec::new());
        if let Some(earlier) = &self.earlier {
            earlier.read_all(&mut ids, &mut entries)?;
        }
        self.joined = true;
        self.entries = ids.into_iter().zip(entries).collect();
        let mut own = vec![0; inputs.tree.capacity()];
        for (&id, entry) in &self.entries {
            let above = |id: &u64| Some(self.entries.get(id)?.parent);
            let mut lineage = successors(Some(id), above).take(self.entries.len() + 1);
            let node = lineage.find_map(|id| inputs.tree.of_path(id));
            let node = node.unwrap_or(ROOT);
            own[node] += entry.run_ns;
            let is_earlier = inputs.tree.of_path(id) == Some(node)
                && inputs.tree.node(node).is_some_and(|node| node.id != id);
            if is_earlier && entry.run_ns > 0 {
                self.again.insert(node);
            }
        }
        self.set_earlier(own, inputs.tree);
        // Paths that were made again while no agent ran.
        for (id, number) in inputs.tree.aliases() {
            if self.entries.contains_key(&id) && !self.ids.contains_key(&number) {
                self.ids.insert(number, id);
                self.remade.push(number);
            }
        }
        self.counters.collect(inputs)
    }

    /// Adds the CPU time before this agent's start, from the kernel statistics. If these can't be read now,
    /// the next reading does it.
    fn join(&mut self, inputs: &Inputs<'_>) -> anyhow::Result<()> {
        if inputs.statistics.is_none() {
            self.joined = true;
            return Ok(());
        }
        let (tree, statistics) = (inputs.tree, inputs.statistics()?);
        self.joined = true;
        let mut own = vec![0; tree.capacity()];
        for (number, _) in tree.iter() {
            let used = if number == ROOT {
                statistics.root_times().usage_ns
            } else {
                let record = statistics.part(number, Part::Time);
                record.map_or(0, |record| record.usage_ns)
            };
            let counted = self.counters.total(number).map_or(0, |total| total.run_ns);
            // Of earlier cgroups of the path, which are in no value of the kernel's.
            let last = self.counters.last(number);
            let counted = counted - last.map_or(0, |last| last.run_ns);
            own[number] = used.saturating_sub(counted);
        }
        // The kernel's values contain those of the descendants. Parents come first, so a child's
        // value still contains its descendants' when it is subtracted from its parent's.
        for (number, node) in tree.iter() {
            if let Some(parent) = node.parent {
                own[parent] = own[parent].saturating_sub(own[number]);
            }
        }
        for (number, node) in tree.iter() {
            let parent = node.parent.and_then(|parent| tree.node(parent));
            let entry = Earlier {
                parent: parent.map_or(0, |parent| parent.id),
                run_ns: own[number],
            };
            self.note(node.id, entry);
        }
        self.set_earlier(own, tree);
        self.counters.collect(inputs)
    }

    fn set_earlier(&mut self, own: Vec<u64>, tree: &Tree) {
        for (number, ns) in own.into_iter().enumerate() {
            if ns > 0 || self.counters.summed().retains(number) {
                self.counters.summed().retained(number).earlier_ns = ns;
            }
        }
        let noted = tree
            .iter()
            .filter(|(_, node)| self.entries.contains_key(&node.id));
        self.ids = noted.map(|(number, node)| (number, node.id)).collect();
    }

    /// Notes something for the next agent, if there may be one.
    fn note(&mut self, id: u64, entry: Earlier) {
        let Some(earlier) = &self.earlier else {
            return;
        };
        self.entries.insert(id, entry);
        if let Err(error) = earlier.insert(&id, &entry) {
            tracing::warn!(%error, "the CPU time of a cgroup will be smaller after a restart");
        }
    }

    /// Where a path was made again, what its earlier cgroup had used stays with it, and so does what
    /// removed children had used: their entries lead to the new cgroup.
    fn follow(&mut self, tree: &Tree) -> std::io::Result<()> {
        for number in std::mem::take(&mut self.remade) {
            let (Some(&old), Some(node)) = (self.ids.get(&number), tree.node(number)) else {
                continue;
            };
            let (Some(&before), true) = (self.entries.get(&old), node.id != old) else {
                continue;
            };
            let parent = node.parent.and_then(|parent| tree.node(parent));
            let parent = parent.map_or(0, |parent| parent.id);
            let new = Earlier { parent, run_ns: 0 };
            self.note(node.id, new);
            let below: Vec<(u64, Earlier)> = self
                .entries
                .iter()
                .filter(|(_, entry)| entry.parent == old)
                .map(|(&id, entry)| (id, *entry))
                .chain([(old, before)])
                .collect();
            for (id, entry) in below {
                let parent = node.id;
                self.note(id, Earlier { parent, ..entry });
            }
            // Nothing leads to it any more.
            if before.run_ns == 0 {
                self.entries.remove(&old);
                if let Some(earlier) = &self.earlier {
                    earlier.remove(&old)?;
                }
            }
            self.ids.insert(number, node.id);
        }
        Ok(())
    }
}

impl Source for Sched {
    fn name(&self) -> &'static str {
        self.counters.name()
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        self.counters.values()
    }

    fn reads_slots(&self) -> bool {
        true
    }

    fn cells(&mut self) -> Option<&mut dyn SlotMemory> {
        self.counters.cells()
    }

    /// Without the CPU time of cgroups that live: the next agent has it from the kernel.
    fn save_totals(&mut self, nodes: &[NodeId], each: &mut dyn FnMut(NodeId, &[u64])) {
        let mut words = Vec::new();
        for &node in nodes {
            let Some(total) = self.counters.total(node).map(Cow::into_owned) else {
                continue;
            };
            let last = self.counters.last(node).unwrap_or_default();
            let total = Scheduling {
                run_ns: last.run_ns,
                earlier_ns: last.earlier_ns,
                ..total
            };
            words.clear();
            Some(total).put(&mut words);
            each(node, &words);
        }
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> anyhow::Result<()> {
        self.counters.collect(inputs)?;
        self.joining = !self.joined;
        if self.joined {
            let followed = self.follow(inputs.tree);
            return followed.map_err(|error| {
                Partly(format!(
                    "noting for the next agent what cgroups had used: {error}"
                ))
                .into()
            });
        }
        if self.continues {
            return self.recall(inputs);
        }
        self.join(inputs)
    }

    fn change(&mut self, change: &Change<'_>) {
        if let Change::ReadAgain = change
            && self.joining
        {
            self.joined = false;
        }
        match *change {
            Change::Made { node, again: true } => {
                self.again.insert(node);
                if self.ids.contains_key(&node) {
                    self.remade.push(node);
                }
            }
            Change::Reaped { node, .. } => {
                self.again.remove(&node);
                self.ids.remove(&node);
            }
            _ => {}
        }
        self.counters.change(change);
    }

    /// CPU time. Not that of the root, which the kernel adds up from its CPUs in another way, nor of cgroups
    /// that count in an ancestor, nor where the time before the agent is an earlier cgroup's of the path.
    fn pairs(&self, inputs: &Inputs<'_>) -> Option<Vec<Pair>> {
        let statistics = inputs.statistics().ok()?;
        if !self.joined || self.joining {
            return None;
        }
        let pair = |(node, of): (NodeId, &Node)| {
            if node == ROOT || of.died.is_some() || inputs.without_slot.contains(&node) {
                return None;
            }
            let record = statistics.part(node, Part::Time)?;
            let total = self.counters.total(node).map(Cow::into_owned);
            let (total, last) = (total.unwrap_or_default(), self.counters.last(node));
            // What is served of earlier cgroups is in no value of the kernel's.
            let last = last.unwrap_or_default();
            let earlier = total.earlier_ns.saturating_sub(last.earlier_ns);
            if record.id != of.id || earlier > 0 && self.again.contains(&node) {
                return None;
            }
            Some(Pair {
                node,
                counted: (earlier + total.run_ns).saturating_sub(last.run_ns),
                kernel: record.usage_ns,
            })
        };
        Some(inputs.tree.iter().filter_map(pair).collect())
    }

    fn report(&self) -> SourceReport {
        let host = self.counters.total(ROOT);
        SourceReport {
            runs: host.map(|host| ("sched_switch", host.voluntary + host.involuntary())),
            ..SourceReport::default()
        }
    }

    fn reading(&self) -> Box<dyn Reading> {
        self.counters.reading()
    }
}
