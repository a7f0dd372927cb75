//! Running the one pass over a hierarchy and reading its records.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context, Result};
use collector_common::pass::{
    CgroupRecord, IO_RECORDS_PER_CHUNK, IoRecord, PassControl, RECORDS_PER_CHUNK,
};

use super::{bpf, mapping::Mapping};

/// Records in chunks that are made as they are needed.
#[derive(Debug)]
struct Buffer<T> {
    name: &'static str,
    outer: OwnedFd,
    per_chunk: u32,
    chunks: Vec<Mapping<T>>,
}

impl<T: Copy> Buffer<T> {
    fn new(name: &'static str, outer: BorrowedFd<'_>, per_chunk: u32) -> io::Result<Self> {
        let mut buffer = Self {
            name,
            outer: outer.try_clone_to_owned()?,
            per_chunk,
            chunks: Vec::new(),
        };
        buffer.grow(1)?;
        Ok(buffer)
    }

    /// Makes room for so many more records.
    fn grow(&mut self, records: u64) -> io::Result<()> {
        for _ in 0..records.div_ceil(u64::from(self.per_chunk)) {
            let size = size_of::<T>() as u32;
            let inner = bpf::create_mmapable_array(self.name, size, self.per_chunk)?;
            let mapping = Mapping::new(inner.as_fd(), self.per_chunk as usize)?;
            bpf::set_inner_map(self.outer.as_fd(), self.chunks.len() as u32, &inner)?;
            self.chunks.push(mapping);
        }
        Ok(())
    }

    fn read(&self, number: usize) -> Option<T> {
        let per_chunk = self.per_chunk as usize;
        Some(
            self.chunks
                .get(number / per_chunk)?
                .read(number % per_chunk),
        )
    }

    fn word(&self, number: usize, word: usize) -> u64 {
        let per_chunk = self.per_chunk as usize;
        self.chunks
            .get(number / per_chunk)
            .map_or(0, |chunk| chunk.load(number % per_chunk, word))
    }

    fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes() as u64).sum()
    }
}

/// The pass program with its buffers.
#[derive(Debug)]
pub struct Pass {
    program: OwnedFd,
    control: Mapping<PassControl>,
    records: Buffer<CgroupRecord>,
    devices: Buffer<IoRecord>,
}

/// A pass attached to the root of a hierarchy.
#[derive(Debug)]
pub struct PassLink(OwnedFd);

/// The pass's maps.
#[derive(Debug)]
pub struct Maps<'a> {
    /// `PASS`
    pub control: BorrowedFd<'a>,
    /// `RECORDS`
    pub records: BorrowedFd<'a>,
    /// `IO_RECORDS`
    pub devices: BorrowedFd<'a>,
}

/// Words of [`PassControl`].
const NEXT: usize = 0;
const MISSED: usize = 1;
const IO_NEXT: usize = 2;
const IO_MISSED: usize = 3;

impl Pass {
    /// A pass over the object's maps.
    ///
    /// # Errors
    ///
    /// When the control block can't be mapped or the first chunks can't be made.
    pub fn new(program: BorrowedFd<'_>, maps: &Maps<'_>) -> Result<Self> {
        Ok(Self {
            program: program.try_clone_to_owned()?,
            control: Mapping::new(maps.control, 1).context("mapping the pass's control block")?,
            records: Buffer::new("RECORDS", maps.records, RECORDS_PER_CHUNK)
                .context("making the pass's buffer")?,
            devices: Buffer::new("IO_RECORDS", maps.devices, IO_RECORDS_PER_CHUNK)
                .context("making the pass's buffer")?,
        })
    }

    /// Attaches the pass to a hierarchy, given its root directory.
    ///
    /// # Errors
    ///
    /// The kernel's: EINVAL before 6.1, which has no cgroup iterator.
    pub fn link(&self, directory: &File) -> io::Result<PassLink> {
        bpf::link_cgroup_iterator(self.program.as_fd(), directory.as_fd()).map(PassLink)
    }

    /// Forgets all records.
    pub fn clear(&mut self) {
        self.control.store(0, NEXT, 0);
        self.control.store(0, IO_NEXT, 0);
    }

    /// Visits every cgroup of a hierarchy and adds its records to those there are.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn run(&mut self, link: &PassLink) -> io::Result<()> {
        let before = [NEXT, IO_NEXT].map(|word| self.control.load(0, word));
        loop {
            self.control.store(0, NEXT, before[0]);
            self.control.store(0, IO_NEXT, before[1]);
            self.control.store(0, MISSED, 0);
            self.control.store(0, IO_MISSED, 0);
            bpf::run_iterator(link.0.as_fd())?;
            let [missed, io_missed] = [MISSED, IO_MISSED].map(|word| self.control.load(0, word));
            if missed == 0 && io_missed == 0 {
                return Ok(());
            }
            self.records.grow(missed)?;
            self.devices.grow(io_missed)?;
        }
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.control.load(0, NEXT) as usize
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cgroup id and flags of a record.
    pub fn head(&self, number: usize) -> (u64, u64) {
        (self.records.word(number, 0), self.records.word(number, 1))
    }

    /// A record.
    pub fn record(&self, number: usize) -> Option<CgroupRecord> {
        self.records.read(number)
    }

    /// Records of the io controller.
    pub fn devices(&self) -> impl Iterator<Item = IoRecord> + '_ {
        (0..self.control.load(0, IO_NEXT) as usize).filter_map(|number| self.devices.read(number))
    }

    /// Kernel memory of the buffers, bytes.
    pub fn bytes(&self) -> u64 {
        self.records.bytes() + self.devices.bytes()
    }
}
