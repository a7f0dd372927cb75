//! Values of the source of dropped packets.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::keyed::Counters;

/// Packets of a cgroup that were dropped for one reason; the key's second part is the reason, an
/// enumerator of the kernel's `skb_drop_reason`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Drops {
    /// Packets (`sk_buff`s: what the kernel handles as one).
    pub packets: u64,
}

impl Counters for Drops {}

const _: () = assert!(size_of::<Drops>() == 8);
