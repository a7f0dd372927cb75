//! A value for each node.

use std::{
    ops::{Index, IndexMut},
    sync::Arc,
};

use super::{PerNode, Retained};
use crate::cgroup::NodeId;

/// Number of nodes in a chunk.
const CHUNK: usize = 64;

/// A value for each node, by the node's number. Nodes without a value have the default.
///
/// The values are stored in chunks that clones share. A clone costs one pointer per chunk. A change
/// copies the chunk first if a clone still holds it, and else happens in place.
#[derive(Clone, Debug)]
pub struct Column<T> {
    /// Each has [`CHUNK`] values, except the last one.
    chunks: Vec<Arc<Vec<T>>>,
}

impl<T> Default for Column<T> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<T> Column<T> {
    /// Returns the value of a node, `None` if it never had one.
    pub fn get(&self, node: NodeId) -> Option<&T> {
        self.chunks.get(node / CHUNK)?.get(node % CHUNK)
    }
}

impl<T: Clone + Default> Column<T> {
    /// Makes room for the nodes 0 to `nodes - 1`.
    fn grow(&mut self, nodes: usize) {
        while self.chunks.len() < nodes.div_ceil(CHUNK) {
            if let Some(last) = self.chunks.last_mut() {
                Arc::make_mut(last).resize(CHUNK, T::default());
            }
            self.chunks.push(Arc::default());
        }
        let before = self.chunks.len().saturating_sub(1) * CHUNK;
        let wanted = nodes.saturating_sub(before);
        if let Some(last) = self.chunks.last_mut()
            && last.len() < wanted
        {
            Arc::make_mut(last).resize(wanted, T::default());
        }
    }

    /// Returns the value of a node for changes.
    pub fn at(&mut self, node: NodeId) -> &mut T {
        self.grow(node + 1);
        &mut Arc::make_mut(&mut self.chunks[node / CHUNK])[node % CHUNK]
    }

    /// Sets the value of a node to the default.
    pub fn forget(&mut self, node: NodeId) {
        if self.get(node).is_some() {
            *self.at(node) = T::default();
        }
    }

    /// Returns the values of at least the nodes 0 to `nodes - 1` for changes.
    pub fn places(&mut self, nodes: usize) -> Places<'_, T> {
        self.grow(nodes);
        let chunks = self.chunks.iter_mut();
        Places(chunks.map(|chunk| &mut Arc::make_mut(chunk)[..]).collect())
    }

    /// Like [`places`](Self::places), after setting every value to that of `other`.
    pub fn places_of(&mut self, other: &Self, nodes: usize) -> Places<'_, T> {
        self.chunks.truncate(other.chunks.len());
        for (to, from) in self.chunks.iter_mut().zip(&other.chunks) {
            match Arc::get_mut(to) {
                Some(to) if to.len() == from.len() => to.clone_from_slice(from),
                _ => *to = Arc::clone(from),
            }
        }
        for from in other.chunks.iter().skip(self.chunks.len()) {
            self.chunks.push(Arc::clone(from));
        }
        self.places(nodes)
    }

    /// Like [`places`](Self::places), after setting every value to the default.
    pub fn cleared_places(&mut self, nodes: usize) -> Places<'_, T> {
        for chunk in &mut self.chunks {
            match Arc::get_mut(chunk) {
                Some(values) => values.fill(T::default()),
                None => *chunk = Arc::new(vec![T::default(); chunk.len()]),
            }
        }
        self.places(nodes)
    }
}

impl<T: Clone + Default + Retained> PerNode for Column<T> {
    fn reap(&mut self, node: NodeId, _into: NodeId) {
        self.forget(node);
    }

    fn save(&self, node: NodeId, words: &mut Vec<u64>) {
        if let Some(value) = self.get(node) {
            value.save(words);
        }
    }

    fn restore(&mut self, node: NodeId, words: &mut &[u64]) -> Option<()> {
        self.at(node).restore(words)
    }
}

/// The values of a column for changes. No clone shares them.
#[derive(Debug)]
pub struct Places<'a, T>(Vec<&'a mut [T]>);

impl<T> Places<'_, T> {
    /// Returns the value of a node, `None` if the column has no room for it.
    pub fn get_mut(&mut self, node: NodeId) -> Option<&mut T> {
        self.0.get_mut(node / CHUNK)?.get_mut(node % CHUNK)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.iter().map(|chunk| chunk.len()).sum()
    }
}

impl<T> Index<NodeId> for Places<'_, T> {
    type Output = T;

    fn index(&self, node: NodeId) -> &T {
        &self.0[node / CHUNK][node % CHUNK]
    }
}

impl<T> IndexMut<NodeId> for Places<'_, T> {
    fn index_mut(&mut self, node: NodeId) -> &mut T {
        &mut self.0[node / CHUNK][node % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(column: &Column<u64>, nodes: usize) -> Vec<Option<u64>> {
        (0..nodes).map(|node| column.get(node).copied()).collect()
    }

    #[test]
    fn a_column_has_room_for_every_node() {
        let mut column = Column::default();
        assert_eq!(column.get(0), None::<&u64>);
        *column.at(0) = 1;
        *column.at(CHUNK) = 2;
        *column.at(3 * CHUNK + 5) = 3;
        assert_eq!(column.get(CHUNK - 1), Some(&0));
        assert_eq!(column.get(2 * CHUNK), Some(&0));
        assert_eq!(column.get(3 * CHUNK + 5), Some(&3));
        assert_eq!(column.get(3 * CHUNK + 6), None);
        let mut places = column.places(4 * CHUNK);
        assert_eq!(places.len(), 4 * CHUNK);
        places[4 * CHUNK - 1] = 4;
        assert_eq!(places[CHUNK], 2);
        assert!(places.get_mut(4 * CHUNK).is_none());
    }

    #[test]
    fn a_clone_does_not_change() {
        let mut column = Column::default();
        for node in 0..200 {
            *column.at(node) = node as u64;
        }
        let before: Vec<_> = (0..200).map(Some).collect();
        let taken = column.clone();
        column.forget(7);
        *column.at(64) = 1000;
        assert_eq!(values(&taken, 200), before);
        assert_eq!((column.get(7), column.get(64)), (Some(&0), Some(&1000)));
        column.cleared_places(200)[3] = 5;
        assert_eq!(values(&taken, 200), before);
        assert_eq!((column.get(3), column.get(64)), (Some(&5), Some(&0)));
        let other = taken.clone();
        column.places_of(&other, 300)[299] = 9;
        assert_eq!(values(&taken, 200), before);
        assert_eq!(values(&column, 200), before);
        assert_eq!((column.get(298), column.get(299)), (Some(&0), Some(&9)));
        assert_eq!(taken.get(299), None);
    }

    #[test]
    fn only_a_changed_chunk_is_copied() {
        let mut column = Column::default();
        column.places(2 * CHUNK).get_mut(0);
        let chunks = |column: &Column<u64>| -> Vec<*const Vec<u64>> {
            column.chunks.iter().map(Arc::as_ptr).collect()
        };
        let before = chunks(&column);
        let taken = column.clone();
        *column.at(0) = 1;
        assert_ne!(chunks(&column)[0], before[0]);
        assert_eq!(chunks(&column)[1], before[1]);
        drop(taken);
        let alone = chunks(&column);
        *column.at(0) = 2;
        column.places(2 * CHUNK)[CHUNK] = 3;
        column.cleared_places(2 * CHUNK);
        assert_eq!(chunks(&column), alone);
    }
}
