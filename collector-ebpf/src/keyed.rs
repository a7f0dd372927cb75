//! Values by cgroup and something else, made at the first event.
//!
//! One hash lookup an event (25 to 45 ns), so for events that are rare beside switches and packets.

use aya_ebpf::btf_maps::{Array, HashMap};
use collector_common::{keyed::CgroupKey, stat::Stat};

use crate::stat;

/// BPF_F_NO_PREALLOC: kernel memory grows with the entries in use.
const NO_PREALLOC: usize = 1;
/// BPF_NOEXIST
const NOEXIST: u64 = 1;

/// The hash of a source. The loader sets `max_entries`.
pub type Keyed<T> = HashMap<CgroupKey, T, 1, NO_PREALLOC>;
/// One value that nobody writes: what a new entry starts as. (A value may be larger than the stack.)
pub type Zero<T> = Array<T, 1>;

/// The value of a key, a new one if it has none, that of the overflow if there is no room.
///
/// Counters of the value are for [`crate::cell::add`]: every CPU and context adds to the same.
#[inline(always)]
pub fn entry<T>(map: &Keyed<T>, zero: &Zero<T>, key: CgroupKey) -> Option<*mut T> {
    if let Some(value) = map.get_ptr_mut(key) {
        return Some(value);
    }
    let zero = zero.get(0)?;
    // EEXIST: another CPU was faster.
    let _ = map.insert(key, zero, NOEXIST);
    if let Some(value) = map.get_ptr_mut(key) {
        return Some(value);
    }
    stat::count(Stat::Overflow);
    map.get_ptr_mut(CgroupKey::OVERFLOW)
}
