//! A source whose numbers are counters in cells: reading, folding, keeping.
//!
//! Invariant: a node's total never goes back. It is what is kept at the node (recycled slots,
//! reaped children, a predecessor of the same path), plus the cells of its slots, plus the totals
//! of its children.

use std::ops::AddAssign;

use super::{Metric, Snapshot, Source, encode};
use crate::{
    cgroup::{NodeId, ROOT, Tree},
    exposition::{Family, Writer},
    kernel::cells::{Cell, Cells, SlotMemory},
};

/// A source of counters: `C` is the cell in the kernel, `T` the node's numbers.
pub struct Counters<C, T: 'static> {
    name: &'static str,
    metrics: &'static [Metric<T>],
    cells: Cells<C>,
    kept: Vec<T>,
    totals: Vec<T>,
}

/// A node's numbers, all of them sums.
pub trait Numbers<C>:
    Copy + Default + Send + for<'a> AddAssign<&'a C> + for<'a> AddAssign<&'a Self>
{
    /// CPU time counted, ns.
    fn cpu_time(&self) -> u64 {
        0
    }
    /// Sets the CPU time before the agent came, ns.
    fn set_earlier(&mut self, ns: u64) {
        let _ = ns;
    }
    /// Runs of a program, told from these numbers when they are the host's.
    fn runs(&self) -> Option<(&'static str, u64)> {
        None
    }
}

impl<C: Cell, T: Numbers<C>> Counters<C, T> {
    /// A source over its cells.
    pub fn new(name: &'static str, metrics: &'static [Metric<T>], cells: Cells<C>) -> Self {
        Self {
            name,
            metrics,
            cells,
            kept: Vec::new(),
            totals: Vec::new(),
        }
    }

    /// What is kept at a node.
    fn kept_mut(&mut self, node: NodeId) -> &mut T {
        if self.kept.len() <= node {
            self.kept.resize(node + 1, T::default());
        }
        &mut self.kept[node]
    }
}

impl<C: Cell, T: Numbers<C>> Source for Counters<C, T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn families(&self) -> Vec<&'static Family> {
        self.metrics.iter().map(|metric| &metric.family).collect()
    }

    fn memory(&mut self) -> Option<&mut dyn SlotMemory> {
        Some(&mut self.cells)
    }

    fn collect(&mut self, snapshot: &Snapshot<'_>) -> anyhow::Result<()> {
        self.kept
            .resize(snapshot.tree.capacity().max(self.kept.len()), T::default());
        self.totals.clone_from(&self.kept);
        for &(node, slot) in snapshot.slots {
            if let Some(total) = self.totals.get_mut(node) {
                self.cells.add_to(slot, total);
            }
        }
        // Deepest first.
        for (number, node) in snapshot.tree.iter().rev() {
            if let Some(parent) = node.parent {
                let child = self.totals[number];
                self.totals[parent] += &child;
            }
        }
        Ok(())
    }

    fn keep(&mut self, slot: u32, node: NodeId) {
        self.kept_mut(node);
        self.cells.add_to(slot, &mut self.kept[node]);
    }

    fn fold(&mut self, from: NodeId, into: NodeId) {
        let value = std::mem::take(self.kept_mut(from));
        *self.kept_mut(into) += &value;
    }

    fn set_earlier(&mut self, tree: &Tree, lifetime: &[Option<u64>]) {
        let mut own = vec![0u64; tree.capacity()];
        for (number, _) in tree.iter() {
            let counted = self.totals.get(number).map_or(0, Numbers::cpu_time);
            let used = lifetime.get(number).copied().flatten().unwrap_or(0);
            own[number] = used.saturating_sub(counted);
        }
        // From inclusive to own values: parents come first, so that each child is still inclusive
        // when its parent is reduced.
        for (number, node) in tree.iter() {
            if let Some(parent) = node.parent {
                own[parent] = own[parent].saturating_sub(own[number]);
            }
        }
        for (number, ns) in own.into_iter().enumerate() {
            self.kept_mut(number).set_earlier(ns);
        }
    }

    fn runs(&self) -> Option<(&'static str, u64)> {
        self.totals.get(ROOT)?.runs()
    }

    fn encode(&self, tree: &Tree, writer: &mut Writer) {
        encode(self.metrics, tree, &self.totals, writer);
    }
}
