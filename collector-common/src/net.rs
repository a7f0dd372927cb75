//! Values of the net source, and its state of a socket.

use crate::cell::cell;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes and packets of one direction, family and protocol.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
pub struct Traffic {
    /// Bytes, IP header included.
    pub bytes: u64,
    /// Packets, those of a segmented or merged one counted apart.
    pub packets: u64,
}

/// Number of counters in [`NetCell::traffic`].
pub const TRAFFIC: usize = 16;

/// Socket counters of one slot on some CPUs; atomic adds, because an interrupt may come between.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct NetCell {
    /// Cgroup id of the slot's owner, 0 while untouched.
    pub owner: u64,
    /// 1 once the cell has had an owner. A revoked cell has none, but what it has counted is still
    /// read. (This word also puts TCP over IPv4 into the owner's cache line.)
    pub used: u64,
    /// Traffic by direction, IP version and protocol; [`index`] is the index.
    pub traffic: [Traffic; TRAFFIC],
    /// Fills the last cache line.
    pub spare: [u64; 6],
}

cell!(NetCell, 320);
const _: () = assert!(size_of::<Traffic>() == 16);
const _: () = assert!(TRAFFIC.is_power_of_two());

/// What is kept of a socket (socket storage).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SocketSlot {
    /// Cgroup id for which the slot was resolved, 0 before the first time and for a socket that
    /// got none.
    pub owner: u64,
    /// Index of the slot's first cell.
    pub first_cell: u32,
    /// A [`SocketProtocol`].
    pub protocol: u32,
}

const _: () = assert!(size_of::<SocketSlot>() == 16);

/// Which protocol a socket speaks.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketProtocol {
    /// TCP, a connection of MPTCP included.
    Tcp = 0,
    /// UDP.
    Udp = 1,
    /// ICMP and ICMPv6.
    Icmp = 2,
    /// Any other protocol.
    Other = 3,
}

/// IP version of a packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

/// Way of a packet, as seen from the socket.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Packets that a socket received.
    Receive = 0,
    /// Packets that a socket sent.
    Transmit = 1,
}

/// Where a packet counts in [`NetCell::traffic`]. `protocol` is a number, because the kernel side
/// has it from socket storage; masked, so that the verifier sees an index inside the array.
#[inline(always)]
pub const fn index(protocol: u32, family: u32, direction: Direction) -> usize {
    ((protocol << 2 | family << 1 | direction as u32) & (TRAFFIC as u32 - 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_place_of_its_own() {
        let mut seen = [false; TRAFFIC];
        for protocol in [
            SocketProtocol::Tcp,
            SocketProtocol::Udp,
            SocketProtocol::Icmp,
            SocketProtocol::Other,
        ] {
            for family in [IpVersion::V4, IpVersion::V6] {
                for direction in [Direction::Receive, Direction::Transmit] {
                    let at = index(protocol as u32, family as u32, direction);
                    assert!(!std::mem::replace(&mut seen[at], true));
                }
            }
        }
        assert_eq!(seen, [true; TRAFFIC]);
    }
}
