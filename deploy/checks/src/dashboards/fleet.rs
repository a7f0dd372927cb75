//! All hosts at a glance: which are busy, short of something, or silent.

use super::{
    model::{Choice::Many, Dashboard, lines, row, stat, table, variable},
    words::{quantile, ratio, sum, sum_rate, top},
};

/// Matchers for the agents of all hosts.
const AGENTS: &str = r#"cluster=~"$cluster""#;
/// Matchers for the root cgroup of each host: the host as a whole.
const HOSTS: &str = r#"cluster=~"$cluster",id="/""#;
/// Matchers for all cgroups but the roots.
const CGROUPS: &str = r#"cluster=~"$cluster",id!="/""#;
/// Labels that tell cgroups apart.
const NAMES: &str = "instance, id, name, namespace, pod, container";

/// Makes the dashboard.
pub fn dashboard() -> Dashboard {
    let by_host = |metric| sum_rate("instance", metric, HOSTS);
    let both = |one, other| format!("{} + {}", by_host(one), by_host(other));
    let waited = sum_rate(
        NAMES,
        "container_cpu_schedstat_runqueue_seconds_total",
        CGROUPS,
    );
    let ran = sum_rate(NAMES, "container_cpu_schedstat_run_seconds_total", CGROUPS);
    Dashboard {
        uid: "cgmeter-fleet",
        title: "cgmeter: fleet",
        description: "All hosts at a glance: which are busy, short of something, or silent.",
        variables: vec![variable("cluster", "Cluster", Many, "cgmeter_build_info", "cluster")],
        rows: vec![
            row("Fleet", vec![
                stat("Hosts", "none", "Hosts whose agent was scraped.")
                    .query(format!("count(cgmeter_build_info{{{AGENTS}}})"), ""),
                stat("Silent agents", "none", "Agents that Prometheus can't scrape: their hosts are not watched.")
                    .query(format!("count(up{{job=\"cgmeter\",{AGENTS}}} == 0) or vector(0)"), ""),
                stat("Sources off", "none", "Sources of metrics that an agent could not start; its log and cgmeter check say why.")
                    .query(format!("count(cgmeter_source_up{{{AGENTS}}} == 0) or vector(0)"), ""),
                stat("CPUs", "none", "CPUs that are online.")
                    .query(format!("sum(machine_cpu_cores{{{AGENTS}}})"), ""),
                stat("CPUs in use", "none", "CPUs that run tasks, idle time not counted.")
                    .query(sum_rate("", "container_cpu_usage_seconds_total", HOSTS), ""),
                stat("Cgroups", "none", "Cgroups that are there now.")
                    .query(format!("sum(cgmeter_cgroups{{{AGENTS},state=\"live\"}})"), ""),
            ]),
            row("Hosts", vec![
                lines("CPU in use", "percentunit", "Part of a host's CPUs that run tasks.")
                    .query(ratio(&by_host("container_cpu_usage_seconds_total"), &sum("instance", &format!("machine_cpu_cores{{{AGENTS}}}"))), "{{instance}}"),
                lines("Wait for a CPU, 99th percentile", "s", "Of 100 times that a task became runnable, 99 waited no longer. High where CPUs are short, whatever their use on average.")
                    .query(quantile(0.99, "instance", "container_sched_runqueue_latency_seconds", HOSTS), "{{instance}}"),
                lines("Memory in use", "percentunit", "Part of a host's memory that can't be had without reclaiming pages that are in use.")
                    .query(ratio(&sum("instance", &format!("container_memory_working_set_bytes{{{HOSTS}}}")), &sum("instance", &format!("machine_memory_bytes{{{AGENTS}}}"))), "{{instance}}"),
                lines("Disk throughput", "Bps", "Bytes read and written on all disks of a host; stacked disks count each for itself.")
                    .query(both("container_fs_reads_bytes_total", "container_fs_writes_bytes_total"), "{{instance}}"),
                lines("Network throughput", "Bps", "Bytes that sockets of a host received and sent, loopback included.")
                    .query(both("container_socket_receive_bytes_total", "container_socket_transmit_bytes_total"), "{{instance}}"),
                lines("TCP segments sent again", "pps", "Retransmits: of lost segments, and of requests that nobody answered.")
                    .query(by_host("container_tcp_retransmits_total"), "{{instance}}"),
                lines("OOM kills", "ops", "Processes that the kernel killed for want of memory, a second.")
                    .query(by_host("container_oom_events_total"), "{{instance}}"),
                lines("Processes ended by a signal", "ops", "Crashes and kills, a second.")
                    .query(sum_rate("instance", "container_processes_exited_total", &format!("{HOSTS},reason=\"signaled\"")), "{{instance}}"),
                lines("Scrape of the agent", "s", "Time that Prometheus took to scrape an agent.")
                    .query(sum("instance", &format!("scrape_duration_seconds{{job=\"cgmeter\",{AGENTS}}}")), "{{instance}}"),
            ]),
            row("Top consumers: a parent includes its children", vec![
                table("Most CPU", "none", "The fifteen cgroups that use the most CPUs.").drill()
                    .query(top(15, &sum_rate(NAMES, "container_cpu_usage_seconds_total", CGROUPS)), "{{id}}"),
                table("Most memory", "bytes", "The fifteen cgroups with the most memory, inactive page cache not counted.").drill()
                    .query(top(15, &sum(NAMES, &format!("container_memory_working_set_bytes{{{CGROUPS}}}"))), "{{id}}"),
                table("Longest waits for a CPU", "percentunit", "The fifteen cgroups whose runnable tasks waited the most, as a part of the time for which they wanted to run.").drill()
                    .query(top(15, &ratio(&waited, &format!("({waited} + {ran})"))), "{{id}}"),
            ]),
        ],
    }
}
