//! Values of the TCP source, and its state of a connection.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{cell::cell, histogram::BUCKETS};

/// TCP counters of one slot; one shard, atomic adds.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct TcpCell {
    /// Cgroup id of the slot's owner, 0 while untouched.
    pub owner: u64,
    /// Segments sent again, SYN and SYN-ACK included.
    pub retransmits: u64,
    /// Connections that this side opened.
    pub active: u64,
    /// Connections that the other side opened.
    pub passive: u64,
    /// Attempts to connect that failed.
    pub failures: u64,
    /// Resets that sockets sent.
    pub resets_sent: u64,
    /// Resets that sockets received.
    pub resets_received: u64,
    /// Sum of what `rtt_histogram` counts, µs.
    pub rtt_us: u64,
    /// Sum of what `duration_histogram` counts, µs.
    pub duration_us: u64,
    /// Keeps the layout explicit.
    pub reserved: [u64; 7],
    /// Smoothed round-trip times at the end of connections, by bucket.
    pub rtt_histogram: [u64; BUCKETS],
    /// Lifetimes of connections, by bucket of a long histogram.
    pub duration_histogram: [u64; BUCKETS],
}

cell!(TcpCell, 512);

/// State of a connection (socket storage). Written under the socket's lock alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpState {
    /// The socket's clock (`tcp_mstamp`, µs) when the connection was established; 0: not yet.
    pub established_us: u64,
    /// `total_retrans` as far as it has been counted.
    pub retransmits: u32,
    /// Not 0 if this side opens the connection.
    pub active: u32,
}

const _: () = assert!(size_of::<TcpState>() == 16);
