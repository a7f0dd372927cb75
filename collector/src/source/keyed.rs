//! A source whose numbers are counters by cgroup and something else (a device, a reason), which
//! becomes a label: reading, folding, keeping.
//!
//! Invariant: as of `counters`: a total never goes back. It is what is kept in a row, plus the
//! kernel's entry, plus the totals of the rows of the children for the same thing.

use std::{
    collections::HashMap,
    ops::AddAssign,
    time::{Duration, Instant, SystemTime},
};

use collector_common::keyed::CgroupKey;

use super::{Metric, Snapshot, Source};
use crate::{
    cgroup::{NodeId, Tree},
    exposition::{Family, Kind, LabelSet, Writer},
    kernel::{
        keyed::{Keyed, KeyedValue},
        rows::Rows,
    },
};

/// How long after a cgroup's end its entries are taken out of the kernel's map: what it had under
/// way is mostly counted by then. What comes later makes a new entry and is taken in as well. Less
/// than the agent waits before it has sources retire cgroups, so that none is left.
const QUARANTINE: Duration = Duration::from_millis(1500);

/// How long after a row was taken from its owner nobody writes it any more: a program that had
/// found it before is done within microseconds.
const GRACE: Duration = Duration::from_millis(500);

/// Numbers of which all are sums.
pub trait Sums<V>:
    Copy + Default + Send + for<'a> AddAssign<&'a V> + for<'a> AddAssign<&'a Self>
{
}

/// Labels for the second part of a key.
pub type Labels = Box<dyn FnMut(u64) -> Vec<(&'static str, String)> + Send>;

/// One node's numbers for one thing.
#[derive(Clone, Debug)]
struct Row<T> {
    what: u64,
    /// Those of the node and of the thing, by kind of family; absent until the next reading.
    labels: Option<Box<[LabelSet]>>,
    kept: T,
    total: T,
}

/// A row of the kernel's that was taken from its owner, until [`GRACE`] is over.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    row: usize,
    /// Whose its numbers are, `None`: of nobody in the tree.
    node: Option<NodeId>,
    what: u64,
    since: Instant,
}

/// A source of counters: `V` is the value in the kernel, `T` a row's numbers.
pub struct KeyedCounters<V, T: 'static> {
    name: &'static str,
    metrics: &'static [Metric<T>],
    map: Keyed<V>,
    kernel_rows: Option<Rows<V>>,
    leaving: Vec<Leaving>,
    table: Table<T>,
}

/// Rows with their labels.
struct Table<T> {
    labels: Labels,
    /// Names of labels that families have, each list once.
    label_names: Vec<&'static [&'static str]>,
    /// Rows by node, few each.
    rows: Vec<Vec<Row<T>>>,
}

impl<V: KeyedValue, T: Sums<V>> KeyedCounters<V, T> {
    /// A source over its entries, and its rows if it has any; `labels` names what a key is of. A
    /// family's series have those of them that the family names.
    pub fn new(
        name: &'static str,
        metrics: &'static [Metric<T>],
        map: Keyed<V>,
        kernel_rows: Option<Rows<V>>,
        labels: Labels,
    ) -> Self {
        let mut label_names = Vec::new();
        for metric in metrics {
            if !label_names.contains(&metric.family.labels) {
                label_names.push(metric.family.labels);
            }
        }
        Self {
            name,
            metrics,
            map,
            kernel_rows,
            leaving: Vec::new(),
            table: Table {
                labels,
                label_names,
                rows: Vec::new(),
            },
        }
    }

    /// Reads the kernel's entries: those of cgroups long gone are taken out and kept.
    fn read(&mut self, tree: &Tree, now: SystemTime) -> anyhow::Result<HashMap<(NodeId, u64), T>> {
        let mut live: HashMap<(NodeId, u64), T> = HashMap::new();
        let mut gone = Vec::new();
        for (key, value) in self.map.read()? {
            match living(tree, now, key) {
                Some(node) => *live.entry((node, key.what)).or_default() += value,
                None => gone.push(key),
            }
        }
        for key in gone {
            if let Some(value) = self.map.take(key)
                && let Some(number) = tree.by_id(key.cgroup)
            {
                self.table.row(number, key.what).kept += &value;
            }
        }
        self.read_rows(tree, now, &mut live);
        Ok(live)
    }

    /// The same of the kernel's rows.
    fn read_rows(&mut self, tree: &Tree, now: SystemTime, live: &mut HashMap<(NodeId, u64), T>) {
        let Some(rows) = self.kernel_rows.take() else {
            return;
        };
        for (row, key) in rows.owned() {
            if let Some(node) = living(tree, now, key) {
                *live.entry((node, key.what)).or_default() += &rows.value(row);
                continue;
            }
            rows.disown(row);
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
                Some(node) if over => self.table.row(node, what).kept += &value,
                Some(node) => *live.entry((node, what)).or_default() += &value,
                // Outside the root that the agent was given.
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

impl<T: Clone + Default> Table<T> {
    /// The row of a node for a thing, made if need be.
    fn row(&mut self, node: NodeId, what: u64) -> &mut Row<T> {
        if self.rows.len() <= node {
            self.rows.resize(node + 1, Vec::new());
        }
        let rows = &mut self.rows[node];
        let at = match rows.iter().position(|row| row.what == what) {
            Some(at) => at,
            None => {
                rows.push(Row {
                    what,
                    labels: None,
                    kept: T::default(),
                    total: T::default(),
                });
                rows.len() - 1
            }
        };
        &mut rows[at]
    }

    /// Names rows that are new, or whose node is called otherwise now.
    fn label(&mut self, tree: &Tree) {
        for (number, node) in tree.iter() {
            for row in self.rows.get_mut(number).into_iter().flatten() {
                row.labels.get_or_insert_with(|| {
                    let pairs = (self.labels)(row.what);
                    let set = |names: &&[&str]| {
                        let own = pairs.iter().filter(|(name, _)| names.contains(name));
                        let own = own.map(|(name, value)| (*name, value.as_str()));
                        node.labels.with(own)
                    };
                    self.label_names.iter().map(set).collect()
                });
            }
        }
    }

    /// Has the series of a node named anew.
    fn relabel(&mut self, node: NodeId) {
        for row in self.rows.get_mut(node).into_iter().flatten() {
            row.labels = None;
        }
    }
}

/// The node of a key's cgroup, `None` if there is none or it has been dead for so long that its
/// entries are to be taken out.
fn living(tree: &Tree, now: SystemTime, key: CgroupKey) -> Option<NodeId> {
    let over = |died: SystemTime| now.duration_since(died).is_ok_and(|d| d >= QUARANTINE);
    let number = tree.by_id(key.cgroup)?;
    let node = tree.node(number)?;
    (node.id == key.cgroup && !node.died.is_some_and(over)).then_some(number)
}

impl<V: KeyedValue, T: Sums<V>> Source for KeyedCounters<V, T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn families(&self) -> Vec<&'static Family> {
        self.metrics.iter().map(|metric| &metric.family).collect()
    }

    fn collect(&mut self, snapshot: &Snapshot<'_>) -> anyhow::Result<()> {
        let tree = snapshot.tree;
        let live = self.read(tree, snapshot.time)?;
        for row in self.table.rows.iter_mut().flatten() {
            row.total = row.kept;
        }
        for ((node, what), value) in live {
            self.table.row(node, what).total += &value;
        }
        // Deepest first.
        for (number, node) in tree.iter().rev() {
            let (Some(parent), true) = (node.parent, number < self.table.rows.len()) else {
                continue;
            };
            for at in 0..self.table.rows[number].len() {
                let Row { what, total, .. } = self.table.rows[number][at];
                self.table.row(parent, what).total += &total;
            }
        }
        self.table.label(tree);
        Ok(())
    }

    fn relabel(&mut self, node: NodeId) {
        self.table.relabel(node);
    }

    fn retire(&mut self, tree: &Tree) {
        if let Err(error) = self.read(tree, SystemTime::now()) {
            tracing::warn!(source = self.name, %error, "the ended cgroups' numbers stay where they are");
        }
    }

    fn kernel_memory(&self) -> u64 {
        self.map.bytes()
    }

    fn fold(&mut self, from: NodeId, into: NodeId) {
        for leaving in &mut self.leaving {
            if leaving.node == Some(from) {
                leaving.node = Some(into);
            }
        }
        let Some(rows) = self.table.rows.get_mut(from) else {
            return;
        };
        for row in std::mem::take(rows) {
            self.table.row(into, row.what).kept += &row.kept;
        }
    }

    fn encode(&self, tree: &Tree, writer: &mut Writer) {
        for metric in self.metrics {
            writer.family(&metric.family);
            let gauge = metric.family.kind == Kind::Gauge;
            let names = &metric.family.labels;
            let Some(own) = self
                .table
                .label_names
                .iter()
                .position(|found| found == names)
            else {
                continue;
            };
            for (number, node) in tree.iter() {
                if !node.exported || gauge && node.died.is_some() {
                    continue;
                }
                for row in self.table.rows.get(number).into_iter().flatten() {
                    if let Some(labels) = row.labels.as_ref().and_then(|sets| sets.get(own)) {
                        metric.samples.write(labels, &row.total, writer);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;
    use crate::cgroup::{Event, Filter, found};

    #[test]
    fn series_are_named_once_and_again_when_their_node_is_called_otherwise() {
        let mut tree = Tree::new(&[found(1, 0, ""), found(2, 1, "a")], Filter::default());
        let node = tree.by_id(2).unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&asked);
        let mut table = Table::<u64> {
            labels: Box::new(move |what| {
                counter.fetch_add(1, Ordering::Relaxed);
                vec![("device", format!("d{what}"))]
            }),
            label_names: vec![&["device"], &[]],
            rows: Vec::new(),
        };
        table.row(node, 7).total = 5;
        table.label(&tree);
        table.label(&tree);
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        let series = |table: &mut Table<u64>| table.row(node, 7).labels.clone().unwrap().to_vec();
        let own = LabelSet::new(&[("id", "/a")]);
        let with_device = own.with([("device", "d7")]);
        assert_eq!(series(&mut table), [with_device, own]);
        // The node's number is used again, by a unit.
        let at = SystemTime::now();
        tree.apply(&Event::Removed { id: 2, at });
        tree.reap(at, Duration::ZERO, |_| false, |_, _| {});
        tree.apply(&Event::Made {
            id: 3,
            parent: 1,
            name: b"b.service".to_vec(),
            at,
        });
        table.relabel(node);
        table.label(&tree);
        let own = LabelSet::new(&[("id", "/b.service"), ("name", "b.service")]);
        let with_device = own.with([("device", "d7")]);
        assert_eq!(series(&mut table), [with_device, own]);
        assert_eq!(table.row(node, 7).total, 5);
    }
}
