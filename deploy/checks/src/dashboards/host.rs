//! One host: who uses what there, and who waits for whom.

use super::{
    model::{
        Choice::{Many, One},
        Dashboard, heatmap, lines, row, stacked, stat, variable,
    },
    words::{buckets, quantile, rate, ratio, sum, sum_rate, top},
};

/// Matchers for the host's agent.
const AGENT: &str = r#"cluster=~"$cluster",instance="$instance""#;
/// Matchers for the root cgroup: the host as a whole.
const HOST: &str = r#"cluster=~"$cluster",instance="$instance",id="/""#;
/// Matchers for all cgroups but the root.
const CGROUPS: &str = r#"cluster=~"$cluster",instance="$instance",id!="/""#;
/// Labels that tell cgroups apart.
const NAMES: &str = "instance, id, name, unit";

/// Makes the dashboard.
pub fn dashboard() -> Dashboard {
    let host = |metric: &str| format!("{metric}{{{HOST}}}");
    let host_sum = |metric: &str| sum_rate("", metric, HOST);
    let most = |metric: &str| top(10, &sum_rate(NAMES, metric, CGROUPS));
    Dashboard {
        uid: "cgmeter-host",
        title: "cgmeter: host",
        description: "One host: who uses what there, and who waits for whom.",
        variables: vec![
            variable("cluster", "Cluster", Many, "cgmeter_build_info", "cluster"),
            variable("instance", "Host", One, r#"cgmeter_build_info{cluster=~"$cluster"}"#, "instance"),
        ],
        rows: vec![
            row("Host", vec![
                stat("CPUs", "none", "CPUs that are online.")
                    .query(format!("sum(machine_cpu_cores{{{AGENT}}})"), ""),
                stat("CPUs in use", "none", "CPUs that run tasks.")
                    .query(host_sum("container_cpu_usage_seconds_total"), ""),
                stat("Memory", "bytes", "Memory that the kernel manages.")
                    .query(format!("sum(machine_memory_bytes{{{AGENT}}})"), ""),
                stat("Memory in use", "bytes", "Memory in use, inactive page cache not counted.")
                    .query(sum("", &host("container_memory_working_set_bytes")), ""),
                stat("Threads", "none", "Threads that are there.")
                    .query(sum("", &host("container_threads")), ""),
                stat("Cgroups", "none", "Cgroups that are there now.")
                    .query(format!("sum(cgmeter_cgroups{{{AGENT},state=\"live\"}})"), ""),
            ]),
            row("CPU", vec![
                lines("CPUs used by cgroup", "none", "The ten cgroups that use the most; a parent includes its children.").drill()
                    .query(most("container_cpu_usage_seconds_total"), "{{id}} {{name}}{{unit}}"),
                stacked("User and kernel", "none", "CPUs in user mode and in the kernel.")
                    .query(host_sum("container_cpu_user_seconds_total"), "user")
                    .query(host_sum("container_cpu_system_seconds_total"), "kernel"),
                heatmap("Wait for a CPU", "How long runnable tasks waited for a CPU, run period by run period.")
                    .query(buckets("container_sched_runqueue_latency_seconds", HOST), "{{le}}"),
                lines("Tasks waiting for a CPU, by cgroup", "none", "Tasks that were runnable and had no CPU, on average; the ten cgroups with the most.").drill()
                    .query(most("container_cpu_schedstat_runqueue_seconds_total"), "{{id}} {{name}}{{unit}}"),
                stacked("Context switches", "ops", "Voluntary: the task waits for something. Involuntary: the CPU was taken from it.")
                    .query(sum_rate("type", "container_sched_context_switches_total", HOST), "{{type}}"),
                lines("Preempted by another cgroup", "ops", "Times that a task of another cgroup took the CPU, by the cgroup that lost it.").drill()
                    .query(top(10, &sum_rate(NAMES, "container_sched_preemptions_total", &format!("{CGROUPS},by=\"other\""))), "{{id}} {{name}}{{unit}}"),
                lines("Throttled by their quota", "percentunit", "Part of the enforcement periods in which a cgroup was throttled.").drill()
                    .query(top(10, &ratio(&sum_rate(NAMES, "container_cpu_cfs_throttled_periods_total", CGROUPS), &sum_rate(NAMES, "container_cpu_cfs_periods_total", CGROUPS))), "{{id}} {{name}}{{unit}}"),
                stacked("Threads by state", "none", "Running, sleeping, stopped, in uninterruptible sleep, waiting for I/O.")
                    .query(sum("state", &host("container_tasks_state")), "{{state}}"),
                lines("Migrations", "ops", "Times that a task went to another CPU.")
                    .query(host_sum("container_sched_migrations_total"), "migrations"),
            ]),
            row("Memory", vec![
                lines("Memory over time", "bytes", "In use with and without inactive page cache, and anonymous memory.")
                    .query(sum("", &host("container_memory_usage_bytes")), "usage")
                    .query(sum("", &host("container_memory_working_set_bytes")), "working set")
                    .query(sum("", &host("container_memory_rss")), "anonymous")
                    .query(sum("", &host("container_memory_cache")), "page cache"),
                lines("Memory by cgroup", "bytes", "Working set of the ten largest; a parent includes its children.").drill()
                    .query(top(10, &sum(NAMES, &format!("container_memory_working_set_bytes{{{CGROUPS}}}"))), "{{id}} {{name}}{{unit}}"),
                heatmap("Stalls for want of memory", "How long tasks were held up to free memory, for the host or for a cgroup with a limit.")
                    .query(buckets("container_memory_reclaim_seconds", HOST), "{{le}}"),
                lines("Page faults", "ops", "All of them, and those that had to wait for a device (pgmajfault).")
                    .query(sum_rate("failure_type", "container_memory_failures_total", &format!("{HOST},scope=\"hierarchy\"")), "{{failure_type}}"),
                lines("Reclaim", "ops", "Pages that reclaim looked at and freed, of all cgroups.")
                    .query(host_sum("container_memory_pgscan_total"), "scanned")
                    .query(host_sum("container_memory_pgsteal_total"), "freed"),
                lines("OOM kills by cgroup", "ops", "Processes that the kernel killed for want of memory, a second.").drill()
                    .query(most("container_oom_events_total"), "{{id}} {{name}}{{unit}}"),
            ]),
            row("Pressure", vec![
                lines("CPU pressure", "percentunit", "Part of the time in which some task waited for a CPU. Absent where the kernel measures no pressure.")
                    .query(host_sum("container_pressure_cpu_waiting_seconds_total"), "some"),
                lines("Memory pressure", "percentunit", "Part of the time in which some task, or every task, waited for memory.")
                    .query(host_sum("container_pressure_memory_waiting_seconds_total"), "some")
                    .query(host_sum("container_pressure_memory_stalled_seconds_total"), "all"),
                lines("I/O pressure", "percentunit", "Part of the time in which some task, or every task, waited for I/O.")
                    .query(host_sum("container_pressure_io_waiting_seconds_total"), "some")
                    .query(host_sum("container_pressure_io_stalled_seconds_total"), "all"),
            ]),
            row("Disks and network", vec![
                lines("Disk throughput", "Bps", "Bytes read and written by disk.")
                    .query(sum_rate("device", "container_fs_reads_bytes_total", HOST), "{{device}} read")
                    .query(sum_rate("device", "container_fs_writes_bytes_total", HOST), "{{device}} write"),
                lines("Disk latency, 99th percentile", "s", "From submission to completion, queues included.")
                    .query(quantile(0.99, "device, operation", "container_block_io_latency_seconds", HOST), "{{device}} {{operation}}"),
                lines("Interfaces", "Bps", "Bytes of the host's own interfaces; the agent leaves out loopback and the containers' ends.")
                    .query(rate("container_network_receive_bytes_total", HOST), "{{interface}} receive")
                    .query(rate("container_network_transmit_bytes_total", HOST), "{{interface}} transmit"),
                lines("File systems", "percentunit", "Part of the space in use of each mounted device.")
                    .query(ratio(&sum("device", &host("container_fs_usage_bytes")), &sum("device", &host("container_fs_limit_bytes"))), "{{device}}"),
                lines("TCP", "ops", "Connections opened and failed, segments sent again, resets received.")
                    .query(host_sum("container_tcp_connections_opened_total"), "opened")
                    .query(host_sum("container_tcp_connect_failures_total"), "failed")
                    .query(host_sum("container_tcp_retransmits_total"), "sent again")
                    .query(sum_rate("", "container_tcp_resets_total", &format!("{HOST},direction=\"received\"")), "resets received"),
                lines("Dropped packets", "pps", "By the kernel's reason.")
                    .query(sum_rate("reason", "container_network_drops_total", HOST), "{{reason}}"),
            ]),
            row("Processes", vec![
                lines("Processes started and ended", "ops", "Forks, and ends by exit and by a signal.")
                    .query(host_sum("container_processes_started_total"), "started")
                    .query(sum_rate("reason", "container_processes_exited_total", HOST), "{{reason}}"),
                lines("Processes and threads", "none", "Those that are there.")
                    .query(sum("", &host("container_processes")), "processes")
                    .query(sum("", &host("container_threads")), "threads"),
                lines("Open files", "none", "Descriptors, and those of them that are sockets.")
                    .query(sum("", &host("container_file_descriptors")), "descriptors")
                    .query(sum("", &host("container_sockets")), "sockets"),
            ]),
        ],
    }
}
