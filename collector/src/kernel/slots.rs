//! The slot pool: which cgroup owns which slot, and which slots are free or being recycled.
//!
//! Kernel programs take slots from a queue that the pool keeps filled. A slot is returned in two
//! steps. [`SlotPool::revoke`] revokes it from its removed owner, so that a late event looks up a
//! new slot. [`SlotPool::recycle`] makes it free at least a grace period later, once its final
//! numbers have been read.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
};

use anyhow::{Context, Result};
use aya::maps::{MapData, Queue};
use collector_common::cell::OVERFLOW_SLOT;

use super::{cells::SlotMemory, map::Map};

/// The slots: which are used, free, or in quarantine.
pub struct SlotPool {
    /// Slots by cgroup id.
    slots: Map<u64, u32>,
    queue: Queue<MapData, u32>,
    max: u32,
    /// Number of slots that exist: 0 to made - 1, the overflow slot included.
    made: u32,
    spare: BTreeSet<u32>,
    queued: HashSet<u32>,
    quarantined: usize,
    used: HashMap<u64, u32>,
    keys: Vec<u64>,
    values: Vec<u32>,
}

/// Creates the chunks that `slots` slots need, for all sources at the same time. For each chunk the
/// kernel waits until no program uses the previous map at that index (kernel/bpf/syscall.c,
/// `maybe_wait_bpf_programs`), even if there was none.
///
/// # Errors
///
/// Errors of bpf(2), usually ENOMEM.
pub fn provide(memory: &mut [&mut dyn SlotMemory], slots: u32) -> io::Result<()> {
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

impl SlotPool {
    /// Creates a pool of at most `max` slots with the object's maps.
    pub fn new(slots: Map<u64, u32>, queue: Queue<MapData, u32>, max: u32) -> Self {
        Self {
            slots,
            queue,
            max,
            made: OVERFLOW_SLOT + 1,
            spare: BTreeSet::new(),
            queued: HashSet::new(),
            quarantined: 0,
            used: HashMap::new(),
            keys: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Reads which cgroups have taken slots, with one batched read of the whole map.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn refresh(&mut self) -> io::Result<()> {
        self.slots.read_all(&mut self.keys, &mut self.values)?;
        self.used.clear();
        for (&id, &slot) in self.keys.iter().zip(&self.values) {
            self.queued.remove(&slot);
            self.used.insert(id, slot);
        }
        Ok(())
    }

    /// Cgroup ids and their slots, as of the last refresh.
    pub fn used(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.keys.iter().copied().zip(self.values.iter().copied())
    }

    /// Whether a cgroup had a slot at the last refresh.
    pub fn has(&self, id: u64) -> bool {
        self.used.contains_key(&id)
    }

    /// Puts slots into the queue until it has `free` of them or the maximum is reached. Their
    /// memory is created first.
    ///
    /// # Errors
    ///
    /// If a chunk can't be created (ENOMEM). Fewer slots are then free than wanted.
    pub fn top_up(&mut self, free: usize, memory: &mut [&mut dyn SlotMemory]) -> Result<()> {
        while self.queued.len() < free {
            let slot = match self.spare.pop_first() {
                Some(slot) => slot,
                None if self.made <= self.max => {
                    provide(memory, self.made + 1).context("no memory for more slots")?;
                    self.made += 1;
                    self.made - 1
                }
                None => return Ok(()),
            };
            self.queue
                .push(slot, 0)
                .context("adding a slot to the queue of free slots")?;
            self.queued.insert(slot);
        }
        Ok(())
    }

    /// Revokes the slot of a removed cgroup. Its numbers stay until [`recycle`](Self::recycle).
    pub fn revoke(&mut self, id: u64, memory: &mut [&mut dyn SlotMemory]) -> Option<u32> {
        let slot = self.used.remove(&id)?;
        // ENOENT would mean that another process changes the map.
        if let Err(error) = self.slots.remove(&id) {
            tracing::warn!(cgroup_id = id, %error, "slot of a removed cgroup not revoked");
            return None;
        }
        for source in memory {
            source.revoke(slot);
        }
        self.quarantined += 1;
        Some(slot)
    }

    /// Makes a slot free that was revoked from its owner and whose numbers have been read.
    pub fn recycle(&mut self, slot: u32, memory: &mut [&mut dyn SlotMemory]) {
        for source in memory {
            source.clear(slot);
        }
        self.quarantined -= 1;
        self.spare.insert(slot);
    }

    /// How many of the existing slots are used, free and quarantined, as of the last refresh.
    pub fn states(&self) -> (usize, usize, usize) {
        (
            self.used.len(),
            self.queued.len() + self.spare.len(),
            self.quarantined,
        )
    }
}
