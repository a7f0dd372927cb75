//! TCP: connections established, failed, reset and closed, and retransmitted segments.
//!
//! Programs: `inet_sock_set_state`, `tcp_retransmit_skb`, `tcp_retransmit_synack`,
//! `tcp_send_reset`, `tcp_receive_reset` (collector-ebpf/src/tcp.rs). Oracle: /proc/net/snmp in
//! network namespaces of the test, getsockopt(TCP_INFO) (tests).
//!
//! Not supported: cAdvisor's container_network_tcp_usage_total and similar metrics count sockets by
//! state in a network namespace. They need a walk over all sockets at each scrape, and are off by
//! default in cAdvisor.

use collector_common::{histogram::BUCKETS, tcp::TcpCell};

use super::{Metric, Registration, Samples, counters::CellCounters, values::sums};
use crate::{
    exposition::{BucketLayout, Family, Histogram, LOG2, LOG2_LONG, MetricKind, Unit, Value},
    kernel::programs::Requirement,
};

sums! {
    /// A node's counters of connections.
    pub struct Connections: TcpCell {
        retransmits: u64,
        active: u64,
        passive: u64,
        failures: u64,
        resets_sent: u64,
        resets_received: u64,
        rtt_us: u64,
        duration_us: u64,
        rtt_histogram: [u64; BUCKETS],
        duration_histogram: [u64; BUCKETS],
    }
}

/// Returns a histogram; it is left out until its first event.
fn histogram<'a>(
    layout: &'static BucketLayout,
    buckets: &'a [u64; BUCKETS],
    sum_us: u64,
) -> Option<Histogram<'a>> {
    buckets.iter().any(|&count| count > 0).then_some(Histogram {
        layout,
        buckets,
        sum: Value::Nanos(sum_us.saturating_mul(1000)),
    })
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        help,
        kind: MetricKind::Counter,
        unit: Unit::None,
        labels: &[],
        origin: "inet_sock_set_state",
        oracle: "/proc/net/snmp of a network namespace",
    }
}

/// The source's families.
pub const METRICS: &[Metric<Connections>] = &[
    Metric {
        family: Family {
            origin: "tcp_retransmit_skb, inet_sock_set_state: tcp_sock.total_retrans; tcp_retransmit_synack",
            oracle: "/proc/net/snmp RetransSegs; TCP_INFO tcpi_total_retrans",
            ..counter(
                "container_tcp_retransmits_total",
                "TCP segments retransmitted, including SYN and SYN-ACK.",
            )
        },
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.retransmits)))]),
    },
    Metric {
        family: Family {
            labels: &["direction"],
            oracle: "/proc/net/snmp ActiveOpens (less those that failed), PassiveOpens",
            ..counter(
                "container_tcp_connections_opened_total",
                "TCP connections established: initiated by the cgroup (active), or accepted by a \
                 listening socket (passive).",
            )
        },
        samples: Samples::Scalars(&[
            (&[("direction", "active")], |v| Some(Value::Count(v.active))),
            (&[("direction", "passive")], |v| {
                Some(Value::Count(v.passive))
            }),
        ]),
    },
    Metric {
        family: Family {
            oracle: "/proc/net/snmp AttemptFails",
            ..counter(
                "container_tcp_connect_failures_total",
                "TCP connection attempts that were refused, timed out or were aborted.",
            )
        },
        samples: Samples::Scalars(&[(&[], |v| Some(Value::Count(v.failures)))]),
    },
    Metric {
        family: Family {
            labels: &["direction"],
            origin: "tcp_send_reset, tcp_receive_reset",
            oracle: "/proc/net/snmp OutRsts, EstabResets; a known number of resets",
            ..counter(
                "container_tcp_resets_total",
                "TCP resets sent or received by sockets; resets that the kernel sends without a socket \
                 (closed port) are not counted.",
            )
        },
        samples: Samples::Scalars(&[
            (&[("direction", "sent")], |v| {
                Some(Value::Count(v.resets_sent))
            }),
            (&[("direction", "received")], |v| {
                Some(Value::Count(v.resets_received))
            }),
        ]),
    },
    Metric {
        family: Family {
            kind: MetricKind::Histogram,
            unit: Unit::Seconds,
            origin: "inet_sock_set_state: tcp_sock.srtt_us",
            oracle: "TCP_INFO tcpi_rtt before the close",
            ..counter(
                "container_tcp_rtt_seconds",
                "Smoothed round-trip time of TCP connections, observed at close.",
            )
        },
        samples: Samples::Histograms(&[(&[], |v| histogram(&LOG2, &v.rtt_histogram, v.rtt_us))]),
    },
    Metric {
        family: Family {
            kind: MetricKind::Histogram,
            unit: Unit::Seconds,
            origin: "inet_sock_set_state: tcp_sock.tcp_mstamp",
            oracle: "a known number of connections, the test's clock",
            ..counter(
                "container_tcp_connection_duration_seconds",
                "Time from establishment to close of TCP connections, observed at close; \
                 connections older than the agent are left out.",
            )
        },
        samples: Samples::Histograms(&[(&[], |v| {
            histogram(&LOG2_LONG, &v.duration_histogram, v.duration_us)
        })]),
    },
];

/// Registers the source `tcp` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "tcp",
        required: &[
            "inet_sock_set_state",
            "tcp_retransmit_skb",
            "tcp_retransmit_synack",
            "tcp_send_reset",
            "tcp_receive_reset",
        ],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        let cells = builder.kernel.cells::<TcpCell>()?;
        Ok(Box::new(CellCounters::new("tcp", METRICS, cells)))
    },
};
