//! Pressure: how long tasks could not go on for want of CPU, memory or I/O (PSI).
//!
//! Program: `pass` (collector-ebpf/src/pass.rs): `psi_group.total`, which the kernel brings up to
//! date every 2 s while there is pressure (kernel/sched/psi.c, PSI_FREQ): values are at most that
//! old. Oracle: cpu.pressure, memory.pressure, io.pressure (tests/live/pressure.rs).

use anyhow::{Context, Result, bail};
use collector_common::pass::{CgroupRecord, HAS_PRESSURE, PRESSURES};

use super::{Metric, Part, Registration, Samples, Snapshot, Source, at, encode};
use crate::{
    cgroup::{NodeId, ROOT, Tree},
    exposition::{Family, Kind, Unit, Value, Writer},
    kernel::programs::Requirement,
};

/// A node's pressure, ns, in the kernel's order (include/linux/psi_types.h, enum psi_states).
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// What predecessors of the same path had.
    earlier: [u64; PRESSURES],
    now: Option<[u64; PRESSURES]>,
}

/// Resources in the kernel's order; *some* comes first, then *full*.
const RESOURCES: [&str; 3] = ["io", "memory", "cpu"];

impl Numbers {
    fn state(&self, state: usize) -> Option<Value> {
        Some(Value::Nanos(self.earlier[state] + self.now?[state]))
    }
}

macro_rules! metric {
    ($name:literal, $help:literal, $file:literal, $state:literal) => {
        Metric {
            family: Family {
                name: $name,
                help: $help,
                kind: Kind::Counter,
                unit: Unit::Seconds,
                labels: &[],
                origin: "pass: psi_group.total",
                oracle: $file,
            },
            samples: Samples::Scalars(&[(&[], |v: &Numbers| v.state($state))]),
        }
    };
}

/// The source's families.
pub const METRICS: &[Metric<Numbers>] = &[
    metric!(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which at least one task waited for a CPU.",
        "cpu.pressure: some",
        4
    ),
    metric!(
        "container_pressure_cpu_stalled_seconds_total",
        "Time in which every task that could run waited for a CPU.",
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
        "Time in which every task that could run waited for memory.",
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
        "Time in which every task that could run waited for I/O.",
        "io.pressure: full",
        1
    ),
];

/// The source.
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "pressure",
        required: &["pass"],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |_| {
        if host().is_err() {
            bail!(
                "this kernel doesn't measure pressure: boot it with psi=1, if it was built with CONFIG_PSI"
            );
        }
        Ok(Box::new(Pressure::default()))
    },
};

#[derive(Debug, Default)]
struct Pressure {
    numbers: Vec<Numbers>,
}

/// The host's pressure: the root cgroup has no books of its own.
fn host() -> Result<[u64; PRESSURES]> {
    let mut states = [0; PRESSURES];
    for (pair, resource) in states.chunks_exact_mut(2).zip(RESOURCES) {
        let text = std::fs::read_to_string(format!("/proc/pressure/{resource}"))
            .with_context(|| format!("reading /proc/pressure/{resource}"))?;
        for (ns, kind) in pair.iter_mut().zip(["some ", "full "]) {
            // Before 5.13 the CPU's has no `full`.
            let total = text.lines().find_map(|line| {
                let (_, total) = line.strip_prefix(kind)?.split_once("total=")?;
                total.trim().parse::<u64>().ok()
            });
            *ns = total.unwrap_or(0) * 1000;
        }
    }
    Ok(states)
}

impl Source for Pressure {
    fn name(&self) -> &'static str {
        "pressure"
    }

    fn families(&self) -> Vec<&'static Family> {
        METRICS.iter().map(|metric| &metric.family).collect()
    }

    fn collect(&mut self, snapshot: &Snapshot<'_>) -> Result<()> {
        let (tree, books) = (snapshot.tree, snapshot.books()?);
        self.numbers
            .resize(tree.capacity().max(self.numbers.len()), Numbers::default());
        for (number, _) in tree.iter() {
            if number == ROOT {
                self.numbers[number].now = Some(host()?);
            } else if let Some(record) = books.part(number, Part::Pressure) {
                self.numbers[number].now = Some(record.pressure_ns);
            }
        }
        Ok(())
    }

    fn last(&mut self, node: NodeId, record: &CgroupRecord) {
        if record.flags & HAS_PRESSURE != 0 {
            at(&mut self.numbers, node).now = Some(record.pressure_ns);
        }
    }

    fn fold(&mut self, from: NodeId, _into: NodeId) {
        // The kernel counts a child's pressure at its ancestors as well.
        if let Some(numbers) = self.numbers.get_mut(from) {
            *numbers = Numbers::default();
        }
    }

    fn revive(&mut self, node: NodeId) {
        if let Some(numbers) = self.numbers.get_mut(node)
            && let Some(now) = numbers.now.take()
        {
            for (earlier, now) in numbers.earlier.iter_mut().zip(now) {
                *earlier += now;
            }
        }
    }

    fn encode(&self, tree: &Tree, writer: &mut Writer) {
        encode(METRICS, tree, &self.numbers, writer);
    }
}
