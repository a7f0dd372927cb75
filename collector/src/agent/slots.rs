//! Slots of cgroups: which cgroup has one, and which are being taken back.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::Context;
use collector_common::cell::OVERFLOW_SLOT;

use super::sources::Sources;
use crate::{
    cgroup::{NodeId, OVERFLOW, Reaped, Tree},
    kernel::slots::{self, SlotPool},
    source::Change,
};

/// How long a removed cgroup keeps its slot. Its last tasks may still be exiting.
const QUARANTINE: Duration = Duration::from_secs(2);
/// How long a revoked slot is still read before it is recycled. This is far longer than a kernel
/// program runs.
const GRACE: Duration = Duration::from_millis(500);

/// The slots of all cgroups.
pub(super) struct Slots {
    pool: SlotPool,
    /// Slots to keep free beyond one for each live cgroup.
    reserve: usize,
    /// Removed cgroups that still have a slot, and when they were removed.
    departed: Vec<(u64, Instant)>,
    /// Slots taken from removed cgroups, not yet recycled.
    revoked: Vec<Revoked>,
}

/// A slot taken from a removed cgroup.
#[derive(Clone, Copy, Debug)]
struct Revoked {
    slot: u32,
    /// The node that its values count for; `None` for a cgroup outside `--cgroup.root`.
    node: Option<NodeId>,
    since: Instant,
}

fn due(since: Instant, now: Instant, delay: Duration) -> bool {
    now.duration_since(since) >= delay
}

impl Slots {
    pub(super) fn new(pool: SlotPool, reserve: usize) -> Self {
        Self {
            pool,
            reserve,
            departed: Vec::new(),
            revoked: Vec::new(),
        }
    }

    /// Numbers of used, free and quarantined slots.
    pub(super) fn states(&self) -> (usize, usize, usize) {
        self.pool.states()
    }

    /// Notes that a cgroup was removed. Its slot is revoked after the quarantine.
    pub(super) fn depart(&mut self, id: u64) {
        self.departed.push((id, Instant::now()));
    }

    /// Whether a removed cgroup may still get values from a slot. Its sockets can outlive it and
    /// take a slot again.
    pub(super) fn is_pending(&self, id: u64) -> bool {
        self.pool.has(id) || self.departed.iter().any(|&(found, _)| found == id)
    }

    /// Whether a cgroup has a slot, as of the last [`refresh`](Self::refresh).
    pub(super) fn has(&self, id: u64) -> bool {
        self.pool.has(id)
    }

    /// After nodes were reaped, children before parents: their revoked slots count for their parents.
    pub(super) fn reaped(&mut self, nodes: &[Reaped]) {
        if nodes.is_empty() {
            return;
        }
        let heirs: HashMap<NodeId, NodeId> = nodes
            .iter()
            .map(|reaped| (reaped.node, reaped.into))
            .collect();
        for slot in &mut self.revoked {
            while let Some(&into) = slot.node.and_then(|node| heirs.get(&node)) {
                slot.node = Some(into);
            }
        }
    }

    /// Reads which cgroup has which slot.
    ///
    /// # Errors
    ///
    /// When the kernel's map of slots can't be read.
    pub(super) fn refresh(&mut self) -> std::io::Result<()> {
        self.pool.refresh()
    }

    /// Returns the slots with the nodes that they count for, as of the last
    /// [`refresh`](Self::refresh).
    pub(super) fn by_node(&mut self, tree: &Tree) -> Vec<(NodeId, u32)> {
        self.depart_left_behind(tree);
        let used = self.pool.used();
        let used = used.filter_map(|(id, slot)| Some((tree.by_id(id)?, slot)));
        let revoked = self.revoked.iter();
        let revoked = revoked.filter_map(|slot| Some((slot.node?, slot.slot)));
        used.chain(revoked)
            .chain([(OVERFLOW, OVERFLOW_SLOT)])
            .collect()
    }

    /// Starts the quarantine of slots whose cgroups are not in the tree any more.
    fn depart_left_behind(&mut self, tree: &Tree) {
        let departed: HashSet<u64> = self.departed.iter().map(|&(id, _)| id).collect();
        let ids = self.pool.used().map(|(id, _)| id);
        let left_behind = ids.filter(|id| tree.left_behind(*id) && !departed.contains(id));
        let now = Instant::now();
        self.departed.extend(left_behind.map(|id| (id, now)));
    }

    /// After lost events: starts the quarantine of slots of cgroups that came and went meanwhile.
    /// They had no event and no walk finds them.
    pub(super) fn depart_unknown(&mut self, tree: &Tree) {
        if self.pool.refresh().is_err() {
            return;
        }
        let ids = self.pool.used().map(|(id, _)| id);
        let now = Instant::now();
        self.departed
            .extend(ids.filter(|&id| !tree.knows(id)).map(|id| (id, now)));
    }

    /// Revokes the slots of cgroups whose quarantine is over, and recycles those revoked before.
    pub(super) fn retire(&mut self, tree: &mut Tree, sources: &mut Sources, now: Instant) {
        let mut departed = self.departed.iter();
        if departed.any(|&(_, since)| due(since, now, QUARANTINE)) {
            if self.pool.refresh().is_err() {
                return;
            }
            self.revoke(tree, sources, now);
        }
        let (over, waiting): (Vec<_>, Vec<_>) = self
            .revoked
            .drain(..)
            .partition(|slot| due(slot.since, now, GRACE));
        self.revoked = waiting;
        for Revoked { slot, node, .. } in over {
            if let Some(node) = node {
                sources.notify(&Change::SlotRecycled { slot, node });
            }
            self.pool.recycle(slot, &mut sources.cells());
        }
    }

    fn revoke(&mut self, tree: &mut Tree, sources: &mut Sources, now: Instant) {
        let (over, waiting): (Vec<_>, Vec<_>) = self
            .departed
            .drain(..)
            .partition(|&(_, since)| due(since, now, QUARANTINE));
        self.departed = waiting;
        for &(id, _) in &over {
            // The cgroup is alive: it took a slot before its creation was reported.
            if tree.living(id).is_some() {
                continue;
            }
            // If the node was reaped already, the id leads to the node that its values belong to.
            let node = tree.by_id(id);
            if let Some(slot) = self.pool.revoke(id, &mut sources.cells()) {
                self.revoked.push(Revoked {
                    slot,
                    node,
                    since: now,
                });
            }
        }
        sources.notify(&Change::QuarantineOver { tree });
        for (id, _) in over {
            tree.forget_alias(id);
        }
    }

    /// Keeps a slot free for each live cgroup that has none, plus a reserve.
    pub(super) fn provide(&mut self, tree: &Tree, sources: &mut Sources) {
        let (used, _, _) = self.pool.states();
        let (live, _) = tree.counts();
        let free = live.saturating_sub(used) + self.reserve;
        if let Err(error) = self.pool.top_up(free, &mut sources.cells()) {
            tracing::warn!(
                error = format!("{error:#}"),
                "fewer slots are free than wanted"
            );
        }
    }

    /// Makes the cells of the overflow slot.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the memory.
    pub(super) fn provide_overflow(sources: &mut Sources) -> anyhow::Result<()> {
        slots::provide(&mut sources.cells(), 1).context("making the cells of the overflow slot")
    }

    /// Time until the next slot is due.
    pub(super) fn next_round(&self) -> Duration {
        let left = |since: Instant, delay: Duration| delay.saturating_sub(since.elapsed());
        let departed = self.departed.first().map(|&(_, s)| left(s, QUARANTINE));
        let revoked = self.revoked.first().map(|slot| left(slot.since, GRACE));
        let next = departed.into_iter().chain(revoked).min();
        next.unwrap_or(Duration::MAX)
    }
}
