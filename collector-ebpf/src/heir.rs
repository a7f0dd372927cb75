//! Heirs of removed cgroups, for events that have a cgroup's id alone.
//!
//! A table by some bits of the id, two places for each value; of those that have it the one that was removed
//! first gives way. It remembers some 4,000 to 16,000 removals.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use collector_common::slot::Heir;

use crate::{
    maps::Find,
    shared::{Shared, member},
};

/// Number of pairs: a power of two.
const PAIRS: usize = 8192;

#[btf_map]
static HEIRS: Array<[Heir; 2], PAIRS> = Array::new();

/// Ids count up, files included: a cgroup has 16 or more of them. Cgroups of the same time are neighbours in the
/// table, so that a removal finds its page in the TLB.
#[inline(always)]
fn index(id: u64) -> u32 {
    (id / 16) as u32 & (PAIRS as u32 - 1)
}

/// Notes a removed cgroup's heir. Called under the cgroup mutex.
#[inline(always)]
pub fn note(id: u64, heir: u64, place: u64) {
    let Some(pair) = HEIRS.find(index(id)) else {
        return;
    };
    let (first, second) = (pair.wrapped(0), pair.wrapped(1));
    let is_older = member!(first.place).get() <= member!(second.place).get();
    let entry = if is_older { first } else { second };
    // Barriers: whoever reads the id twice has read what belongs to it.
    member!(entry.removed).swap(0);
    member!(entry.cgroup).set(heir);
    member!(entry.place).set(place);
    member!(entry.removed).swap(id);
}

/// A removed cgroup's heir, and its place in the sequence of retired slots.
#[inline(always)]
pub fn of(id: u64) -> Option<(u64, u64)> {
    let pair = HEIRS.find(index(id))?;
    read(pair.wrapped(0), id).or_else(|| read(pair.wrapped(1), id))
}

#[inline(always)]
fn read(entry: Shared<Heir>, id: u64) -> Option<(u64, u64)> {
    if member!(entry.removed).get() != id {
        return None;
    }
    let found = (member!(entry.cgroup).get(), member!(entry.place).get());
    (member!(entry.removed).get() == id).then_some(found)
}
