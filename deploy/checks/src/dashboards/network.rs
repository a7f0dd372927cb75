//! Interfaces, sockets and TCP: who talks, and how well.

use super::{
    model::{Choice::Many, Dashboard, heatmap, lines, row, stacked, variable},
    words::{buckets, quantile, ratio, sum_rate, top},
};

/// Matchers for the root cgroup of each host: the host as a whole.
const HOSTS: &str = r#"cluster=~"$cluster",instance=~"$instance",id="/""#;
/// Matchers for the cgroups that are chosen.
const CGROUPS: &str =
    r#"cluster=~"$cluster",instance=~"$instance",namespace=~"$namespace",pod=~"$pod",id!="/""#;
/// Labels that tell cgroups apart.
const NAMES: &str = "instance, id, name, unit, namespace, pod";

/// Makes the dashboard.
pub fn dashboard() -> Dashboard {
    let interface = |metric: &str| sum_rate("instance, interface", metric, HOSTS);
    let sockets = |metric: &str| sum_rate("family, protocol", metric, HOSTS);
    let most = |metric: &str| top(10, &sum_rate(NAMES, metric, CGROUPS));
    let sent = |by: &str, selector: &str| {
        let selector = format!("{selector},protocol=\"tcp\"");
        sum_rate(by, "container_socket_transmit_packets_total", &selector)
    };
    let again =
        |by: &str, selector: &str| sum_rate(by, "container_tcp_retransmits_total", selector);
    let seen = r#"container_last_seen{cluster=~"$cluster",instance=~"$instance""#;
    Dashboard {
        uid: "cgmeter-network",
        title: "cgmeter: network and TCP",
        description: "Interfaces, sockets and TCP: who talks, and how well.",
        variables: vec![
            variable("cluster", "Cluster", Many, "cgmeter_build_info", "cluster"),
            variable("instance", "Host", Many, r#"cgmeter_build_info{cluster=~"$cluster"}"#, "instance"),
            variable("namespace", "Namespace", Many, &format!("{seen}}}"), "namespace"),
            variable("pod", "Pod", Many, &format!("{seen},namespace=~\"$namespace\"}}"), "pod"),
        ],
        rows: vec![
            row("Interfaces of the hosts", vec![
                lines("Bytes", "Bps", "Received and transmitted, link headers included.")
                    .query(interface("container_network_receive_bytes_total"), "{{instance}} {{interface}} receive")
                    .query(interface("container_network_transmit_bytes_total"), "{{instance}} {{interface}} transmit"),
                lines("Packets", "pps", "Received and transmitted.")
                    .query(interface("container_network_receive_packets_total"), "{{instance}} {{interface}} receive")
                    .query(interface("container_network_transmit_packets_total"), "{{instance}} {{interface}} transmit"),
                lines("Errors and drops of interfaces", "pps", "As the interfaces count them, in both directions.")
                    .query(interface("container_network_receive_errors_total"), "{{instance}} {{interface}} errors receive")
                    .query(interface("container_network_transmit_errors_total"), "{{instance}} {{interface}} errors transmit")
                    .query(interface("container_network_receive_packets_dropped_total"), "{{instance}} {{interface}} drops receive")
                    .query(interface("container_network_transmit_packets_dropped_total"), "{{instance}} {{interface}} drops transmit"),
            ]),
            row("Sockets", vec![
                stacked("Received", "Bps", "Bytes that sockets received, by IP version and protocol, loopback included.")
                    .query(sockets("container_socket_receive_bytes_total"), "{{family}} {{protocol}}"),
                stacked("Sent", "Bps", "Bytes that sockets sent, by IP version and protocol, loopback included.")
                    .query(sockets("container_socket_transmit_bytes_total"), "{{family}} {{protocol}}"),
                lines("Packets of sockets", "pps", "Received and sent, by protocol.")
                    .query(sum_rate("protocol", "container_socket_receive_packets_total", HOSTS), "{{protocol}} receive")
                    .query(sum_rate("protocol", "container_socket_transmit_packets_total", HOSTS), "{{protocol}} transmit"),
                lines("Receivers", "Bps", "The ten cgroups whose sockets received the most; a parent includes its children.").drill()
                    .query(most("container_socket_receive_bytes_total"), "{{id}} {{name}}{{unit}}"),
                lines("Senders", "Bps", "The ten cgroups whose sockets sent the most; a parent includes its children.").drill()
                    .query(most("container_socket_transmit_bytes_total"), "{{id}} {{name}}{{unit}}"),
                lines("Drops by cgroup", "pps", "Packets of its sockets that the kernel dropped; the ten with the most.").drill()
                    .query(most("container_network_drops_total"), "{{id}} {{name}}{{unit}}"),
            ]),
            row("TCP", vec![
                lines("Connections opened", "ops", "Asked for by this side (active), or accepted (passive).")
                    .query(sum_rate("instance, direction", "container_tcp_connections_opened_total", HOSTS), "{{instance}} {{direction}}"),
                lines("Connections that failed", "ops", "Refused, timed out or given up; the ten cgroups with the most.").drill()
                    .query(most("container_tcp_connect_failures_total"), "{{id}} {{name}}{{unit}}"),
                lines("Resets", "ops", "Sent and received.")
                    .query(sum_rate("instance, direction", "container_tcp_resets_total", HOSTS), "{{instance}} {{direction}}"),
                lines("Sent again", "percentunit", "Retransmits as a part of the packets that TCP sockets sent.")
                    .query(ratio(&again("instance", HOSTS), &sent("instance", HOSTS)), "{{instance}}"),
                lines("Sent again, by cgroup", "pps", "The ten cgroups that sent the most segments again.").drill()
                    .query(most("container_tcp_retransmits_total"), "{{id}} {{name}}{{unit}}"),
                lines("Dropped packets", "pps", "By the kernel's reason.")
                    .query(sum_rate("reason", "container_network_drops_total", HOSTS), "{{reason}}"),
                heatmap("Round-trip time", "Smoothed round-trip time of connections, when they close.")
                    .query(buckets("container_tcp_rtt_seconds", HOSTS), "{{le}}"),
                lines("Round-trip time by cgroup, 99th percentile", "s", "Of the connections that closed; the ten slowest.").drill()
                    .query(top(10, &quantile(0.99, NAMES, "container_tcp_rtt_seconds", CGROUPS)), "{{id}} {{name}}{{unit}}"),
                heatmap("Duration of connections", "From establishment to close, when they close.")
                    .query(buckets("container_tcp_connection_duration_seconds", HOSTS), "{{le}}"),
            ]),
        ],
    }
}
