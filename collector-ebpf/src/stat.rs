//! What the programs count of their own work.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use collector_common::stat::{STATS, Stat};

use crate::maps::Find;

#[btf_map]
static STATS_MAP: PerCpuArray<u64, { STATS as usize }> = PerCpuArray::new();

/// Adds one on this CPU. Not for the hottest programs: they derive their count from cells.
#[inline(always)]
pub fn count(stat: Stat) {
    if let Some(value) = STATS_MAP.find(stat as u32) {
        // Atomic, because a program that runs in an interrupt may count on the same CPU meanwhile.
        value.add(1);
    }
}
