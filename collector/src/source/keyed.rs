//! A source of counters by cgroup and a second key (a device, a reason), which becomes a label.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    Change, Inputs, Metric, Reading, Source,
    series::{Series, ThingLabels},
    values::{AddFrom, PerNode, Served, Summable, Summed, Things, Words},
};
use crate::{
    cgroup::{Node, NodeId, Nodes},
    exposition::Encoder,
    kernel::{
        cells::SlotMemory,
        keyed::{KeyedCells, KeyedValue, Lent},
    },
};

/// Returns the labels of the second part of a key.
pub type LabelsOf = Box<dyn FnMut(u64) -> ThingLabels + Send>;

/// Nodes with second keys that count in an ancestor's table, so that a series would show too little.
type LentByNode = HashMap<NodeId, Lent>;

/// A source of counters: `V` is the value in the kernel, `T` the counters of a node and a second
/// key.
pub struct KeyedCounters<V, T: 'static> {
    name: &'static str,
    metrics: &'static [Metric<T>],
    cells: KeyedCells<V>,
    values: Summed<Things<T>>,
    lent: Arc<LentByNode>,
    without_slot: Arc<HashSet<NodeId>>,
    labels: LabelsOf,
    series: Series,
}

impl<V: KeyedValue, T: Summable + Words + AddFrom<V>> KeyedCounters<V, T> {
    /// Makes a source over its tables and values. `labels` names the second part of a key. A
    /// family's series have those labels that the family lists.
    pub fn new(
        name: &'static str,
        metrics: &'static [Metric<T>],
        cells: KeyedCells<V>,
        labels: LabelsOf,
    ) -> Self {
        Self {
            name,
            metrics,
            cells,
            values: Summed::default(),
            lent: Arc::default(),
            without_slot: Arc::default(),
            labels,
            series: Series::new(metrics.iter().map(|metric| &metric.family)),
        }
    }

    /// Finds what cgroups count in an ancestor's table.
    fn find_lent(&self, inputs: &Inputs<'_>) -> LentByNode {
        let mut by_node = LentByNode::new();
        for &(node, slot) in inputs.slots {
            // A removed cgroup's slot may be here because its values are those of its parent now.
            if let Some((owner, lent)) = self.cells.lent(slot)
                && inputs.tree.of_path(owner) == Some(node)
            {
                by_node.insert(node, lent);
            }
        }
        by_node
    }
}

impl<V: KeyedValue, T: Summable + Words + AddFrom<V>> Source for KeyedCounters<V, T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        vec![&mut self.values, &mut self.series]
    }

    fn reads_slots(&self) -> bool {
        true
    }

    /// A cgroup of which something counts in an ancestor's table is left out: its total is too small.
    fn save_totals(&mut self, nodes: &[NodeId], each: &mut dyn FnMut(NodeId, &[u64])) {
        let mut words = Vec::new();
        for &node in nodes.iter().filter(|node| !self.lent.contains_key(node)) {
            words.clear();
            self.values.save_total(node, &mut words);
            each(node, &words);
        }
    }

    fn cells(&mut self) -> Option<&mut dyn SlotMemory> {
        Some(&mut self.cells)
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> anyhow::Result<()> {
        let tree = inputs.tree;
        let (cells, mut used) = (&self.cells, 0);
        self.values.renew(tree, |own| {
            for &(node, slot) in inputs.slots {
                used += cells.read(slot, |what, value| {
                    if let Some(things) = own.get_mut(node) {
                        things.of(what).add_from(value);
                    }
                });
            }
        });
        self.cells.set_used(used);
        self.lent = Arc::new(self.find_lent(inputs));
        self.without_slot = Arc::clone(inputs.without_slot);
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
            Change::SlotRetired { slot, node } => {
                let lent = self.cells.lent(slot).map(|(_, lent)| lent);
                let (mut last, mut any) = (Things::<T>::default(), false);
                self.cells.read(slot, |what, value| {
                    if !lent.as_ref().is_some_and(|lent| lent.has(what)) {
                        last.of(what).add_from(value);
                        any = true;
                    }
                });
                if any {
                    self.values.change_last(node, |sum| sum.add_from(&last));
                }
            }
            _ => {}
        }
    }

    fn reading(&self) -> Box<dyn Reading> {
        Box::new(KeyedReading {
            metrics: self.metrics,
            totals: self.values.totals().clone(),
            lent: Arc::clone(&self.lent),
            without_slot: Arc::clone(&self.without_slot),
            series: self.series.clone(),
        })
    }
}

/// What the source serves in one frame.
struct KeyedReading<T: 'static> {
    metrics: &'static [Metric<T>],
    totals: Served<Things<T>>,
    lent: Arc<LentByNode>,
    without_slot: Arc<HashSet<NodeId>>,
    series: Series,
}

impl<T: Summable + Words> Reading for KeyedReading<T> {
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
        let nodes = nodes.exported();
        let nodes = nodes.filter(|(number, _)| !self.without_slot.contains(number));
        self.totals.with_each(nodes, |nodes| self.write(nodes, out));
    }
}

impl<T: Summable + Words> KeyedReading<T> {
    fn write(&self, nodes: &[(NodeId, &Node, &Things<T>)], out: &mut dyn Encoder) {
        for metric in self.metrics {
            out.family(&metric.family);
            let Some(place) = self.series.place(&metric.family) else {
                continue;
            };
            let own = metric.samples.labels();
            for &(number, node, things) in nodes {
                if !node.serves(metric.family.kind) {
                    continue;
                }
                let lent = self.lent.get(&number);
                let complete = |what| !lent.is_some_and(|lent| lent.has(what));
                for (what, total) in things.iter().filter(|&(what, _)| complete(what)) {
                    let sets = self.series.get(number, what);
                    if let Some(labels) = sets.and_then(|sets| sets.get(place)) {
                        metric.samples.write(labels, &own, total, out);
                    }
                }
            }
        }
    }
}
