//! Packets that the kernel dropped, by cgroup and reason, where the socket is known.
//!
//! Hook: `tp_btf/kfree_skb` (net/core/skbuff.c, `sk_skb_reason_drop`; before 6.11
//! `kfree_skb_reason`). The socket is the receiver's, an argument of the
//! tracepoint since 6.11, or else the sender's. Where there is no such argument,
//! `tp_btf/udp_fail_queue_rcv_skb` (net/ipv4/udp.c) covers the most important case, a datagram for
//! which a socket's receive buffer has no room.
//!
//! What has no reason of its own is left out: whatever a kernel function frees by plain `kfree_skb`,
//! and what a socket's queues hold when it closes (each FIN, for one).
//! Metrics: collector/src/source/drops.rs. Oracle: tests/live/drops.rs.

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};
use collector_common::{drops::Drops, field, stat::Stat};

use crate::{
    generation,
    kernel::{argument, enumerator, has, load64},
    keyed::{self, keyed},
    shared::member,
    sock::{AnySock, SkBuff},
    stat,
};

keyed!(
    Dropped,
    Drops,
    Drops,
    DROP_TABLES,
    DROP_VALUES,
    FREE_DROP_VALUES,
    find_drop_value,
    hand_over_drop_value
);

/// TP_PROTO(struct sk_buff *skb, void *location, enum skb_drop_reason reason), since 6.11 with
/// `struct sock *rx_sk`. A kernel before 5.17 has no reason.
#[btf_tracepoint(function = "kfree_skb")]
pub fn kfree_skb(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    let reason = load64!(ctx.as_ptr(), field::KFREE_SKB_REASON) as u32;
    // The enumeration begins with what is no drop: not dropped yet, consumed (later kernels), not
    // specified. The queues that a close empties came later (6.8).
    if u64::from(reason) <= enumerator!(field::NOT_SPECIFIED)
        || has!(field::QUEUE_PURGE) && u64::from(reason) == enumerator!(field::QUEUE_PURGE)
    {
        return 0;
    }
    if has!(field::KFREE_SKB_SOCK) {
        let receiver = AnySock(argument!(ctx.as_ptr(), field::KFREE_SKB_SOCK));
        if receiver.is_there() {
            return count(receiver, u64::from(reason));
        }
    }
    count(SkBuff::argument(&ctx, 0).sock(), u64::from(reason))
}

/// TP_PROTO(int rc, struct sock *sk), later with more.
#[btf_tracepoint(function = "udp_fail_queue_rcv_skb")]
pub fn udp_fail_queue_rcv_skb(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    if has!(field::KFREE_SKB_SOCK) {
        return 0;
    }
    const ENOMEM: i32 = 12;
    let reason = if ctx.arg::<i32>(0) == -ENOMEM {
        enumerator!(field::SOCKET_RCVBUFF)
    } else {
        enumerator!(field::PROTO_MEM)
    };
    count(AnySock(ctx.arg::<u64>(1)), reason)
}

#[inline(always)]
fn count(sock: AnySock, reason: u64) -> i32 {
    if !sock.is_there() || !sock.is_full_inet() {
        return 0;
    }
    stat::count(Stat::Drops);
    let cgroup = sock.cgroup();
    if let Some(drops) = keyed::value::<Dropped>(cgroup.id(), cgroup, reason) {
        member!(drops.packets).add(1);
    }
    0
}
