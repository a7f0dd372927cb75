//! Values keyed by cgroup and a second key, in the rows of an array. The kernel programs find them
//! without a hash lookup.
//!
//! Kernel programs claim free rows (collector-ebpf/src/keyed.rs). Like a slot, a row is returned in
//! two steps. [`Rows::revoke`] revokes it from its removed owner, so that late events are counted
//! elsewhere. [`Rows::free`] makes it free at least a grace period later, once its final numbers
//! have been read.

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

/// Number of rows of a source on a host with at most so many slots. It is a power of two, and at
/// least the number of rows that one key can be in.
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

    /// Opens an mmapable array of rows.
    ///
    /// # Errors
    ///
    /// If `map` is not such an array, or mmap(2) fails.
    pub fn new(map: BorrowedFd<'_>) -> Result<Self, OpenError> {
        Ok(Self {
            mapping: Mapping::open(map)?,
        })
    }

    /// All rows that have an owner, with their keys.
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

    /// Revokes a row from its owner. Its numbers stay until [`free`](Self::free).
    pub fn revoke(&self, row: usize) {
        self.mapping.store(row, Self::OWNER, ROW_TAKEN);
    }

    /// Makes a row free that was revoked from its owner and whose numbers have been read.
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
