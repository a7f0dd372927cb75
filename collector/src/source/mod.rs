//! Sources: each turns its part of the kernel's numbers into metric families.
//!
//! One source is one file, named as its files in `collector-ebpf`, `collector-common` and `tests`.
//! Its table of [`Metric`]s holds name, help, unit, labels and where the number comes from; the
//! encoder, `cgmeter metrics` and the generated reference all read that table.
//!
//! Values lie in columns by node of the cgroup tree, see [`values`]. An exported value includes the
//! descendants, those that are gone as well.

mod block;
mod books;
mod change;
mod container;
mod counters;
mod cpu;
mod custom;
mod devices;
mod disk;
mod drops;
mod filesystem;
mod hugetlb;
mod io;
mod keyed;
mod lifecycle;
mod machine;
mod memory;
mod net;
mod netdev;
mod pids;
mod pressure;
mod process;
mod reclaim;
mod runtimes;
mod sched;
mod self_metrics;
mod series;
mod tasks;
mod tcp;
pub mod values;

use std::time::SystemTime;

use anyhow::Context;
pub use books::{Books, FinalRecords, ForeignEvent, Part};
pub use change::{Change, notify};
pub use lifecycle::{LIFECYCLE_FAMILIES, Lifecycle};
pub use runtimes::RuntimesReport;
pub use self_metrics::{EncodingReport, FAMILIES, Report, SelfMetrics};

use crate::{
    cgroup::{Hierarchies, Node, NodeId, Nodes, Tree},
    exposition::{Encoder, Family, Histogram, LabelSet, Labels, Value},
    kernel::{cells::SlotMemory, fields, load::Kernel, programs::Requirement},
};
use values::{Column, PerNode};

/// What the agent knows of a source before it is made.
pub struct Registration {
    /// Its name and the programs it needs.
    pub requirement: Requirement,
    /// Its families.
    pub families: fn() -> Vec<&'static Family>,
    /// Makes it.
    pub build: fn(&mut Builder<'_>) -> anyhow::Result<Box<dyn Source>>,
}

/// What a source is made from.
#[derive(Debug)]
pub struct Builder<'a> {
    /// The loaded object.
    pub kernel: &'a mut Kernel,
    /// Where the hierarchies are.
    pub hierarchies: &'a Hierarchies,
    /// Settings of custom metrics.
    pub custom: &'a crate::custom::Options,
}

impl Builder<'_> {
    /// Makes sure that this kernel has a controller, by a field of its structure.
    ///
    /// # Errors
    ///
    /// When it hasn't.
    fn require_controller(&self, name: &str, field: &str) -> anyhow::Result<()> {
        fields::offset_of(self.kernel.types()?, field)
            .map(drop)
            .with_context(|| format!("this kernel has no {name} controller"))
    }
}

/// Every source that can be switched on and off (`--collector.NAME`).
pub const SOURCES: &[Registration] = &[
    sched::SOURCE,
    cpu::SOURCE,
    memory::SOURCE,
    hugetlb::SOURCE,
    pressure::SOURCE,
    pids::SOURCE,
    io::SOURCE,
    reclaim::SOURCE,
    process::SOURCE,
    block::SOURCE,
    disk::SOURCE,
    net::SOURCE,
    netdev::SOURCE,
    tcp::SOURCE,
    drops::SOURCE,
    tasks::SOURCE,
    machine::SOURCE,
    filesystem::SOURCE,
    custom::SOURCE,
    container::SOURCE,
];

/// What a source reads from for one snapshot.
#[derive(Debug)]
pub struct Snapshot<'a> {
    /// The tree.
    pub tree: &'a Tree,
    /// Nodes and the slots that count for them, recycled ones' last numbers included.
    pub slots: &'a [(NodeId, u32)],
    /// Kernel statistics, where the cgroup iterator can run.
    pub books: Option<&'a Books>,
    /// When the snapshot was taken.
    pub time: SystemTime,
}

impl<'a> Snapshot<'a> {
    /// Kernel statistics.
    ///
    /// # Errors
    ///
    /// When the cgroup iterator can't run: a source that needs it is off then.
    pub fn books(&self) -> anyhow::Result<&'a Books> {
        self.books.context("there is no pass")
    }
}

/// A source of metrics by cgroup.
pub trait Source: Send {
    /// Name, as in `--collector.NAME` and `cgmeter_source_up`.
    fn name(&self) -> &'static str;
    /// Everything that it has by node: [`notify`] takes a reaped node's values out of it.
    fn values(&mut self) -> Vec<&mut dyn PerNode>;
    /// Reads its numbers.
    ///
    /// # Errors
    ///
    /// What went wrong; the families keep their last values.
    fn collect(&mut self, snapshot: &Snapshot<'_>) -> anyhow::Result<()>;
    /// Something has happened to a cgroup.
    fn change(&mut self, change: &Change<'_>);
    /// What it serves now. It does not change any more, whatever the source reads later.
    fn reading(&self) -> Box<dyn Reading>;
    /// Its cells, if it has any: the slot pool makes and clears them.
    fn cells(&mut self) -> Option<&mut dyn SlotMemory> {
        None
    }
    /// What it reports of itself beside its families.
    fn report(&self) -> SourceReport {
        SourceReport::default()
    }
    /// Called when nobody scrapes, for what must not wait for the next scrape. Returns after how
    /// long it is to be called again.
    fn idle(&mut self, tree: &Tree) -> Option<std::time::Duration> {
        let _ = tree;
        None
    }
}

/// What a source has read for one frame.
pub trait Reading: Send + Sync {
    /// Encodes its families, for the nodes of the same frame.
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder);
}

/// What a source reports of itself.
#[derive(Clone, Debug, Default)]
pub struct SourceReport {
    /// Why it does not run as it should; known after its first reading.
    pub note: Option<String>,
    /// Name and number of runs of a program that does not count its own.
    pub runs: Option<(&'static str, u64)>,
    /// Kernel memory that it uses beside the object's fixed maps and its cells, bytes.
    pub kernel_memory: u64,
}

/// Names and values of the labels that tell the series of a family apart.
pub type Extra = &'static [(&'static str, &'static str)];

/// How a value is read from a node's numbers; `None` leaves the series out.
pub type Reader<T> = fn(&T) -> Option<Value>;

/// How a histogram is read from a node's numbers; `None` leaves it out.
pub type HistogramReader<T> = fn(&T) -> Option<Histogram<'_>>;

/// Where a family's samples come from.
pub enum Samples<T: 'static> {
    /// One sample a series.
    Scalars(&'static [(Extra, Reader<T>)]),
    /// One log2 histogram a series, left out until its first event.
    Histograms(&'static [(Extra, HistogramReader<T>)]),
}

impl<T> Samples<T> {
    /// Writes the samples of one set of numbers into the family last begun.
    #[inline]
    fn write(&self, labels: &LabelSet, value: &T, out: &mut dyn Encoder) {
        match self {
            Self::Scalars(series) => {
                for (extra, read) in *series {
                    if let Some(value) = read(value) {
                        out.sample(Labels::new(labels, extra), value);
                    }
                }
            }
            Self::Histograms(series) => {
                for (extra, read) in *series {
                    if let Some(histogram) = read(value) {
                        out.histogram(Labels::new(labels, extra), histogram);
                    }
                }
            }
        }
    }
}

/// A family and how to read it.
pub struct Metric<T: 'static> {
    /// What it is.
    pub family: Family,
    /// Where it comes from.
    pub samples: Samples<T>,
}

/// A reading that is a value for each node, encoded by a table of metrics.
struct Table<T: 'static> {
    metrics: &'static [Metric<T>],
    values: Column<T>,
}

impl<T: Clone + Send + Sync> Table<T> {
    /// The reading of a source with those values.
    fn reading(metrics: &'static [Metric<T>], values: &Column<T>) -> Box<dyn Reading> {
        Box::new(Self {
            metrics,
            values: values.clone(),
        })
    }
}

impl<T: Send + Sync> Reading for Table<T> {
    /// Gauges of removed cgroups are left out.
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
        let of_node = |(number, node): (NodeId, _)| Some((node, self.values.get(number)?));
        let nodes: Vec<(&Node, &T)> = nodes.exported().filter_map(of_node).collect();
        for metric in self.metrics {
            out.family(&metric.family);
            for (node, value) in &nodes {
                if node.serves(metric.family.kind) {
                    metric.samples.write(&node.labels, value, out);
                }
            }
        }
    }
}
