//! What the tree's nodes are called, and which of them are exported.
//!
//! Invariant: what is nested is exported only if what it is in is. A node that is not exported
//! counts in its parents all the same: values are inclusive whoever is shown.

use std::sync::Arc;

use super::{Node, NodeId, OVERFLOW, Tree};
use crate::cgroup::{Container, Kind, Names, Pod, label::printable};

#[cfg(test)]
mod tests;

impl Node {
    /// What it is called.
    pub fn names(&self) -> Names<'_> {
        Names::of(&self.place, self.container.as_deref(), self.pod.as_deref())
    }

    /// Whether it serves families of this type now: gauges end with their cgroup.
    pub fn serves(&self, kind: crate::exposition::Kind) -> bool {
        self.died.is_none() || kind != crate::exposition::Kind::Gauge
    }

    /// Who is exported first where there are too many: containers, pods and machines, then units and
    /// their groups, then what has no name; of each, the living; of these, whoever was there first.
    fn rank(&self) -> (u8, bool, u64) {
        let rank = match self.place.kind {
            Kind::Root | Kind::Container | Kind::Machine | Kind::Pod => 0,
            Kind::Unit | Kind::Group => 1,
            Kind::Nested | Kind::Other => 2,
        };
        (rank, self.died.is_some(), self.birth)
    }
}

impl Tree {
    /// Gives a new node its labels, and says whether it is exported.
    pub(super) fn introduce(&mut self, number: NodeId) {
        let Some(node) = self.node(number) else {
            return;
        };
        let path = printable(&node.path);
        let path_admitted = self.export.filter.admits(&path);
        let labels = node.names().labels(&path, None, &self.export.labels);
        if let Some(node) = self.node_mut(number) {
            (node.path_admitted, node.labels) = (path_admitted, labels);
        }
        self.decide(number);
        // Until the next choice; where there are too many already, nobody comes in unchosen.
        let exported = self.folded == 0;
        if let Some(node) = self.node_mut(number) {
            node.exported = exported && node.admitted;
        }
        self.unsettled = true;
    }

    /// Takes in what a runtime tells of a node's container, and names the nodes whose labels are
    /// others now: itself and its pod.
    pub fn tell(&mut self, number: NodeId, container: &Arc<Container>) -> Vec<NodeId> {
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
            // Each of its containers has its own name in the pod; the rest is the pod's.
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
                Kind::Pod => return Some(number),
                // That pod is another's.
                Kind::Container | Kind::Machine => return None,
                _ => at = node.parent,
            }
        }
        None
    }

    /// Makes a node's labels anew. The node, if they are others now.
    fn rename(&mut self, number: NodeId) -> Option<NodeId> {
        let node = self.node(number)?;
        let container = node.container.as_deref();
        let labels = node
            .names()
            .labels(&printable(&node.path), container, &self.export.labels);
        if labels == node.labels {
            return None;
        }
        self.node_mut(number)?.labels = labels;
        self.decide(number);
        Some(number)
    }

    /// Asks the filters about a node. What is nested in it follows when there is a choice made.
    fn decide(&mut self, number: NodeId) {
        let Some(node) = self.node(number) else {
            return;
        };
        let rules = &self.export.filter.containers;
        let kind = node.place.kind;
        let by_name = match (kind, node.parent) {
            (Kind::Nested, Some(parent)) => self.node(parent).is_none_or(|node| node.by_name),
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

    /// Chooses who is exported. Does nothing as long as nobody came, went or was renamed.
    pub fn settle(&mut self) {
        if !std::mem::take(&mut self.unsettled) {
            return;
        }
        if !self.export.filter.containers.is_empty() {
            // Parents come first.
            for at in 0..self.order.len() {
                let number = self.order[at];
                let kind = self.node(number).map(|node| node.place.kind);
                if kind == Some(Kind::Nested) {
                    self.decide(number);
                }
            }
            self.unsettled = false;
        }
        let admitted = self
            .iter()
            .filter(|(number, node)| *number != OVERFLOW && node.admitted);
        let mut admitted: Vec<_> = admitted
            .map(|(number, node)| (node.rank(), number))
            .collect();
        self.folded = admitted.len().saturating_sub(self.export.max);
        let mut excess = vec![false; self.capacity()];
        if self.folded > 0 {
            let first = self.export.max;
            admitted.select_nth_unstable(first);
            for &(_, number) in &admitted[first..] {
                excess[number] = true;
            }
        }
        for at in 0..self.order.len() {
            let number = self.order[at];
            let admitted = self.node(number).is_some_and(|node| node.admitted);
            if number != OVERFLOW {
                self.set_exported(number, admitted && !excess[number]);
            }
        }
    }

    /// Cgroups that are not exported because there are more than may be.
    pub fn folded(&self) -> usize {
        self.folded
    }

    /// Nodes that are containers which a runtime knows by an id.
    pub fn containers(&self) -> impl Iterator<Item = (NodeId, &Node, &str)> + '_ {
        self.iter()
            .filter_map(|(number, node)| Some((number, node, node.place.container.as_deref()?)))
    }
}
