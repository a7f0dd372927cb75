//! Runs the cgroup iterator over a hierarchy and reads its records.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context, Result};
use collector_common::cgroup_iterator::{
    CgroupRecord, IO_RECORDS_PER_CHUNK, IoRecord, IteratorControl, RECORDS_PER_CHUNK,
};

use super::{
    bpf,
    chunks::{MappedChunks, Outer},
    mapping::{Mapping, Word, word},
};

/// The cgroup iterator with its buffers.
#[derive(Debug)]
pub struct CgroupIterator {
    program: OwnedFd,
    control: Mapping<IteratorControl>,
    records: MappedChunks<CgroupRecord>,
    devices: MappedChunks<IoRecord>,
}

/// The iterator attached to the root of a hierarchy.
#[derive(Debug)]
pub struct CgroupIteratorLink(OwnedFd);

/// The iterator's maps.
#[derive(Debug)]
pub struct Maps<'a> {
    /// The map `CGROUP_ITERATOR`: the iterator's control block.
    pub control: BorrowedFd<'a>,
    /// The map `RECORDS`: what the iterator writes for each cgroup.
    pub records: Outer<'a>,
    /// The map `IO_RECORDS`: what the iterator writes for each cgroup and device.
    pub devices: Outer<'a>,
}

const NEXT: Word<IteratorControl> = word!(IteratorControl, next);
const MISSED: Word<IteratorControl> = word!(IteratorControl, missed);
const IO_NEXT: Word<IteratorControl> = word!(IteratorControl, io_next);
const IO_MISSED: Word<IteratorControl> = word!(IteratorControl, io_missed);

const ID: Word<CgroupRecord> = word!(CgroupRecord, id);
const FLAGS: Word<CgroupRecord> = word!(CgroupRecord, flags);

impl CgroupIterator {
    /// Opens the iterator with the object's maps.
    ///
    /// # Errors
    ///
    /// If a map has another type or size, or the first chunks can't be created.
    pub fn new(program: BorrowedFd<'_>, maps: &Maps<'_>) -> Result<Self> {
        let mut records = MappedChunks::new(&maps.records, RECORDS_PER_CHUNK)?;
        let mut devices = MappedChunks::new(&maps.devices, IO_RECORDS_PER_CHUNK)?;
        let buffers = "making the cgroup iterator's buffers";
        records.grow_to(1).context(buffers)?;
        devices.grow_to(1).context(buffers)?;
        Ok(Self {
            program: program.try_clone_to_owned()?,
            control: Mapping::open(maps.control)
                .context("opening the control block of the cgroup iterator")?,
            records,
            devices,
        })
    }

    /// Attaches the iterator to a hierarchy, given its root directory.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2): EINVAL before 6.1, which has no cgroup iterator.
    pub fn link(&self, directory: &File) -> io::Result<CgroupIteratorLink> {
        bpf::link_cgroup_iterator(self.program.as_fd(), directory.as_fd()).map(CgroupIteratorLink)
    }

    /// Discards all records.
    pub fn clear(&mut self) {
        self.control.store(0, NEXT, 0);
        self.control.store(0, IO_NEXT, 0);
    }

    /// Visits every cgroup of a hierarchy and appends its records.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn run(&mut self, link: &CgroupIteratorLink) -> io::Result<()> {
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
            let more = self.records.needed(missed);
            self.records.grow_to(self.records.count() + more)?;
            let more = self.devices.needed(io_missed);
            self.devices.grow_to(self.devices.count() + more)?;
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

    /// Cgroup id and flags of a record. Both are 0 if there is no such record.
    pub fn head(&self, number: usize) -> (u64, u64) {
        let place = self.records.place(number as u32);
        place.map_or((0, 0), |(chunk, entry)| {
            (chunk.load(entry, ID), chunk.load(entry, FLAGS))
        })
    }

    /// Returns a record by its number.
    pub fn record(&self, number: usize) -> Option<CgroupRecord> {
        let (chunk, entry) = self.records.place(number as u32)?;
        Some(chunk.read(entry))
    }

    /// Records of the io controller.
    pub fn devices(&self) -> impl Iterator<Item = IoRecord> + '_ {
        (0..self.control.load(0, IO_NEXT) as u32).filter_map(|number| {
            let (chunk, entry) = self.devices.place(number)?;
            Some(chunk.read(entry))
        })
    }

    /// Kernel memory used by the buffers, bytes.
    pub fn bytes(&self) -> u64 {
        self.records.bytes() + self.devices.bytes()
    }
}
