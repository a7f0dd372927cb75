//! Disks: how fast, how loaded, and by whom.

use super::{
    model::{Choice::Many, Dashboard, heatmap, lines, row, variable},
    words::{buckets, quantile, rate, ratio, sum, sum_rate, top},
};

/// The disks chosen, over all cgroups.
const DISKS: &str = r#"cluster=~"$cluster",instance=~"$instance",device=~"$device",id="/""#;
/// Matchers for the cgroups that use the disks.
const CGROUPS: &str = r#"cluster=~"$cluster",instance=~"$instance",device=~"$device",id!="/""#;
/// Labels that tell cgroups apart.
const NAMES: &str = "instance, id, name, unit";
/// Labels that tell disks apart.
const DISK: &str = "instance, device";

/// Makes the dashboard.
pub fn dashboard() -> Dashboard {
    let disk = |metric: &str| sum_rate(DISK, metric, DISKS);
    let most = |metric: &str| top(10, &sum_rate(NAMES, metric, CGROUPS));
    let latency = "container_block_io_latency_seconds";
    let of = |operation: &str| format!("{DISKS},operation=\"{operation}\"");
    Dashboard {
        uid: "cgmeter-disk",
        title: "cgmeter: disk",
        description: "Disks: how fast, how loaded, and by whom.",
        variables: vec![
            variable("cluster", "Cluster", Many, "cgmeter_build_info", "cluster"),
            variable("instance", "Host", Many, r#"cgmeter_build_info{cluster=~"$cluster"}"#, "instance"),
            variable("device", "Disk", Many, r#"container_fs_io_current{cluster=~"$cluster",instance=~"$instance"}"#, "device"),
        ],
        rows: vec![
            row("Load", vec![
                lines("Throughput", "Bps", "Bytes read and written; stacked disks count each for itself.")
                    .query(disk("container_fs_reads_bytes_total"), "{{instance}} {{device}} read")
                    .query(disk("container_fs_writes_bytes_total"), "{{instance}} {{device}} write"),
                lines("Requests", "iops", "Requests completed.")
                    .query(disk("container_fs_reads_total"), "{{instance}} {{device}} read")
                    .query(disk("container_fs_writes_total"), "{{instance}} {{device}} write"),
                lines("Busy", "percentunit", "Part of the time in which a request was under way. A disk that serves many at once may be busy all the time and far from its limit.")
                    .query(rate("container_fs_io_time_seconds_total", DISKS), "{{instance}} {{device}}"),
                lines("Requests under way", "none", "On average.")
                    .query(rate("container_fs_io_time_weighted_seconds_total", DISKS), "{{instance}} {{device}}"),
                lines("Merged requests", "iops", "Reads and writes that were merged with another.")
                    .query(disk("container_fs_reads_merged_total"), "{{instance}} {{device}} read")
                    .query(disk("container_fs_writes_merged_total"), "{{instance}} {{device}} write"),
                lines("Errors", "ops", "Requests that failed, in whole or in part; nothing where none ever did.")
                    .query(sum_rate("instance, device, operation", "container_block_io_errors_total", DISKS), "{{instance}} {{device}} {{operation}}"),
            ]),
            row("Latency", vec![
                heatmap("Reads", "From submission to completion, queues included.")
                    .query(buckets(latency, &of("read")), "{{le}}"),
                heatmap("Writes", "From submission to completion, queues included.")
                    .query(buckets(latency, &of("write")), "{{le}}"),
                heatmap("Flushes", "From submission to completion, queues included.")
                    .query(buckets(latency, &of("flush")), "{{le}}"),
                lines("99th percentile", "s", "From submission to completion, queues included.")
                    .query(quantile(0.99, "instance, device, operation", latency, DISKS), "{{instance}} {{device}} {{operation}}"),
                lines("99th percentile in the device", "s", "From the issue to the driver to completion. What the former has more is queues: too many requests rather than slow ones.")
                    .query(quantile(0.99, "instance, device, operation", "container_block_io_device_seconds", DISKS), "{{instance}} {{device}} {{operation}}"),
                lines("99th percentile by cgroup", "s", "The ten cgroups with the slowest requests.").drill()
                    .query(top(10, &quantile(0.99, NAMES, latency, CGROUPS)), "{{id}} {{name}}{{unit}}"),
            ]),
            row("Who", vec![
                lines("Readers", "Bps", "The ten cgroups for which disks read the most; a parent includes its children.").drill()
                    .query(most("container_fs_reads_bytes_total"), "{{id}} {{name}}{{unit}}"),
                lines("Writers", "Bps", "The ten cgroups for which disks wrote the most, pages written back included.").drill()
                    .query(most("container_fs_writes_bytes_total"), "{{id}} {{name}}{{unit}}"),
                lines("Time of requests by cgroup", "none", "Requests under way on average, of the ten cgroups with the most.").drill()
                    .query(top(10, &format!("{} + {}", sum_rate(NAMES, "container_fs_read_seconds_total", CGROUPS), sum_rate(NAMES, "container_fs_write_seconds_total", CGROUPS))), "{{id}} {{name}}{{unit}}"),
            ]),
            row("File systems", vec![
                lines("Space in use", "percentunit", "Part of the space of each mounted device, what is reserved for root included.").width(12)
                    .query(ratio(&sum(DISK, &format!("container_fs_usage_bytes{{{FILE_SYSTEMS}}}")), &sum(DISK, &format!("container_fs_limit_bytes{{{FILE_SYSTEMS}}}"))), "{{instance}} {{device}}"),
                lines("Inodes in use", "percentunit", "Part of the inodes; absent where the file system makes them as needed.").width(12)
                    .query(format!("1 - {}", ratio(&sum(DISK, &format!("container_fs_inodes_free{{{FILE_SYSTEMS}}}")), &sum(DISK, &format!("container_fs_inodes_total{{{FILE_SYSTEMS}}}")))), "{{instance}} {{device}}"),
            ]),
        ],
    }
}

/// Mounted devices, whichever disks are chosen: their names can be those of partitions.
const FILE_SYSTEMS: &str = r#"cluster=~"$cluster",instance=~"$instance",id="/""#;
