//! Values by cgroup and something else, made at the first event.
//!
//! One hash lookup an event (25 to 60 ns), so for events that are rare beside switches and packets.
//! A source with more of them has rows as well, which are found by their place.

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap},
};
use collector_common::{
    keyed::{CgroupKey, ROW_TAKEN, Row, WAYS, first_way},
    stat::Stat,
};

use crate::{cell, stat};

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

/// BPF_F_MMAPABLE
const MMAPABLE: usize = 1 << 10;

/// The rows of a source. The loader sets `max_entries`.
pub type Rows<T> = Array<Row<T>, 1, MMAPABLE>;

/// Rows of a source: a power of two.
#[unsafe(no_mangle)]
static ROWS: Global<u32> = Global::new(WAYS);

/// The value of a key in its row: about 5 ns. `None` if it has none and there is no room for it:
/// then [`entry`] is where it is counted.
#[inline(always)]
pub fn row<T>(rows: &Rows<T>, key: CgroupKey) -> Option<*mut T> {
    let first = first_way(key, ROWS.load());
    for way in 0..WAYS {
        let row = rows.get_ptr_mut(first + way)?;
        // SAFETY: a map value. A row is taken from its owner long before it is another's.
        unsafe {
            if (*row).cgroup == key.cgroup && (*row).what == key.what {
                return Some(&raw mut (*row).value);
            }
        }
    }
    // Free ones only now: the key's may be behind one that has become free.
    for way in 0..WAYS {
        let row = rows.get_ptr_mut(first + way)?;
        // SAFETY: as above. Who has exchanged the id is alone until it writes its own; should two
        // CPUs claim a row each for the same key, both count.
        unsafe {
            if (*row).cgroup == 0 && cell::exchange(&raw mut (*row).cgroup, 0, ROW_TAKEN) == 0 {
                (*row).what = key.what;
                cell::swap(&raw mut (*row).cgroup, key.cgroup);
                return Some(&raw mut (*row).value);
            }
        }
    }
    None
}
