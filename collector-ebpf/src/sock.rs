//! Sockets and packets as programs see them, see [`kernel`](crate::kernel).

use core::ffi::c_void;

use aya_ebpf::{helpers::generated::bpf_skc_to_tcp_sock, programs::BtfTracePointContext};
use collector_common::field;

use crate::kernel::{AnyCgroup, Cgroup, address, load32, load64, read};

/// `struct tcp_sock`: a full TCP socket.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct TcpSock(pub *const c_void);

/// `struct sock` of whatever kind, or null: read by `bpf_probe_read_kernel` alone.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct AnySock(pub u64);

/// `struct sk_buff`
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct SkBuff(pub *const c_void);

impl TcpSock {
    /// Argument `number` of a tracepoint, if it is a full TCP socket: not null, not the stand-in of a
    /// request or of TIME_WAIT, not of another protocol.
    #[inline(always)]
    pub fn of(ctx: &BtfTracePointContext, number: usize) -> Option<Self> {
        let sock = ctx.arg::<*const c_void>(number);
        // Kernels that know that it may be null keep this check. The others remove it (see
        // `argument!`), and there the helper checks.
        if sock.is_null() {
            return None;
        }
        // SAFETY: the verifier proves that it is a socket, or null.
        let sock = unsafe { bpf_skc_to_tcp_sock(sock.cast_mut()) };
        if sock.is_null() {
            None
        } else {
            Some(Self(sock.cast_const().cast()))
        }
    }
    /// The cgroup2 cgroup of the task that made the socket, or its listener.
    #[inline(always)]
    pub fn cgroup(self) -> Cgroup {
        Cgroup(load64!(self.0, field::SOCK_CGROUP) as *const c_void)
    }
    /// Segments sent again so far, those of a request included.
    #[inline(always)]
    pub fn retransmits(self) -> u32 {
        load32!(self.0, field::TCP_TOTAL_RETRANS)
    }
    /// CLOCK_MONOTONIC of the last packet or timer, µs.
    #[inline(always)]
    pub fn clock_us(self) -> u64 {
        load64!(self.0, field::TCP_MSTAMP)
    }
    /// Smoothed round-trip time, µs; the kernel keeps eight times that.
    #[inline(always)]
    pub fn rtt_us(self) -> u32 {
        load32!(self.0, field::TCP_SRTT) >> 3
    }
}

impl AnySock {
    #[inline(always)]
    pub fn is_there(self) -> bool {
        self.0 != 0
    }
    /// A full socket of IPv4 or IPv6, not the stand-in of a request or of TIME_WAIT.
    #[inline(always)]
    pub fn is_full_inet(self) -> bool {
        const AF_INET: u16 = 2;
        const AF_INET6: u16 = 10;
        const TIME_WAIT: u8 = 6;
        const NEW_SYN_RECV: u8 = 12;
        let family: u16 = read(address!(self.0, field::SOCK_FAMILY));
        let state: u8 = read(address!(self.0, field::SOCK_STATE));
        (family == AF_INET || family == AF_INET6) && state != TIME_WAIT && state != NEW_SYN_RECV
    }
    /// The cgroup2 cgroup of the task that made the socket, or its listener.
    #[inline(always)]
    pub fn cgroup(self) -> AnyCgroup {
        AnyCgroup(read(address!(self.0, field::SOCK_CGROUP)))
    }
}

impl SkBuff {
    #[inline(always)]
    pub fn argument(ctx: &BtfTracePointContext, number: usize) -> Self {
        Self(ctx.arg::<*const c_void>(number))
    }
    /// The socket that has sent the packet, or that has received it.
    #[inline(always)]
    pub fn sock(self) -> AnySock {
        AnySock(load64!(self.0, field::SKB_SOCK))
    }
    /// Segments of a packet in a TCP socket's queue (`tcp_skb_pcount`).
    #[inline(always)]
    pub fn tcp_segments(self) -> u16 {
        let control_block = address!(self.0, field::SKB_CB);
        read(address!(control_block, field::TCP_SKB_SEGMENTS))
    }
}
