//! Removed cgroups that are still kept, and how many may be.
//!
//! Invariant: what is kept of removed cgroups is bounded, however many come and go. A node leaves
//! early only to its parent, so no total is lost.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{Node, NodeId, Tree};
use crate::cgroup::PlaceKind;

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
#[derive(Debug)]
pub(super) struct Dead {
    containers: BTreeSet<(Instant, NodeId)>,
    others: BTreeSet<(Instant, NodeId)>,
    /// Removed since [`Tree::discard`] last looked for those that never counted anything.
    fresh: Vec<NodeId>,
    /// Ids, other than its present one, that lead to a node.
    aliases: HashMap<NodeId, HashSet<u64>>,
    /// Those of them that lead to a parent, because their own node was reaped.
    reaped: HashSet<u64>,
    pub(super) max: DeadMax,
    /// When values were last served: a cgroup that was removed before has been shown.
    shown: Option<Instant>,
    /// Cgroups that were reaped before any scrape has shown them.
    unreported: u64,
}

impl Default for Dead {
    fn default() -> Self {
        Self {
            containers: BTreeSet::new(),
            others: BTreeSet::new(),
            fresh: Vec::new(),
            aliases: HashMap::new(),
            reaped: HashSet::new(),
            max: DeadMax::new(usize::MAX),
            shown: None,
            unreported: 0,
        }
    }
}

impl Dead {
    fn of(&mut self, kind: PlaceKind) -> &mut BTreeSet<(Instant, NodeId)> {
        match kind {
            PlaceKind::Container | PlaceKind::Machine | PlaceKind::Pod => &mut self.containers,
            _ => &mut self.others,
        }
    }

    /// Adds a node that was removed at `gone`.
    pub(super) fn add(&mut self, number: NodeId, kind: PlaceKind, gone: Instant) {
        self.of(kind).insert((gone, number));
        self.fresh.push(number);
    }

    /// Takes out a node: its path was made again, or it was reaped.
    pub(super) fn take(&mut self, number: NodeId, node: &Node) {
        if let Some(gone) = node.gone {
            self.of(node.place.kind).remove(&(gone, number));
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
        self.containers.len() + self.others.len()
    }

    /// The time of the first removal.
    fn first(&self) -> Option<Instant> {
        let firsts = [self.containers.first(), self.others.first()];
        firsts.into_iter().flatten().map(|(gone, _)| *gone).min()
    }

    /// Nodes that have lingered long enough, and the oldest of those above the bound. Where a bound
    /// is exceeded, an eighth more leaves, so that the next removals find room.
    fn due(&self, now: Instant, linger: Duration) -> Vec<NodeId> {
        let of = |set: &BTreeSet<(Instant, NodeId)>, max: usize| {
            let excess = match set.len().checked_sub(max) {
                None | Some(0) => 0,
                Some(excess) => excess + max / 8,
            };
            let over = |&(at, (gone, _)): &(usize, &(Instant, NodeId))| {
                at < excess || now.saturating_duration_since(*gone) >= linger
            };
            let due = set.iter().enumerate().take_while(over);
            due.map(|(_, (_, number))| *number).collect::<Vec<_>>()
        };
        let mut due = of(&self.containers, self.max.containers);
        due.extend(of(&self.others, self.max.others));
        due
    }
}

impl Tree {
    /// Limits the number of removed cgroups that are kept.
    pub fn set_dead_max(&mut self, max: DeadMax) {
        self.dead.max = max;
    }

    /// Notes that values were served: removed cgroups have been shown.
    pub fn served(&mut self, now: Instant) {
        self.dead.shown = Some(now);
    }

    /// Number of cgroups that were reaped before any scrape has shown them.
    pub fn unreported(&self) -> u64 {
        self.dead.unreported
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
            let shown = node.gone <= self.dead.shown;
            let Some(one) = self.reap_one(number, &pending) else {
                continue;
            };
            if !shown {
                self.dead.unreported += 1;
            }
            reaped.push(one);
            if waiting.remove(&one.into) {
                due.push(one.into);
            }
        }
        self.compact(&reaped);
        reaped
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
        for number in std::mem::take(&mut self.dead.fresh) {
            let Some(node) = self.node(number).filter(|node| node.died.is_some()) else {
                continue;
            };
            let id = node.id;
            let has_counted = node.counted || counts(id);
            if node.children > 0 || (has_counted && node.admitted) {
                if has_counted && let Some(node) = self.node_mut(number) {
                    node.counted = true;
                }
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
        }
        Some(Reaped {
            node: number,
            into: parent,
        })
    }

    /// Takes reaped nodes out of the order. Their numbers are free from then on.
    fn compact(&mut self, reaped: &[Reaped]) {
        if reaped.is_empty() {
            return;
        }
        self.unsettled = true;
        let nodes = &self.nodes;
        let alive = |number: &NodeId| nodes.get(*number).is_some_and(Option::is_some);
        self.order.retain(alive);
        self.vacant.append(&mut self.vacated);
    }
}
