//! The slot pool: which cgroup owns which slot, which slots are free, and which are retired.
//!
//! Kernel programs take slots from a stack that the pool keeps filled. At the removal of a cgroup they
//! retire its slot; later they add its values to those of its heir, the parent's slot, and put it back
//! there (collector-ebpf/src/removal.rs). The agent only reads. While it does, it holds a
//! lock against sweeps, so that no value is seen twice or not at all. The lock has a deadline: an agent
//! that is stopped holds up nothing for long.

use std::{
    collections::HashSet,
    io,
    sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release},
    time::Duration,
};

use anyhow::{Context, Result};
use aya::maps::{MapData, Stack};
use collector_common::slot::{
    BORROWED, ROOT_ID, ROOT_SLOT, RingEntry, SWEEPING, SlotControl, SlotMeta,
};

use super::{
    cells::SlotMemory,
    chunks::MappedChunks,
    map::Map,
    mapping::{Mapping, Word, word},
    system::monotonic_ns,
};

/// How long the agent may read before programs sweep all the same. Far longer than a reading takes.
pub const READING: Duration = Duration::from_millis(200);
/// Retired slots that are left for the agent to read first; fewer where there are few slots.
const KEPT: u32 = 128;

const HEAD: Word<SlotControl> = word!(SlotControl, head);
const TAIL: Word<SlotControl> = word!(SlotControl, tail);
const GRACED: Word<SlotControl> = word!(SlotControl, graced);
const SEEN: Word<SlotControl> = word!(SlotControl, seen);
const LOCK: Word<SlotControl> = word!(SlotControl, lock);
const KEPT_SLOTS: Word<SlotControl> = word!(SlotControl, kept);
const OPEN: Word<SlotControl> = word!(SlotControl, open);
const MADE: Word<SlotControl> = word!(SlotControl, made);
const COMMON: Word<SlotControl> = word!(SlotControl, common);
const SIBLINGS: Word<SlotControl> = word!(SlotControl, siblings);
const UNNOTED: Word<SlotControl> = word!(SlotControl, unnoted);
const RING_SLOT: Word<RingEntry> = word!(RingEntry, slot);
const RING_OWNER: Word<RingEntry> = word!(RingEntry, owner);
const OWNER: Word<SlotMeta> = word!(SlotMeta, owner);
const HEIR: Word<SlotMeta> = word!(SlotMeta, heir);
const RETIRED: Word<SlotMeta> = word!(SlotMeta, retired);

/// The maps of the pool.
pub struct SlotMaps {
    /// Slots by cgroup id.
    pub slots: Map<u64, u32>,
    /// Free slots.
    pub free: Stack<MapData, u32>,
    /// What is known of each slot.
    pub meta: MappedChunks<SlotMeta>,
    /// Retired slots in their sequence.
    pub ring: Mapping<RingEntry>,
    /// The sequence of retired slots, and how many slots whom are for.
    pub control: Mapping<SlotControl>,
    /// Ids of cgroups whose children have precedence.
    pub favoured: Map<u64, u64>,
}

/// The slots: which are used, free, or retired.
pub struct SlotPool {
    maps: SlotMaps,
    max: u32,
    /// Number of slots to keep free for cgroups that come between two rounds.
    reserve: u32,
    /// Number of slots that exist: 0 to made - 1, the root's included.
    made: u32,
    /// Cgroups with their slots, as of the last refresh.
    live: Vec<(u64, u32)>,
    retired: Vec<RetiredSlot>,
    /// Cgroups that have a slot, retired ones included.
    owners: HashSet<u64>,
    /// Cgroups that count in an ancestor's slot.
    borrowers: Vec<u64>,
    /// Up to this id others may do so as well; 0: none.
    unnoted: u64,
    /// Slots swept before the agent had seen their last values.
    missed: u64,
    /// Removed cgroups whose slots these were, as far as the ring still has them.
    unseen: Vec<u64>,
    /// Whether that is all of them.
    unseen_known: bool,
    keys: Vec<u64>,
    values: Vec<u32>,
}

/// The slot of a removed cgroup that has not been swept yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetiredSlot {
    /// The slot.
    pub slot: u32,
    /// Id of the removed cgroup.
    pub owner: u64,
    /// Id of the cgroup that its values belong to now. It may have been removed as well.
    pub heir: u64,
    /// Its place in the sequence of retired slots.
    pub place: u64,
}

/// The right to read the slots' values while no program sweeps.
#[derive(Debug)]
#[must_use]
pub struct ReadLock {
    /// The deadline, which is what the lock holds.
    until: u64,
}

/// Creates the chunks that `slots` slots need, for all sources at the same time. For each chunk the
/// kernel waits until no program uses the previous map at that index (kernel/bpf/syscall.c,
/// `maybe_wait_bpf_programs`), even if there was none.
///
/// # Errors
///
/// Errors of bpf(2), usually ENOMEM.
fn provide(memory: &mut [&mut dyn SlotMemory], slots: u32) -> io::Result<()> {
    let mut without: Vec<_> = memory
        .iter_mut()
        .filter(|source| !source.has_room(slots))
        .collect();
    // A chunk has room for many slots, so there is usually nothing to do.
    if without.is_empty() {
        return Ok(());
    }
    std::thread::scope(|scope| {
        let work = |source: &mut &mut &mut dyn SlotMemory| source.provide(slots);
        let threads: Vec<_> = without
            .iter_mut()
            .map(|source| scope.spawn(move || work(source)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let result = thread.join();
            result.unwrap_or_else(|_| Err(io::Error::other("making a chunk panicked")))
        })
    })
}

/// How many of so many slots are for everybody: a quarter is for cgroups that have precedence.
fn common(slots: u32) -> u32 {
    slots - slots / 4
}

impl SlotPool {
    /// Creates a pool of at most `max` slots with the object's maps, some of which are kept free as a
    /// `reserve`.
    pub fn new(maps: SlotMaps, max: u32, reserve: u32) -> Self {
        let kept = KEPT.min(max / 4).min(reserve / 2);
        maps.control.store(0, KEPT_SLOTS, kept.into());
        maps.control
            .store(0, SIBLINGS, u64::from(common(max)).div_ceil(2));
        let made = maps.control.load(0, MADE);
        Self {
            maps,
            max,
            reserve,
            made: u32::try_from(made).unwrap_or(u32::MAX),
            live: Vec::new(),
            retired: Vec::new(),
            owners: HashSet::new(),
            borrowers: Vec::new(),
            unnoted: 0,
            missed: 0,
            unseen: Vec::new(),
            unseen_known: true,
            keys: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Gives cgroup2's root its slot. Programs count there whatever belongs nowhere else.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2), usually ENOMEM.
    pub fn provide_root(&mut self, memory: &mut [&mut dyn SlotMemory]) -> Result<()> {
        if self.made == 0 {
            self.make(memory).context("making the root's slot")?;
        } else {
            // An earlier agent has made slots. It may have had other sources.
            provide(memory, self.made).context("making the memory of slots")?;
            self.refresh();
        }
        self.meta(ROOT_SLOT, OWNER, ROOT_ID);
        self.maps
            .slots
            .insert(&ROOT_ID, &ROOT_SLOT)
            .context("giving the root its slot")?;
        for source in memory {
            source.top_up().context("making the first values")?;
        }
        Ok(())
    }

    /// Makes the memory of one more slot, and returns its number.
    fn make(&mut self, memory: &mut [&mut dyn SlotMemory]) -> io::Result<u32> {
        let slots = self.made + 1;
        self.maps
            .meta
            .grow_to(self.maps.meta.needed(slots.into()))?;
        provide(memory, slots)?;
        self.made = slots;
        // Before it can be taken, so that no later agent makes it again.
        let word = self.maps.control.atomic(0, MADE);
        word.store(slots.into(), Release);
        Ok(slots - 1)
    }

    fn meta(&self, slot: u32, word: Word<SlotMeta>, value: u64) {
        if let Some((chunk, entry)) = self.maps.meta.place(slot) {
            chunk.atomic(entry, word).store(value, Release);
        }
    }

    /// Keeps programs from sweeping for that time. `None` while one does.
    pub fn try_lock(&self, time: Duration) -> Option<ReadLock> {
        let lock = self.maps.control.atomic(0, LOCK);
        let held = lock.load(Acquire);
        let now = monotonic_ns();
        if held == SWEEPING || held > now {
            return None;
        }
        let until = now + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let taken = lock.compare_exchange(held, until, AcqRel, Relaxed);
        taken.is_ok().then_some(ReadLock { until })
    }

    /// Keeps programs from sweeping for that time. Waits for one that does, which takes microseconds.
    pub fn lock(&self, time: Duration) -> ReadLock {
        loop {
            if let Some(lock) = self.try_lock(time) {
                return lock;
            }
            std::thread::yield_now();
        }
    }

    /// Lets programs sweep again. Returns whether none has swept since the lock was taken: if one has,
    /// what was read may contain values twice, or not at all.
    #[must_use]
    pub fn unlock(&self, lock: ReadLock) -> bool {
        let held = self.maps.control.atomic(0, LOCK);
        held.compare_exchange(lock.until, 0, AcqRel, Relaxed)
            .is_ok()
    }

    /// Reads which cgroups have slots. Under the lock, what it finds stays as it is until the lock is
    /// given back, but for slots that are taken or retired meanwhile. Costs what there are slots.
    pub fn refresh(&mut self) {
        let head = self.read_retired();
        self.read_live(head);
    }

    /// The same for retired slots alone, as long as it is known which were swept too early. Costs what
    /// there are retired slots.
    pub fn refresh_retired(&mut self) {
        let head = self.read_retired();
        if self.unseen_known {
            let retired = self.retired.iter();
            self.owners.extend(retired.map(|retired| retired.owner));
        } else {
            self.read_live(head);
        }
    }

    /// Reads which slots are retired, and which were swept too early. Returns the end of the sequence.
    fn read_retired(&mut self) -> u64 {
        let control = &self.maps.control;
        // In this order: whatever is retired after `head` was read is still found as live.
        let head = control.atomic(0, HEAD).load(Acquire);
        let tail = control.load(0, TAIL);
        let seen = control.load(0, SEEN);
        self.unseen.clear();
        self.unseen_known = true;
        if tail > seen {
            self.missed += tail - seen;
            let ring = &self.maps.ring;
            let entries = ring.entries() as u64;
            let first = head.saturating_sub(entries);
            self.unseen_known = seen >= first;
            for place in seen.max(first)..tail {
                let entry = place as usize & (ring.entries() - 1);
                self.unseen.push(ring.load(entry, RING_OWNER));
            }
            control.store(0, SEEN, tail);
        }
        self.retired.clear();
        for place in tail..head {
            let entry = place as usize & (self.maps.ring.entries() - 1);
            let slot = self.maps.ring.load(entry, RING_SLOT) as u32;
            if let Some((chunk, entry)) = self.maps.meta.place(slot) {
                self.retired.push(RetiredSlot {
                    slot,
                    owner: chunk.load(entry, OWNER),
                    heir: chunk.load(entry, HEIR),
                    place,
                });
            }
        }
        head
    }

    /// Reads who has slots. Those before `head` in the sequence are retired.
    fn read_live(&mut self, head: u64) {
        self.live.clear();
        self.owners.clear();
        for slot in 0..self.made {
            let Some((chunk, entry)) = self.maps.meta.place(slot) else {
                break;
            };
            let owner = chunk.atomic(entry, OWNER).load(Acquire);
            let retired = chunk.load(entry, RETIRED);
            if owner == 0 {
                continue;
            }
            self.owners.insert(owner);
            if retired == 0 || retired > head {
                self.live.push((owner, slot));
            }
        }
    }

    /// Reads which cgroups count in an ancestor's slot.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn refresh_borrowers(&mut self) -> io::Result<()> {
        self.maps.slots.read_all(&mut self.keys, &mut self.values)?;
        // After the entries: some may have found no room meanwhile.
        self.unnoted = self.maps.control.atomic(0, UNNOTED).load(Acquire);
        let entries = self.keys.iter().zip(&self.values);
        let borrowers = entries.filter(|&(_, slot)| slot & BORROWED != 0);
        self.borrowers = borrowers.map(|(&id, _)| id).collect();
        self.borrowers.sort_unstable();
        Ok(())
    }

    /// Cgroup ids and their slots, as of the last refresh.
    pub fn live(&self) -> &[(u64, u32)] {
        &self.live
    }

    /// Slots that were retired and not swept at the last refresh, in the order of their removal.
    pub fn retired(&self) -> &[RetiredSlot] {
        &self.retired
    }

    /// The place in the sequence of retired slots before which all values are the last ones.
    pub fn graced(&self) -> u64 {
        self.maps.control.atomic(0, GRACED).load(Acquire)
    }

    /// The place before which the agent has seen the last values.
    pub fn seen(&self) -> u64 {
        self.maps.control.load(0, SEEN)
    }

    /// Lets programs sweep the slots before this place.
    pub fn set_seen(&self, place: u64) {
        self.maps.control.atomic(0, SEEN).store(place, Release);
    }

    /// Removed cgroups whose slots were found swept by the last refresh before their last values had been
    /// seen; and whether that is all of them. It is not if they were more than the ring holds.
    pub fn unseen(&self) -> (&[u64], bool) {
        (&self.unseen, self.unseen_known)
    }

    /// Number of slots that were swept before the agent had seen their last values.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Whether a cgroup had a slot at the last refresh, also if it was removed.
    pub fn has(&self, id: u64) -> bool {
        self.owners.contains(&id)
    }

    /// Cgroups that are known to count in an ancestor's slot, as of the last
    /// [`refresh_borrowers`](Self::refresh_borrowers). `None` if there may be others.
    pub fn borrowers(&self) -> Option<impl Iterator<Item = u64> + '_> {
        (self.unnoted == 0).then(|| self.borrowers.iter().copied())
    }

    /// Whether a cgroup counts in an ancestor's slot, or may do so, as of the last refreshes.
    pub fn is_borrower(&self, id: u64) -> bool {
        !self.has(id) && (id <= self.unnoted || self.borrowers.binary_search(&id).is_ok())
    }

    /// Makes slots until `free` are free or the maximum is reached. Their memory is created first.
    ///
    /// # Errors
    ///
    /// If a chunk can't be created (ENOMEM). Fewer slots are then free than wanted.
    pub fn top_up(&mut self, free: usize, memory: &mut [&mut dyn SlotMemory]) -> Result<()> {
        let (_, found, _) = self.states();
        for _ in found..free {
            if self.made > self.max {
                break;
            }
            let slot = self.make(memory).context("no memory for more slots")?;
            self.maps
                .free
                .push(slot, 0)
                .context("adding a slot to the free ones")?;
        }
        for source in memory {
            source.top_up().context("no memory for more values")?;
        }
        self.share();
        self.maps.control.store(0, OPEN, 1);
        Ok(())
    }

    /// Sets how many of the slots that exist are for everybody. Until the maximum is reached, more are made
    /// at the next round: then a part of what has to last until then is enough.
    fn share(&self) {
        let made = self.made.saturating_sub(1);
        let common = if made < self.max {
            (made - self.reserve.min(made) / 4).min(common(self.max))
        } else {
            common(self.max)
        };
        self.maps.control.store(0, COMMON, common.into());
    }

    /// Gives the children of a cgroup precedence when slots run out.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2): E2BIG if there are too many such cgroups.
    pub fn favour(&self, id: u64) -> io::Result<()> {
        self.maps.favoured.insert(&id, &1)
    }

    /// Takes the precedence back.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn disfavour(&self, id: u64) -> io::Result<()> {
        self.maps.favoured.remove(&id)
    }

    /// Cgroups whose children have precedence.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn favoured(&mut self) -> io::Result<Vec<u64>> {
        let mut values = Vec::new();
        self.maps.favoured.read_all(&mut self.keys, &mut values)?;
        Ok(self.keys.clone())
    }

    /// How many of the existing slots are used, free and retired, as of the last refresh.
    pub fn states(&self) -> (usize, usize, usize) {
        let (live, retired) = (self.live.len(), self.retired.len());
        (
            live,
            (self.made as usize).saturating_sub(live + retired),
            retired,
        )
    }

    /// Number of slots that exist.
    pub fn made(&self) -> usize {
        self.made as usize
    }

    /// Kernel memory of the pool's own chunks, bytes.
    pub fn bytes(&self) -> u64 {
        self.maps.meta.bytes()
    }
}
