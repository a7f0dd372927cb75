//! Sources: each turns its part of the kernel's numbers into metric families.
//!
//! One source is one file, named as its files in `collector-ebpf`, `collector-common` and `tests`.
//! Its table of [`Metric`]s holds name, help, unit, labels and where the number comes from; the
//! encoder, `cgmeter metrics` and the generated reference all read that table.
//!
//! Values are kept by node of the cgroup tree. An exported value includes the descendants, the
//! dead ones too: what a node's vanished children and recycled slots had is *kept* at the node.

mod agent;
mod block;
mod books;
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
mod tasks;
mod tcp;

use std::time::SystemTime;

use anyhow::Context;
use collector_common::{histogram::BUCKETS, pass::CgroupRecord};

pub use agent::{FAMILIES, Report, SelfMetrics};
pub use books::{Books, ForeignEvent, Part};
pub use lifecycle::Lifecycle;

use crate::{
    cgroup::{Hierarchies, NodeId, Tree},
    exposition::{Family, Histogram, Kind, LabelSet, Value, Writer},
    kernel::{cells::SlotMemory, fields, load::Kernel, programs::Requirement},
};

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
    /// Makes sure that this kernel has a controller, by a field of its books.
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
    /// The kernel's own books, where the pass can run.
    pub books: Option<&'a Books>,
    /// When the snapshot was taken.
    pub time: SystemTime,
}

impl<'a> Snapshot<'a> {
    /// The kernel's own books.
    ///
    /// # Errors
    ///
    /// When the pass can't run: a source that needs it is off then.
    pub fn books(&self) -> anyhow::Result<&'a Books> {
        self.books.context("there is no pass")
    }
}

/// A source of metrics by cgroup.
pub trait Source: Send {
    /// Name, as in `--collector.NAME` and `cgmeter_source_up`.
    fn name(&self) -> &'static str;
    /// Its families.
    fn families(&self) -> Vec<&'static Family>;
    /// Its cells, if it has any.
    fn memory(&mut self) -> Option<&mut dyn SlotMemory> {
        None
    }
    /// Reads its numbers.
    ///
    /// # Errors
    ///
    /// What went wrong; the families keep their last values.
    fn collect(&mut self, snapshot: &Snapshot<'_>) -> anyhow::Result<()>;
    /// How it runs, if that is not as it should be; asked after its first reading.
    fn note(&self) -> Option<String> {
        None
    }
    /// Keeps a slot's last numbers at a node, before the slot is recycled.
    fn keep(&mut self, slot: u32, node: NodeId) {
        let _ = (slot, node);
    }
    /// Takes in what cgroups have left behind that went some time ago.
    fn retire(&mut self, tree: &Tree) {
        let _ = tree;
    }
    /// Hands what is kept at a node to another, before the first is reaped.
    fn fold(&mut self, from: NodeId, into: NodeId) {
        let _ = (from, into);
    }
    /// A dead node's cgroup has been made again.
    fn revive(&mut self, node: NodeId) {
        let _ = node;
    }
    /// A node's labels are others now: what was made from them is made anew.
    fn relabel(&mut self, node: NodeId) {
        let _ = node;
    }
    /// A cgroup was removed: its last record, of cgroup2 or of a v1 hierarchy with the same path.
    fn last(&mut self, node: NodeId, record: &CgroupRecord) {
        let _ = (node, record);
    }
    /// A cgroup was removed.
    fn removed(&mut self, id: u64) {
        let _ = id;
    }
    /// Asked now and then when nobody scrapes, for what must not wait; returns for how long there
    /// is nothing to do.
    fn idle(&mut self, tree: &Tree) -> Option<std::time::Duration> {
        let _ = tree;
        None
    }
    /// CPU time by node since the cgroup was made, ns, from the kernel's own books.
    fn lifetime(&self) -> Option<Vec<Option<u64>>> {
        None
    }
    /// Takes over what [`lifetime`](Self::lifetime) says of the time before the agent came.
    fn set_earlier(&mut self, tree: &Tree, lifetime: &[Option<u64>]) {
        let _ = (tree, lifetime);
    }
    /// Runs of its hot programs, which count nothing themselves: name and number.
    fn runs(&self) -> Option<(&'static str, u64)> {
        None
    }
    /// Kernel memory that it uses beside the object's fixed maps and its cells, bytes.
    fn kernel_memory(&self) -> u64 {
        0
    }
    /// Writes its families.
    fn encode(&self, tree: &Tree, writer: &mut Writer);
}

/// Adds a histogram's buckets to sums of them.
fn add_histogram(sums: &mut [u64; BUCKETS], counts: &[u64; BUCKETS]) {
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum += count;
    }
}

/// A node's place in a vector by node, which is made longer if need be.
fn at<T: Clone + Default>(values: &mut Vec<T>, node: NodeId) -> &mut T {
    if values.len() <= node {
        values.resize(node + 1, T::default());
    }
    &mut values[node]
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
    /// The same in the wider buckets of a long histogram.
    LongHistograms(&'static [(Extra, HistogramReader<T>)]),
}

impl<T> Samples<T> {
    /// Writes the samples of one set of numbers into the family last begun.
    #[inline]
    fn write(&self, labels: &LabelSet, value: &T, writer: &mut Writer) {
        match self {
            Self::Scalars(series) => {
                for (extra, read) in *series {
                    if let Some(value) = read(value) {
                        writer.sample(labels, extra, value);
                    }
                }
            }
            Self::Histograms(series) => {
                for (extra, read) in *series {
                    if let Some(histogram) = read(value) {
                        writer.histogram(labels, extra, histogram);
                    }
                }
            }
            Self::LongHistograms(series) => {
                for (extra, read) in *series {
                    if let Some(histogram) = read(value) {
                        writer.long_histogram(labels, extra, histogram);
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

/// Writes a table of metrics for all exported nodes. Gauges end with their cgroup.
pub fn encode<T>(metrics: &[Metric<T>], tree: &Tree, values: &[T], writer: &mut Writer) {
    let nodes: Vec<(&LabelSet, &T, bool)> = tree
        .iter()
        .filter(|(_, node)| node.exported)
        .filter_map(|(number, node)| Some((&node.labels, values.get(number)?, node.died.is_some())))
        .collect();
    for metric in metrics {
        writer.family(&metric.family);
        let gauge = metric.family.kind == Kind::Gauge;
        for (labels, value, dead) in &nodes {
            if gauge && *dead {
                continue;
            }
            metric.samples.write(labels, value, writer);
        }
    }
}
