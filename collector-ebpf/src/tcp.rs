//! TCP: connections made, refused, reset and closed, and segments sent again.
//!
//! Hooks: `tp_btf/inet_sock_set_state` (net/ipv4/af_inet.c), `tcp_retransmit_skb`,
//! `tcp_retransmit_synack`, `tcp_send_reset` (net/ipv4/tcp_output.c, tcp_ipv4.c, tcp_ipv6.c),
//! `tcp_receive_reset` (net/ipv4/tcp_input.c). Most of it runs in softirq, while any
//! task may be current: the cgroup is always the socket's, which is that of its maker; an accepted
//! socket has its listener's.
//! No clock is read: the socket's own, `tcp_mstamp`, is brought up to date by the packet or timer
//! that changes its state.
//! Metrics: collector/src/source/tcp.rs. Oracle: tests/live/tcp.rs.

use aya_ebpf::{
    EbpfContext,
    btf_maps::SkStorage,
    macros::{btf_map, btf_tracepoint},
    programs::BtfTracePointContext,
};
use collector_common::{
    field,
    histogram::{bucket, long_bucket},
    slot::Claimed,
    stat::Stat,
    tcp::{TcpCell, TcpState},
};

use crate::{
    cell::{self, Cells},
    generation,
    kernel::{has, load64},
    maps,
    shared::{Shared, member},
    sock::{SkBuff, TcpSock},
    stat,
};

/// Cells, one a slot.
#[btf_map]
pub static TCP_CELLS: Cells<TcpCell> = Cells::new();

/// State of connections. The kernel makes it on request and frees it with the socket.
#[btf_map]
static TCP_STATES: SkStorage<TcpState> = SkStorage::new();

/// States, include/net/tcp_states.h.
const SYN_SENT: i32 = 2;
const SYN_RECV: i32 = 3;
const CLOSE: i32 = 7;
const LISTEN: i32 = 10;

/// TP_PROTO(const struct sock *sk, const int oldstate, const int newstate), before the new state is
/// stored. Sockets of SCTP, DCCP and MPTCP come here too; an MPTCP connection's subflows are TCP
/// sockets, in its own cgroup, and count, the MPTCP socket does not.
///
/// TIME_WAIT is not a state of the socket, which closes when a small stand-in takes over
/// (net/ipv4/tcp_minisocks.c, `tcp_time_wait`); an incoming connection has no socket of its own
/// before the child is established (`inet_csk_clone_lock`, LISTEN to SYN_RECV, then ESTABLISHED).
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    let (old, new) = (ctx.arg::<i32>(1), ctx.arg::<i32>(2));
    match (old, new) {
        (CLOSE, SYN_SENT) => connecting(&ctx),
        (SYN_SENT, SYN_RECV) | (CLOSE | LISTEN, _) => 0,
        (SYN_SENT | SYN_RECV, CLOSE) => failed(&ctx, old),
        // Mostly ESTABLISHED; FIN_WAIT1 for a fast open that is closed before it stands.
        (SYN_SENT | SYN_RECV, _) => opened(&ctx, old),
        (_, CLOSE) => closed(&ctx),
        _ => 0,
    }
}

/// connect(2): state from the start, so that every SYN sent again is seen.
#[inline(always)]
fn connecting(ctx: &BtfTracePointContext) -> i32 {
    if let Some(sock) = TcpSock::of(ctx, 0)
        && let Some(state) = state_or_new(sock)
    {
        // The socket may have been used before.
        member!(state.established_us).set(0);
        member!(state.retransmits).set(sock.retransmits());
        member!(state.active).set(1);
    }
    0
}

#[inline(always)]
fn opened(ctx: &BtfTracePointContext, old: i32) -> i32 {
    let Some(sock) = TcpSock::of(ctx, 0) else {
        return 0;
    };
    stat::count(Stat::TcpStates);
    let mut active = old == SYN_SENT;
    if let Some(state) = state_or_new(sock) {
        member!(state.established_us).set(sock.clock_us());
        // Two sides that ask at once go by way of SYN_RECV.
        active |= member!(state.active).get() != 0;
        if !active {
            // A child starts with what its request sent again (`tcp_create_openreq_child`), which
            // `tcp_retransmit_synack` has counted.
            member!(state.retransmits).set(sock.retransmits());
        }
    }
    if let Some(cell) = cell_of(sock) {
        if active {
            member!(cell.active).add(1);
        } else {
            member!(cell.passive).add(1);
        }
    }
    0
}

/// The connection was refused, timed out, or given up. A child that fails was not opened by this
/// side and is not counted.
#[inline(always)]
fn failed(ctx: &BtfTracePointContext, old: i32) -> i32 {
    let Some(sock) = TcpSock::of(ctx, 0) else {
        return 0;
    };
    let state = state(sock);
    if old != SYN_SENT && state.is_none_or(|state| member!(state.active).get() == 0) {
        return 0;
    }
    stat::count(Stat::TcpStates);
    if let Some(cell) = cell_of(sock) {
        if let Some(state) = state {
            count_retransmits(sock, state, cell);
        }
        member!(cell.failures).add(1);
    }
    0
}

#[inline(always)]
fn closed(ctx: &BtfTracePointContext) -> i32 {
    let Some(sock) = TcpSock::of(ctx, 0) else {
        return 0;
    };
    stat::count(Stat::TcpStates);
    let Some(cell) = cell_of(sock) else {
        return 0;
    };
    // 0: no answer was ever timed.
    let rtt_us = u64::from(sock.rtt_us());
    if rtt_us != 0 {
        member!(cell.rtt_us).add(rtt_us);
        if let Some(count) = member!(cell.rtt_histogram).at(bucket(rtt_us * 1000) as usize) {
            count.add(1);
        }
    }
    // A socket without state is older than the agent: its age is unknown.
    let Some(state) = state(sock) else {
        return 0;
    };
    count_retransmits(sock, state, cell);
    let established_us = member!(state.established_us).get();
    if established_us == 0 {
        return 0;
    }
    member!(state.established_us).set(0);
    let duration_us = sock.clock_us().saturating_sub(established_us);
    member!(cell.duration_us).add(duration_us);
    let bucket = long_bucket(duration_us.wrapping_mul(1000)) as usize;
    if let Some(count) = member!(cell.duration_histogram).at(bucket) {
        count.add(1);
    }
    0
}

/// TP_PROTO(const struct sock *sk, const struct sk_buff *skb), since 6.17 with `int err`.
///
/// The number is the growth of the socket's `total_retrans`, which goes with TcpRetransSegs. The
/// event alone is not enough: a retransmission has as many segments as the packet has; one that
/// fails on this host is counted by the kernel and fires since 6.17 only, together with some that
/// never got so far as to be counted (net/ipv4/tcp_output.c, `__tcp_retransmit_skb`). Before, such
/// ones are counted here with the next that succeeds, or when the socket closes.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tcp_retransmit_skb(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    let Some(sock) = TcpSock::of(&ctx, 0) else {
        return 0;
    };
    stat::count(Stat::TcpRetransmits);
    let known = state(sock).is_some();
    let Some(state) = state_or_new(sock) else {
        return 0;
    };
    if !known {
        // The socket is older than the agent: all its retransmissions but this one came before the
        // agent started.
        let failed =
            has!(field::RETRANSMIT_ERR) && load64!(ctx.as_ptr(), field::RETRANSMIT_ERR) as i32 != 0;
        let segments = if failed {
            0
        } else {
            SkBuff::argument(&ctx, 1).tcp_segments()
        };
        let before = sock.retransmits().wrapping_sub(u32::from(segments));
        member!(state.retransmits).set(before);
    }
    if let Some(cell) = cell_of(sock) {
        count_retransmits(sock, state, cell);
    }
    0
}

/// TP_PROTO(const struct sock *sk, const struct request_sock *req): a SYN-ACK sent again, counted by
/// TcpRetransSegs as well (`tcp_rtx_synack`). The socket is the listener, or a fast open's child.
#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub fn tcp_retransmit_synack(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    let Some(sock) = TcpSock::of(&ctx, 0) else {
        return 0;
    };
    stat::count(Stat::SynAckRetransmits);
    if let Some(cell) = cell_of(sock) {
        member!(cell.retransmits).add(1);
    }
    0
}

/// TP_PROTO(const struct sock *sk, const struct sk_buff *skb), since 6.10 with a reason, and then
/// also without a socket. A reset without one (no listener) is not counted.
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tcp_send_reset(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    let Some(sock) = TcpSock::of(&ctx, 0) else {
        return 0;
    };
    stat::count(Stat::ResetsSent);
    if let Some(cell) = cell_of(sock) {
        member!(cell.resets_sent).add(1);
    }
    0
}

/// TP_PROTO(struct sock *sk)
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_receive_reset(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    let Some(sock) = TcpSock::of(&ctx, 0) else {
        return 0;
    };
    stat::count(Stat::ResetsReceived);
    if let Some(cell) = cell_of(sock) {
        member!(cell.resets_received).add(1);
    }
    0
}

#[inline(always)]
fn count_retransmits(sock: TcpSock, state: Shared<TcpState>, cell: Shared<TcpCell>) {
    let total = sock.retransmits();
    let counted = member!(state.retransmits);
    let gained = total.wrapping_sub(counted.get());
    if gained != 0 {
        counted.set(total);
        member!(cell.retransmits).add(gained.into());
    }
}

#[inline(always)]
fn cell_of(sock: TcpSock) -> Option<Shared<TcpCell>> {
    cell::of_cgroup(&TCP_CELLS, Claimed::Tcp, sock.cgroup())
}

/// A socket's state, `None` if it has none.
#[inline(always)]
fn state(sock: TcpSock) -> Option<Shared<TcpState>> {
    // SAFETY: a full socket.
    unsafe { maps::of_socket(&TCP_STATES, sock.0.cast_mut().cast(), false) }
}

/// A socket's state, made if need be.
#[inline(always)]
fn state_or_new(sock: TcpSock) -> Option<Shared<TcpState>> {
    // SAFETY: as in `state`.
    let state = unsafe { maps::of_socket(&TCP_STATES, sock.0.cast_mut().cast(), true) };
    if state.is_none() {
        stat::count(Stat::NoSocketStorage);
    }
    state
}
