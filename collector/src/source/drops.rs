//! Packets that the kernel dropped, by reason, where it knows whose they were.
//!
//! Programs: `kfree_skb`, `udp_fail_queue_rcv_skb` (collector-ebpf/src/drops.rs). Oracle:
//! /proc/net/snmp, known numbers of packets (tests).

use std::collections::HashMap;

use collector_common::drops::Drops;

use super::{Metric, Registration, Samples, keyed::KeyedCounters, values::sums};
use crate::{
    exposition::{Family, Kind, Unit, Value},
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
        help: "Packets of IPv4 and IPv6 sockets that the kernel dropped, by its own reason \
               (enum skb_drop_reason, in lower case); what has none, or was left when a socket \
               closed, is not counted.",
        kind: Kind::Counter,
        unit: Unit::None,
        labels: &["reason"],
        origin: "kfree_skb: reason, rx_sk or sk_buff.sk; udp_fail_queue_rcv_skb where there is no rx_sk",
        oracle: "/proc/net/snmp RcvbufErrors; known numbers of packets against a filter",
    },
    samples: Samples::Scalars(&[(&[], |v| (v.packets > 0).then_some(Value::Count(v.packets)))]),
}];

/// An enumerator as a label: `SKB_DROP_REASON_SOCKET_FILTER` is `socket_filter`.
fn label(enumerator: &str) -> String {
    enumerator
        .trim_start_matches("SKB_DROP_REASON_")
        .trim_start_matches("SKB_")
        .to_ascii_lowercase()
}

/// What a reason is called. 0 is no drop, and stands for all reasons where there was no room to tell
/// them apart (the overflow's key). Subsystems have reasons of their own, by number alone: the upper half is
/// the subsystem's (include/net/dropreason.h).
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

/// The source.
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "drops",
        required: &["kfree_skb"],
        optional: &[(
            "udp_fail_queue_rcv_skb",
            "on kernels before 6.11, datagrams for which a receive buffer has no room are not counted",
        )],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        let names: HashMap<u32, String> =
            fields::enumerators(builder.kernel.types()?, "skb_drop_reason")?
                .into_iter()
                .map(|(value, name)| (value, label(&name)))
                .collect();
        let map = builder.kernel.keyed::<Drops>()?;
        let labels = Box::new(move |reason| vec![("reason", name(&names, reason))]);
        Ok(Box::new(KeyedCounters::new(
            "drops", METRICS, map, None, labels,
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
