//! Running the one pass over a hierarchy and reading its records.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result};
use collector_common::pass::{CgroupRecord, PassControl, RECORDS_PER_CHUNK};

use super::{bpf, mapping::Mapping};

/// The pass program with its buffer.
#[derive(Debug)]
pub struct Pass {
    program: OwnedFd,
    control: Mapping<PassControl>,
    outer: OwnedFd,
    chunks: Vec<Mapping<CgroupRecord>>,
}

/// A pass attached to the root of a hierarchy.
#[derive(Debug)]
pub struct PassLink(OwnedFd);

impl Pass {
    /// A pass over the object's maps.
    ///
    /// # Errors
    ///
    /// When the control block can't be mapped or the first chunk can't be made.
    pub fn new(program: impl AsFd, control: impl AsFd, records: impl AsFd) -> Result<Self> {
        let mut pass = Self {
            program: program.as_fd().try_clone_to_owned()?,
            control: Mapping::new(control.as_fd(), 1)
                .context("mapping the pass's control block")?,
            outer: records.as_fd().try_clone_to_owned()?,
            chunks: Vec::new(),
        };
        pass.add_chunk().context("making the pass's buffer")?;
        Ok(pass)
    }

    /// Attaches the pass to a hierarchy, given its root directory.
    ///
    /// # Errors
    ///
    /// The kernel's: EINVAL before 6.1, which has no cgroup iterator.
    pub fn link(&self, directory: &File) -> io::Result<PassLink> {
        bpf::link_cgroup_iterator(self.program.as_fd(), directory.as_fd()).map(PassLink)
    }

    /// Visits every cgroup of a hierarchy and hands its record to `visit`.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn run(&mut self, link: &PassLink, mut visit: impl FnMut(&CgroupRecord)) -> io::Result<()> {
        const NEXT: usize = 0;
        const MISSED: usize = 1;
        loop {
            self.control.store(0, NEXT, 0);
            self.control.store(0, MISSED, 0);
            bpf::run_iterator(link.0.as_fd())?;
            let missed = self.control.load(0, MISSED);
            if missed == 0 {
                break;
            }
            for _ in 0..missed.div_ceil(u64::from(RECORDS_PER_CHUNK)) {
                self.add_chunk()?;
            }
        }
        let records = self.control.load(0, NEXT) as usize;
        for number in 0..records {
            let chunk = number / RECORDS_PER_CHUNK as usize;
            if let Some(chunk) = self.chunks.get(chunk) {
                visit(&chunk.read(number % RECORDS_PER_CHUNK as usize));
            }
        }
        Ok(())
    }

    fn add_chunk(&mut self) -> io::Result<()> {
        let size = size_of::<CgroupRecord>() as u32;
        let inner = bpf::create_mmapable_array("RECORDS", size, RECORDS_PER_CHUNK)?;
        let mapping = Mapping::new(inner.as_fd(), RECORDS_PER_CHUNK as usize)?;
        bpf::set_inner_map(self.outer.as_fd(), self.chunks.len() as u32, &inner)?;
        self.chunks.push(mapping);
        Ok(())
    }

    /// Kernel memory of the buffer, bytes.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes() as u64).sum()
    }
}
