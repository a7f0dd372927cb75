//! Slots of cgroups: whose values each has, and the last values of removed cgroups.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::sources::Sources;
use crate::{
    cgroup::{NodeId, Tree},
    kernel::slots::{ReadLock, RetiredSlot, SlotPool},
    source::Change,
};

/// How long after a cgroup's removal sources take out what the kernel side holds for it by its id. Its
/// last tasks may still be exiting.
const QUARANTINE: Duration = Duration::from_secs(2);

/// The slots of all cgroups.
pub(super) struct Slots {
    pool: SlotPool,
    /// Slots to keep free beyond one for each live cgroup.
    reserve: usize,
    /// Removed cgroups for which the quarantine is not over, and when they were removed.
    departed: Vec<(u64, Instant)>,
    /// Slots whose last values have been seen and that are not swept yet, by the id of the cgroup to
    /// which their values belong until then.
    passed_on: HashMap<u64, Vec<u32>>,
    /// Whether it is known which cgroups got no slot.
    borrowers_known: bool,
    /// Removed cgroups whose last values were not seen, and when that was noticed. They have no values of
    /// their own: what is known of them is less than what was served before.
    unseen: HashMap<u64, Instant>,
    /// Removed cgroups whose last values were taken since the lock was.
    taken: Vec<u64>,
}

fn due(since: Instant, now: Instant) -> bool {
    now.duration_since(since) >= QUARANTINE
}

impl Slots {
    pub(super) fn new(pool: SlotPool, reserve: usize) -> Self {
        Self {
            pool,
            reserve,
            departed: Vec::new(),
            passed_on: HashMap::new(),
            borrowers_known: true,
            unseen: HashMap::new(),
            taken: Vec::new(),
        }
    }

    /// Numbers of used, free and retired slots.
    pub(super) fn states(&self) -> (usize, usize, usize) {
        self.pool.states()
    }

    /// Number of removed cgroups whose last values were added to their parents' unseen.
    pub(super) fn missed(&self) -> u64 {
        self.pool.missed()
    }

    /// Notes that a cgroup was removed.
    pub(super) fn depart(&mut self, id: u64) {
        self.departed.push((id, Instant::now()));
    }

    /// Whether the kernel side may still hold something for a removed cgroup.
    pub(super) fn is_pending(&self, id: u64) -> bool {
        self.pool.has(id) || self.departed.iter().any(|&(found, _)| found == id)
    }

    /// Whether a cgroup has a slot, as of the last [`refresh`](Self::refresh).
    pub(super) fn has(&self, id: u64) -> bool {
        self.pool.has(id)
    }

    /// Keeps programs from sweeping, see [`SlotPool::lock`].
    pub(super) fn lock(&mut self, time: Duration) -> ReadLock {
        self.taken.clear();
        self.pool.lock(time)
    }

    /// Lets them sweep again, see [`SlotPool::unlock`]. If one has swept meanwhile, the last values that
    /// were taken since may be incomplete.
    #[must_use]
    pub(super) fn unlock(&mut self, lock: ReadLock) -> bool {
        let whole = self.pool.unlock(lock);
        if !whole {
            let now = Instant::now();
            self.unseen.extend(self.taken.drain(..).map(|id| (id, now)));
        }
        whole
    }

    /// Reads which cgroup has which slot, and takes the last values of removed cgroups. To be called
    /// under the lock.
    ///
    /// # Errors
    ///
    /// When the kernel's map of slots can't be read.
    pub(super) fn refresh(
        &mut self,
        tree: &mut Tree,
        sources: &mut Sources,
    ) -> std::io::Result<()> {
        self.pool.refresh()?;
        self.note_unseen();
        let (seen, graced) = (self.pool.seen(), self.pool.graced());
        self.passed_on.clear();
        // In the order of their removal, so children before parents.
        for retired in self.pool.retired() {
            let RetiredSlot {
                slot,
                owner,
                heir,
                place,
            } = *retired;
            let node = tree.of_path(owner);
            if place >= graced && node.is_some() {
                continue;
            }
            let mut slots = self.passed_on.remove(&owner).unwrap_or_default();
            slots.push(slot);
            if place >= seen
                && let Some(node) = node
            {
                tree.note_counted(node);
                self.taken.push(owner);
                for &slot in &slots {
                    sources.notify(&Change::SlotRetired { slot, node });
                }
            }
            self.passed_on.entry(heir).or_default().append(&mut slots);
        }
        self.pool.set_seen(graced.max(seen));
        Ok(())
    }

    /// Notes the cgroups whose slots were swept too early. If these were too many to be known, every cgroup
    /// that was removed lately and has no slot any more is one.
    fn note_unseen(&mut self) {
        let now = Instant::now();
        let (unseen, all) = self.pool.unseen();
        self.unseen.extend(unseen.iter().map(|&id| (id, now)));
        if !all {
            let swept = |&(id, _): &(u64, Instant)| (!self.pool.has(id)).then_some((id, now));
            self.unseen.extend(self.departed.iter().filter_map(swept));
        }
    }

    /// Returns the slots with the nodes that they count for, as of the last
    /// [`refresh`](Self::refresh).
    pub(super) fn by_node(&self, tree: &Tree) -> Vec<(NodeId, u32)> {
        let live = self.pool.live().iter().copied();
        let seen = self.pool.seen();
        let retired = self.pool.retired().iter();
        let unseen = retired.filter(|slot| slot.place >= seen);
        let passed_on = self
            .passed_on
            .iter()
            .flat_map(|(&id, slots)| slots.iter().map(move |&slot| (id, slot)));
        let unseen = unseen.filter_map(|slot| Some((tree.of_path(slot.owner)?, slot.slot)));
        live.chain(passed_on)
            .filter_map(|(id, slot)| Some((tree.by_id(id)?, slot)))
            .chain(unseen)
            .collect()
    }

    /// Finds which cgroups got no slot, given how often that has happened.
    ///
    /// # Errors
    ///
    /// When the kernel's map of slots can't be read.
    pub(super) fn find_borrowers(&mut self, borrowed: u64) -> std::io::Result<()> {
        // Entries of removed cgroups are taken out by the kernel side.
        self.borrowers_known = borrowed == 0 || self.pool.refresh_borrowers()?;
        Ok(())
    }

    /// The nodes of live cgroups that got no slot, and of removed ones whose last values were not seen.
    pub(super) fn without_slot(&self, tree: &Tree) -> Arc<HashSet<NodeId>> {
        let unseen = self.unseen.keys().filter_map(|&id| tree.present(id));
        let mut without: HashSet<NodeId> = unseen.collect();
        if self.borrowers_known {
            without.extend(self.pool.borrowers().filter_map(|id| tree.living(id)));
        } else {
            let living = tree.iter().filter(|(_, node)| node.died.is_none());
            let others = living.filter(|(_, node)| !self.pool.has(node.id));
            without.extend(others.map(|(number, _)| number));
        }
        Arc::new(without)
    }

    /// After the quarantine of removed cgroups: sources take what the kernel side holds for their ids.
    pub(super) fn end_quarantine(&mut self, tree: &mut Tree, now: Instant) {
        let (over, waiting): (Vec<_>, Vec<_>) = self
            .departed
            .drain(..)
            .partition(|&(_, since)| due(since, now));
        self.departed = waiting;
        // Their events may still be on their way.
        self.unseen
            .retain(|&id, since| tree.present(id).is_some() || !due(*since, now));
        if over.is_empty() {
            return;
        }
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

    /// Makes the root's slot.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the memory.
    pub(super) fn provide_root(&mut self, sources: &mut Sources) -> anyhow::Result<()> {
        self.pool.provide_root(&mut sources.cells())
    }

    /// Time until the next quarantine is over.
    pub(super) fn next_round(&self) -> Duration {
        let first = self.departed.first();
        first.map_or(Duration::MAX, |&(_, since)| {
            QUARANTINE.saturating_sub(since.elapsed())
        })
    }
}
