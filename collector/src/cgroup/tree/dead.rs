//! Removed cgroups that are still kept, and how many may be.
//!
//! Invariant: what is kept of removed cgroups is bounded, however many come and go. A node leaves
//! early only to its parent, so no total is lost.
//!
//! Who stays where there are too many: containers, pods and machines that no scrape has shown yet, then
//! those whose removal is the latest; of other cgroups those that have used the most CPU time.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{Node, NodeId, Tree};
/// How many removed cgroups are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeadMax {
    /// Most removed containers, pods and machines.
    pub containers: usize,
    /// Most other removed cgroups.
    pub others: usize,
}

impl DeadMax {
    /// The bound of `--cgroup.dead-max`: that many containers, pods and machines, and a quarter as
    /// many others.
    pub const fn new(containers: usize) -> Self {
        Self {
            containers,
            others: containers / 4,
        }
    }
}

/// A node that is no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// Its number, which is another cgroup's at the next change of the tree.
    pub node: NodeId,
    /// The parent, to which its values belong from now on.
    pub into: NodeId,
}

/// Removed cgroups by when the tree learnt of their removal.
type ByTime = BTreeSet<(Instant, NodeId)>;

/// Removed cgroups, in the order in which they leave.
#[derive(Debug)]
pub(super) struct Dead {
    /// Containers, pods and machines that a scrape has shown, alive or removed.
    containers: ByTime,
    /// Those that came and went since the last scrape.
    unshown: ByTime,
    /// Other cgroups.
    others: ByTime,
    /// The same by activity.
    ranked: BTreeSet<(u64, Instant, NodeId)>,
    /// Removed since [`Tree::discard`] last looked for those that never counted anything. They are in none
    /// of the above.
    fresh: ByTime,
    /// Number of all.
    count: usize,
    /// Ids, other than its present one, that lead to a node.
    aliases: HashMap<NodeId, HashSet<u64>>,
    /// Those of them that lead to a parent, because their own node was reaped.
    reaped: HashSet<u64>,
    pub(super) max: DeadMax,
    /// The last birth before values were last served: cgroups up to there have been shown.
    shown: u64,
    /// Cgroups that were reaped before any scrape has shown them.
    unreported: u64,
}

impl Default for Dead {
    fn default() -> Self {
        Self {
            containers: BTreeSet::new(),
            unshown: BTreeSet::new(),
            others: BTreeSet::new(),
            ranked: BTreeSet::new(),
            fresh: BTreeSet::new(),
            count: 0,
            aliases: HashMap::new(),
            reaped: HashSet::new(),
            max: DeadMax::new(usize::MAX),
            shown: 0,
            unreported: 0,
        }
    }
}

impl Dead {
    /// Whether a scrape has shown the node.
    pub(super) fn has_shown(&self, node: &Node) -> bool {
        node.birth <= self.shown
    }

    /// Adds a removed node.
    pub(super) fn add(&mut self, number: NodeId, gone: Instant) {
        self.count += 1;
        self.fresh.insert((gone, number));
    }

    /// Adds a removed node that is kept.
    fn keep(&mut self, number: NodeId, node: &Node) {
        let Some(gone) = node.gone else {
            return;
        };
        match (node.place.kind.is_contained(), self.has_shown(node)) {
            (true, true) => self.containers.insert((gone, number)),
            (true, false) => self.unshown.insert((gone, number)),
            (false, _) => {
                self.ranked.insert((node.activity, gone, number));
                self.others.insert((gone, number))
            }
        };
    }

    /// Takes out a node: its path was made again, or it was reaped.
    pub(super) fn take(&mut self, number: NodeId, node: &Node) {
        let Some(gone) = node.gone else {
            return;
        };
        self.count -= 1;
        // Its number, or the node itself, may be a living cgroup's soon.
        self.fresh.remove(&(gone, number));
        if node.place.kind.is_contained() {
            let _ = self.containers.remove(&(gone, number)) || self.unshown.remove(&(gone, number));
        } else {
            self.others.remove(&(gone, number));
            self.ranked.remove(&(node.activity, gone, number));
        }
    }

    /// Notes that an id, which is not its present one, leads to a node.
    pub(super) fn alias(&mut self, number: NodeId, id: u64) {
        self.aliases.entry(number).or_default().insert(id);
    }

    /// Forgets such an id.
    pub(super) fn forget(&mut self, number: NodeId, id: u64) {
        self.reaped.remove(&id);
        if let Some(ids) = self.aliases.get_mut(&number) {
            ids.remove(&id);
            if ids.is_empty() {
                self.aliases.remove(&number);
            }
        }
    }

    /// Whether an id's own node was reaped.
    pub(super) fn was_reaped(&self, id: u64) -> bool {
        self.reaped.contains(&id)
    }

    /// Number of removed cgroups that are kept.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The time of the first removal.
    fn first(&self) -> Option<Instant> {
        let sets = [&self.containers, &self.unshown, &self.others];
        let firsts = sets.into_iter().filter_map(BTreeSet::first);
        let firsts = firsts.chain(self.fresh.first());
        firsts.map(|(gone, _)| *gone).min()
    }

    /// Nodes that have lingered long enough.
    fn due(&self, now: Instant, linger: Duration) -> Vec<NodeId> {
        let old = |&&(gone, _): &&(Instant, NodeId)| now.saturating_duration_since(gone) >= linger;
        let sets = [&self.containers, &self.unshown, &self.others].into_iter();
        let kept = sets.flat_map(|set| set.iter().take_while(old));
        let fresh = self.fresh.iter().take_while(old);
        kept.chain(fresh).map(|(_, number)| *number).collect()
    }

    /// The first that is to leave because there are too many, of those that may.
    fn excess(&self, may: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let may = |number: &NodeId| may(*number);
        if self.containers.len() + self.unshown.len() > self.max.containers {
            let mut containers = self.containers.iter().chain(&self.unshown);
            let found = containers.find(|(_, number)| may(number));
            if let Some(&(_, number)) = found {
                return Some(number);
            }
        }
        if self.others.len() > self.max.others {
            let found = self.ranked.iter().find(|(.., number)| may(number));
            return found.map(|&(.., number)| number);
        }
        None
    }
}

impl Tree {
    /// Limits the number of removed cgroups that are kept.
    pub fn set_dead_max(&mut self, max: DeadMax) {
        self.dead.max = max;
    }

    /// Notes that values were served: all cgroups have been shown.
    pub fn served(&mut self) {
        self.dead.shown = self.births;
        let mut shown = std::mem::take(&mut self.dead.unshown);
        self.dead.containers.append(&mut shown);
    }

    /// Notes how active a removed cgroup was: its CPU time, ns.
    pub fn note_activity(&mut self, id: u64, activity: u64) {
        let Some(number) = self.present(id) else {
            return;
        };
        let Some(gone) = self.node(number).and_then(|node| node.gone) else {
            return;
        };
        let Some(node) = self.node_mut(number) else {
            return;
        };
        let before = std::mem::replace(&mut node.activity, activity);
        // Containers are not in this order.
        if self.dead.ranked.remove(&(before, gone, number)) {
            self.dead.ranked.insert((activity, gone, number));
        }
    }

    /// Number of cgroups that were reaped before any scrape has shown them.
    pub fn unreported(&self) -> u64 {
        self.dead.unreported
    }

    /// Number of cgroups removed since the last [`discard`](Self::discard).
    pub fn fresh(&self) -> usize {
        self.dead.fresh.len()
    }

    /// When the next removed node is to be reaped.
    pub fn next_reaping(&self, linger: Duration) -> Option<Instant> {
        self.dead.first()?.checked_add(linger)
    }

    /// Reaps removed nodes that have lingered long enough or are too many, children before parents.
    /// Returns them in this order. Ids that are `pending`, because their slots are still to be read,
    /// lead to the parent from now on.
    pub fn reap(
        &mut self,
        now: Instant,
        linger: Duration,
        pending: impl Fn(u64) -> bool,
    ) -> Vec<Reaped> {
        let mut due = self.dead.due(now, linger);
        // A child was removed before its parent. Where the removals were found by a walk, they may
        // have been noted in any order: a parent that had to wait comes again after its child.
        due.reverse();
        let mut waiting = HashSet::new();
        let mut reaped = Vec::new();
        while let Some(number) = due.pop() {
            let Some(node) = self.node(number) else {
                continue;
            };
            if node.children > 0 {
                waiting.insert(number);
                continue;
            }
            let Some(one) = self.reap_kept(number, &pending) else {
                continue;
            };
            reaped.push(one);
            if waiting.remove(&one.into) {
                due.push(one.into);
            }
        }
        loop {
            let leaf = |number| self.node(number).is_some_and(|node| node.children == 0);
            let next = self.dead.excess(leaf);
            let Some(one) = next.and_then(|number| self.reap_kept(number, &pending)) else {
                break;
            };
            reaped.push(one);
        }
        self.compact(&reaped);
        reaped
    }

    /// Reaps a node without children that was kept until now.
    fn reap_kept(&mut self, number: NodeId, pending: &impl Fn(u64) -> bool) -> Option<Reaped> {
        let node = self.node(number)?;
        // Who has nothing to show is not missed.
        let missed = !self.dead.has_shown(node) && node.is_kept();
        let reaped = self.reap_one(number, pending)?;
        self.dead.unreported += u64::from(missed);
        Some(reaped)
    }

    /// Reaps cgroups removed since the last call that are not kept at all: those that never counted
    /// anything, and those that the filters exclude. `counts` tells whether a cgroup has a slot; one
    /// without has had no event. Children come before parents. Returns them as [`reap`](Self::reap)
    /// does.
    pub fn discard(
        &mut self,
        counts: impl Fn(u64) -> bool,
        pending: impl Fn(u64) -> bool,
    ) -> Vec<Reaped> {
        let mut discarded = Vec::new();
        for (_, number) in std::mem::take(&mut self.dead.fresh) {
            let Some(node) = self.node(number).filter(|node| node.died.is_some()) else {
                continue;
            };
            let id = node.id;
            let has_counted = node.counted || counts(id);
            if has_counted
                && !node.counted
                && let Some(node) = self.node_mut(number)
            {
                node.counted = true;
            }
            let Some(Some(node)) = self.nodes.get(number) else {
                continue;
            };
            if node.children > 0 || node.is_kept() {
                self.dead.keep(number, node);
                continue;
            }
            discarded.extend(self.reap_one(number, &pending));
        }
        self.compact(&discarded);
        discarded
    }

    /// Reaps a node without children.
    fn reap_one(&mut self, number: NodeId, pending: &impl Fn(u64) -> bool) -> Option<Reaped> {
        let node = self.nodes.get(number).cloned().flatten()?;
        let parent = node.parent?;
        let aliases = self.dead.aliases.remove(&number).unwrap_or_default();
        for id in aliases.into_iter().chain([node.id]) {
            if self.by_id.get(&id) != Some(&number) {
                continue;
            }
            if pending(id) {
                self.by_id.insert(id, parent);
                self.dead.alias(parent, id);
                self.dead.reaped.insert(id);
            } else {
                self.by_id.remove(&id);
                self.dead.reaped.remove(&id);
            }
        }
        self.dead.take(number, &node);
        self.by_path.remove(&node.path);
        self.nodes[number] = None;
        self.view = None;
        self.vacated.push(number);
        if let Some(above) = self.node_mut(parent) {
            above.children -= 1;
            above.counted |= node.counted;
            // One that is not kept at all had to wait for its children.
            if let (Some(gone), 0, false) = (above.gone, above.children, above.is_kept()) {
                self.dead.fresh.insert((gone, parent));
            }
        }
        Some(Reaped {
            node: number,
            into: parent,
        })
    }

    /// Takes reaped nodes out of the order, once they are a quarter of it: so a removal costs the same
    /// however many nodes there are. Their numbers are free from then on.
    fn compact(&mut self, reaped: &[Reaped]) {
        self.unsettled |= !reaped.is_empty();
        if self.vacated.len() < self.order.len().div_ceil(4) {
            return;
        }
        let nodes = &self.nodes;
        let alive = |number: &NodeId| nodes.get(*number).is_some_and(Option::is_some);
        self.order.retain(alive);
        self.vacant.append(&mut self.vacated);
        if self.by_id.capacity() > SPARE && self.by_id.len() < self.by_id.capacity() / 4 {
            self.by_id.shrink_to_fit();
            self.by_path.shrink_to_fit();
        }
    }
}

/// Memory for so many nodes is not given back.
const SPARE: usize = 256;

impl Node {
    /// Whether it is kept once it is removed.
    pub fn is_kept(&self) -> bool {
        self.counted && self.admitted
    }
}
