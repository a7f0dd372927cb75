//! The slot pool: who owns which slot, and which slots are free or being recycled.
//!
//! Kernel programs take slots from a queue that the pool keeps filled. A slot comes back in two
//! steps: [`SlotPool::disown`] takes it from its removed owner, so that a straggler resolves a new one,
//! and [`SlotPool::recycle`], at least a grace period later, makes it free once its last numbers
//! have been read.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
};

use anyhow::{Context, Result};
use aya::maps::{MapData, Queue};
use collector_common::cell::OVERFLOW_SLOT;

use super::{cells::SlotMemory, map::Map};

/// The pool.
pub struct SlotPool {
    /// Slots by cgroup id.
    slots: Map<u64, u32>,
    queue: Queue<MapData, u32>,
    max: u32,
    /// Slots that exist: 0 to made - 1, the overflow slot included.
    made: u32,
    spare: BTreeSet<u32>,
    queued: HashSet<u32>,
    quarantined: usize,
    used: HashMap<u64, u32>,
    keys: Vec<u64>,
    values: Vec<u32>,
}

/// Makes the chunks that `slots` slots need in every source, at the same time: for each, the kernel
/// waits until no program uses the chunk's predecessor (kernel/bpf/syscall.c,
/// `maybe_wait_bpf_programs`), whether there was one or not.
///
/// # Errors
///
/// The kernel's, ENOMEM mostly.
pub fn provide(memory: &mut [&mut dyn SlotMemory], slots: u32) -> io::Result<()> {
    let mut without: Vec<_> = memory
        .iter_mut()
        .filter(|source| !source.has_room(slots))
        .collect();
    // A chunk has room for many slots: mostly, there is nothing to do.
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
    /// A pool of at most `max` slots over the object's maps.
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

    /// Learns which cgroups have taken slots: one batched read of the whole map.
    ///
    /// # Errors
    ///
    /// The kernel's.
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

    /// Puts slots into the queue until `free` are there or the maximum is reached, making their
    /// memory first.
    ///
    /// # Errors
    ///
    /// When a chunk can't be made (ENOMEM): fewer slots are free than wanted.
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
                .context("the queue of free slots refuses a slot")?;
            self.queued.insert(slot);
        }
        Ok(())
    }

    /// Takes a removed cgroup's slot from it. Its numbers stay until [`recycle`](Self::recycle).
    pub fn disown(&mut self, id: u64, memory: &mut [&mut dyn SlotMemory]) -> Option<u32> {
        let slot = self.used.remove(&id)?;
        // ENOENT would mean that somebody else edits the map.
        if let Err(error) = self.slots.remove(&id) {
            tracing::warn!(cgroup_id = id, %error, "a slot could not be taken from a removed cgroup");
            return None;
        }
        for source in memory {
            source.disown(slot);
        }
        self.quarantined += 1;
        Some(slot)
    }

    /// Makes a slot that was taken from its owner, and whose numbers have been read, free.
    pub fn recycle(&mut self, slot: u32, memory: &mut [&mut dyn SlotMemory]) {
        for source in memory {
            source.clear(slot);
        }
        self.quarantined -= 1;
        self.spare.insert(slot);
    }

    /// Numbers of slots (used, free, quarantined) as of the last refresh, of those that exist.
    pub fn states(&self) -> (usize, usize, usize) {
        (
            self.used.len(),
            self.queued.len() + self.spare.len(),
            self.quarantined,
        )
    }
}
