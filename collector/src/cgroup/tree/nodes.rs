//! The tree's nodes as they were at one moment.

use std::sync::Arc;

use super::{Node, NodeId};

/// Nodes that don't change any more, parents before children. They are shared with the tree, which
/// makes a copy of a node before it changes it.
#[derive(Debug, Default)]
pub struct Nodes {
    order: Vec<(NodeId, Arc<Node>)>,
    /// By node number: the place in `order` and one; 0 is none.
    places: Vec<u32>,
}

impl Nodes {
    pub(super) fn new(order: Vec<(NodeId, Arc<Node>)>, capacity: usize) -> Self {
        let mut places = vec![0; capacity];
        for (place, (number, _)) in (1..).zip(&order) {
            if let Some(slot) = places.get_mut(*number) {
                *slot = place;
            }
        }
        Self { order, places }
    }

    /// Returns a node by its number.
    pub fn node(&self, number: NodeId) -> Option<&Node> {
        let place = self.places.get(number)?.checked_sub(1)?;
        Some(&self.order.get(place as usize)?.1)
    }

    /// Nodes with their numbers, parents before children.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> + Clone + '_ {
        self.order.iter().map(|(number, node)| (*number, &**node))
    }

    /// Returns the exported nodes with their numbers.
    pub fn exported(&self) -> impl Iterator<Item = (NodeId, &Node)> + Clone + '_ {
        self.iter().filter(|(_, node)| node.exported)
    }

    /// One more than the highest node number: the length of a vector by node.
    pub fn capacity(&self) -> usize {
        self.places.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use crate::cgroup::{Event, Filter, Tree, found};

    #[test]
    fn nodes_stay_what_they_were_when_a_number_is_used_again() {
        let mut tree = Tree::new(
            &[found(1, 0, ""), found(2, 1, "a"), found(3, 1, "b")],
            Filter::default(),
        );
        let number = tree.by_id(2).unwrap();
        let before = tree.nodes();
        let at = SystemTime::now();
        tree.apply(&Event::Removed { id: 2, at });
        let ended = tree.nodes();
        tree.reap(Instant::now(), Duration::ZERO, |_| false);
        let made = Event::Made {
            id: 9,
            parent: 1,
            name: b"c".to_vec(),
            at,
        };
        let (again, _) = tree.apply(&made).unwrap();
        assert_eq!(again, number);
        let after = tree.nodes();
        let described = |nodes: &super::Nodes| {
            let node = nodes.node(number).unwrap();
            (node.path.to_vec(), node.id, node.died.is_some())
        };
        assert_eq!(described(&before), (b"/a".to_vec(), 2, false));
        assert_eq!(described(&ended), (b"/a".to_vec(), 2, true));
        assert_eq!(described(&after), (b"/c".to_vec(), 9, false));
        let ids =
            |nodes: &super::Nodes| -> Vec<u64> { nodes.iter().map(|(_, node)| node.id).collect() };
        assert_eq!(ids(&before), [1, 2, 3]);
        assert_eq!(ids(&after), [1, 3, 9]);
    }

    #[test]
    fn nodes_are_shared_as_long_as_nothing_changes() {
        let mut tree = Tree::new(&[found(1, 0, ""), found(2, 1, "a")], Filter::default());
        tree.settle();
        let first = tree.nodes();
        tree.settle();
        let number = tree.by_id(2).unwrap();
        tree.set_exported(number, true);
        assert!(std::sync::Arc::ptr_eq(&first, &tree.nodes()));
        tree.set_exported(number, false);
        assert!(!std::sync::Arc::ptr_eq(&first, &tree.nodes()));
        assert_eq!(first.exported().count(), 2);
    }
}
