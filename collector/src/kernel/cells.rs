//! Cells of one source: chunks made as slots need them, read through memory.

use std::{
    io,
    ops::AddAssign,
    os::fd::{AsFd, OwnedFd},
};

use collector_common::cell::CELLS_PER_CHUNK;

use super::{bpf, mapping::Mapping};

/// How many cells a slot has in a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// One a CPU: for the hottest sources, plain adds.
    PerCpu,
    /// One for several CPUs, at most [`MAX_SHARDS`]: warm sources, atomic adds.
    Shards,
    /// One: rare events, atomic adds.
    One,
}

/// Most lanes of a source with shards.
pub const MAX_SHARDS: u32 = 16;

impl Lanes {
    /// Their number on a host with so many CPUs. That of shards is a power of two.
    pub fn count(self, cpus: u32) -> u32 {
        match self {
            Self::PerCpu => cpus,
            Self::Shards => cpus.next_power_of_two().min(MAX_SHARDS),
            Self::One => 1,
        }
    }
}

/// A cell as it is in the kernel: its first word is the owner's cgroup id, and its second one is not 0
/// once anything has been counted.
///
/// # Safety
///
/// `repr(C)`, made of 64-bit words only, valid for every bit pattern, the owner first.
pub unsafe trait Cell: Copy + Send {
    /// Name of the array of maps in the kernel object.
    const MAP: &'static str;
    /// Cells a slot.
    const LANES: Lanes;
}

macro_rules! cells {
    ($($cell:path, $map:literal, $lanes:ident;)*) => {
        $(
            // SAFETY: words only, the owner first.
            unsafe impl Cell for $cell {
                const MAP: &'static str = $map;
                const LANES: Lanes = Lanes::$lanes;
            }
        )*
        /// Every array of cells in the object, with its lanes.
        pub const CELL_MAPS: &[(&str, Lanes)] = &[$(($map, Lanes::$lanes),)*];
    };
}

cells! {
    collector_common::sched::SchedCell, "SCHED_CELLS", PerCpu;
    collector_common::process::ProcessCell, "PROCESS_CELLS", One;
    collector_common::reclaim::ReclaimCell, "RECLAIM_CELLS", One;
    collector_common::net::NetCell, "NET_CELLS", Shards;
    collector_common::tcp::TcpCell, "TCP_CELLS", One;
    collector_common::tasks::TasksCell, "TASKS_CELLS", One;
}

/// The cells of a source.
#[derive(Debug)]
pub struct Cells<T> {
    outer: OwnedFd,
    lanes: u32,
    chunks: Vec<Mapping<T>>,
}

/// What the slot pool and the reaper need of a source's cells, whatever their type.
pub trait SlotMemory: Send {
    /// Whether `slots` slots need no new chunk.
    fn has_room(&self, slots: u32) -> bool;
    /// Makes the chunks that `slots` slots need, those of 0 to `slots - 1`.
    ///
    /// # Errors
    ///
    /// The kernel's, ENOMEM mostly.
    fn provide(&mut self, slots: u32) -> io::Result<()>;
    /// Takes a slot's cells from their owner: whoever writes next resolves the slot again.
    fn disown(&self, slot: u32);
    /// Zeroes a slot's cells.
    fn clear(&self, slot: u32);
    /// Kernel memory of the chunks, bytes.
    fn bytes(&self) -> u64;
}

impl<T: Cell> Cells<T> {
    /// Cells with `lanes` lanes in the array of maps `outer`.
    ///
    /// # Errors
    ///
    /// When the descriptor can't be duplicated.
    pub fn new(outer: impl AsFd, lanes: u32) -> io::Result<Self> {
        Ok(Self {
            outer: outer.as_fd().try_clone_to_owned()?,
            lanes,
            chunks: Vec::new(),
        })
    }

    fn position(&self, slot: u32, lane: u32) -> (usize, usize) {
        let number = slot * self.lanes + lane;
        (
            (number / CELLS_PER_CHUNK) as usize,
            (number % CELLS_PER_CHUNK) as usize,
        )
    }

    /// Adds a slot's lanes to `sum`. Lanes that nobody has written cost one load each.
    pub fn add_to<S: for<'a> AddAssign<&'a T>>(&self, slot: u32, sum: &mut S) {
        for lane in 0..self.lanes {
            let (chunk, entry) = self.position(slot, lane);
            let Some(chunk) = self.chunks.get(chunk) else {
                continue;
            };
            // A disowned cell still counts: owner 0 and counters above.
            if chunk.load(entry, 0) != 0 || chunk.load(entry, 1) != 0 || self.lanes == 1 {
                *sum += &chunk.read(entry);
            }
        }
    }
}

impl<T: Cell> Cells<T> {
    /// Every cell of which word `word` is `value`, whoever's it is: for what a pass has just
    /// written, slots that it has taken included.
    pub fn with(&self, word: usize, value: u64) -> impl Iterator<Item = T> + '_ {
        let entries = 0..CELLS_PER_CHUNK as usize;
        self.chunks.iter().flat_map(move |chunk| {
            entries
                .clone()
                .filter(move |&entry| chunk.load(entry, word) == value)
                .map(|entry| chunk.read(entry))
        })
    }
}

impl<T: Cell> SlotMemory for Cells<T> {
    fn has_room(&self, slots: u32) -> bool {
        let cells = u64::from(slots) * u64::from(self.lanes);
        self.chunks.len() as u64 >= cells.div_ceil(u64::from(CELLS_PER_CHUNK))
    }

    fn provide(&mut self, slots: u32) -> io::Result<()> {
        let cells = u64::from(slots) * u64::from(self.lanes);
        let chunks = cells.div_ceil(u64::from(CELLS_PER_CHUNK)) as usize;
        while self.chunks.len() < chunks {
            let size = size_of::<T>() as u32;
            let inner = bpf::create_mmapable_array(T::MAP, size, CELLS_PER_CHUNK)?;
            let mapping = Mapping::new(inner.as_fd(), CELLS_PER_CHUNK as usize)?;
            bpf::set_inner_map(self.outer.as_fd(), self.chunks.len() as u32, &inner)?;
            self.chunks.push(mapping);
        }
        Ok(())
    }

    fn disown(&self, slot: u32) {
        for lane in 0..self.lanes {
            let (chunk, entry) = self.position(slot, lane);
            if let Some(chunk) = self.chunks.get(chunk) {
                chunk.store(entry, 0, 0);
            }
        }
    }

    fn clear(&self, slot: u32) {
        for lane in 0..self.lanes {
            let (chunk, entry) = self.position(slot, lane);
            if let Some(chunk) = self.chunks.get(chunk) {
                chunk.clear(entry);
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes() as u64).sum()
    }
}
