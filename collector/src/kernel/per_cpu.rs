//! Arrays of counters with a value for each CPU.
//!
//! aya reads the number of CPUs from a file, again in each new thread. That fails when the process
//! has no descriptor left, and with it a whole scrape.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use super::{
    bpf::{self, MapType},
    map::{OpenError, check},
};

/// An array of 64-bit counters, each with a value for every possible CPU.
#[derive(Debug)]
pub(super) struct PerCpuCounters {
    fd: OwnedFd,
    cpus: usize,
}

impl PerCpuCounters {
    /// Opens an array on a host with so many possible CPUs.
    ///
    /// # Errors
    ///
    /// If the map is another one, or its descriptor can't be duplicated.
    pub(super) fn open(map: BorrowedFd<'_>, cpus: u32) -> Result<Self, OpenError> {
        check(
            map,
            MapType::PerCpuArray,
            size_of::<u32>(),
            size_of::<u64>(),
            0,
        )?;
        Ok(Self {
            fd: map.try_clone_to_owned()?,
            cpus: cpus as usize,
        })
    }

    /// Returns a counter's sum over all CPUs.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2): ENOENT if there is no such counter.
    pub(super) fn sum(&self, index: u32) -> io::Result<u64> {
        let mut values = vec![0u64; self.cpus];
        let mut entry = bpf::MapEntry {
            map_fd: self.fd.as_raw_fd() as u32,
            pad: 0,
            key: (&raw const index) as u64,
            value: values.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the kernel reads a key of 4 bytes and writes one value of 8 bytes for each possible
        // CPU (kernel/bpf/arraymap.c, `bpf_percpu_array_copy`). `open` has checked both sizes, and
        // the caller of `open` gave the number of possible CPUs.
        unsafe { bpf::call(bpf::MAP_LOOKUP_ELEM, &mut entry) }?;
        Ok(values.iter().sum())
    }
}
