//! Sources: each turns its part of the kernel's values into metric families.
//!
//! One source is one file. A source with programs of its own has the same name in `collector-ebpf`,
//! `collector-common` and `tests`; those that read the cgroup iterator's records share its program.
//! Its table of [`Metric`]s holds name, help, unit, labels and the origin of the number. The
//! encoder, `cgmeter metrics` and the generated reference all read that table.
//!
//! Values are stored in columns by node of the cgroup tree, see [`values`]. An exported value
//! includes the descendants, also the removed ones.

mod block;
mod change;
mod comparison;
mod containers;
mod counters;
mod cpu;
pub mod custom;
mod devices;
mod disk;
mod drops;
mod filesystem;
mod hugetlb;
mod io;
mod kernel_file;
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
mod statistics;
mod tasks;
mod tcp;
pub mod values;
mod version;

use std::{collections::HashSet, sync::Arc, time::SystemTime};

use anyhow::Context;
pub use change::{Change, notify};
pub use comparison::Comparison;
use comparison::Pair;
pub use lifecycle::{LIFECYCLE_FAMILIES, LifecycleSource};
pub use runtimes::RuntimesReport;
pub use self_metrics::{EncodingReport, FAMILIES, Report, SelfMetrics, WithoutSlot};
pub use statistics::{CgroupStatistics, FinalRecords, Part, V1Event};

use crate::{
    cgroup::{Hierarchies, Node, NodeId, Nodes, Tree},
    exposition::{Encoder, Family, Histogram, LabelSet, Labels, Value},
    kernel::{
        cells::SlotMemory,
        fields,
        load::Kernel,
        programs::{NotOnThisHost, Requirement},
    },
};
use values::{Column, PerNode, Served, digest};

/// What the agent knows about a source before it is created.
pub struct Registration {
    /// Its name and the programs that it needs.
    pub requirement: Requirement,
    /// The families of metrics that it serves.
    pub families: fn() -> Vec<&'static Family>,
    /// Creates the source, on a kernel that can run it.
    pub build: fn(&mut Builder<'_>) -> anyhow::Result<Box<dyn Source>>,
}

/// What a source is created from.
#[derive(Debug)]
pub struct Builder<'a> {
    /// The loaded object file.
    pub kernel: &'a mut Kernel,
    /// The mounted hierarchies.
    pub hierarchies: &'a Hierarchies,
    /// Settings of custom metrics.
    pub custom: &'a custom::CustomOptions,
    /// Maximum number of network namespaces that are read.
    pub max_namespaces: usize,
}

impl Builder<'_> {
    /// Checks that this kernel has a controller, by a field of its kernel structure.
    ///
    /// # Errors
    ///
    /// [`NotOnThisHost`] if the kernel does not have the structure. Other errors if it has, but
    /// without the field.
    fn require_controller(&self, name: &str, field: &str) -> anyhow::Result<()> {
        let types = self.kernel.types()?;
        let structure = field.split('.').next().unwrap_or_default();
        if !fields::has_structure(types, structure) {
            return Err(NotOnThisHost(format!("this kernel has no {name} controller")).into());
        }
        fields::offset_of(types, field)
            .map(drop)
            .with_context(|| format!("the {name} controller of this kernel can't be read"))
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
    containers::SOURCE,
];

/// What sources read from when a frame is taken.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The tree of cgroups.
    pub tree: &'a Tree,
    /// Nodes and the slots that count for them, retired slots included.
    pub slots: &'a [(NodeId, u32)],
    /// Nodes without values of their own: of cgroups that got no slot and count in an ancestor's, and of
    /// removed ones whose last values were not seen.
    pub without_slot: &'a Arc<HashSet<NodeId>>,
    /// The kernel statistics, if the cgroup iterator can run.
    pub statistics: Option<&'a CgroupStatistics>,
    /// When the frame was taken.
    pub time: SystemTime,
}

impl<'a> Inputs<'a> {
    /// Returns the kernel statistics.
    ///
    /// # Errors
    ///
    /// When the cgroup iterator can't run, or failed this time. A source that needs it fails then.
    pub fn statistics(&self) -> anyhow::Result<&'a CgroupStatistics> {
        self.statistics
            .filter(|statistics| statistics.is_complete())
            .context("the kernel statistics of cgroups could not be read")
    }
}

/// Why a part of a source could not be read. It serves what it has read now; the rest is left out.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Partly(pub String);

/// A source of metrics by cgroup.
pub trait Source: Send {
    /// Name, as in `--collector.NAME` and `cgmeter_source_up`.
    fn name(&self) -> &'static str;
    /// Everything that it stores by node. [`notify`] takes a reaped node's values out of it.
    fn values(&mut self) -> Vec<&mut dyn PerNode>;
    /// Reads its values.
    ///
    /// # Errors
    ///
    /// When the reading fails. What it has counted stays with it, but it serves nothing until it is read
    /// again. [`Partly`], if the rest could be read.
    fn collect(&mut self, inputs: &Inputs<'_>) -> anyhow::Result<()>;
    /// Handles a change of a cgroup.
    fn change(&mut self, change: &Change<'_>);
    /// Returns what it serves now. The result does not change when the source reads again.
    fn reading(&self) -> Box<dyn Reading>;
    /// Whether it reads what slots hold, see [`Inputs::slots`]. It is read while no program moves
    /// values from one slot to another, and once more if one did all the same.
    fn reads_slots(&self) -> bool {
        false
    }
    /// Passes on what each of some living nodes keeps from what is gone, for the next agent, see
    /// [`PerNode::save`]. Zeros alone need not be kept.
    fn save(&mut self, nodes: &[NodeId], each: &mut dyn FnMut(NodeId, &[u64])) {
        let values = self.values();
        let mut words = Vec::new();
        for &node in nodes {
            words.clear();
            for values in &values {
                values.save(node, &mut words);
            }
            each(node, &words);
        }
    }
    /// The same of a removed node, see [`PerNode::save_end`].
    fn save_end(&mut self, node: NodeId, each: &mut dyn FnMut(&[u64])) {
        let mut words = Vec::new();
        for values in self.values() {
            values.save_end(node, &mut words);
        }
        each(&words);
    }
    /// The same for an agent that can't have the kernel side's values, because its maps are others: passes on
    /// all that is served, see [`PerNode::save_total`].
    fn save_totals(&mut self, nodes: &[NodeId], each: &mut dyn FnMut(NodeId, &[u64])) {
        let values = self.values();
        let mut words = Vec::new();
        for &node in nodes {
            words.clear();
            for values in &values {
                values.save_total(node, &mut words);
            }
            each(node, &words);
        }
    }
    /// Says what these words are, see [`PerNode::shape`].
    fn shape(&mut self) -> u64 {
        let values = self.values().into_iter();
        values.fold(0, |all, values| digest(all, values.shape()))
    }
    /// Takes what an earlier agent has saved of a node. `None` if that is something else.
    fn restore(&mut self, node: NodeId, words: &mut &[u64]) -> Option<()> {
        let mut values = self.values().into_iter();
        values.try_for_each(|values| values.restore(node, words))
    }
    /// Returns its cells, if it has any. The slot pool creates them.
    fn cells(&mut self) -> Option<&mut dyn SlotMemory> {
        None
    }
    /// Returns what it reports about itself, in addition to its families.
    fn report(&self) -> SourceReport {
        SourceReport::default()
    }
    /// Returns what it has counted of each cgroup of which the kernel counts the same. `None` if it counts
    /// nothing of the kind, or can't tell now.
    fn pairs(&self, inputs: &Inputs<'_>) -> Option<Vec<Pair>> {
        let _ = inputs;
        None
    }
    /// Does work that must not wait for the next scrape. Called between scrapes; returns the time
    /// until the next call.
    fn idle(&mut self, tree: &Tree) -> Option<std::time::Duration> {
        let _ = tree;
        None
    }
}

/// Values of a source for one frame.
pub trait Reading: Send + Sync {
    /// Encodes its families, for the nodes of the same frame.
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder);
}

/// What a source reports about itself.
#[derive(Clone, Debug, Default)]
pub struct SourceReport {
    /// A restriction of the running source, known after its first reading.
    pub note: Option<String>,
    /// Name and number of runs of a program that does not count its own runs.
    pub runs: Option<(&'static str, u64)>,
    /// Kernel memory in bytes, without the fixed maps of the object file and its cells.
    pub kernel_memory: u64,
    /// Numbers of network namespaces.
    pub namespaces: Option<NamespaceCounts>,
}

/// Numbers of network namespaces.
#[derive(Clone, Copy, Debug)]
pub struct NamespaceCounts {
    /// Those that are read.
    pub read: u64,
    /// Those that are not, because there are too many.
    pub left_out: u64,
    /// Those that ended while no agent ran, so that their last counts are not known.
    pub lost: u64,
}

/// Names and values of the labels that distinguish the series of a family.
pub type Extra = &'static [(&'static str, &'static str)];

/// How a value is read from a node's values; `None` leaves the series out.
pub type Reader<T> = fn(&T) -> Option<Value>;

/// How a histogram is read from a node's values; `None` leaves it out.
pub type HistogramReader<T> = fn(&T) -> Option<Histogram<'_>>;

/// How a family's samples are read.
pub enum Samples<T: 'static> {
    /// One sample per series.
    Scalars(&'static [(Extra, Reader<T>)]),
    /// One log2 histogram per series, left out until its first event.
    Histograms(&'static [(Extra, HistogramReader<T>)]),
}

impl<T> Samples<T> {
    /// Makes the labels of each series, so that they are escaped once for all nodes.
    fn labels(&self) -> Vec<LabelSet> {
        match self {
            Self::Scalars(series) => series
                .iter()
                .map(|(extra, _)| LabelSet::new(extra))
                .collect(),
            Self::Histograms(series) => series
                .iter()
                .map(|(extra, _)| LabelSet::new(extra))
                .collect(),
        }
    }

    /// Writes the samples of one node into the family last begun. `own` is what
    /// [`labels`](Self::labels) has made.
    #[inline]
    fn write(&self, labels: &LabelSet, own: &[LabelSet], value: &T, out: &mut dyn Encoder) {
        match self {
            Self::Scalars(series) => {
                for ((_, read), own) in series.iter().zip(own) {
                    if let Some(value) = read(value) {
                        out.sample(Labels::with_own(labels, own), value);
                    }
                }
            }
            Self::Histograms(series) => {
                for ((_, read), own) in series.iter().zip(own) {
                    if let Some(histogram) = read(value) {
                        out.histogram(Labels::with_own(labels, own), histogram);
                    }
                }
            }
        }
    }
}

/// A family and how to read it.
pub struct Metric<T: 'static> {
    /// Name, help, type and unit.
    pub family: Family,
    /// How the family's samples are read from a node's numbers.
    pub samples: Samples<T>,
}

/// A reading with one value per node, encoded by a table of metrics.
struct Table<T: 'static> {
    metrics: &'static [Metric<T>],
    values: Served<T>,
    /// Nodes for which nothing is served.
    except: Arc<HashSet<NodeId>>,
}

impl<T: Clone + Default + Send + Sync> Table<T> {
    /// Makes the reading of a source with these values.
    fn reading(metrics: &'static [Metric<T>], values: &Column<T>) -> Box<dyn Reading> {
        Box::new(Self {
            metrics,
            values: values.clone().into(),
            except: Arc::default(),
        })
    }

    /// The same, without some nodes.
    fn reading_except(
        metrics: &'static [Metric<T>],
        values: Served<T>,
        except: &Arc<HashSet<NodeId>>,
    ) -> Box<dyn Reading> {
        Box::new(Self {
            metrics,
            values,
            except: Arc::clone(except),
        })
    }
}

impl<T: Clone + Send + Sync> Reading for Table<T> {
    /// Gauges of removed cgroups are left out.
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
        let served = |&(number, _): &(NodeId, _)| !self.except.contains(&number);
        let nodes = nodes.exported().filter(served);
        self.values.with_each(nodes, |nodes| self.write(nodes, out));
    }
}

impl<T> Table<T> {
    fn write(&self, nodes: &[(NodeId, &Node, &T)], out: &mut dyn Encoder) {
        for metric in self.metrics {
            out.family(&metric.family);
            let own = metric.samples.labels();
            for &(_, node, value) in nodes {
                if node.serves(metric.family.kind) {
                    metric.samples.write(&node.labels, &own, value, out);
                }
            }
        }
    }
}
