//! A source of counters by cgroup and a second key (a device, a reason), which becomes a label.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use collector_common::keyed::CgroupKey;

use super::{
    Change, Inputs, Metric, Reading, Source, SourceReport,
    series::{Series, ThingLabels},
    values::{AddFrom, Column, PerNode, Summable, Summed, Things},
};
use crate::{
    cgroup::{NodeId, Nodes, Tree},
    exposition::Encoder,
    kernel::{
        keyed::{Keyed, KeyedValue},
        rows::Rows,
    },
};

/// How long after a cgroup's removal its entries are taken out of the kernel's map. By then most of
/// its pending events have been counted. A later event makes a new entry, which is taken out as
/// well. The time is shorter than the agent's quarantine, so that no entry is left after that.
const QUARANTINE: Duration = Duration::from_millis(1500);

/// How long a revoked row may still be written: a program that found the row before is done within
/// microseconds.
const GRACE: Duration = Duration::from_millis(500);

/// Returns the labels of the second part of a key.
pub type LabelsOf = Box<dyn FnMut(u64) -> ThingLabels + Send>;

/// A revoked row of the kernel, until [`GRACE`] is over.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    row: usize,
    /// The node that its values belong to, `None` if it is not in the tree.
    node: Option<NodeId>,
    what: u64,
    since: Instant,
}

/// A source of counters: `V` is the value in the kernel, `T` the counters of a node and a second
/// key.
pub struct KeyedCounters<V, T: 'static> {
    name: &'static str,
    metrics: &'static [Metric<T>],
    map: Keyed<V>,
    kernel_rows: Option<Rows<V>>,
    leaving: Vec<Leaving>,
    values: Summed<Things<T>>,
    labels: LabelsOf,
    series: Series,
}

/// Values in the kernel now, by node and second key.
type Live<T> = HashMap<(NodeId, u64), T>;

impl<V: KeyedValue, T: Summable + AddFrom<V>> KeyedCounters<V, T> {
    /// Makes a source over its entries, and over its rows if it has any. `labels` names the second
    /// part of a key. A family's series have those labels that the family lists.
    pub fn new(
        name: &'static str,
        metrics: &'static [Metric<T>],
        map: Keyed<V>,
        kernel_rows: Option<Rows<V>>,
        labels: LabelsOf,
    ) -> Self {
        Self {
            name,
            metrics,
            map,
            kernel_rows,
            leaving: Vec::new(),
            values: Summed::default(),
            labels,
            series: Series::new(metrics.iter().map(|metric| &metric.family)),
        }
    }

    /// Reads the kernel's entries. Takes out and retains those of cgroups that are past their
    /// quarantine.
    fn read(&mut self, tree: &Tree, now: Instant) -> anyhow::Result<Live<T>> {
        let mut live = Live::<T>::new();
        let mut gone = Vec::new();
        for (key, value) in self.map.read()? {
            match living(tree, now, key) {
                Some(node) => live.entry((node, key.what)).or_default().add_from(value),
                None => gone.push(key),
            }
        }
        for key in gone {
            if let Some(value) = self.map.take(key)
                && let Some(number) = tree.by_id(key.cgroup)
            {
                self.values.retained(number).of(key.what).add_from(&value);
            }
        }
        self.read_rows(tree, now, &mut live);
        Ok(live)
    }

    /// Reads the kernel's rows in the same way.
    fn read_rows(&mut self, tree: &Tree, now: Instant, live: &mut Live<T>) {
        let Some(rows) = self.kernel_rows.take() else {
            return;
        };
        for (row, key) in rows.owned() {
            if let Some(node) = living(tree, now, key) {
                let value = rows.value(row);
                live.entry((node, key.what)).or_default().add_from(&value);
                continue;
            }
            rows.revoke(row);
            self.leaving.push(Leaving {
                row,
                node: tree.by_id(key.cgroup),
                what: key.what,
                since: Instant::now(),
            });
        }
        for leaving in std::mem::take(&mut self.leaving) {
            let Leaving {
                row, node, what, ..
            } = leaving;
            let over = leaving.since.elapsed() >= GRACE;
            let value = rows.value(row);
            match node {
                Some(node) if over => self.values.retained(node).of(what).add_from(&value),
                Some(node) => live.entry((node, what)).or_default().add_from(&value),
                // A cgroup outside `--cgroup.root`.
                None => {}
            }
            if over {
                rows.free(row);
            } else {
                self.leaving.push(leaving);
            }
        }
        self.kernel_rows = Some(rows);
    }
}

/// Returns the node of a key's cgroup. `None` if there is none, or if the cgroup was removed so
/// long ago that its entries are to be taken out.
fn living(tree: &Tree, now: Instant, key: CgroupKey) -> Option<NodeId> {
    let over = |gone: Instant| now.saturating_duration_since(gone) >= QUARANTINE;
    let number = tree.by_id(key.cgroup)?;
    let node = tree.node(number)?;
    (node.id == key.cgroup && !node.gone.is_some_and(over)).then_some(number)
}

impl<V: KeyedValue, T: Summable + AddFrom<V>> Source for KeyedCounters<V, T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        vec![&mut self.values, &mut self.series]
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> anyhow::Result<()> {
        let tree = inputs.tree;
        let live = self.read(tree, Instant::now())?;
        self.values.renew(tree, |own| {
            for ((node, what), value) in live {
                own[node].of(what).add_from(&value);
            }
        });
        for (number, node) in tree.iter() {
            if let Some(things) = self.values.totals().get(number) {
                let things = things.iter().map(|(what, _)| what);
                self.series
                    .name(number, &node.labels, things, &mut self.labels);
            }
        }
        Ok(())
    }

    fn change(&mut self, change: &Change<'_>) {
        match *change {
            Change::Relabelled { node } => self.series.relabel(node),
            Change::QuarantineOver { tree } => {
                if let Err(error) = self.read(tree, Instant::now()) {
                    tracing::warn!(
                        source = self.name,
                        %error,
                        "the counters of removed cgroups could not be taken out of the kernel's map"
                    );
                }
            }
            Change::Reaped { node, into } => {
                let of_node = |leaving: &&mut Leaving| leaving.node == Some(node);
                for leaving in self.leaving.iter_mut().filter(of_node) {
                    leaving.node = Some(into);
                }
            }
            _ => {}
        }
    }

    fn report(&self) -> SourceReport {
        SourceReport {
            kernel_memory: self.map.bytes(),
            ..SourceReport::default()
        }
    }

    fn reading(&self) -> Box<dyn Reading> {
        Box::new(KeyedReading {
            metrics: self.metrics,
            totals: self.values.totals().clone(),
            series: self.series.clone(),
        })
    }
}

/// What the source serves in one frame.
struct KeyedReading<T: 'static> {
    metrics: &'static [Metric<T>],
    totals: Column<Things<T>>,
    series: Series,
}

impl<T: Send + Sync> Reading for KeyedReading<T> {
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
        for metric in self.metrics {
            out.family(&metric.family);
            let Some(place) = self.series.place(&metric.family) else {
                continue;
            };
            let own = metric.samples.labels();
            for (number, node) in nodes.exported() {
                let Some(things) = self.totals.get(number) else {
                    continue;
                };
                if !node.serves(metric.family.kind) {
                    continue;
                }
                for (what, total) in things.iter() {
                    let sets = self.series.get(number, what);
                    if let Some(labels) = sets.and_then(|sets| sets.get(place)) {
                        metric.samples.write(labels, &own, total, out);
                    }
                }
            }
        }
    }
}
