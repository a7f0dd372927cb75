//! Slots of cgroups: whose values each has, and the last values of removed cgroups.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::sources::Sources;
use crate::{
    cgroup::{NodeId, Tree, is_users_own, printable},
    kernel::slots::{ReadLock, RetiredSlot, SlotPool},
    source::{Change, WithoutSlot},
};

/// How long after a cgroup's removal its id is still known. Its last tasks may still be exiting.
const DEPARTING: Duration = Duration::from_secs(2);

/// The slots of all cgroups.
pub(super) struct Slots {
    pool: SlotPool,
    /// Slots to keep free beyond one for each live cgroup.
    reserve: usize,
    /// Removed cgroups whose ids are still known, and when they were removed.
    departed: VecDeque<(u64, Instant)>,
    /// Their ids.
    departing: HashSet<u64>,
    /// Slots whose last values have been seen and that are not swept yet, by the id of the cgroup to
    /// which their values belong until then.
    passed_on: HashMap<u64, Vec<u32>>,
    /// Whether it is known which cgroups got no slot.
    borrowers_known: bool,
    /// Removed cgroups whose last values were not seen, and when that was noticed. They have no values of
    /// their own: what is known of them is less than what was served before.
    unseen: HashMap<u64, Instant>,
    /// When cgroups that nobody knows any more were last taken out of these.
    tidied: Option<Instant>,
    /// Removed cgroups whose last values were taken since the lock was.
    taken: Vec<u64>,
    /// Removed cgroups that an earlier agent knew, and whose last values are still to be taken.
    expected: HashSet<u64>,
    /// Cgroups whose children have precedence when slots run out.
    favoured: HashSet<u64>,
    /// How often cgroups had got no slot when that was last said.
    borrowed: u64,
}

/// Parents of which the agent says how many children have no slot.
const PARENTS_SHOWN: usize = 16;

fn due(since: Instant, now: Instant) -> bool {
    now.duration_since(since) >= DEPARTING
}

impl Slots {
    pub(super) fn new(pool: SlotPool, reserve: usize) -> Self {
        Self {
            pool,
            reserve,
            departed: VecDeque::new(),
            departing: HashSet::new(),
            passed_on: HashMap::new(),
            borrowers_known: true,
            unseen: HashMap::new(),
            tidied: None,
            taken: Vec::new(),
            expected: HashSet::new(),
            favoured: HashSet::new(),
            borrowed: 0,
        }
    }

    /// Gives precedence to the children of what the tree has, and takes it from what an earlier agent knew
    /// and is gone.
    pub(super) fn favour_all(&mut self, tree: &Tree) {
        match self.pool.favoured() {
            Ok(known) => self.favoured.extend(known),
            Err(error) => tracing::warn!(%error, "which cgroups have precedence could not be read"),
        }
        let gone = |&id: &u64| tree.living(id).is_none();
        let gone: Vec<u64> = self.favoured.iter().copied().filter(gone).collect();
        for id in gone {
            self.disfavour(id);
        }
        for (number, _) in tree.iter() {
            self.favour(tree, number);
        }
    }

    /// Gives precedence to the children of a cgroup, if it is one for containers, pods or units; and to those
    /// of its parent, if a runtime knows it as a container and the parent is not in a user's own hands.
    pub(super) fn favour(&mut self, tree: &Tree, number: NodeId) {
        let Some(node) = tree.node(number) else {
            return;
        };
        let parent = node.parent.and_then(|parent| tree.node(parent));
        let parent =
            parent.filter(|parent| node.container.is_some() && !is_users_own(&parent.path));
        let own = Some(node).filter(|_| tree.is_for_known(number));
        for node in [own, parent].into_iter().flatten() {
            if node.died.is_some() || self.favoured.contains(&node.id) {
                continue;
            }
            match self.pool.favour(node.id) {
                Ok(()) => drop(self.favoured.insert(node.id)),
                Err(error) => tracing::warn!(
                    %error,
                    cgroup = printable(&node.path),
                    "its children get no precedence if there are more cgroups than --cgroup.max"
                ),
            }
        }
    }

    fn disfavour(&mut self, id: u64) {
        if self.favoured.remove(&id)
            && let Err(error) = self.pool.disfavour(id)
        {
            tracing::debug!(%error, id, "a cgroup without precedence");
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
        if self.departing.insert(id) {
            self.departed.push_back((id, Instant::now()));
        }
        self.disfavour(id);
    }

    /// Notes that an earlier agent knew this cgroup, and that it was removed since. The earlier agent may have read its
    /// last values, and been killed before it wrote them down.
    pub(super) fn expect(&mut self, id: u64) {
        self.depart(id);
        self.expected.insert(id);
    }

    /// Whether the kernel side may still hold something for a removed cgroup.
    pub(super) fn is_pending(&self, id: u64) -> bool {
        self.pool.has(id) || self.departing.contains(&id)
    }

    /// Removed cgroups whose last values are still to be taken, as of the last refresh.
    pub(super) fn unread(&self) -> HashSet<u64> {
        let seen = self.pool.seen();
        let unread = self.pool.retired().iter().filter(|slot| slot.place >= seen);
        unread.map(|slot| slot.owner).collect()
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

    /// Reads which cgroup has which slot. To be called under the lock, before
    /// [`take_last_values`](Self::take_last_values).
    pub(super) fn refresh(&mut self) {
        self.pool.refresh();
    }

    /// Reads which slots are retired, and leaves the rest to [`refresh`](Self::refresh), which costs what
    /// there are slots.
    pub(super) fn refresh_retired(&mut self) {
        self.pool.refresh_retired();
    }

    /// How many removals pay for a [`refresh`](Self::refresh).
    pub(super) fn price(&self) -> usize {
        (self.pool.made() / 8).max(64)
    }

    /// Takes the last values of removed cgroups. Until they are taken they count for the cgroup's node, and
    /// if it was reaped for the heir's; so no node may be reaped between this and
    /// [`by_node`](Self::by_node).
    pub(super) fn take_last_values(&mut self, tree: &mut Tree, sources: &mut Sources) {
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
        self.miss_expected();
    }

    /// Notes of which expected cgroups the last values are with nobody.
    fn miss_expected(&mut self) {
        if self.expected.is_empty() {
            return;
        }
        let (now, unread) = (Instant::now(), self.unread());
        for id in std::mem::take(&mut self.expected) {
            if unread.contains(&id) {
                self.expected.insert(id);
            } else if !self.taken.contains(&id) {
                self.unseen.insert(id, now);
            }
        }
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

    /// Whether slots have cgroups that the tree does not know yet. What these have counted is not where it
    /// belongs.
    pub(super) fn has_strangers(&self, tree: &Tree) -> bool {
        // A tree of a part of the hierarchy never knows the others.
        if !tree.is_whole() {
            return false;
        }
        let seen = self.pool.seen();
        let live = self.pool.live().iter().map(|&(id, _)| id);
        let mut known = live.chain(self.passed_on.keys().copied());
        let mut unseen = self.pool.retired().iter().filter(|slot| slot.place >= seen);
        known.any(|id| !tree.knows(id)) || unseen.any(|slot| tree.of_path(slot.owner).is_none())
    }

    /// Until they are found again, each cgroup without a slot is taken for one that got none.
    pub(super) fn doubt_borrowers(&mut self) {
        self.borrowers_known = false;
    }

    /// Finds which cgroups got no slot, given how often that has happened, and says so in the log.
    ///
    /// # Errors
    ///
    /// When the kernel's map of slots can't be read.
    pub(super) fn find_borrowers(&mut self, tree: &Tree, borrowed: u64) -> std::io::Result<()> {
        // Entries of removed cgroups are taken out by the kernel side.
        if borrowed > 0 {
            self.pool.refresh_borrowers()?;
        }
        self.borrowers_known = true;
        if borrowed > self.borrowed {
            let parents = self.parents_of_borrowers(tree);
            if let Some((parent, children)) = parents.first() {
                tracing::warn!(
                    cgroups = self.borrowers(tree).count(),
                    most = children,
                    below = parent,
                    "cgroups count in their ancestors alone, and have no series of what cgmeter counts itself: \
                     they would be more than their share of --cgroup.max"
                );
                self.borrowed = borrowed;
            }
        }
        Ok(())
    }

    /// The nodes of live cgroups that got no slot.
    fn borrowers<'a>(&'a self, tree: &'a Tree) -> Box<dyn Iterator<Item = NodeId> + 'a> {
        if let (true, Some(known)) = (self.borrowers_known, self.pool.borrowers()) {
            return Box::new(known.filter_map(|id| tree.living(id)));
        }
        let is_one = |id| match self.borrowers_known {
            true => self.pool.is_borrower(id),
            false => !self.pool.has(id),
        };
        let living = tree.iter().filter(|(_, node)| node.died.is_none());
        let found = living.filter(move |(_, node)| is_one(node.id));
        Box::new(found.map(|(number, _)| number))
    }

    /// How many cgroups got no slot, and below which parents there are most of them.
    pub(super) fn without_slot_by_parent(&self, tree: &Tree) -> WithoutSlot {
        WithoutSlot {
            cgroups: self.borrowers(tree).count(),
            parents: self.parents_of_borrowers(tree),
        }
    }

    fn parents_of_borrowers(&self, tree: &Tree) -> Vec<(String, usize)> {
        let mut children: BTreeMap<NodeId, usize> = BTreeMap::new();
        for number in self.borrowers(tree) {
            if let Some(parent) = tree.node(number).and_then(|node| node.parent) {
                *children.entry(parent).or_default() += 1;
            }
        }
        let mut parents: Vec<_> = children.into_iter().collect();
        parents.sort_by_key(|&(_, children)| std::cmp::Reverse(children));
        parents.truncate(PARENTS_SHOWN);
        let named = parents.into_iter().filter_map(|(number, children)| {
            let parent = tree.node(number)?;
            Some((printable(&parent.path), children))
        });
        named.collect()
    }

    /// The nodes of live cgroups that got no slot, and of removed ones whose last values were not seen.
    pub(super) fn without_slot(&self, tree: &Tree) -> Arc<HashSet<NodeId>> {
        let unseen = self.unseen.keys().filter_map(|&id| tree.present(id));
        Arc::new(unseen.chain(self.borrowers(tree)).collect())
    }

    /// Forgets the ids of cgroups that were removed some time ago.
    pub(super) fn forget_departed(&mut self, tree: &mut Tree, now: Instant) {
        // Those that are over now, and no others that wait again.
        for _ in 0..self.departed.len() {
            let Some(&(id, since)) = self.departed.front() else {
                break;
            };
            if !due(since, now) {
                break;
            }
            self.departed.pop_front();
            if self.pool.has(id) {
                // Its slot's last values may be still to come.
                self.departed.push_back((id, now));
                continue;
            }
            self.departing.remove(&id);
            tree.forget_alias(id);
        }
        if self.tidied.is_some_and(|tidied| !due(tidied, now)) {
            return;
        }
        self.tidied = Some(now);
        // Their events may still be on their way.
        self.unseen
            .retain(|&id, since| tree.present(id).is_some() || !due(*since, now));
        self.departing.shrink_to(2 * self.departing.len());
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

    /// Time until the next id is to be forgotten.
    pub(super) fn next_round(&self) -> Duration {
        let first = self.departed.front();
        first.map_or(Duration::MAX, |&(_, since)| {
            DEPARTING.saturating_sub(since.elapsed())
        })
    }
}
