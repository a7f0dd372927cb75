//! A source of counters in cells.

use std::{borrow::Cow, collections::HashSet, ops::AddAssign, sync::Arc};

use super::{
    Change, Inputs, Metric, Reading, Source, Table,
    values::{PerNode, Summable, Summed, Words},
};
use crate::{
    cgroup::NodeId,
    kernel::cells::{Cells, MappedCell, SlotMemory},
};

/// A source of counters: `C` is the cell in the kernel, `T` a node's counters.
pub struct CellCounters<C, T: 'static> {
    name: &'static str,
    metrics: &'static [Metric<T>],
    cells: Cells<C>,
    values: Summed<T>,
    without_slot: Arc<HashSet<NodeId>>,
}

impl<C: MappedCell, T: Summable + PartialEq + Words + for<'a> AddAssign<&'a C>> CellCounters<C, T> {
    /// Makes a source over its cells.
    pub fn new(name: &'static str, metrics: &'static [Metric<T>], cells: Cells<C>) -> Self {
        Self {
            name,
            metrics,
            cells,
            values: Summed::default(),
            without_slot: Arc::default(),
        }
    }

    /// Returns the values by node.
    pub fn summed(&mut self) -> &mut Summed<T> {
        &mut self.values
    }

    /// Returns the last values of earlier cgroups of a node's path.
    pub fn last(&self, node: usize) -> Option<T> {
        self.values.last(node)
    }

    /// Returns a node's total.
    pub fn total(&self, node: usize) -> Option<Cow<'_, T>> {
        self.values.totals().get(node)
    }
}

impl<C: MappedCell, T: Summable + PartialEq + Words + for<'a> AddAssign<&'a C>> Source
    for CellCounters<C, T>
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        vec![&mut self.values]
    }

    fn reads_slots(&self) -> bool {
        true
    }

    fn cells(&mut self) -> Option<&mut dyn SlotMemory> {
        Some(&mut self.cells)
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> anyhow::Result<()> {
        self.without_slot = Arc::clone(inputs.without_slot);
        self.values.renew(inputs.tree, |own| {
            for &(node, slot) in inputs.slots {
                let mut value = T::default();
                self.cells.add_to(slot, &mut value);
                // Most cgroups have no value of most sources, and take no memory for it.
                if value != T::default()
                    && let Some(sum) = own.get_mut(node)
                {
                    sum.add_from(&value);
                }
            }
        });
        Ok(())
    }

    fn change(&mut self, change: &Change<'_>) {
        if let Change::SlotRetired { slot, node } = *change {
            let mut value = T::default();
            self.cells.add_to(slot, &mut value);
            if value != T::default() {
                self.values.change_last(node, |last| last.add_from(&value));
            }
        }
    }

    fn reading(&self) -> Box<dyn Reading> {
        Table::reading_except(
            self.metrics,
            self.values.totals().clone(),
            &self.without_slot,
        )
    }
}
