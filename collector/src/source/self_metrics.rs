//! The agent's own metrics.

use std::time::Duration;

use collector_common::stat::Stat;
use prometheus::{Registry, process_collector::ProcessCollector, proto};

use super::{
    NamespaceCounts,
    runtimes::{self, RuntimesReport},
    version,
};
use crate::{
    exposition::{
        Encoder, Family, Format, LabelSet, Labels, MetricKind, Unit, Value, encode_registry,
    },
    kernel::{bpf::Runs, load::KernelStats, programs::Availability},
};

/// What the agent reports about itself in a frame.
#[derive(Debug)]
pub struct Report {
    /// Every source with its state.
    pub sources: Vec<Availability>,
    /// Failed readings by source.
    pub errors: Vec<(&'static str, u64)>,
    /// Whether every source could be read.
    pub complete: bool,
    /// Counters of the kernel side, if they could be read.
    pub stats: Option<KernelStats>,
    /// Runs of programs that are derived from a source's values.
    pub runs: Vec<(&'static str, u64)>,
    /// Run statistics of each program, from the kernel.
    pub program_runs: Vec<(String, Runs)>,
    /// Numbers of live and removed cgroups.
    pub cgroups: (usize, usize),
    /// Number of suppressed cgroups: there are more than `--cgroup.export-max`.
    pub suppressed: usize,
    /// Removed cgroups that counted in their parents before any scrape had shown them.
    pub unreported: u64,
    /// Number of cgroups whose CPU time was not the kernel's when that was last compared.
    pub unequal: Option<u64>,
    /// Numbers of network namespaces.
    pub namespaces: Option<NamespaceCounts>,
    /// The container runtimes that are followed.
    pub runtimes: RuntimesReport,
    /// Numbers of used, free and quarantined slots.
    pub slots: (usize, usize, usize),
    /// Cgroups that got no slot.
    pub without_slot: WithoutSlot,
    /// Kernel memory of maps, bytes.
    pub kernel_memory: u64,
    /// Duration of each stage of taking the frame.
    pub stages: Vec<(&'static str, Duration)>,
    /// Panics of each thread.
    pub panics: Vec<(&'static str, u64)>,
    /// Lines of the log that were dropped.
    pub log_lines_lost: u64,
    /// Encodings so far.
    pub encodings: EncodingReport,
    /// Metrics of the `prometheus` crate's registry.
    pub registry: Vec<proto::MetricFamily>,
}

/// Cgroups that got no slot.
#[derive(Clone, Debug, Default)]
pub struct WithoutSlot {
    /// Their number.
    pub cgroups: usize,
    /// Parents that have most of them, most first, with the number of these.
    pub parents: Vec<(String, usize)>,
}

/// Number and duration of encodings.
#[derive(Clone, Copy, Debug)]
pub struct EncodingReport {
    /// Encodings by format.
    pub counts: [(Format, u64); Format::ALL.len()],
    /// How long the last one took; `None` before the first.
    pub last: Option<Duration>,
}

const fn family(name: &'static str, help: &'static str, kind: MetricKind) -> Family {
    Family {
        name,
        help,
        kind,
        unit: Unit::None,
        labels: &[],
        origin: "the agent",
        oracle: "see the tests of the agent itself",
    }
}

const BUILD_INFO: Family = Family {
    labels: &["version"],
    ..family(
        "cgmeter_build_info",
        "1, with the version of the agent as a label.",
        MetricKind::Gauge,
    )
};
const SOURCE_UP: Family = Family {
    labels: &["source"],
    ..family(
        "cgmeter_source_up",
        "Whether a source runs (1) or not (0); the log has the reason. A source for which this host has nothing to read has no series.",
        MetricKind::Gauge,
    )
};
const SOURCE_ERRORS: Family = Family {
    labels: &["source"],
    ..family(
        "cgmeter_source_errors_total",
        "Failed readings of a source. What could not be read has no series until it can be read again.",
        MetricKind::Counter,
    )
};
const EVENTS: Family = Family {
    labels: &["program"],
    ..family(
        "cgmeter_events_total",
        "Events counted by a kernel program.",
        MetricKind::Counter,
    )
};
const PROGRAM_SECONDS: Family = Family {
    labels: &["program"],
    unit: Unit::Seconds,
    ..family(
        "cgmeter_program_run_seconds_total",
        "Run time of a kernel program; only while kernel.bpf_stats_enabled is 1.",
        MetricKind::Counter,
    )
};
const PROGRAM_RUNS: Family = Family {
    labels: &["program"],
    ..family(
        "cgmeter_program_runs_total",
        "Runs of a kernel program; only while kernel.bpf_stats_enabled is 1.",
        MetricKind::Counter,
    )
};
const PROGRAM_MISSES: Family = Family {
    labels: &["program"],
    origin: "the kernel: bpf_prog_info.recursion_misses",
    ..family(
        "cgmeter_program_misses_total",
        "Events for which a kernel program did not run, because it was already running on that CPU.",
        MetricKind::Counter,
    )
};
const CGROUPS: Family = Family {
    labels: &["state"],
    ..family(
        "cgmeter_cgroups",
        "Cgroups in the agent's tree, by state (live, dead).",
        MetricKind::Gauge,
    )
};
const CGROUPS_SUPPRESSED: Family = family(
    "cgmeter_cgroups_suppressed",
    "Suppressed cgroups: they have no series of their own, because there are more than --cgroup.export-max; they count in their parents.",
    MetricKind::Gauge,
);
const CGROUPS_UNREPORTED: Family = family(
    "cgmeter_cgroups_unreported_total",
    "Removed cgroups that no scrape has shown, because more came and went between two scrapes than --cgroup.dead-max; they count in their parents.",
    MetricKind::Counter,
);
const CGROUPS_UNEQUAL: Family = family(
    "cgmeter_cgroups_unequal",
    "Cgroups whose CPU time differed from the kernel's by more than 0.1 % and 2 ms a CPU when that was last compared: after events were lost. The log names the worst.",
    MetricKind::Gauge,
);
const NAMESPACES: Family = Family {
    labels: &["state"],
    ..family(
        "cgmeter_network_namespaces",
        "Network namespaces by state: read, or left_out because there are more than --netdev.max-namespaces or the limit of open files allows.",
        MetricKind::Gauge,
    )
};
const LOST_NAMESPACES: Family = family(
    "cgmeter_lost_network_namespaces_total",
    "Network namespaces that ended while no agent ran: what their interfaces had counted since the last scrape is not known.",
    MetricKind::Counter,
);
const SLOTS: Family = Family {
    labels: &["state"],
    ..family(
        "cgmeter_slots",
        "Slots of cgroups by state (used, free, quarantined).",
        MetricKind::Gauge,
    )
};
const WITHOUT_SLOT: Family = Family {
    labels: &["parent"],
    ..family(
        "cgmeter_cgroups_without_slot",
        "Cgroups that got no slot: what cgmeter counts itself of them is in their ancestors' series alone; see --cgroup.max. By the parents that have most of them; those of all others have an empty parent.",
        MetricKind::Gauge,
    )
};
const OVERFLOW_EVENTS: Family = family(
    "cgmeter_overflow_events_total",
    "Number of times that a cgroup got no slot because none was free; see --cgroup.max.",
    MetricKind::Counter,
);
const LOST_EVENTS: Family = family(
    "cgmeter_lost_events_total",
    "Cgroup events that did not fit into the ring buffer; the agent then walks the hierarchy again.",
    MetricKind::Counter,
);
const LOST_RECORDS: Family = family(
    "cgmeter_lost_records_total",
    "Removed cgroups whose final record could not be stored.",
    MetricKind::Counter,
);
const UNTRACKED_TASKS: Family = family(
    "cgmeter_untracked_tasks_total",
    "Tasks for which no task storage could be allocated: the kernel was short of memory.",
    MetricKind::Counter,
);
const UNTRACKED_SOCKETS: Family = family(
    "cgmeter_untracked_sockets_total",
    "TCP sockets for which no socket storage could be allocated: the kernel was short of memory, or \
     the socket had reached its limit (net.core.optmem_max).",
    MetricKind::Counter,
);
const KERNEL_MEMORY: Family = Family {
    unit: Unit::Bytes,
    ..family(
        "cgmeter_kernel_memory_bytes",
        "Kernel memory of the agent's BPF maps.",
        MetricKind::Gauge,
    )
};
const SCRAPE_DURATION: Family = Family {
    labels: &["stage"],
    unit: Unit::Seconds,
    ..family(
        "cgmeter_scrape_duration_seconds",
        "Duration of each stage of the last snapshot, and of the last encoding.",
        MetricKind::Gauge,
    )
};
const ENCODINGS: Family = Family {
    labels: &["format"],
    ..family(
        "cgmeter_encodings_total",
        "Snapshots that were encoded, by format. Scrapes of the same snapshot share the encoding.",
        MetricKind::Counter,
    )
};
const PANICS: Family = Family {
    labels: &["thread"],
    ..family(
        "cgmeter_panics_total",
        "Faults of the agent itself that stopped a piece of its work, by thread; the log describes them.",
        MetricKind::Counter,
    )
};
const LOG_LINES_LOST: Family = family(
    "cgmeter_log_lines_lost_total",
    "Lines of the agent's log that were dropped, because standard error was full or could not be written.",
    MetricKind::Counter,
);
const SCRAPE_ERROR: Family = family(
    "container_scrape_error",
    "1 if a source could not be read for the last snapshot, else 0. Which one is in cgmeter_source_errors_total.",
    MetricKind::Gauge,
);

/// Families of the agent, without those of its process.
pub const FAMILIES: &[&Family] = &[
    &BUILD_INFO,
    &version::INFO,
    &SOURCE_UP,
    &SOURCE_ERRORS,
    &EVENTS,
    &PROGRAM_SECONDS,
    &PROGRAM_RUNS,
    &PROGRAM_MISSES,
    &CGROUPS,
    &CGROUPS_SUPPRESSED,
    &CGROUPS_UNREPORTED,
    &CGROUPS_UNEQUAL,
    &NAMESPACES,
    &LOST_NAMESPACES,
    &SLOTS,
    &WITHOUT_SLOT,
    &OVERFLOW_EVENTS,
    &LOST_EVENTS,
    &LOST_RECORDS,
    &UNTRACKED_TASKS,
    &UNTRACKED_SOCKETS,
    &KERNEL_MEMORY,
    &SCRAPE_DURATION,
    &ENCODINGS,
    &PANICS,
    &LOG_LINES_LOST,
    &SCRAPE_ERROR,
    &runtimes::UP,
    &runtimes::REQUESTS,
    &runtimes::SECONDS,
    &runtimes::CONTAINERS,
    &runtimes::REFUSED,
];

/// Registry of the agent's own metrics.
#[derive(Debug)]
pub struct SelfMetrics {
    registry: Registry,
}

impl SelfMetrics {
    /// Adds the metrics of the agent's process to a registry, which other parts may use as well.
    ///
    /// # Errors
    ///
    /// When the registry refuses a metric.
    pub fn new(registry: Registry) -> anyhow::Result<Self> {
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Self { registry })
    }

    /// Returns the current values of everything that is registered.
    pub fn gather(&self) -> Vec<proto::MetricFamily> {
        self.registry.gather()
    }
}

impl Report {
    /// Returns the durations of the stages of taking the frame, and of the last encoding.
    pub fn stages(&self) -> impl Iterator<Item = (&'static str, Duration)> + '_ {
        let encode = self.encodings.last.map(|last| ("encode", last));
        self.stages.iter().copied().chain(encode)
    }

    /// Encodes all families.
    pub fn encode(&self, out: &mut dyn Encoder) {
        let report = self;
        let count = |number: usize| Value::Count(number as u64);
        let none = &LabelSet::empty();
        out.family(&BUILD_INFO);
        out.sample(
            Labels::new(none, &[("version", crate::VERSION)]),
            Value::Count(1),
        );
        version::encode(&report.runtimes, out);
        out.family(&SOURCE_UP);
        for source in report.sources.iter().filter(|source| !source.absent) {
            out.sample(
                Labels::new(none, &[("source", source.source)]),
                Value::Count(u64::from(source.up)),
            );
        }
        out.family(&SOURCE_ERRORS);
        for &(source, errors) in &report.errors {
            out.sample(
                Labels::new(none, &[("source", source)]),
                Value::Count(errors),
            );
        }
        out.family(&EVENTS);
        let own = [
            ("sched_process_fork", Stat::Forks),
            ("sched_process_exec", Stat::Execs),
            ("sched_process_exit", Stat::Exits),
            ("cgroup_attach_task", Stat::Moves),
            ("cgroup_mkdir", Stat::Made),
            ("cgroup_rmdir", Stat::Removed),
            ("cgroup_rename", Stat::Renamed),
            ("inet_sock_set_state", Stat::TcpStates),
            ("tcp_retransmit_skb", Stat::TcpRetransmits),
            ("tcp_retransmit_synack", Stat::SynAckRetransmits),
            ("tcp_send_reset", Stat::ResetsSent),
            ("tcp_receive_reset", Stat::ResetsReceived),
            ("kfree_skb", Stat::Drops),
        ];
        let own = report.stats.iter().flat_map(|stats| {
            let count = |&(program, stat)| (program, stats.get(stat));
            own.iter().map(count)
        });
        for (program, runs) in report.runs.iter().copied().chain(own) {
            out.sample(
                Labels::new(none, &[("program", program)]),
                Value::Count(runs),
            );
        }
        let timed = || {
            report
                .program_runs
                .iter()
                .filter(|(_, runs)| runs.count > 0)
        };
        out.family(&PROGRAM_SECONDS);
        for (program, runs) in timed() {
            out.sample(
                Labels::new(none, &[("program", program)]),
                Value::Nanos(runs.ns),
            );
        }
        out.family(&PROGRAM_RUNS);
        for (program, runs) in timed() {
            out.sample(
                Labels::new(none, &[("program", program)]),
                Value::Count(runs.count),
            );
        }
        out.family(&PROGRAM_MISSES);
        for (program, runs) in &report.program_runs {
            out.sample(
                Labels::new(none, &[("program", program)]),
                Value::Count(runs.misses),
            );
        }
        out.family(&CGROUPS);
        out.sample(
            Labels::new(none, &[("state", "live")]),
            count(report.cgroups.0),
        );
        out.sample(
            Labels::new(none, &[("state", "dead")]),
            count(report.cgroups.1),
        );
        out.family(&CGROUPS_SUPPRESSED);
        out.sample(Labels::new(none, &[]), count(report.suppressed));
        out.family(&CGROUPS_UNREPORTED);
        out.sample(Labels::new(none, &[]), Value::Count(report.unreported));
        if let Some(unequal) = report.unequal {
            out.family(&CGROUPS_UNEQUAL);
            out.sample(Labels::new(none, &[]), Value::Count(unequal));
        }
        if let Some(namespaces) = report.namespaces {
            let NamespaceCounts {
                read,
                left_out,
                lost,
            } = namespaces;
            out.family(&NAMESPACES);
            for (state, number) in [("read", read), ("left_out", left_out)] {
                out.sample(Labels::new(none, &[("state", state)]), Value::Count(number));
            }
            out.family(&LOST_NAMESPACES);
            out.sample(Labels::new(none, &[]), Value::Count(lost));
        }
        out.family(&SLOTS);
        out.sample(
            Labels::new(none, &[("state", "used")]),
            count(report.slots.0),
        );
        out.sample(
            Labels::new(none, &[("state", "free")]),
            count(report.slots.1),
        );
        out.sample(
            Labels::new(none, &[("state", "quarantined")]),
            count(report.slots.2),
        );
        out.family(&WITHOUT_SLOT);
        let WithoutSlot { cgroups, parents } = &report.without_slot;
        let named: usize = parents.iter().map(|(_, children)| children).sum();
        let others = [(String::new(), cgroups.saturating_sub(named))];
        for (parent, children) in parents.iter().chain(&others) {
            out.sample(Labels::new(none, &[("parent", parent)]), count(*children));
        }
        if let Some(stats) = &report.stats {
            let overflow = stats.get(Stat::Overflow) + stats.get(Stat::Borrowed);
            for (family, value) in [
                (&OVERFLOW_EVENTS, overflow),
                (&LOST_EVENTS, stats.get(Stat::LostEvents)),
                (&LOST_RECORDS, stats.get(Stat::LostRecords)),
                (&UNTRACKED_TASKS, stats.get(Stat::NoTaskStorage)),
                (&UNTRACKED_SOCKETS, stats.get(Stat::NoSocketStorage)),
            ] {
                out.family(family);
                out.sample(Labels::new(none, &[]), Value::Count(value));
            }
        }
        for (family, value) in [
            (&KERNEL_MEMORY, report.kernel_memory),
            (&LOG_LINES_LOST, report.log_lines_lost),
            (&SCRAPE_ERROR, u64::from(!report.complete)),
        ] {
            out.family(family);
            out.sample(Labels::new(none, &[]), Value::Count(value));
        }
        out.family(&PANICS);
        for &(thread, panics) in &report.panics {
            out.sample(
                Labels::new(none, &[("thread", thread)]),
                Value::Count(panics),
            );
        }
        out.family(&SCRAPE_DURATION);
        for (stage, duration) in report.stages() {
            let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            out.sample(Labels::new(none, &[("stage", stage)]), Value::Nanos(ns));
        }
        out.family(&ENCODINGS);
        for (format, count) in report.encodings.counts {
            let labels = [("format", format.name())];
            out.sample(Labels::new(none, &labels), Value::Count(count));
        }
        report.runtimes.encode(out);
        encode_registry(&report.registry, out);
    }
}
