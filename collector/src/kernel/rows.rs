//! Values by cgroup and something else that lie in rows of an array, where the kernel side needs no
//! hash to find them.
//!
//! Kernel programs claim free rows (collector-ebpf/src/keyed.rs). A row comes back in two steps, as
//! slots do: [`Rows::disown`] takes it from its dead owner, so that a straggler counts elsewhere, and
//! [`Rows::free`], at least a grace period later, once its last numbers have been read.

use std::{
    io,
    os::fd::AsFd,
    sync::atomic::{Ordering, fence},
};

use collector_common::keyed::{CgroupKey, MAX_ROWS, ROW_TAKEN, Row, WAYS};

use super::{keyed::KeyedValue, mapping::Mapping};

/// Rows of a source on a host with at most so many slots: a power of two, and not fewer than one key
/// may have.
pub fn rows(max_slots: u32) -> u32 {
    let mut rows = WAYS;
    while rows < MAX_ROWS && rows * 2 <= max_slots {
        rows *= 2;
    }
    rows
}

/// The rows of a source.
#[derive(Debug)]
pub struct Rows<T> {
    mapping: Mapping<Row<T>>,
    rows: usize,
}

/// Words of a row before its value: the owner, the rest of the key.
const OWNER: usize = 0;
const WHAT: usize = 1;

impl<T: KeyedValue> Rows<T> {
    /// Over the mmapable array `map` of so many rows.
    ///
    /// # Errors
    ///
    /// mmap(2)'s.
    pub fn new(map: impl AsFd, rows: u32) -> io::Result<Self> {
        let rows = rows as usize;
        Ok(Self {
            mapping: Mapping::new(map.as_fd(), rows)?,
            rows,
        })
    }

    /// Rows that are somebody's, with the key.
    pub fn owned(&self) -> impl Iterator<Item = (usize, CgroupKey)> + '_ {
        (0..self.rows).filter_map(|row| {
            let cgroup = self.mapping.load(row, OWNER);
            if cgroup == 0 || cgroup == ROW_TAKEN {
                return None;
            }
            // The owner is written last.
            fence(Ordering::Acquire);
            let what = self.mapping.load(row, WHAT);
            Some((row, CgroupKey { cgroup, what }))
        })
    }

    /// The numbers of a row.
    pub fn value(&self, row: usize) -> T {
        self.mapping.read(row).value
    }

    /// Takes a row from its owner. Its numbers stay until [`free`](Self::free).
    pub fn disown(&self, row: usize) {
        self.mapping.store(row, OWNER, ROW_TAKEN);
    }

    /// Makes a disowned row, whose numbers have been read, free for the next key.
    pub fn free(&self, row: usize) {
        for word in WHAT..size_of::<Row<T>>() / size_of::<u64>() {
            self.mapping.store(row, word, 0);
        }
        fence(Ordering::Release);
        self.mapping.store(row, OWNER, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_a_power_of_two_and_no_more_than_slots() {
        let cases = [(1, 4), (4, 4), (7, 4), (8, 8), (100, 64), (10_000, 256)];
        for (slots, expected) in cases {
            assert_eq!(rows(slots), expected, "{slots} slots");
        }
    }
}
