//! The paths of all kernel fields that programs read.
//!
//! A source's own fields may be declared beside its values: its list is then one of those joined here.

use crate::{field::COMMON, sched};

/// Path of each field, in the order of its placeholder, see [`field`](crate::field).
pub const PATHS: &[&str] =
    &joined::<{ COMMON.len() + sched::FIELDS.len() }>(&[COMMON, sched::FIELDS]);

const fn joined<const N: usize>(lists: &[&[&'static str]]) -> [&'static str; N] {
    let mut paths = [""; N];
    let (mut at, mut list) = (0, 0);
    while list < lists.len() {
        let mut element = 0;
        while element < lists[list].len() {
            paths[at] = lists[list][element];
            at += 1;
            element += 1;
        }
        list += 1;
    }
    assert!(at == N);
    paths
}
