//! Statistics that the kernel has for whole disks but not for cgroups: requests in flight, busy
//! time, merges.
//!
//! /proc/diskstats is read once per scrape (block/genhd.c, diskstats_show). The values are served
//! at `/`, as in cAdvisor. Partitions and disks without any I/O are left out. Oracle:
//! /proc/diskstats, before and after (tests/live/disk.rs).

use std::{path::Path, sync::Arc};

use anyhow::Result;

use super::{
    Change, Inputs, Reading, Registration, Source, kernel_file::KernelFile, values::PerNode,
};
use crate::{
    cgroup::{Nodes, ROOT},
    exposition::{Encoder, Family, Labels, MetricKind, Unit, Value},
    kernel::programs::Requirement,
};

const fn family(name: &'static str, help: &'static str, kind: MetricKind, unit: Unit) -> Family {
    Family {
        name,
        help,
        kind,
        unit,
        labels: &["device"],
        origin: "/proc/diskstats",
        oracle: "/proc/diskstats, before and after",
    }
}

/// Families, and their column of /proc/diskstats (from 1, as in the kernel's documentation).
const FAMILIES: &[(Family, usize)] = &[
    (
        family(
            "container_fs_io_current",
            "Requests in flight on a disk; only for the host.",
            MetricKind::Gauge,
            Unit::None,
        ),
        12,
    ),
    (
        family(
            "container_fs_io_time_seconds_total",
            "Time in which a disk had requests in flight; only for the host.",
            MetricKind::Counter,
            Unit::Seconds,
        ),
        13,
    ),
    (
        family(
            "container_fs_io_time_weighted_seconds_total",
            "Time that requests were in flight on a disk, summed over all requests; only for the host.",
            MetricKind::Counter,
            Unit::Seconds,
        ),
        14,
    ),
    (
        family(
            "container_fs_reads_merged_total",
            "Reads that were merged with another one; only for the host.",
            MetricKind::Counter,
            Unit::None,
        ),
        5,
    ),
    (
        family(
            "container_fs_writes_merged_total",
            "Writes that were merged with another one; only for the host.",
            MetricKind::Counter,
            Unit::None,
        ),
        9,
    ),
];

/// Registers the source `disk` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "disk",
        required: &[],
        optional: &[],
    },
    families: || FAMILIES.iter().map(|(family, _)| family).collect(),
    build: |_| {
        Ok(Box::new(Disk {
            statistics: KernelFile::new("/proc/diskstats"),
            rows: Arc::default(),
        }))
    },
};

/// Device and its columns, including name and numbers.
type Disks = Vec<(String, Vec<u64>)>;

#[derive(Debug)]
struct Disk {
    statistics: KernelFile,
    rows: Arc<Disks>,
}

/// Parses the lines of disks with any I/O. `is_disk` tells disks from partitions.
fn parse(text: &str, is_disk: impl Fn(&str) -> bool) -> Vec<(String, Vec<u64>)> {
    text.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let name = *words.get(2)?;
            // The name counts as a column with value 0, so that columns are numbered as in the
            // documentation.
            let columns: Vec<u64> = words.iter().map(|word| word.parse().unwrap_or(0)).collect();
            let used = columns.len() >= 14 && columns[3..14].iter().any(|&value| value > 0);
            (used && is_disk(name)).then(|| (format!("/dev/{name}"), columns))
        })
        .collect()
}

impl Source for Disk {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        Vec::new()
    }

    fn change(&mut self, _: &Change<'_>) {}

    fn collect(&mut self, _inputs: &Inputs<'_>) -> Result<()> {
        let text = self.statistics.read()?;
        self.rows = Arc::new(parse(text, |name| {
            // sysfs writes a `/` in a device's name as `!`. Partitions are not in this directory.
            Path::new("/sys/block")
                .join(name.replace('/', "!"))
                .exists()
        }));
        Ok(())
    }

    fn reading(&self) -> Box<dyn Reading> {
        Box::new(DiskReading {
            rows: Arc::clone(&self.rows),
        })
    }
}

/// What the source serves in one frame.
struct DiskReading {
    rows: Arc<Disks>,
}

impl Reading for DiskReading {
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
        let Some(root) = nodes.node(ROOT).filter(|node| node.exported) else {
            return;
        };
        for (family, column) in FAMILIES {
            out.family(family);
            for (device, columns) in &*self.rows {
                let Some(&value) = columns.get(column - 1) else {
                    continue;
                };
                let value = match family.unit {
                    // The column is in milliseconds.
                    Unit::Seconds => Value::Nanos(value * 1_000_000),
                    _ => Value::Count(value),
                };
                out.sample(Labels::new(&root.labels, &[("device", device)]), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_and_idle_disks_are_left_out() {
        let text = " 254 0 vda 10 2 80 7 5 1 40 9 3 11 16 0 0 0 0 0 0\n \
                    254 1 vda1 10 2 80 7 5 1 40 9 3 11 16 0 0 0 0 0 0\n \
                    7 0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        let rows = parse(text, |name| name != "vda1");
        assert_eq!(rows.len(), 1);
        let (device, columns) = &rows[0];
        assert_eq!(device, "/dev/vda");
        // Columns 5, 9, 12, 13 and 14 of the documentation.
        let found = [5, 9, 12, 13, 14].map(|column: usize| columns[column - 1]);
        assert_eq!(found, [2, 1, 3, 11, 16]);
    }
}
