//! Packets that the kernel dropped, by reason, if their socket is known.
//!
//! Programs: `kfree_skb`, `udp_fail_queue_rcv_skb` (collector-ebpf/src/drops.rs). Oracle:
//! /proc/net/snmp, known numbers of packets (tests).

use std::collections::HashMap;

use collector_common::drops::Drops;

use super::{Metric, Registration, Samples, keyed::KeyedCounters, values::sums};
use crate::{
    exposition::{Family, MetricKind, Unit, Value},
    kernel::{fields, programs::Requirement},
};

sums! {
    /// Packets of one cgroup and reason.
    pub struct Dropped: Drops {
        packets: u64,
    }
}

/// The source's family.
pub const METRICS: &[Metric<Dropped>] = &[Metric {
    family: Family {
        name: "container_network_drops_total",
        help: "Packets of IPv4 and IPv6 sockets that the kernel dropped, by the kernel's reason \
               (enum skb_drop_reason, in lower case); packets without a reason, or left when a socket \
               closed, are not counted.",
        kind: MetricKind::Counter,
        unit: Unit::None,
        labels: &["reason"],
        origin: "kfree_skb: reason, rx_sk or sk_buff.sk; udp_fail_queue_rcv_skb where there is no rx_sk",
        oracle: "/proc/net/snmp RcvbufErrors; known numbers of packets against a filter",
    },
    samples: Samples::Scalars(&[(&[], |v| (v.packets > 0).then_some(Value::Count(v.packets)))]),
}];

/// Converts an enumerator to a label value: `SKB_DROP_REASON_SOCKET_FILTER` to `socket_filter`.
fn label(enumerator: &str) -> String {
    enumerator
        .trim_start_matches("SKB_DROP_REASON_")
        .trim_start_matches("SKB_")
        .to_ascii_lowercase()
}

/// Returns the name of a reason. 0 is not a reason; it stands for all reasons when there was no
/// room to count them separately (the overflow's key). Subsystems have their own reasons, which are
/// known only by number: the upper half is the subsystem's (include/net/dropreason.h).
fn name(names: &HashMap<u32, String>, reason: u64) -> String {
    let reason = reason as u32;
    if reason == 0 {
        return "any".to_owned();
    }
    match names.get(&reason) {
        Some(name) => name.clone(),
        None => format!("subsystem_{}_{}", reason >> 16, reason & 0xffff),
    }
}

/// Registers the source `drops` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "drops",
        required: &["kfree_skb"],
        optional: &[(
            "udp_fail_queue_rcv_skb",
            "before kernel 6.11, datagrams that do not fit into a receive buffer are not counted",
        )],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        let names: HashMap<u32, String> =
            fields::enumerators(builder.kernel.types()?, "skb_drop_reason")?
                .into_iter()
                .map(|(value, name)| (value, label(&name)))
                .collect();
        let cells = builder.kernel.keyed::<Drops>()?;
        let labels = Box::new(move |reason| vec![("reason", name(&names, reason))]);
        Ok(Box::new(KeyedCounters::new(
            "drops", METRICS, cells, labels,
        )))
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_kernel_s_names() {
        assert_eq!(label("SKB_DROP_REASON_SOCKET_RCVBUFF"), "socket_rcvbuff");
        let names = HashMap::from([(5, "socket_filter".to_owned())]);
        assert_eq!(name(&names, 5), "socket_filter");
        assert_eq!(name(&names, 0), "any");
        assert_eq!(name(&names, 0x3_0007), "subsystem_3_7");
    }
}
