//! Names of the tree's nodes, and which nodes are exported.
//!
//! Invariant: what is nested is exported only if what it is nested in is. Values of nodes that are not
//! exported count in their parents.

use std::{collections::HashMap, sync::Arc};

use super::{Node, NodeId, Tree};
use crate::cgroup::{Container, Names, PlaceKind, Pod, label::printable};

#[cfg(test)]
mod tests;

/// The first come first: the kind, whether it was removed, its number in the order of births.
type Rank = (u8, bool, u64);

/// The kind of cgroups without a name.
const UNNAMED: u8 = 2;

impl Node {
    /// What the node is called in the labels of its series.
    pub fn names(&self) -> Names<'_> {
        Names::of(&self.place, self.container.as_deref(), self.pod.as_deref())
    }

    /// Whether it has samples of a family of this type: gauges end with their cgroup.
    pub fn serves(&self, kind: crate::exposition::MetricKind) -> bool {
        self.died.is_none() || kind != crate::exposition::MetricKind::Gauge
    }

    /// Order of export if there are too many: containers, pods and machines, then units and their
    /// groups, then cgroups without a name; of each kind, live ones first, then older ones.
    fn rank(&self) -> Rank {
        let rank = match self.place.kind {
            PlaceKind::Root | PlaceKind::Container | PlaceKind::Machine | PlaceKind::Pod => 0,
            PlaceKind::Unit | PlaceKind::Group => 1,
            PlaceKind::Nested | PlaceKind::Other => UNNAMED,
        };
        (rank, self.died.is_some(), self.birth)
    }
}

impl Tree {
    /// Gives a new node its labels, and decides whether it is exported.
    pub(super) fn introduce(&mut self, number: NodeId) {
        let Some(node) = self.node(number) else {
            return;
        };
        let path = printable(&node.path);
        let path_admitted = self.export.filter.admits(&path);
        let is_kubernetes = self.is_kubernetes || node.place.kind == PlaceKind::Pod;
        let labels = node
            .names()
            .labels(&path, None, &self.export.labels, is_kubernetes);
        self.is_kubernetes = is_kubernetes;
        if let Some(node) = self.node_mut(number) {
            (node.path_admitted, node.labels) = (path_admitted, labels);
        }
        self.decide(number);
        // Until `settle`. If there are too many already, the node has to be chosen first.
        let exported = self.suppressed == 0;
        if let Some(node) = self.node_mut(number) {
            node.exported = exported && node.admitted;
        }
        self.unsettled = true;
    }

    /// Sets the record of a node's container. Returns the nodes whose labels have changed: it and its
    /// pod.
    pub fn set_container(&mut self, number: NodeId, container: &Arc<Container>) -> Vec<NodeId> {
        let known = self.node(number).and_then(|node| node.container.as_ref());
        if known.is_some_and(|known| Arc::ptr_eq(known, container)) {
            return Vec::new();
        }
        let Some(node) = self.node_mut(number) else {
            return Vec::new();
        };
        node.container = Some(Arc::clone(container));
        let mut changed = Vec::new();
        changed.extend(self.rename(number));
        if let (Some(pod), Some(at)) = (&container.pod, self.pod_of(number)) {
            // The container's name in the pod differs from container to container.
            let same =
                |known: &Arc<Pod>| known.name == pod.name && known.namespace == pod.namespace;
            let known = self.node(at).and_then(|node| node.pod.as_ref());
            if !known.is_some_and(same)
                && let Some(node) = self.node_mut(at)
            {
                node.pod = Some(Arc::new(Pod {
                    container: String::new(),
                    ..pod.clone()
                }));
                changed.extend(self.rename(at));
            }
        }
        changed
    }

    /// The pod that a node is in.
    fn pod_of(&self, number: NodeId) -> Option<NodeId> {
        let mut at = self.node(number)?.parent;
        while let Some(number) = at {
            let node = self.node(number)?;
            match node.place.kind {
                PlaceKind::Pod => return Some(number),
                // A pod further up is not this container's.
                PlaceKind::Container | PlaceKind::Machine => return None,
                _ => at = node.parent,
            }
        }
        None
    }

    /// Makes a node's labels. Returns the node if they have changed.
    fn rename(&mut self, number: NodeId) -> Option<NodeId> {
        let node = self.node(number)?;
        let container = node.container.as_deref();
        let labels = node.names().labels(
            &printable(&node.path),
            container,
            &self.export.labels,
            self.is_kubernetes,
        );
        if labels == node.labels {
            return None;
        }
        self.node_mut(number)?.labels = labels;
        self.decide(number);
        Some(number)
    }

    /// Applies the filters to a node. What is nested in it follows in `settle`.
    fn decide(&mut self, number: NodeId) {
        let Some(node) = self.node(number) else {
            return;
        };
        let rules = &self.export.filter.containers;
        let kind = node.place.kind;
        let by_name = match (kind, node.parent) {
            (PlaceKind::Nested, Some(parent)) => self.node(parent).is_none_or(|node| node.by_name),
            _ => rules.is_empty() || rules.admit(kind, &node.names()),
        };
        let admitted = by_name && node.path_admitted;
        if (admitted, by_name) != (node.admitted, node.by_name)
            && let Some(node) = self.node_mut(number)
        {
            (node.admitted, node.by_name) = (admitted, by_name);
            self.unsettled = true;
        }
    }

    /// Chooses the exported nodes, if a cgroup came, went or was renamed.
    pub fn settle(&mut self) {
        if !std::mem::take(&mut self.unsettled) {
            return;
        }
        if self.is_kubernetes && !self.labelled_for_kubernetes {
            self.labelled_for_kubernetes = true;
            for at in 0..self.order.len() {
                let renamed = self.rename(self.order[at]);
                self.relabelled.extend(renamed);
            }
        }
        if !self.export.filter.containers.is_empty() {
            // Parents come first.
            for at in 0..self.order.len() {
                let number = self.order[at];
                let kind = self.node(number).map(|node| node.place.kind);
                if kind == Some(PlaceKind::Nested) {
                    self.decide(number);
                }
            }
            self.unsettled = false;
        }
        let admitted = self.iter().filter(|(_, node)| node.admitted);
        let mut admitted: Vec<_> = admitted
            .map(|(number, node)| (node.rank(), number))
            .collect();
        self.suppressed = admitted.len().saturating_sub(self.export.max);
        let mut excess = vec![false; self.capacity()];
        if self.suppressed > 0 {
            let first = self.export.max;
            self.postpone_siblings(&mut admitted);
            admitted.select_nth_unstable(first);
            for &(_, number) in &admitted[first..] {
                excess[number] = true;
            }
        }
        for at in 0..self.order.len() {
            let number = self.order[at];
            let admitted = self.node(number).is_some_and(|node| node.admitted);
            self.set_exported(number, admitted && !excess[number]);
        }
    }

    /// Nodes whose labels have changed in `settle`: once, when the first pod came.
    pub fn take_relabelled(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.relabelled)
    }

    /// Of cgroups without a name, those of one parent may take half of what is there for such cgroups: the
    /// others come after everybody's.
    fn postpone_siblings(&self, admitted: &mut [(Rank, NodeId)]) {
        admitted.sort_unstable();
        let named = admitted.partition_point(|&((rank, ..), _)| rank < UNNAMED);
        let share = self.export.max.saturating_sub(named).div_ceil(2);
        let mut siblings: HashMap<Option<NodeId>, usize> = HashMap::new();
        for ((rank, ..), number) in &mut admitted[named..] {
            let parent = self.node(*number).and_then(|node| node.parent);
            let before = siblings.entry(parent).or_default();
            if *before >= share {
                *rank = UNNAMED + 1;
            }
            *before += 1;
        }
    }

    /// Whether a node is where the host makes containers, pods or units.
    pub fn is_for_known(&self, number: NodeId) -> bool {
        self.node(number)
            .is_some_and(|node| node.place.is_for_known(&node.path, &self.runtimes))
    }

    /// Cgroups that are suppressed because there are too many.
    pub fn suppressed(&self) -> usize {
        self.suppressed
    }

    /// Nodes that are containers with an id, and the id.
    pub fn containers(&self) -> impl Iterator<Item = (NodeId, &Node, &str)> + '_ {
        self.iter()
            .filter_map(|(number, node)| Some((number, node, node.place.container.as_deref()?)))
    }
}
