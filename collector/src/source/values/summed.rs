//! Values that a source counts for each cgroup, summed up the tree.

use std::collections::HashMap;

use super::{Column, PerNode, Places, Summable, Words};
use crate::cgroup::{NodeId, Tree};

/// Values that a source counts for each cgroup, and their sums over the descendants.
///
/// A node's total is the sum of
///
/// - the values of its cgroup, and what is retained at the node: values that belong to no cgroup of
///   the kernel side any more;
/// - the same of all descendants;
/// - the last values of earlier cgroups of the same path. They are in the parent's values already:
///   the kernel side has added them there. So they are served, and not summed up.
#[derive(Clone, Debug)]
pub struct Summed<T> {
    retained: Column<T>,
    last: HashMap<NodeId, T>,
    totals: Column<T>,
}

impl<T> Default for Summed<T> {
    fn default() -> Self {
        Self {
            retained: Column::default(),
            last: HashMap::new(),
            totals: Column::default(),
        }
    }
}

impl<T> Summed<T> {
    /// Returns the totals as of the last [`renew`](Self::renew).
    pub fn totals(&self) -> &Column<T> {
        &self.totals
    }
}

impl<T: Summable> Summed<T> {
    /// Returns what is retained at a node, for additions.
    pub fn retained(&mut self, node: NodeId) -> &mut T {
        self.retained.at(node)
    }

    /// Returns the last values of earlier cgroups of a node's path, for additions.
    pub fn last(&mut self, node: NodeId) -> &mut T {
        self.last.entry(node).or_default()
    }

    /// Recomputes the totals. `add` adds the current values of each cgroup.
    pub fn renew(&mut self, tree: &Tree, add: impl FnOnce(&mut Places<'_, T>)) {
        let mut totals = self.totals.places_of(&self.retained, tree.capacity());
        add(&mut totals);
        roll_up(tree, &mut totals);
        for (&node, last) in &self.last {
            totals[node].add_from(last);
        }
    }
}

impl<T: Summable + Words> PerNode for Summed<T> {
    fn reap(&mut self, node: NodeId, into: NodeId) {
        if self.retained.get(node).is_some() {
            let retained = std::mem::take(self.retained.at(node));
            self.retained.at(into).add_from(&retained);
        }
        self.last.remove(&node);
        self.totals.forget(node);
    }

    /// What is retained of removed children is not saved: the kernel side has it.
    fn save(&self, node: NodeId, words: &mut Vec<u64>) {
        let last = self.last.get(&node);
        last.is_some().put(words);
        if let Some(last) = last {
            last.put(words);
        }
    }

    fn restore(&mut self, node: NodeId, words: &mut &[u64]) -> Option<()> {
        if bool::take(words)? {
            self.last.insert(node, T::take(words)?);
        }
        Some(())
    }
}

/// Adds each node's values to its parent's, children before parents.
pub fn roll_up<T: Summable>(tree: &Tree, values: &mut Places<'_, T>) {
    for (number, node) in tree.iter().rev() {
        if let Some(parent) = node.parent {
            let child = std::mem::take(&mut values[number]);
            values[parent].add_from(&child);
            values[number] = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use super::*;
    use crate::cgroup::{Event, Filter, ROOT, found};

    fn made(tree: &mut Tree, id: u64, parent: u64, name: &str) -> NodeId {
        let event = Event::Made {
            id,
            parent,
            name: name.as_bytes().to_vec(),
            at: SystemTime::now(),
        };
        tree.apply(&event);
        tree.by_id(id).unwrap()
    }

    /// Removes a cgroup and reaps its node.
    fn end(tree: &mut Tree, id: u64, values: &mut Summed<u64>) {
        let at = SystemTime::now();
        tree.apply(&Event::Removed { id, at });
        for reaped in tree.reap(Instant::now(), Duration::ZERO, |_| false) {
            values.reap(reaped.node, reaped.into);
        }
    }

    #[test]
    fn totals_go_to_the_parent_and_never_to_the_next_cgroup_with_the_number() {
        let mut tree = Tree::new(
            &[found(1, 0, ""), found(2, 1, "a"), found(3, 2, "b")],
            Filter::default(),
        );
        let [a, b] = [2, 3].map(|id| tree.by_id(id).unwrap());
        let mut values = Summed::default();
        values.renew(&tree, |own| {
            own[a] += 1;
            own[b] += 10;
            own[ROOT] += 100;
        });
        let totals = |values: &Summed<u64>, nodes: [NodeId; 3]| {
            nodes.map(|node| *values.totals().get(node).unwrap())
        };
        assert_eq!(totals(&values, [ROOT, a, b]), [111, 11, 10]);
        // The slot of /a/b is recycled, then its node is reaped.
        *values.retained(b) += 10;
        end(&mut tree, 3, &mut values);
        // The next cgroup with the number has no values, even before the next reading.
        let c = made(&mut tree, 4, 1, "c");
        assert_eq!(c, b);
        assert_eq!(totals(&values, [ROOT, a, c]), [111, 11, 0]);
        values.renew(&tree, |own| {
            own[a] += 1;
            own[c] += 3;
            own[ROOT] += 100;
        });
        assert_eq!(totals(&values, [ROOT, a, c]), [114, 11, 3]);
    }

    #[test]
    fn last_values_are_served_and_not_summed_up() {
        let mut tree = Tree::new(
            &[found(1, 0, ""), found(2, 1, "a"), found(3, 2, "b")],
            Filter::default(),
        );
        let [a, b] = [2, 3].map(|id| tree.by_id(id).unwrap());
        let mut values = Summed::default();
        let totals = |values: &Summed<u64>| {
            [ROOT, a, b].map(|node| values.totals().get(node).copied().unwrap_or_default())
        };
        // /a/b is removed: the kernel side moves its 10 to /a.
        let at = SystemTime::now();
        tree.apply(&Event::Removed { id: 3, at });
        *values.last(b) += 10;
        values.renew(&tree, |own| own[a] += 1 + 10);
        assert_eq!(totals(&values), [11, 11, 10]);
        // It is made again, and counts on.
        let again = made(&mut tree, 4, 2, "b");
        values.renew(&tree, |own| {
            own[a] += 1 + 10;
            own[again] += 5;
        });
        assert_eq!(totals(&values), [16, 16, 15]);
        end(&mut tree, 4, &mut values);
        values.renew(&tree, |own| own[a] += 1 + 10 + 5);
        assert_eq!(totals(&values), [16, 16, 0]);
    }

    #[test]
    fn the_next_agent_serves_last_values_and_not_what_the_kernel_side_has() {
        let tree = Tree::new(&[found(1, 0, ""), found(2, 1, "a")], Filter::default());
        let a = tree.by_id(2).unwrap();
        let mut values = Summed::<u64>::default();
        *values.last(a) += 10;
        *values.retained(a) += 100;
        let mut words = Vec::new();
        values.save(a, &mut words);
        let mut next = Summed::<u64>::default();
        next.restore(a, &mut words.as_slice()).unwrap();
        next.renew(&tree, |own| own[a] += 3);
        assert_eq!(next.totals().get(a), Some(&13));
        assert_eq!(next.totals().get(ROOT), Some(&3));
    }

    #[test]
    fn a_parent_reaped_with_its_children_passes_all_totals_up() {
        let mut tree = Tree::new(
            &[
                found(1, 0, ""),
                found(2, 1, "a"),
                found(3, 2, "b"),
                found(4, 3, "c"),
            ],
            Filter::default(),
        );
        let mut values = Summed::default();
        for id in [2, 3, 4] {
            *values.retained(tree.by_id(id).unwrap()) += id;
        }
        for id in [4, 3, 2] {
            tree.apply(&Event::Removed {
                id,
                at: SystemTime::UNIX_EPOCH,
            });
        }
        for reaped in tree.reap(Instant::now(), Duration::ZERO, |_| false) {
            values.reap(reaped.node, reaped.into);
        }
        values.renew(&tree, |_| {});
        assert_eq!(values.totals().get(ROOT), Some(&9));
        assert_eq!(
            (2..5)
                .filter_map(|node| values.totals().get(node))
                .sum::<u64>(),
            0
        );
    }
}
