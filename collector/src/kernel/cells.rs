//! The cells of a source. They lie in chunks, which are created as slots need them and read through
//! memory.

use std::{io, ops::AddAssign};

use collector_common::{
    cell::CELLS_PER_CHUNK, net::NetCell, process::ProcessCell, reclaim::ReclaimCell,
    sched::SchedCell, tasks::TasksCell, tcp::TcpCell,
};
use zerocopy::FromBytes;

use super::{
    chunks::{MappedChunks, Outer},
    map::OpenError,
    mapping::{Mapping, Word, word},
};

/// How many cells, or shards, a slot has in a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shards {
    /// One shard per CPU, for the hottest sources: plain adds.
    PerCpu,
    /// One shard for several CPUs, at most [`MAX_SHARDS`], for sources with fewer events: atomic
    /// adds.
    Few,
    /// One shard, for rare events: atomic adds.
    One,
}

/// Maximum number of shards of a source that does not have one for each CPU.
pub const MAX_SHARDS: u32 = 16;

impl Shards {
    /// The number of shards on a host with so many CPUs. For [`Few`](Self::Few) it is a power of
    /// two.
    pub fn count(self, cpus: u32) -> u32 {
        match self {
            Self::PerCpu => cpus,
            Self::Few => cpus.next_power_of_two().min(MAX_SHARDS),
            Self::One => 1,
        }
    }
}

/// The layout and the map of a source's cells in the kernel.
pub trait MappedCell: FromBytes + Copy + Send {
    /// Name of the array of maps in the kernel object.
    const MAP: &'static str;
    /// Number of cells per slot.
    const SHARDS: Shards;
    /// The owner's cgroup id. It is 0 before a program of the owner has counted anything.
    const OWNER: Word<Self>;
    /// With several shards, a field that is not 0 once anything has been counted. Most shards are
    /// never written, and the reader skips those.
    const COUNTED: Option<Word<Self>>;
}

macro_rules! cells {
    ($($cell:ident, $map:literal, $shards:ident $(, $counted:ident)?;)*) => {
        $(
            impl MappedCell for $cell {
                const MAP: &'static str = $map;
                const SHARDS: Shards = Shards::$shards;
                const OWNER: Word<Self> = word!($cell, owner);
                const COUNTED: Option<Word<Self>> = [$(Some(word!($cell, $counted)),)? None][0];
            }
        )*
        /// All arrays of cells in the object, with their shards.
        pub const CELL_MAPS: &[(&str, Shards)] = &[$(($map, Shards::$shards),)*];
    };
}

cells! {
    SchedCell, "SCHED_CELLS", PerCpu, run_ns;
    ProcessCell, "PROCESS_CELLS", One;
    ReclaimCell, "RECLAIM_CELLS", One;
    NetCell, "NET_CELLS", Few, used;
    TcpCell, "TCP_CELLS", One;
    TasksCell, "TASKS_CELLS", One;
}

/// The cells of a source.
#[derive(Debug)]
pub struct Cells<T> {
    chunks: MappedChunks<T>,
    shards: u32,
}

/// What the slot pool needs from a source's cells, for any type of cell.
pub trait SlotMemory: Send {
    /// Whether the existing chunks have room for `slots` slots.
    fn has_room(&self, slots: u32) -> bool;
    /// Creates the chunks for slots 0 to `slots - 1`.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2), usually ENOMEM.
    fn provide(&mut self, slots: u32) -> io::Result<()>;
    /// Creates what is not bound to a slot. Called at the start and after each reading.
    ///
    /// # Errors
    ///
    /// As above.
    fn top_up(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Kernel memory used by the chunks, bytes.
    fn bytes(&self) -> u64;
}

impl<T: MappedCell> Cells<T> {
    /// Cells with so many shards in the array of maps `outer`.
    ///
    /// # Errors
    ///
    /// If `outer` is not an array of maps, or its descriptor can't be duplicated.
    pub fn new(outer: &Outer<'_>, shards: u32) -> Result<Self, OpenError> {
        Ok(Self {
            chunks: MappedChunks::new(outer, CELLS_PER_CHUNK)?,
            shards,
        })
    }

    /// The positions of a slot's cells in existing chunks.
    fn places(&self, slot: u32) -> impl Iterator<Item = (&Mapping<T>, usize)> {
        (0..self.shards).filter_map(move |shard| self.chunks.place(slot * self.shards + shard))
    }

    /// Adds a slot's shards to `sum`. A shard that was never written costs two loads.
    pub fn add_to<S: for<'a> AddAssign<&'a T>>(&self, slot: u32, sum: &mut S) {
        for (chunk, entry) in self.places(slot) {
            let untouched = T::COUNTED.is_some_and(|counted| {
                // What was moved into a cell from a removed cgroup's is there before the cell has an
                // owner.
                chunk.load(entry, T::OWNER) == 0 && chunk.load(entry, counted) == 0
            });
            if !untouched {
                *sum += &chunk.read(entry);
            }
        }
    }

    /// All cells whose `word` is `value`, of any owner. It reads what an iterator has just written,
    /// also into slots that the iterator itself has taken.
    pub fn with(&self, word: Word<T>, value: u64) -> impl Iterator<Item = T> + '_ {
        self.chunks
            .places()
            .filter(move |(chunk, entry)| chunk.load(*entry, word) == value)
            .map(|(chunk, entry)| chunk.read(entry))
    }

    /// Number of chunks for so many slots.
    fn chunks_for(&self, slots: u32) -> usize {
        self.chunks
            .needed(u64::from(slots) * u64::from(self.shards))
    }
}

impl<T: MappedCell> SlotMemory for Cells<T> {
    fn has_room(&self, slots: u32) -> bool {
        self.chunks.count() >= self.chunks_for(slots)
    }

    fn provide(&mut self, slots: u32) -> io::Result<()> {
        self.chunks.grow_to(self.chunks_for(slots))
    }

    fn bytes(&self) -> u64 {
        self.chunks.bytes()
    }
}
