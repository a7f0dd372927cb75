//! Block I/O: bytes, operations, latency and errors by cgroup and disk.
//!
//! Programs: `block_rq_complete`, `block_submit`, `block_insert`, `block_issue`, `block_bio_queue`,
//! `block_bio_complete` (collector-ebpf/src/block.rs). Oracle: direct I/O of known size,
//! /proc/diskstats, io.stat (tests/live/block.rs).
//!
//! A request counts once, for the whole disk, when it completes. It belongs to the cgroup that the
//! kernel charges. If that cgroup is not in cgroup2, or stands for its descendants, it belongs to
//! the cgroup that submitted the request, provided that cgroup submitted it on its own behalf.

use collector_common::{
    block::{BlockOperation, BlockValue, DISCARD, FLUSH, OPERATIONS, READ, WRITE},
    histogram::BUCKETS,
};

use super::{
    HistogramReader, Metric, Reader, Registration, Samples, devices::Devices, keyed::KeyedCounters,
    values::sums,
};
use crate::{
    exposition::{Family, Histogram, LOG2, MetricKind, Unit, Value},
    kernel::programs::Requirement,
};

sums! {
    /// Counters of one kind of request.
    struct Operation: BlockOperation {
        bytes: u64,
        untimed: u64,
        errors: u64,
        latency_ns: u64,
        device_ns: u64,
        latency: [u64; BUCKETS],
        device: [u64; BUCKETS],
    }
}

impl Operation {
    /// Number of requests with a known latency.
    fn timed(&self) -> u64 {
        self.latency.iter().sum()
    }

    fn count(&self) -> u64 {
        self.untimed + self.timed()
    }
}

sums! {
    /// Counters of a cgroup for one disk.
    pub struct Requests: BlockValue {
        operations: [Operation; OPERATIONS],
    }
}

// Readers of one kind of request, for the families.

fn bytes<const OF: usize>(totals: &Requests) -> Option<Value> {
    Some(Value::Count(totals.operations[OF].bytes))
}

fn count<const OF: usize>(totals: &Requests) -> Option<Value> {
    Some(Value::Count(totals.operations[OF].count()))
}

fn sectors<const OF: usize>(totals: &Requests) -> Option<Value> {
    // A sector in the kernel is always 512 bytes, whatever the disk's is (SECTOR_SHIFT).
    Some(Value::Count(totals.operations[OF].bytes >> 9))
}

/// `None` if there were requests but the latency of none is known.
fn seconds<const OF: usize>(totals: &Requests) -> Option<Value> {
    let operation = &totals.operations[OF];
    let known = operation.untimed == 0 || operation.timed() > 0;
    known.then_some(Value::Nanos(operation.latency_ns))
}

/// `None` before the first request of the kind.
fn errors<const OF: usize>(totals: &Requests) -> Option<Value> {
    let operation = &totals.operations[OF];
    let any = operation.errors > 0 || operation.count() > 0;
    any.then_some(Value::Count(operation.errors))
}

fn all_bytes(totals: &Requests) -> Option<Value> {
    Some(Value::Count(
        totals.operations.iter().map(|of| of.bytes).sum(),
    ))
}

fn histogram(buckets: &[u64; BUCKETS], ns: u64) -> Option<Histogram<'_>> {
    buckets.iter().any(|&count| count > 0).then_some(Histogram {
        layout: &LOG2,
        buckets,
        sum: Value::Nanos(ns),
    })
}

fn latency<const OF: usize>(totals: &Requests) -> Option<Histogram<'_>> {
    histogram(
        &totals.operations[OF].latency,
        totals.operations[OF].latency_ns,
    )
}

fn device<const OF: usize>(totals: &Requests) -> Option<Histogram<'_>> {
    histogram(
        &totals.operations[OF].device,
        totals.operations[OF].device_ns,
    )
}

const COMPLETED: &str = "block_rq_complete: request.cmd_flags, nr_bytes";
const TIMED: &str = "block_rq_complete: request.start_time_ns";
const DISKSTATS: &str = "direct I/O of a known size; /proc/diskstats; io.stat";

const fn counter(name: &'static str, help: &'static str, unit: Unit) -> Family {
    Family {
        name,
        help,
        kind: MetricKind::Counter,
        unit,
        labels: &["device"],
        origin: COMPLETED,
        oracle: DISKSTATS,
    }
}

const fn by_device(
    family: Family,
    read: &'static [(super::Extra, Reader<Requests>)],
) -> Metric<Requests> {
    Metric {
        family,
        samples: Samples::Scalars(read),
    }
}

const fn by_operation(
    name: &'static str,
    help: &'static str,
    origin: &'static str,
    read: &'static [(super::Extra, HistogramReader<Requests>)],
) -> Metric<Requests> {
    Metric {
        family: Family {
            name,
            help,
            kind: MetricKind::Histogram,
            unit: Unit::Seconds,
            labels: &["device", "operation"],
            origin,
            oracle: "/proc/diskstats: operations and their time",
        },
        samples: Samples::Histograms(read),
    }
}

/// The source's families.
pub const METRICS: &[Metric<Requests>] = &[
    by_device(
        counter(
            "container_fs_reads_bytes_total",
            "Bytes read from the disk.",
            Unit::Bytes,
        ),
        &[(&[], bytes::<READ>)],
    ),
    by_device(
        counter(
            "container_fs_writes_bytes_total",
            "Bytes written to the disk, including write-zeroes commands, without discards.",
            Unit::Bytes,
        ),
        &[(&[], bytes::<WRITE>)],
    ),
    by_device(
        counter(
            "container_fs_reads_total",
            "Read requests completed by the disk.",
            Unit::None,
        ),
        &[(&[], count::<READ>)],
    ),
    by_device(
        counter(
            "container_fs_writes_total",
            "Write requests completed by the disk, without flushes and discards.",
            Unit::None,
        ),
        &[(&[], count::<WRITE>)],
    ),
    by_device(
        counter(
            "container_fs_sector_reads_total",
            "Sectors of 512 bytes read from the disk.",
            Unit::None,
        ),
        &[(&[], sectors::<READ>)],
    ),
    by_device(
        counter(
            "container_fs_sector_writes_total",
            "Sectors of 512 bytes written to the disk.",
            Unit::None,
        ),
        &[(&[], sectors::<WRITE>)],
    ),
    by_device(
        Family {
            origin: TIMED,
            ..counter(
                "container_fs_read_seconds_total",
                "Time from submission to completion, summed over read requests.",
                Unit::Seconds,
            )
        },
        &[(&[], seconds::<READ>)],
    ),
    by_device(
        Family {
            origin: TIMED,
            ..counter(
                "container_fs_write_seconds_total",
                "Time from submission to completion, summed over write requests.",
                Unit::Seconds,
            )
        },
        &[(&[], seconds::<WRITE>)],
    ),
    by_operation(
        "container_block_io_latency_seconds",
        "Time from the submission of a request to its completion, including queues.",
        TIMED,
        &[
            (&[("operation", "read")], latency::<READ>),
            (&[("operation", "write")], latency::<WRITE>),
            (&[("operation", "discard")], latency::<DISCARD>),
            (&[("operation", "flush")], latency::<FLUSH>),
        ],
    ),
    by_operation(
        "container_block_io_device_seconds",
        "Time from the issue of a request to the driver to its completion; only for disks for which the kernel records timestamps.",
        "block_rq_complete: request.io_start_time_ns",
        &[
            (&[("operation", "read")], device::<READ>),
            (&[("operation", "write")], device::<WRITE>),
            (&[("operation", "discard")], device::<DISCARD>),
            (&[("operation", "flush")], device::<FLUSH>),
        ],
    ),
    by_device(
        Family {
            labels: &["device", "operation"],
            origin: "block_rq_complete: error; block_bio_complete: bio.bi_status",
            oracle: "reads and writes that failed",
            ..counter(
                "container_block_io_errors_total",
                "Requests that completed with an error, in whole or in part.",
                Unit::None,
            )
        },
        &[
            (&[("operation", "read")], errors::<READ>),
            (&[("operation", "write")], errors::<WRITE>),
            (&[("operation", "discard")], errors::<DISCARD>),
            (&[("operation", "flush")], errors::<FLUSH>),
        ],
    ),
    by_device(
        Family {
            labels: &["device", "major", "minor", "operation"],
            ..counter(
                "container_blkio_device_usage_total",
                "Bytes transferred to and from the disk, by operation.",
                Unit::None,
            )
        },
        &[
            (&[("operation", "Read")], bytes::<READ>),
            (&[("operation", "Write")], bytes::<WRITE>),
            (&[("operation", "Discard")], bytes::<DISCARD>),
            (&[("operation", "Total")], all_bytes),
        ],
    ),
];

/// Returns the labels of a disk. Values for which no room was left belong to no disk.
fn labels(disks: &mut Devices, disk: u64) -> Vec<(&'static str, String)> {
    match u32::try_from(disk) {
        Ok(disk) if disk != 0 => {
            let disk = disks.get(disk);
            vec![
                ("device", disk.name.clone()),
                ("major", disk.major.to_string()),
                ("minor", disk.minor.to_string()),
            ]
        }
        _ => Vec::new(),
    }
}

const SUBMITTERS: &str = "I/O counts for the nearest ancestor with the io controller, or for \
                          the root if the controller is in v1";

/// Registers the source `block` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "block",
        required: &["block_rq_complete"],
        optional: &[
            ("block_submit", SUBMITTERS),
            ("block_insert", SUBMITTERS),
            ("block_issue", SUBMITTERS),
            (
                "block_bio_queue",
                "I/O of disks whose drivers use bios without requests is missing",
            ),
            (
                "block_bio_complete",
                "errors of disks whose drivers use bios without requests are missing",
            ),
        ],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        let cells = builder.kernel.keyed::<BlockValue>()?;
        let mut disks = Devices::default();
        let labels = Box::new(move |disk| labels(&mut disks, disk));
        Ok(Box::new(KeyedCounters::new(
            "block", METRICS, cells, labels,
        )))
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_seconds_without_a_measured_request() {
        let mut totals = Requests::default();
        let zero = Some(Value::Nanos(0));
        assert_eq!(seconds::<READ>(&totals), zero);
        totals.operations[READ].untimed = 3;
        assert_eq!(seconds::<READ>(&totals), None);
        assert_eq!(count::<READ>(&totals), Some(Value::Count(3)));
        totals.operations[READ].latency[2] = 1;
        totals.operations[READ].latency_ns = 7;
        assert_eq!(seconds::<READ>(&totals), Some(Value::Nanos(7)));
        assert_eq!(count::<READ>(&totals), Some(Value::Count(4)));
    }
}
