//! The tree of cgroups: live ones, and removed ones that linger.

mod dead;
mod names;
mod nodes;
mod recalled;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Instant, SystemTime},
};

use dead::Dead;
pub use dead::{DeadMax, Reaped};
pub use nodes::Nodes;
pub use recalled::{Earlier, Recalled};

use super::{
    export::Export,
    identity::{Container, Place, Pod, Runtime},
    walk::{Found, join},
};
use crate::exposition::LabelSet;

/// Number of a node: an index into sources' vectors.
pub type NodeId = usize;

/// A lifecycle event of the unified hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A cgroup was made.
    Made {
        /// Id of the new cgroup.
        id: u64,
        /// Id of its parent.
        parent: u64,
        /// Name of its directory.
        name: Vec<u8>,
        /// When it was made.
        at: SystemTime,
    },
    /// A cgroup was removed.
    Removed {
        /// Id of the removed cgroup.
        id: u64,
        /// When it was removed.
        at: SystemTime,
    },
}

/// What a walk found to be different from the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Ids of cgroups that are gone.
    pub removed: Vec<u64>,
    /// Nodes whose path has another cgroup now.
    pub remade: Vec<NodeId>,
    /// Nodes of paths that the tree did not have.
    pub born: Vec<NodeId>,
}

/// A cgroup as the tree knows it: alive, or removed and lingering.
#[derive(Clone, Debug)]
pub struct Node {
    /// Cgroup id of the present (or last) cgroup of this path.
    pub id: u64,
    /// The parent's node; `None` for the root.
    pub parent: Option<NodeId>,
    /// Path below the root of the hierarchy, any bytes.
    pub path: Arc<[u8]>,
    /// What the path says about the cgroup.
    pub place: Place,
    /// The runtime's record, if the cgroup is a container and the runtime knows it.
    pub container: Option<Arc<Container>>,
    /// The pod, if the cgroup is a pod's own.
    pub pod: Option<Arc<Pod>>,
    /// Labels of its series.
    pub labels: LabelSet,
    /// When it was removed; `None` while it lives.
    pub died: Option<SystemTime>,
    /// When the tree learnt of its removal, on the clock that nobody sets.
    pub gone: Option<Instant>,
    /// When it was made, if its birth was reported.
    pub created: Option<SystemTime>,
    /// Whether its series are exported.
    pub exported: bool,
    /// Whether the filters for paths admit it.
    path_admitted: bool,
    /// Whether the rules for containers admit it or what it is nested in.
    by_name: bool,
    /// Whether the filters admit it: it is exported unless there are too many.
    admitted: bool,
    /// Whether it, or a descendant, is known to have counted an event.
    counted: bool,
    /// CPU time that a removed cgroup had used, ns, descendants included; 0 if it is not known.
    activity: u64,
    /// Its number in the order of births.
    birth: u64,
    children: usize,
}

/// The tree of cgroups, and which of them are exported.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Option<Arc<Node>>>,
    /// What [`nodes`](Self::nodes) returned last; `None` after a change.
    view: Option<Arc<Nodes>>,
    vacant: Vec<NodeId>,
    /// Numbers of reaped nodes that are still in `order`.
    vacated: Vec<NodeId>,
    by_id: HashMap<u64, NodeId>,
    by_path: HashMap<Arc<[u8]>, NodeId>,
    /// Nodes, parents before children.
    order: Vec<NodeId>,
    export: Export,
    /// Runtimes whose cgroups are recognised by their paths.
    runtimes: Vec<Runtime>,
    births: u64,
    dead: Dead,
    /// Ids of cgroups whose removal was not reported and whose path another cgroup has now.
    replaced: Vec<u64>,
    /// Whether the choice of exported cgroups may have changed.
    unsettled: bool,
    /// Cgroups that are suppressed because there are too many.
    suppressed: usize,
    /// Whether there has been a pod.
    is_kubernetes: bool,
    /// Whether nodes that were there before it have labels as under Kubernetes.
    labelled_for_kubernetes: bool,
    /// Nodes whose labels have changed since somebody asked.
    relabelled: Vec<NodeId>,
    /// Whether the root is the hierarchy's own, so that unknown cgroups lie below it.
    whole: bool,
}

/// The root's node.
pub const ROOT: NodeId = 0;
/// Id of the root of a cgroup2 hierarchy (kernel/cgroup/cgroup.c: the root's kernfs node is the
/// first).
const ROOT_CGROUP_ID: u64 = 1;

impl Tree {
    /// The tree of a made-up hierarchy with Docker's paths.
    #[cfg(test)]
    pub(crate) fn new(found: &[Found], export: impl Into<Export>) -> Self {
        Self::with_runtimes(vec![Runtime::DOCKER], found, export)
    }

    /// The tree of what a walk found, on a host that may have these runtimes. The first entry is the
    /// root.
    pub fn with_runtimes(
        runtimes: Vec<Runtime>,
        found: &[Found],
        export: impl Into<Export>,
    ) -> Self {
        let mut tree = Self {
            nodes: Vec::new(),
            view: None,
            vacant: Vec::new(),
            vacated: Vec::new(),
            dead: Dead::default(),
            by_id: HashMap::new(),
            by_path: HashMap::new(),
            order: Vec::new(),
            whole: found.first().is_some_and(|root| root.id == ROOT_CGROUP_ID),
            export: export.into(),
            runtimes,
            births: 0,
            replaced: Vec::new(),
            unsettled: true,
            is_kubernetes: false,
            labelled_for_kubernetes: false,
            relabelled: Vec::new(),
            suppressed: 0,
        };
        let root = found.first().map_or(ROOT_CGROUP_ID, |root| root.id);
        tree.add(root, None, b"/".to_vec(), None);
        tree.merge(found, SystemTime::now());
        tree
    }

    /// Brings the tree in line with a walk, and returns what that changed.
    pub fn merge(&mut self, found: &[Found], now: SystemTime) -> Walked {
        let mut walked = Walked::default();
        for cgroup in found.iter().skip(1) {
            match self.made(cgroup.id, cgroup.parent, &cgroup.name, None) {
                Some((number, true)) => walked.remade.push(number),
                Some((number, false)) => walked.born.push(number),
                None => {}
            }
        }
        let alive: std::collections::HashSet<u64> = found.iter().map(|found| found.id).collect();
        walked.removed = self
            .iter()
            .filter(|(_, node)| node.died.is_none() && !alive.contains(&node.id))
            .map(|(_, node)| node.id)
            .collect();
        for &id in &walked.removed {
            self.removed(id, now);
        }
        walked.removed.append(&mut self.replaced);
        walked
    }

    /// Switches the export of a node on or off.
    pub fn set_exported(&mut self, number: NodeId, exported: bool) {
        if self
            .node(number)
            .is_some_and(|node| node.exported != exported)
            && let Some(node) = self.node_mut(number)
        {
            node.exported = exported;
        }
    }

    /// Applies an event. Returns the node it concerned, and whether that node had been dead and
    /// was made again.
    pub fn apply(&mut self, event: &Event) -> Option<(NodeId, bool)> {
        match event {
            Event::Made {
                id,
                parent,
                name,
                at,
            } => self.made(*id, *parent, name, Some(*at)),
            Event::Removed { id, at } => Some((self.removed(*id, *at)?, false)),
        }
    }

    fn made(
        &mut self,
        id: u64,
        parent: u64,
        name: &[u8],
        at: Option<SystemTime>,
    ) -> Option<(NodeId, bool)> {
        if self.by_id.contains_key(&id) {
            // It was born before this agent walked the hierarchy.
            if let (Some(number), Some(at)) = (self.present(id), at) {
                self.set_created(number, at);
            }
            return None;
        }
        // Unknown: outside the agent's root.
        let parent = *self.by_id.get(&parent)?;
        let path = join(&self.node(parent)?.path, name);
        if let Some(&number) = self.by_path.get(&path[..]) {
            // The path is remade: its series go on where the predecessor's stopped.
            let before = Arc::clone(self.nodes.get(number)?.as_ref()?);
            if before.died.is_none() {
                self.replaced.push(before.id);
            }
            self.dead.take(number, &before);
            self.dead.alias(number, before.id);
            let node = self.node_mut(number)?;
            node.id = id;
            node.died = None;
            node.gone = None;
            node.created = at;
            self.unsettled = true;
            self.by_id.insert(id, number);
            return Some((number, true));
        }
        Some((self.add(id, Some(parent), path, at), false))
    }

    /// Notes when a cgroup was made, unless its birth was reported.
    pub fn set_created(&mut self, number: NodeId, created: SystemTime) {
        if let Some(node) = self.node_mut(number) {
            node.created.get_or_insert(created);
        }
    }

    fn add(
        &mut self,
        id: u64,
        parent: Option<NodeId>,
        path: Vec<u8>,
        created: Option<SystemTime>,
    ) -> NodeId {
        let place = Place::of(&path, &self.runtimes);
        let path: Arc<[u8]> = path.into();
        self.births += 1;
        let node = Node {
            id,
            parent,
            place,
            container: None,
            pod: None,
            labels: LabelSet::empty(),
            exported: true,
            path_admitted: true,
            by_name: true,
            admitted: true,
            counted: false,
            activity: 0,
            birth: self.births,
            path: Arc::clone(&path),
            died: None,
            gone: None,
            created,
            children: 0,
        };
        let number = self.vacant.pop().unwrap_or(self.nodes.len());
        if number == self.nodes.len() {
            self.nodes.push(Some(Arc::new(node)));
        } else {
            self.nodes[number] = Some(Arc::new(node));
        }
        self.view = None;
        if let Some(parent) = parent.and_then(|parent| self.node_mut(parent)) {
            parent.children += 1;
        }
        self.by_id.insert(id, number);
        self.by_path.insert(path, number);
        // Appended, a child comes after its parent.
        self.order.push(number);
        self.introduce(number);
        number
    }

    fn removed(&mut self, id: u64, at: SystemTime) -> Option<NodeId> {
        let number = *self.by_id.get(&id)?;
        let node = self.node(number)?;
        // Otherwise the path has another cgroup by now.
        if node.id != id {
            return Some(number);
        }
        if let Some(died) = node.died {
            // An earlier agent knew it, and it was gone when this one came.
            if at < died
                && let Some(node) = self.node_mut(number)
            {
                node.died = Some(at);
            }
        } else {
            let node = self.node_mut(number)?;
            node.died = Some(at);
            let gone = Instant::now();
            node.gone = Some(gone);
            node.activity = 0;
            self.dead.add(number, gone);
            self.unsettled = true;
        }
        Some(number)
    }

    /// Forgets an id whose node has another cgroup by now.
    pub fn forget_alias(&mut self, id: u64) {
        if let Some(&number) = self.by_id.get(&id)
            && self.node(number).is_some_and(|node| node.id != id)
        {
            self.by_id.remove(&id);
            self.dead.forget(number, id);
        }
    }

    /// Removed cgroups whose path a living cgroup has now, with its node: their last values may be still to
    /// come.
    pub fn aliases(&self) -> impl Iterator<Item = (u64, NodeId)> + '_ {
        let living = |number: NodeId| self.node(number).filter(|node| node.died.is_none());
        let aliases = self.by_id.iter();
        // What such a cgroup's children had, whose own nodes were reaped, is the parent's already.
        let aliases = aliases.filter(|(id, _)| !self.dead.was_reaped(**id));
        aliases.filter_map(move |(&id, &number)| {
            living(number).filter(|node| node.id != id)?;
            Some((id, number))
        })
    }

    /// Takes over such a cgroup from an earlier agent.
    pub fn set_alias(&mut self, id: u64, number: NodeId) {
        self.by_id.entry(id).or_insert_with(|| {
            self.dead.alias(number, id);
            number
        });
    }

    /// Returns a node by its number, `None` if it was reaped.
    pub fn node(&self, number: NodeId) -> Option<&Node> {
        self.nodes.get(number)?.as_deref()
    }

    /// A node that is about to change: a copy of its own where it is shared.
    fn node_mut(&mut self, number: NodeId) -> Option<&mut Node> {
        let node = self.nodes.get_mut(number)?.as_mut()?;
        self.view = None;
        Some(Arc::make_mut(node))
    }

    /// The nodes as they are now. Costs nothing as long as nothing changes.
    pub fn nodes(&mut self) -> Arc<Nodes> {
        if let Some(view) = &self.view {
            return Arc::clone(view);
        }
        let nodes = self.order.iter();
        let nodes = nodes.filter_map(|&number| {
            let node = self.nodes.get(number)?.as_ref()?;
            Some((number, Arc::clone(node)))
        });
        let view = Arc::new(Nodes::new(nodes.collect(), self.nodes.len()));
        self.view = Some(Arc::clone(&view));
        view
    }

    /// The node of a cgroup id. The id of an earlier cgroup of the same path leads to the same node;
    /// an unknown id leads to the root, if that is the hierarchy's own.
    pub fn by_id(&self, id: u64) -> Option<NodeId> {
        self.by_id.get(&id).copied().or(self.whole.then_some(ROOT))
    }

    /// Whether a cgroup is known.
    pub fn knows(&self, id: u64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// The node of a cgroup's path, also if another cgroup has the path by now. `None` if there is none
    /// any more.
    pub fn of_path(&self, id: u64) -> Option<NodeId> {
        self.by_id
            .get(&id)
            .copied()
            .filter(|_| !self.dead.was_reaped(id))
    }

    /// Notes that a node's cgroup has counted an event.
    pub fn note_counted(&mut self, number: NodeId) {
        if let Some(node) = self.node_mut(number) {
            node.counted = true;
        }
    }

    /// The node of a cgroup, alive or removed, unless another cgroup has its path by now.
    pub fn present(&self, id: u64) -> Option<NodeId> {
        let number = *self.by_id.get(&id)?;
        (self.node(number)?.id == id).then_some(number)
    }

    /// The node of a live cgroup.
    pub fn living(&self, id: u64) -> Option<NodeId> {
        let number = self.present(id)?;
        self.node(number)?.died.is_none().then_some(number)
    }

    /// Whether a node is `other` or below it.
    pub fn is_within(&self, number: NodeId, other: NodeId) -> bool {
        let mut at = Some(number);
        while let Some(number) = at {
            if number == other {
                return true;
            }
            at = self.node(number).and_then(|node| node.parent);
        }
        false
    }

    /// Whether the root is the hierarchy's own, and so the host's.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Returns the node that a path has.
    pub fn by_path(&self, path: &[u8]) -> Option<NodeId> {
        self.by_path.get(path).copied()
    }

    /// Nodes with their numbers, parents before children.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> + '_ {
        self.order
            .iter()
            .filter_map(|&number| Some((number, self.node(number)?)))
    }

    /// One more than the highest node number: the length of a vector by node.
    pub fn capacity(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the numbers of live and of dead cgroups.
    pub fn counts(&self) -> (usize, usize) {
        let dead = self.dead.len();
        (self.order.len() - self.vacated.len() - dead, dead)
    }
}
