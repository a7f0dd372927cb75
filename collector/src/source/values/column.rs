//! A value for each node.

use std::{
    ops::{Index, IndexMut},
    sync::Arc,
};

use super::{PerNode, Retained};
use crate::cgroup::NodeId;

/// Number of nodes in a chunk.
const CHUNK: usize = 64;

/// A value for each node, by the node's number. Nodes without a value have the default, which takes a
/// byte.
///
/// The values are stored in chunks that clones share. A clone costs one pointer per chunk. A change
/// copies the chunk first if a clone still holds it, and else happens in place.
#[derive(Clone, Debug)]
pub struct Column<T> {
    chunks: Vec<Arc<Chunk<T>>>,
    /// There is room for the nodes 0 to `nodes - 1`.
    nodes: usize,
    /// The value of nodes that have none of their own.
    none: T,
}

/// Values of some of [`CHUNK`] nodes.
#[derive(Clone, Debug)]
struct Chunk<T> {
    /// For each node the place of its value in `values`, and one; 0 is none.
    places: [u8; CHUNK],
    values: Vec<T>,
}

impl<T> Default for Chunk<T> {
    fn default() -> Self {
        Self {
            places: [0; CHUNK],
            values: Vec::new(),
        }
    }
}

impl<T: Default> Default for Column<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            nodes: 0,
            none: T::default(),
        }
    }
}

/// A chunk's memory grows by that many values.
const GROWTH: usize = 8;

impl<T> Chunk<T> {
    fn get(&self, at: usize) -> Option<&T> {
        let place = self.places.get(at)?.checked_sub(1)?;
        self.values.get(usize::from(place))
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        let place = self.places.get(at)?.checked_sub(1)?;
        self.values.get_mut(usize::from(place))
    }

    /// Removes a value.
    fn take(&mut self, at: usize) {
        let Some(place) = self.places[at].checked_sub(1) else {
            return;
        };
        self.values.swap_remove(place.into());
        self.places[at] = 0;
        // The last value has moved.
        let moved = self.values.len() as u8 + 1;
        if let Some(other) = self.places.iter_mut().find(|place| **place == moved) {
            *other = place + 1;
        }
        if self.values.is_empty() {
            self.values = Vec::new();
        } else if self.values.capacity() >= self.values.len() + 2 * GROWTH {
            self.values.shrink_to(self.values.len() + GROWTH / 2);
        }
    }
}

impl<T: Default> Chunk<T> {
    /// Returns a node's value for changes. Creates it if necessary.
    fn at(&mut self, at: usize) -> &mut T {
        let place = match self.places[at].checked_sub(1) {
            Some(place) => place.into(),
            None => {
                if self.values.len() == self.values.capacity() {
                    self.values.reserve_exact(GROWTH);
                }
                self.values.push(T::default());
                // At most CHUNK.
                self.places[at] = self.values.len() as u8;
                self.values.len() - 1
            }
        };
        &mut self.values[place]
    }
}

impl<T> Column<T> {
    /// Returns the value of a node, `None` if the column has no room for it.
    pub fn get(&self, node: NodeId) -> Option<&T> {
        let held = self.held(node);
        held.or((node < self.nodes).then_some(&self.none))
    }

    /// Returns the value of a node if it has one of its own.
    pub fn held(&self, node: NodeId) -> Option<&T> {
        self.chunks.get(node / CHUNK)?.get(node % CHUNK)
    }

    /// The values that nodes have of their own, with the nodes.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &T)> {
        let chunks = self.chunks.iter().enumerate();
        chunks.flat_map(|(at, chunk)| {
            let held = move |node| Some((at * CHUNK + node, chunk.get(node)?));
            let any = if chunk.values.is_empty() { 0 } else { CHUNK };
            (0..any).filter_map(held)
        })
    }
}

impl<T: Clone + Default> Column<T> {
    /// Makes room for the nodes 0 to `nodes - 1`.
    fn grow(&mut self, nodes: usize) {
        self.nodes = self.nodes.max(nodes);
        let chunks = self.nodes.div_ceil(CHUNK);
        self.chunks.resize_with(chunks, Arc::default);
    }

    /// Returns the value of a node for changes. Creates it if necessary.
    pub fn at(&mut self, node: NodeId) -> &mut T {
        self.grow(node + 1);
        Arc::make_mut(&mut self.chunks[node / CHUNK]).at(node % CHUNK)
    }

    /// Returns the value of a node for changes, if it has one of its own.
    pub fn held_mut(&mut self, node: NodeId) -> Option<&mut T> {
        self.held(node)?;
        Arc::make_mut(self.chunks.get_mut(node / CHUNK)?).get_mut(node % CHUNK)
    }

    /// Sets the value of a node to the default.
    pub fn forget(&mut self, node: NodeId) {
        if self.held(node).is_some() {
            Arc::make_mut(&mut self.chunks[node / CHUNK]).take(node % CHUNK);
        }
    }

    /// Takes the value of a node, if it has one of its own. It has the default from then on.
    pub fn take(&mut self, node: NodeId) -> Option<T> {
        let value = std::mem::take(self.held_mut(node)?);
        self.forget(node);
        Some(value)
    }

    /// Returns the values of at least the nodes 0 to `nodes - 1` for changes.
    pub fn places(&mut self, nodes: usize) -> Places<'_, T> {
        self.grow(nodes);
        Places {
            chunks: self.chunks.iter_mut().map(Arc::make_mut).collect(),
            none: &self.none,
        }
    }

    /// Like [`places`](Self::places), after setting every value to that of `other`.
    pub fn places_of(&mut self, other: &Self, nodes: usize) -> Places<'_, T> {
        self.chunks.truncate(other.chunks.len());
        self.nodes = other.nodes;
        for (to, from) in self.chunks.iter_mut().zip(&other.chunks) {
            match Arc::get_mut(to) {
                Some(to) => {
                    to.places = from.places;
                    to.values.clone_from(&from.values);
                }
                None => *to = Arc::clone(from),
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
                Some(chunk) => {
                    chunk.places = [0; CHUNK];
                    chunk.values.clear();
                }
                None => *chunk = Arc::default(),
            }
        }
        self.places(nodes)
    }
}

impl<T: Clone + Default + Retained> PerNode for Column<T> {
    fn shape(&self) -> u64 {
        T::SHAPE
    }

    fn reap(&mut self, node: NodeId, _into: NodeId) {
        self.forget(node);
    }

    fn save(&self, node: NodeId, words: &mut Vec<u64>) {
        if let Some(value) = self.get(node) {
            value.save(words);
        }
    }

    fn save_end(&self, node: NodeId, words: &mut Vec<u64>) {
        if let Some(value) = self.get(node) {
            value.save_end(words);
        }
    }

    fn restore(&mut self, node: NodeId, words: &mut &[u64]) -> Option<()> {
        self.at(node).restore(words)
    }
}

/// The values of a column for changes. No clone shares them.
#[derive(Debug)]
pub struct Places<'a, T> {
    chunks: Vec<&'a mut Chunk<T>>,
    none: &'a T,
}

impl<T> Places<'_, T> {
    /// Returns the value of a node if it has one of its own.
    pub fn held_mut(&mut self, node: NodeId) -> Option<&mut T> {
        self.chunks.get_mut(node / CHUNK)?.get_mut(node % CHUNK)
    }
}

impl<T: Default> Places<'_, T> {
    /// Returns the value of a node, `None` if the column has no room for it. Creates it if necessary.
    pub fn get_mut(&mut self, node: NodeId) -> Option<&mut T> {
        Some(self.chunks.get_mut(node / CHUNK)?.at(node % CHUNK))
    }
}

impl<T> Index<NodeId> for Places<'_, T> {
    type Output = T;

    fn index(&self, node: NodeId) -> &T {
        let held = self.chunks[node / CHUNK].get(node % CHUNK);
        held.unwrap_or(self.none)
    }
}

impl<T: Default> IndexMut<NodeId> for Places<'_, T> {
    fn index_mut(&mut self, node: NodeId) -> &mut T {
        self.chunks[node / CHUNK].at(node % CHUNK)
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
        places[4 * CHUNK - 1] = 4;
        assert_eq!((places[CHUNK], places[4 * CHUNK - 2]), (2, 0));
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

    /// As a map with a default does it.
    #[test]
    fn values_of_their_own_come_and_go() {
        let (mut column, mut expected) = (Column::default(), std::collections::BTreeMap::new());
        let mut random = 1_u64;
        for step in 1..20_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(step);
            let node = (random >> 33) as usize % 150;
            match random >> 60 {
                0..8 => {
                    *column.at(node) = step;
                    expected.insert(node, step);
                }
                8..12 => {
                    column.forget(node);
                    expected.remove(&node);
                }
                _ => assert_eq!(column.take(node), expected.remove(&node)),
            }
            assert_eq!(column.held(node), expected.get(&node));
        }
        let found: Vec<(NodeId, u64)> = column.iter().map(|(node, value)| (node, *value)).collect();
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        (0..150).for_each(|node| column.forget(node));
        let memory = |column: &Column<u64>| -> usize {
            let chunks = column.chunks.iter();
            chunks.map(|chunk| chunk.values.capacity()).sum()
        };
        assert_eq!((column.iter().count(), memory(&column)), (0, 0));
    }

    #[test]
    fn only_a_changed_chunk_is_copied() {
        let mut column = Column::default();
        column.places(2 * CHUNK).get_mut(0);
        let chunks = |column: &Column<u64>| -> Vec<*const Chunk<u64>> {
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
