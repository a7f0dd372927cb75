//! Packets of sockets: bytes and packets by cgroup, family and protocol.
//!
//! Hooks: `cgroup_skb` at the root of cgroup2, inherited by every cgroup below, also by those made
//! later. The kernel runs them with the full socket that a packet is for or from
//! (kernel/bpf/cgroup.c, `__cgroup_bpf_run_filter_skb`): on receive where the socket's filter is
//! run (net/core/filter.c, `sk_filter_trim_cap`), on transmit after routing and before
//! fragmentation (net/ipv4/ip_output.c, `ip_finish_output`).
//! Metrics: collector/src/source/net.rs. Oracle: tests/live/net.rs.
//!
//! A packet counts for the cgroup in which its socket was made (`sk_cgrp_data`; an accepted
//! socket has its listener's), wherever the socket's users are by now. Not seen, because there is
//! no full socket: packets for connections in TIME_WAIT, forwarded ones, and those of packet
//! sockets (AF_PACKET). What the kernel sends by itself is sent by sockets of its own: those for
//! echo replies and resets of no connection are the root's, those for neighbours and multicast
//! groups of IPv6 (net/ipv6/ndisc.c, mcast.c) are of the cgroup that made the network namespace.
//!
//! Both programs let every packet pass, whatever happens.

use core::ptr;

use aya_ebpf::{
    bindings::bpf_sock,
    btf_maps::SkStorage,
    helpers::generated::{bpf_sk_cgroup_id, bpf_sk_fullsock},
    macros::{btf_map, cgroup_skb},
    programs::SkBuffContext,
};
use collector_common::{
    net::{Direction, NetCell, SocketProtocol, SocketSlot, index},
    slot::shard_bit,
    stat::Stat,
};

use crate::{
    cell::{self, Cells},
    kernel::read,
    maps::{self, Find},
    shared::{Shared, member},
    slot::{self, Slot},
    sock::AnySock,
    stat,
};

/// Cells, several shards a slot.
#[btf_map]
pub static NET_CELLS: Cells<NetCell> = Cells::new();

/// The slot of each socket that has had a packet.
#[btf_map]
static SOCKETS: SkStorage<SocketSlot> = SkStorage::new();

/// Lets the packet pass.
const PASS: i32 = 1;

#[cgroup_skb(ingress)]
pub fn net_ingress(ctx: SkBuffContext) -> i32 {
    count(&ctx, Direction::Receive);
    PASS
}

#[cgroup_skb(egress)]
pub fn net_egress(ctx: SkBuffContext) -> i32 {
    count(&ctx, Direction::Transmit);
    PASS
}

#[inline(always)]
fn count(ctx: &SkBuffContext, direction: Direction) {
    let skb = ctx.skb.skb;
    // SAFETY: the verifier knows the context's fields.
    let (sk, length, segments, ethertype) = unsafe {
        (
            (*skb).__bindgen_anon_2.sk,
            (*skb).len,
            (*skb).gso_segs,
            (*skb).protocol,
        )
    };
    if sk.is_null() {
        return;
    }
    let Some((cell, protocol)) = known(sk).or_else(|| settled(sk)) else {
        return;
    };
    // The packet's version counts, not the socket's: an IPv6 socket may speak IPv4 as well. Network
    // byte order.
    const IPV6: u32 = 0x86dd_u16.to_be() as u32;
    let at = index(protocol, u32::from(ethertype == IPV6), direction);
    // 0 for a packet that is neither to be segmented nor merged from segments.
    let packets = u64::from(segments) + u64::from(segments == 0);
    let traffic = member!(cell.traffic).wrapped(at);
    member!(traffic.bytes).add(length.into());
    member!(traffic.packets).add(packets);
}

/// The usual way: the cell of the slot that the socket's storage names, if it is still the owner's.
#[inline(always)]
fn known(sk: *mut bpf_sock) -> Option<(Shared<NetCell>, u32)> {
    let socket = storage(sk, false)?;
    let owner = member!(socket.owner).get();
    let protocol = member!(socket.protocol).get();
    let cell = NET_CELLS.find(cell::shard(member!(socket.first_cell).get()))?;
    (owner != 0 && cell.owner().get() == owner).then_some((cell, protocol))
}

/// Resolves the slot and returns the cell. This is the way for a new socket, on a CPU where the
/// cgroup's cell is new, after the slot was recycled, and where there is no slot or no storage.
#[inline(always)]
fn settled(sk: *mut bpf_sock) -> Option<(Shared<NetCell>, u32)> {
    let settled = settle(sk);
    let cell = NET_CELLS.find(cell::shard((settled >> 32) as u32))?;
    Some((cell, settled as u32))
}

/// Resolves a socket's slot and claims the cell. Returns the slot's first cell (high half) and the
/// protocol.
///
/// Two CPUs may do this for one socket at the same time. Both write the same, or the later one
/// writes what is true by then. [`known`] notices a torn pair of owner and cell.
///
/// Not inlined, so that the usual way stays one straight line.
#[inline(never)]
fn settle(sk: *mut bpf_sock) -> u64 {
    let mut slot = resolve(sk);
    if !claim(slot) {
        // Retired meanwhile.
        slot = resolve(sk);
        if !claim(slot) {
            stat::count(Stat::Overflow);
            slot = Slot::ROOT;
            claim(slot);
        }
    }
    let protocol = protocol(sk);
    let first_cell = cell::first_shard(slot.number);
    // There is no storage if the socket is being freed or has used up its memory for options. Then
    // the next packet comes this way again.
    if let Some(socket) = storage(sk, true) {
        member!(socket.owner).set(slot.owner);
        member!(socket.first_cell).set(first_cell);
        member!(socket.protocol).set(protocol);
    }
    u64::from(first_cell) << 32 | u64::from(protocol)
}

#[inline(always)]
fn resolve(sk: *mut bpf_sock) -> Slot {
    // SAFETY: the verifier proves that `sk` is a socket.
    let id = unsafe { bpf_sk_cgroup_id(sk.cast()) };
    // The verifier lets no program calculate with this pointer. Read from the stack by a helper, it is a
    // number.
    let address: u64 = read(ptr::from_ref(&sk).cast());
    slot::resolve_any(id, AnySock(address).cgroup())
}

/// Whether the cell on this CPU belongs to the slot's owner. Claims it if it has no owner yet.
#[inline(always)]
fn claim(slot: Slot) -> bool {
    let shard = cell::own_shard();
    let Some(cell) = NET_CELLS.find(cell::first_shard(slot.number) + shard) else {
        return false;
    };
    if cell.owner().get() == 0 {
        member!(cell.used).set(1);
    }
    cell::claim(cell, slot, shard_bit(shard))
}

#[inline(always)]
fn protocol(sk: *mut bpf_sock) -> u32 {
    // SAFETY: the verifier proves that `sk` is a socket; the helper returns null or a full one.
    let full = unsafe { bpf_sk_fullsock(sk) };
    let number = if full.is_null() {
        0
    } else {
        // SAFETY: a member of a full socket, which the verifier checks.
        unsafe { (*full).protocol }
    };
    // IPPROTO_* (include/uapi/linux/in.h, in6.h).
    let protocol = match number {
        6 => SocketProtocol::Tcp,
        17 => SocketProtocol::Udp,
        1 | 58 => SocketProtocol::Icmp,
        _ => SocketProtocol::Other,
    };
    protocol as u32
}

#[inline(always)]
fn storage(sk: *mut bpf_sock, make: bool) -> Option<Shared<SocketSlot>> {
    // SAFETY: the context's socket; the helper takes any.
    unsafe { maps::of_socket(&SOCKETS, sk.cast(), make) }
}
