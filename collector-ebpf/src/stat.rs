//! What the programs count of their own work.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use collector_common::stat::{STATS, Stat};

#[btf_map]
static STATS_MAP: PerCpuArray<u64, { STATS as usize }> = PerCpuArray::new();

/// Adds one on this CPU. Not for the hottest programs: they derive their count from cells.
#[inline(always)]
pub fn count(stat: Stat) {
    if let Some(value) = STATS_MAP.get_ptr_mut(stat as u32) {
        // SAFETY: the lookup gave this CPU's value. The add is atomic because a program that runs
        // in an interrupt may count on the same CPU meanwhile.
        unsafe { crate::cell::add(value, 1) };
    }
}
