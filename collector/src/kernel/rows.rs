//! Values by cgroup and something else that lie in rows of an array, where the kernel side needs no
//! hash to find them.
//!
//! Kernel programs claim free rows (collector-ebpf/src/keyed.rs). A row comes back in two steps, as
//! slots do: [`Rows::disown`] takes it from its removed owner, so that a straggler counts elsewhere, and
//! [`Rows::free`], at least a grace period later, once its last numbers have been read.

use std::{
    os::fd::BorrowedFd,
    sync::atomic::Ordering::{Acquire, Release},
};

use collector_common::keyed::{CgroupKey, MAX_ROWS, ROW_TAKEN, Row, WAYS};

use super::{
    keyed::KeyedValue,
    map::OpenError,
    mapping::{Mapping, Word, word},
};

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
}

impl<T: KeyedValue> Rows<T> {
    const OWNER: Word<Row<T>> = word!(Row<T>, cgroup);
    const WHAT: Word<Row<T>> = word!(Row<T>, what);

    /// Over an mmapable array of rows.
    ///
    /// # Errors
    ///
    /// When `map` is no such array, and mmap(2)'s.
    pub fn new(map: BorrowedFd<'_>) -> Result<Self, OpenError> {
        Ok(Self {
            mapping: Mapping::open(map)?,
        })
    }

    /// Rows that are somebody's, with the key.
    pub fn owned(&self) -> impl Iterator<Item = (usize, CgroupKey)> + '_ {
        (0..self.mapping.entries()).filter_map(|row| {
            // The owner is written last, after the rest of the key.
            let cgroup = self.mapping.atomic(row, Self::OWNER).load(Acquire);
            if cgroup == 0 || cgroup == ROW_TAKEN {
                return None;
            }
            let what = self.mapping.load(row, Self::WHAT);
            Some((row, CgroupKey { cgroup, what }))
        })
    }

    /// The numbers of a row.
    pub fn value(&self, row: usize) -> T {
        self.mapping.read(row).value
    }

    /// Takes a row from its owner. Its numbers stay until [`free`](Self::free).
    pub fn disown(&self, row: usize) {
        self.mapping.store(row, Self::OWNER, ROW_TAKEN);
    }

    /// Makes a row that was taken from its owner, and whose numbers have been read, free.
    pub fn free(&self, row: usize) {
        self.mapping.clear_except(row, Self::OWNER);
        self.mapping.atomic(row, Self::OWNER).store(0, Release);
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
