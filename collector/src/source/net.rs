//! Packets of sockets: bytes and packets by cgroup, address family and protocol.
//!
//! Programs: `net_ingress`, `net_egress` (collector-ebpf/src/net.rs). Oracle: known datagrams,
//! /proc/net/netstat, tcp_info (tests).

use collector_common::net::{
    Direction, IpVersion, NetCell, SocketProtocol, TRAFFIC, Traffic, index,
};

use super::{
    Metric, Registration, Samples,
    counters::CellCounters,
    values::{AddFrom, Words, sums},
};
use crate::{
    exposition::{Family, MetricKind, Unit, Value},
    kernel::programs::Requirement,
};

impl Words for Traffic {
    const SHAPE: u64 = <(u64, u64)>::SHAPE;

    fn put(&self, words: &mut Vec<u64>) {
        (self.bytes, self.packets).put(words);
    }

    fn take(words: &mut &[u64]) -> Option<Self> {
        let (bytes, packets) = Words::take(words)?;
        Some(Self { bytes, packets })
    }
}

impl AddFrom for Traffic {
    fn add_from(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.packets += other.packets;
    }
}

sums! {
    /// A node's traffic, indexed by `collector_common::net::index`.
    pub struct Packets: NetCell {
        traffic: [Traffic; TRAFFIC],
    }
}

impl Packets {
    /// Returns the value of one series. It is absent until a packet was seen in either direction.
    fn value(
        &self,
        protocol: SocketProtocol,
        version: IpVersion,
        direction: Direction,
        read: fn(&Traffic) -> u64,
    ) -> Option<Value> {
        let of = |direction| &self.traffic[index(protocol as u32, version as u32, direction)];
        let seen = of(Direction::Receive).packets + of(Direction::Transmit).packets > 0;
        seen.then(|| Value::Count(read(of(direction))))
    }
}

/// One family: bytes or packets of one direction, with a series for each address family and
/// protocol.
macro_rules! metric {
    ($name:literal, $unit:ident, $direction:ident, $read:ident, $help:literal, $origin:literal, $oracle:literal) => {
        Metric {
            family: Family {
                name: $name,
                help: $help,
                kind: MetricKind::Counter,
                unit: Unit::$unit,
                labels: &["family", "protocol"],
                origin: $origin,
                oracle: $oracle,
            },
            samples: Samples::Scalars(&[
                metric!(series "ipv4", V4, "tcp", Tcp, $direction, $read),
                metric!(series "ipv4", V4, "udp", Udp, $direction, $read),
                metric!(series "ipv4", V4, "icmp", Icmp, $direction, $read),
                metric!(series "ipv4", V4, "other", Other, $direction, $read),
                metric!(series "ipv6", V6, "tcp", Tcp, $direction, $read),
                metric!(series "ipv6", V6, "udp", Udp, $direction, $read),
                metric!(series "ipv6", V6, "icmp", Icmp, $direction, $read),
                metric!(series "ipv6", V6, "other", Other, $direction, $read),
            ]),
        }
    };
    (series $family:literal, $version:ident, $protocol:literal, $kind:ident, $direction:ident, $read:ident) => {
        (
            &[("family", $family), ("protocol", $protocol)],
            |totals: &Packets| {
                totals.value(
                    SocketProtocol::$kind,
                    IpVersion::$version,
                    Direction::$direction,
                    |traffic| traffic.$read,
                )
            },
        )
    };
}

/// The source's families.
pub const METRICS: &[Metric<Packets>] = &[
    metric!(
        "container_socket_receive_bytes_total",
        Bytes,
        Receive,
        bytes,
        "Bytes of IP packets received by sockets of the cgroup, including IP headers; a merged packet \
         has one header. Loopback traffic also counts as sent, for the sender.",
        "net_ingress: sk_buff.len",
        "known datagrams, /proc/net/netstat InOctets"
    ),
    metric!(
        "container_socket_transmit_bytes_total",
        Bytes,
        Transmit,
        bytes,
        "Bytes of IP packets sent by sockets of the cgroup, including IP headers; a packet that is still \
         to be segmented has one header. Loopback traffic also counts as received, for the receiver.",
        "net_egress: sk_buff.len",
        "known datagrams, /proc/net/netstat OutOctets"
    ),
    metric!(
        "container_socket_receive_packets_total",
        None,
        Receive,
        packets,
        "IP packets received by sockets of the cgroup; the segments of a merged packet are \
         counted individually.",
        "net_ingress: skb_shared_info.gso_segs, 1 if there is none",
        "known datagrams, tcp_info tcpi_segs_in"
    ),
    metric!(
        "container_socket_transmit_packets_total",
        None,
        Transmit,
        packets,
        "IP packets sent by sockets of the cgroup; segments are counted individually, fragments are not.",
        "net_egress: skb_shared_info.gso_segs, 1 if there is none",
        "known datagrams, /proc/net/snmp OutSegs"
    ),
];

/// Registers the source `net` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "net",
        required: &["net_ingress", "net_egress"],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        let cells = builder.kernel.cells::<NetCell>()?;
        Ok(Box::new(CellCounters::new("net", METRICS, cells)))
    },
};
