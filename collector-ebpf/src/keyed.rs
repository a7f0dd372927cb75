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

use crate::{
    maps::{self, Find, MMAPABLE, NO_PREALLOC, NOEXIST},
    shared::{Shared, member},
    stat,
};

/// The hash of a source. The loader sets `max_entries`.
pub type Keyed<T> = HashMap<CgroupKey, T, 1, NO_PREALLOC>;
/// One value that nobody writes: what a new entry starts as. (A value may be larger than the stack.)
pub type Zero<T> = Array<T, 1>;

/// The value of a key. It is made if there is none. If there is no room for it, this is the
/// overflow's value. Every CPU and context adds to the same value.
#[inline(always)]
pub fn entry<T>(map: &Keyed<T>, zero: &Zero<T>, key: CgroupKey) -> Option<Shared<T>> {
    if let Some(value) = map.find(key) {
        return Some(value);
    }
    // EEXIST: another CPU was faster.
    maps::insert(map, &key, zero.find(0)?, NOEXIST);
    if let Some(value) = map.find(key) {
        return Some(value);
    }
    stat::count(Stat::Overflow);
    map.find(CgroupKey::OVERFLOW)
}

/// The rows of a source. The loader sets `max_entries`.
pub type Rows<T> = Array<Row<T>, 1, MMAPABLE>;

/// Rows of a source: a power of two.
#[unsafe(no_mangle)]
static ROWS: Global<u32> = Global::new(WAYS);

/// The value of a key in its row, which takes about 5 ns. `None` if the key has no row and there is
/// no room for one: then it is counted in its [`entry`].
///
/// A row is taken from its owner long before another gets it.
#[inline(always)]
pub fn row<T>(rows: &Rows<T>, key: CgroupKey) -> Option<Shared<T>> {
    let first = first_way(key, ROWS.load());
    for way in 0..WAYS {
        let row = rows.find(first + way)?;
        if member!(row.cgroup).get() == key.cgroup && member!(row.what).get() == key.what {
            return Some(member!(row.value));
        }
    }
    // Free rows are tried only now: the key's own row may come after one that has become free.
    for way in 0..WAYS {
        let row = rows.find(first + way)?;
        let cgroup = member!(row.cgroup);
        // The CPU that has exchanged the id has the row to itself until it writes the key's id. If
        // two CPUs claim a row each for the same key, both rows count.
        if cgroup.get() == 0 && cgroup.exchange(0, ROW_TAKEN) == 0 {
            member!(row.what).set(key.what);
            cgroup.swap(key.cgroup);
            return Some(member!(row.value));
        }
    }
    None
}
