//! One container, or any other cgroup: where its time goes, and who is in its way.

use super::{
    model::{
        Choice::{Many, One},
        Dashboard, heatmap, lines, row, stacked, stat, table, variable,
    },
    words::{buckets, quantile, ratio, sum, sum_rate, top},
};

/// Matchers for the container that is chosen.
const ONE: &str = r#"cluster=~"$cluster",instance="$instance",id="$id""#;
/// All other cgroups of the host, with its ancestors and descendants: to exclude those takes a regular
/// expression of the path, and Grafana would not escape it.
const OTHERS: &str = r#"cluster=~"$cluster",instance="$instance",id!="/",id!="$id""#;

/// Makes the dashboard.
pub fn dashboard() -> Dashboard {
    let one = |metric: &str| sum("", &format!("{metric}{{{ONE}}}"));
    let growth = |metric: &str| sum_rate("", metric, ONE);
    let run = growth("container_cpu_schedstat_run_seconds_total");
    let wait = growth("container_cpu_schedstat_runqueue_seconds_total");
    let host = r#"cluster=~"$cluster",instance="$instance""#;
    let chosen = |labels: &[&str]| {
        let labels = labels.iter().map(|label| format!(",{label}=~\"${label}\""));
        format!(
            "container_last_seen{{{host}{}}}",
            labels.collect::<String>()
        )
    };
    Dashboard {
        uid: "cgmeter-container",
        title: "cgmeter: container",
        description: "One container, or any other cgroup: where its time goes, and who is in its way.",
        variables: vec![
            variable("cluster", "Cluster", Many, "cgmeter_build_info", "cluster"),
            variable("instance", "Host", One, r#"cgmeter_build_info{cluster=~"$cluster"}"#, "instance"),
            variable("namespace", "Namespace", Many, &chosen(&[]), "namespace"),
            variable("pod", "Pod", Many, &chosen(&["namespace"]), "pod"),
            variable("container", "Container", Many, &chosen(&["namespace", "pod"]), "container"),
            variable("name", "Name", Many, &chosen(&["namespace", "pod", "container"]), "name"),
            variable("id", "Cgroup", One, &chosen(&["namespace", "pod", "container", "name"]), "id"),
        ],
        rows: vec![
            row("Container", vec![
                stat("Up for", "s", "Time since its oldest process was started.")
                    .query(format!("time() - {}", one("container_start_time_seconds")), ""),
                stat("Last seen", "dateTimeFromNow", "It stands still once the cgroup is gone.")
                    .query(format!("1000 * {}", one("container_last_seen")), ""),
                stat("CPUs in use", "none", "CPUs that run its tasks.")
                    .query(growth("container_cpu_usage_seconds_total"), ""),
                stat("Memory", "bytes", "Memory in use, inactive page cache not counted.")
                    .query(one("container_memory_working_set_bytes"), ""),
                stat("Memory limit", "bytes", "0: there is none.")
                    .query(one("container_spec_memory_limit_bytes"), ""),
                stat("OOM kills", "none", "Its processes that the kernel has killed for want of memory, in all.")
                    .query(one("container_oom_events_total"), ""),
                table("Identity", "none", "Image, runtime, full id and state, where the path or a runtime tells them.").width(16)
                    .query(format!("container_info{{{ONE}}}"), "{{name}}"),
                stat("Restarts", "none", "Times that its runtime has started it again.")
                    .query(one("container_restarts_total"), ""),
                stat("Health", "none", "By its own health check: 1 healthy, 0 not or not known yet, -1 without a check.")
                    .query(one("container_health_state"), ""),
            ]),
            row("CPU", vec![
                lines("CPUs used and allowed", "none", "What it uses, and its quota where it has one.")
                    .query(growth("container_cpu_usage_seconds_total"), "used")
                    .query(format!("{} / {}", one("container_spec_cpu_quota"), one("container_spec_cpu_period")), "quota"),
                stacked("User and kernel", "none", "CPUs in user mode and in the kernel.")
                    .query(growth("container_cpu_user_seconds_total"), "user")
                    .query(growth("container_cpu_system_seconds_total"), "kernel"),
                stacked("Running and waiting to run", "none", "Tasks that had a CPU, and tasks that could have used one. Waiting without throttling is a noisy neighbour, or too few CPUs.")
                    .query(run.clone(), "running")
                    .query(wait.clone(), "waiting"),
                heatmap("Wait for a CPU", "How long its runnable tasks waited for a CPU, run period by run period.")
                    .query(buckets("container_sched_runqueue_latency_seconds", ONE), "{{le}}"),
                lines("Wait for a CPU, quantiles", "s", "Of its run periods.")
                    .query(quantile(0.5, "", "container_sched_runqueue_latency_seconds", ONE), "50 %")
                    .query(quantile(0.99, "", "container_sched_runqueue_latency_seconds", ONE), "99 %"),
                lines("Part of the time spent waiting", "percentunit", "Of the time for which its tasks wanted to run.")
                    .query(ratio(&wait, &format!("({run} + {wait})")), "waiting"),
                stacked("Who took the CPU", "ops", "Its involuntary switches by who ran next: its own tasks (self), another cgroup's (other), or the kernel's (system).")
                    .query(sum_rate("by", "container_sched_preemptions_total", ONE), "{{by}}"),
                lines("Who used CPUs meanwhile", "none", "The ten other cgroups of this host that used the most, those above and below it included.").drill()
                    .query(top(10, &sum_rate("instance, id, name, unit", "container_cpu_usage_seconds_total", OTHERS)), "{{id}} {{name}}{{unit}}"),
                lines("Throttled by its quota", "percentunit", "Part of the enforcement periods in which it was throttled; only where it has a quota.")
                    .query(ratio(&growth("container_cpu_cfs_throttled_periods_total"), &growth("container_cpu_cfs_periods_total")), "periods"),
                lines("Throttled time", "s", "Seconds a second for which its run queues were throttled, summed over CPUs.")
                    .query(growth("container_cpu_cfs_throttled_seconds_total"), "throttled"),
                stacked("Context switches", "ops", "Voluntary: the task waits for something. Involuntary: the CPU was taken from it.")
                    .query(sum_rate("type", "container_sched_context_switches_total", ONE), "{{type}}"),
                lines("Migrations", "ops", "Times that its tasks went to another CPU.")
                    .query(growth("container_sched_migrations_total"), "migrations"),
            ]),
            row("Memory", vec![
                lines("Memory over time", "bytes", "In use with and without inactive page cache, the highest so far, and the limit if there is one.")
                    .query(one("container_memory_usage_bytes"), "usage")
                    .query(one("container_memory_working_set_bytes"), "working set")
                    .query(one("container_memory_max_usage_bytes"), "highest")
                    .query(format!("{} > 0", one("container_spec_memory_limit_bytes")), "limit"),
                stacked("What it is", "bytes", "Anonymous memory, page cache, kernel memory, and what was swapped out.")
                    .query(one("container_memory_rss"), "anonymous")
                    .query(one("container_memory_cache"), "page cache")
                    .query(one("container_memory_kernel_usage"), "kernel")
                    .query(one("container_memory_swap"), "swapped out"),
                heatmap("Stalls for want of memory", "How long its tasks were held up to free memory.")
                    .query(buckets("container_memory_reclaim_seconds", ONE), "{{le}}"),
                lines("Page faults", "ops", "All of them, and those that had to wait for a device (pgmajfault).")
                    .query(sum_rate("failure_type", "container_memory_failures_total", &format!("{ONE},scope=\"hierarchy\"")), "{{failure_type}}"),
                lines("Limit hit", "ops", "Times that it asked for more than its limit, and pages that came back soon after they were evicted.")
                    .query(growth("container_memory_failcnt"), "limit hit")
                    .query(growth("container_memory_workingset_refault_file_total"), "refaults of files")
                    .query(growth("container_memory_workingset_refault_anon_total"), "refaults of anonymous memory"),
                lines("Page cache to be written", "bytes", "Dirty, and being written.")
                    .query(one("container_memory_file_dirty_bytes"), "dirty")
                    .query(one("container_memory_file_writeback_bytes"), "writeback"),
            ]),
            row("Pressure", vec![
                lines("CPU pressure", "percentunit", "Part of the time in which some of its tasks, or all, waited for a CPU. Absent where the kernel measures no pressure.")
                    .query(growth("container_pressure_cpu_waiting_seconds_total"), "some")
                    .query(growth("container_pressure_cpu_stalled_seconds_total"), "all"),
                lines("Memory pressure", "percentunit", "Part of the time in which some of its tasks, or all, waited for memory.")
                    .query(growth("container_pressure_memory_waiting_seconds_total"), "some")
                    .query(growth("container_pressure_memory_stalled_seconds_total"), "all"),
                lines("I/O pressure", "percentunit", "Part of the time in which some of its tasks, or all, waited for I/O.")
                    .query(growth("container_pressure_io_waiting_seconds_total"), "some")
                    .query(growth("container_pressure_io_stalled_seconds_total"), "all"),
            ]),
            row("Disks", vec![
                lines("Disk throughput", "Bps", "Bytes that disks read and wrote for it.")
                    .query(sum_rate("device", "container_fs_reads_bytes_total", ONE), "{{device}} read")
                    .query(sum_rate("device", "container_fs_writes_bytes_total", ONE), "{{device}} write"),
                lines("Disk requests", "iops", "Requests that disks completed for it.")
                    .query(sum_rate("device", "container_fs_reads_total", ONE), "{{device}} read")
                    .query(sum_rate("device", "container_fs_writes_total", ONE), "{{device}} write"),
                lines("Disk errors", "ops", "Its requests that failed; nothing where none ever did.")
                    .query(sum_rate("device, operation", "container_block_io_errors_total", ONE), "{{device}} {{operation}}"),
                heatmap("Read latency", "From submission to completion, queues included.")
                    .query(buckets("container_block_io_latency_seconds", &format!("{ONE},operation=\"read\"")), "{{le}}"),
                heatmap("Write latency", "From submission to completion, queues included.")
                    .query(buckets("container_block_io_latency_seconds", &format!("{ONE},operation=\"write\"")), "{{le}}"),
                lines("Disk latency, 99th percentile", "s", "In all, and in the device alone: the rest is queues.")
                    .query(quantile(0.99, "device, operation", "container_block_io_latency_seconds", ONE), "{{device}} {{operation}}")
                    .query(quantile(0.99, "device, operation", "container_block_io_device_seconds", ONE), "{{device}} {{operation}}, device"),
            ]),
            row("Network", vec![
                lines("Sockets", "Bps", "Bytes that its sockets received and sent, loopback included.")
                    .query(sum_rate("protocol", "container_socket_receive_bytes_total", ONE), "{{protocol}} receive")
                    .query(sum_rate("protocol", "container_socket_transmit_bytes_total", ONE), "{{protocol}} transmit"),
                lines("Interfaces", "Bps", "Bytes of the interfaces of its own network namespace; nothing with the host's.")
                    .query(sum_rate("interface", "container_network_receive_bytes_total", ONE), "{{interface}} receive")
                    .query(sum_rate("interface", "container_network_transmit_bytes_total", ONE), "{{interface}} transmit"),
                lines("Dropped packets", "pps", "Of its sockets, by the kernel's reason.")
                    .query(sum_rate("reason", "container_network_drops_total", ONE), "{{reason}}"),
                lines("TCP connections", "ops", "Opened by direction, failed, and reset by direction.")
                    .query(sum_rate("direction", "container_tcp_connections_opened_total", ONE), "opened {{direction}}")
                    .query(growth("container_tcp_connect_failures_total"), "failed")
                    .query(sum_rate("direction", "container_tcp_resets_total", ONE), "reset {{direction}}"),
                lines("TCP segments sent again", "pps", "Retransmits.")
                    .query(growth("container_tcp_retransmits_total"), "sent again"),
                heatmap("Round-trip time", "Smoothed round-trip time of TCP connections, when they close.")
                    .query(buckets("container_tcp_rtt_seconds", ONE), "{{le}}"),
            ]),
            row("Processes", vec![
                lines("Processes and threads", "none", "Those that are there, and how many threads may be, if there is a limit.")
                    .query(one("container_processes"), "processes")
                    .query(one("container_threads"), "threads")
                    .query(format!("{} > 0", one("container_threads_max")), "limit"),
                lines("Open files", "none", "Descriptors, and those of them that are sockets.")
                    .query(one("container_file_descriptors"), "descriptors")
                    .query(one("container_sockets"), "sockets"),
                lines("Processes started and ended", "ops", "Forks, and ends by exit and by a signal.")
                    .query(growth("container_processes_started_total"), "started")
                    .query(sum_rate("reason", "container_processes_exited_total", ONE), "{{reason}}"),
            ]),
        ],
    }
}
