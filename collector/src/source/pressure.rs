//! Pressure: how long tasks were stalled for lack of CPU, memory or I/O (PSI).
//!
//! Program: `cgroup_iterator` (collector-ebpf/src/cgroup_iterator.rs): `psi_group.total`. While
//! there is pressure, the kernel updates it every 2 s (kernel/sched/psi.c, PSI_FREQ), so values are
//! at most that old. Oracle: cpu.pressure, memory.pressure, io.pressure (tests/live/pressure.rs).

use anyhow::Result;
use collector_common::cgroup_iterator::{HAS_PRESSURE, PRESSURES};

use super::{
    Change, Inputs, Metric, Part, Reading, Registration, Samples, Source, Table,
    kernel_file::KernelFile,
    values::{Column, Continued, PerNode, Retained},
};
use crate::{
    cgroup::ROOT,
    exposition::{Family, MetricKind, Unit, Value},
    kernel::programs::{NotOnThisHost, Requirement},
};

/// A node's pressure, ns, in the kernel's order (include/linux/psi_types.h, enum psi_states).
#[derive(Clone, Debug, Default)]
pub struct Stalls(Continued<[u64; PRESSURES]>);

/// Resources in the kernel's order. Each has *some* first, then *full*.
const RESOURCES: [&str; 3] = ["io", "memory", "cpu"];

impl Retained for Stalls {
    const SHAPE: u64 = <Continued<[u64; PRESSURES]> as Retained>::SHAPE;

    fn save(&self, words: &mut Vec<u64>) {
        self.0.save(words);
    }

    fn save_end(&self, words: &mut Vec<u64>) {
        self.0.save_end(words);
    }

    fn restore(&mut self, words: &mut &[u64]) -> Option<()> {
        self.0.restore(words)
    }
}

impl Stalls {
    fn state(&self, state: usize) -> Option<Value> {
        let known = self.0.is_known();
        known.then(|| Value::Nanos(self.0.total()[state]))
    }
}

macro_rules! metric {
    ($name:literal, $help:literal, $file:literal, $state:literal) => {
        Metric {
            family: Family {
                name: $name,
                help: $help,
                kind: MetricKind::Counter,
                unit: Unit::Seconds,
                labels: &[],
                origin: "cgroup_iterator: psi_group.total",
                oracle: $file,
            },
            samples: Samples::Scalars(&[(&[], |v: &Stalls| v.state($state))]),
        }
    };
}

/// The source's families.
pub const METRICS: &[Metric<Stalls>] = &[
    metric!(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which at least one task waited for a CPU.",
        "cpu.pressure: some",
        4
    ),
    metric!(
        "container_pressure_cpu_stalled_seconds_total",
        "Time in which all non-idle tasks waited for a CPU.",
        "cpu.pressure: full",
        5
    ),
    metric!(
        "container_pressure_memory_waiting_seconds_total",
        "Time in which at least one task waited for memory.",
        "memory.pressure: some",
        2
    ),
    metric!(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which all non-idle tasks waited for memory.",
        "memory.pressure: full",
        3
    ),
    metric!(
        "container_pressure_io_waiting_seconds_total",
        "Time in which at least one task waited for I/O.",
        "io.pressure: some",
        0
    ),
    metric!(
        "container_pressure_io_stalled_seconds_total",
        "Time in which all non-idle tasks waited for I/O.",
        "io.pressure: full",
        1
    ),
];

/// Registers the source `pressure` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "pressure",
        required: &["cgroup_iterator"],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |_| {
        let mut host = Host::new();
        if host.read().is_err() {
            let missing =
                "the kernel does not measure pressure: boot with psi=1; this needs CONFIG_PSI";
            return Err(NotOnThisHost(missing.to_owned()).into());
        }
        Ok(Box::new(Pressure {
            host,
            stalls: Column::default(),
        }))
    },
};

#[derive(Debug)]
struct Pressure {
    host: Host,
    stalls: Column<Stalls>,
}

/// The pressure of the host. The root cgroup has no pressure of its own.
#[derive(Debug)]
struct Host([KernelFile; RESOURCES.len()]);

impl Host {
    fn new() -> Self {
        Self(RESOURCES.map(|resource| KernelFile::new(format!("/proc/pressure/{resource}"))))
    }

    fn read(&mut self) -> Result<[u64; PRESSURES]> {
        let mut states = [0; PRESSURES];
        for (pair, file) in states.chunks_exact_mut(2).zip(&mut self.0) {
            let text = file.read()?;
            for (ns, kind) in pair.iter_mut().zip(["some ", "full "]) {
                // Before 5.13 CPU pressure has no `full`.
                let total = text.lines().find_map(|line| {
                    let (_, total) = line.strip_prefix(kind)?.split_once("total=")?;
                    total.trim().parse::<u64>().ok()
                });
                *ns = total.unwrap_or(0) * 1000;
            }
        }
        Ok(states)
    }
}

impl Source for Pressure {
    fn name(&self) -> &'static str {
        "pressure"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        vec![&mut self.stalls]
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> Result<()> {
        let (tree, statistics) = (inputs.tree, inputs.statistics()?);
        let mut stalls = self.stalls.places(tree.capacity());
        for (number, node) in tree.iter() {
            let reading = if number == ROOT {
                Some((node.id, self.host.read()?))
            } else {
                let record = statistics.part(number, Part::Pressure);
                record.map(|record| (record.id, record.pressure_ns))
            };
            if let Some((id, pressure_ns)) = reading
                && let Some(now) = stalls[number].0.reading_of(id)
            {
                *now = pressure_ns;
            }
        }
        Ok(())
    }

    fn change(&mut self, change: &Change<'_>) {
        if let Some((node, record)) = change.final_record()
            && record.flags & HAS_PRESSURE != 0
            && let Some(now) = self.stalls.at(node).0.reading_of(record.id)
        {
            *now = record.pressure_ns;
        }
    }

    fn reading(&self) -> Box<dyn Reading> {
        Table::reading(METRICS, &self.stalls)
    }
}
