//! Values that a source counts for each cgroup, summed up the tree.

use std::borrow::Cow;

use super::{Column, PerNode, Places, Summable, Words, packed::Packed};
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
    served: Served<T>,
}

impl<T: Words + Default> Default for Summed<T> {
    fn default() -> Self {
        let last = Last {
            packed: Column::default(),
            unpack: Packed::value,
        };
        Self {
            retained: Column::default(),
            served: Served {
                totals: Column::default(),
                last,
            },
        }
    }
}

/// What is served of values by node. A clone is cheap and does not change any more.
#[derive(Clone, Debug)]
pub struct Served<T> {
    /// Sums over the descendants. A removed cgroup without removed children has none: its values are
    /// in `last` alone.
    totals: Column<T>,
    last: Last<T>,
}

/// The last values of earlier cgroups of a node's path. They hardly change.
#[derive(Clone, Debug)]
struct Last<T> {
    packed: Column<Packed>,
    unpack: fn(&Packed) -> T,
}

impl<T> Last<T> {
    fn get(&self, node: NodeId) -> Option<T> {
        self.packed.held(node).map(self.unpack)
    }
}

impl<T: Clone> Served<T> {
    /// Returns the value of a node, `None` if it never had one.
    pub fn get(&self, node: NodeId) -> Option<Cow<'_, T>> {
        let packed = self.unpacked(node).map(Cow::Owned);
        packed.or_else(|| self.totals.get(node).map(Cow::Borrowed))
    }

    /// The value of a node whose values are in `last` alone.
    fn unpacked(&self, node: NodeId) -> Option<T> {
        match self.totals.held(node) {
            Some(_) => None,
            None => self.last.get(node),
        }
    }

    /// Works with the values of some nodes; nodes without any are left out.
    pub fn with_each<N: Copy, R>(
        &self,
        nodes: impl Iterator<Item = (NodeId, N)> + Clone,
        work: impl FnOnce(&[(NodeId, N, &T)]) -> R,
    ) -> R {
        let all = nodes.clone();
        let packed: Vec<(NodeId, T)> = all
            .filter_map(|(number, _)| Some((number, self.unpacked(number)?)))
            .collect();
        let mut unpacked = packed.iter().peekable();
        let values = nodes.filter_map(|(number, node)| {
            let value = match unpacked.next_if(|(of, _)| *of == number) {
                Some((_, value)) => value,
                None => self.totals.get(number)?,
            };
            Some((number, node, value))
        });
        let values: Vec<(NodeId, N, &T)> = values.collect();
        work(&values)
    }
}

impl<T: Default> From<Column<T>> for Served<T> {
    fn from(totals: Column<T>) -> Self {
        Self {
            totals,
            last: Last {
                packed: Column::default(),
                unpack: |_| T::default(),
            },
        }
    }
}

impl<T> Summed<T> {
    /// Returns the totals as of the last [`renew`](Self::renew).
    pub fn totals(&self) -> &Served<T> {
        &self.served
    }
}

impl<T: Summable + Words> Summed<T> {
    /// Returns what is retained at a node, for additions.
    pub fn retained(&mut self, node: NodeId) -> &mut T {
        self.retained.at(node)
    }

    /// Whether anything is retained at a node.
    pub fn retains(&self, node: NodeId) -> bool {
        self.retained.held(node).is_some()
    }

    /// Returns the last values of earlier cgroups of a node's path.
    pub fn last(&self, node: NodeId) -> Option<T> {
        self.served.last.get(node)
    }

    /// Changes the last values of earlier cgroups of a node's path.
    pub fn change_last(&mut self, node: NodeId, change: impl FnOnce(&mut T)) {
        let mut last = self.served.last.get(node).unwrap_or_default();
        change(&mut last);
        *self.served.last.packed.at(node) = Packed::new(&last);
    }

    /// Recomputes the totals. `add` adds the current values of each cgroup.
    pub fn renew(&mut self, tree: &Tree, add: impl FnOnce(&mut Places<'_, T>)) {
        let Served { totals, last } = &mut self.served;
        let mut totals = totals.places_of(&self.retained, tree.capacity());
        add(&mut totals);
        roll_up(tree, &mut totals);
        for (node, packed) in last.packed.iter() {
            if let Some(total) = totals.held_mut(node) {
                total.add_from(&(last.unpack)(packed));
            }
        }
    }
}

impl<T: Summable + Words> PerNode for Summed<T> {
    fn shape(&self) -> u64 {
        Option::<T>::SHAPE
    }

    fn reap(&mut self, node: NodeId, into: NodeId) {
        if let Some(retained) = self.retained.take(node) {
            self.retained.at(into).add_from(&retained);
        }
        self.served.last.packed.forget(node);
        self.served.totals.forget(node);
    }

    /// What is retained of removed children is not saved: the kernel side has it.
    fn save(&self, node: NodeId, words: &mut Vec<u64>) {
        let last = self.served.last.get(node);
        last.put(words);
    }

    /// All that is served of the node. An agent without the cells serves it as last values: these are in the
    /// parent's total as well.
    fn save_total(&self, node: NodeId, words: &mut Vec<u64>) {
        self.served.get(node).map(Cow::into_owned).put(words);
    }

    fn restore(&mut self, node: NodeId, words: &mut &[u64]) -> Option<()> {
        if let Some(last) = <Option<T> as Words>::take(words)? {
            *self.served.last.packed.at(node) = Packed::new(&last);
        }
        Some(())
    }
}

/// Adds each node's values to its parent's, children before parents.
pub fn roll_up<T: Summable>(tree: &Tree, values: &mut Places<'_, T>) {
    for (number, node) in tree.iter().rev() {
        if let Some(parent) = node.parent
            && let Some(child) = values.held_mut(number).map(std::mem::take)
        {
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
            [ROOT, a, b].map(|node| {
                values
                    .totals()
                    .get(node)
                    .map(|value| *value)
                    .unwrap_or_default()
            })
        };
        // /a/b is removed: the kernel side moves its 10 to /a.
        let at = SystemTime::now();
        tree.apply(&Event::Removed { id: 3, at });
        values.change_last(b, |last| *last += 10);
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
        values.change_last(a, |last| *last += 10);
        *values.retained(a) += 100;
        let mut words = Vec::new();
        values.save(a, &mut words);
        let mut next = Summed::<u64>::default();
        next.restore(a, &mut words.as_slice()).unwrap();
        next.renew(&tree, |own| own[a] += 3);
        assert_eq!(next.totals().get(a).as_deref(), Some(&13));
        assert_eq!(next.totals().get(ROOT).as_deref(), Some(&3));
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
        assert_eq!(values.totals().get(ROOT).as_deref(), Some(&9));
        assert_eq!(
            (2..5)
                .filter_map(|node| values.totals().get(node).as_deref().copied())
                .sum::<u64>(),
            0
        );
    }
}
