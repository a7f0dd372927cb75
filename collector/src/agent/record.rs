//! The record of one container or cgroup in the JSON API.
//!
//! Invariant: numbers come from [`numbers`], that is, from the families that `/metrics` serves of
//! the same frame. What is not served is `null`, never 0. These types are also the API's schema: a
//! field's comment is its description there.

mod numbers;
mod quantile;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use numbers::{Capture, Families, Field, Numbers, Quantity};
use schemars::JsonSchema;
use serde::Serialize;

use crate::cgroup::{Container, Health};

/// Prefix of runtime labels among the labels of series.
const LABEL_PREFIX: &str = "container_label_";

/// What the tree knows of a cgroup.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Label `id` of its series.
    pub cgroup: String,
    /// The parent's index in the same list.
    pub parent: Option<usize>,
    /// When it was removed.
    pub died: Option<SystemTime>,
    /// Kind of cgroup.
    pub kind: CgroupKind,
    /// Full id of the container, if it is one.
    pub container_id: Option<String>,
    /// Runtime of the container, according to the path.
    pub runtime: Option<&'static str>,
    /// UID of the pod, if it is a pod or one of its containers.
    pub pod_uid: Option<String>,
    /// The runtime's record of the container.
    pub container: Option<Arc<Container>>,
}

/// Kind of cgroup, according to its path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CgroupKind {
    /// The root: the whole host.
    Root,
    /// A container's own cgroup.
    Container,
    /// A system container or virtual machine.
    Machine,
    /// A Kubernetes pod's own cgroup.
    Pod,
    /// A systemd unit that has processes.
    Unit,
    /// A slice, or another group of cgroups.
    Group,
    /// A cgroup below one of the above.
    Nested,
    /// Anything else.
    #[default]
    Other,
}

/// Whether a cgroup still exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// It exists.
    Running,
    /// It was removed. It is still reported for the time of `--cgroup.linger`.
    Ended,
}

/// One container or cgroup. Fields that are unknown on this host are null.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Record {
    /// Full id of the container; null for other cgroups.
    pub id: Option<String>,
    /// Name of the container or machine.
    pub name: Option<String>,
    /// Name of the systemd unit, if it is one.
    pub unit: Option<String>,
    /// Image, as named in the request to the runtime.
    pub image: Option<String>,
    /// Digest or id of the image.
    pub image_id: Option<String>,
    /// Container runtime.
    pub runtime: Option<String>,
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Kubernetes pod.
    pub pod: Option<String>,
    /// UID of the pod.
    pub pod_uid: Option<String>,
    /// Name of the container within its pod; of the sandbox `POD`, or none under containerd.
    pub container: Option<String>,
    /// Path of the cgroup: the label `id` of its series.
    pub cgroup: String,
    /// Kind of cgroup.
    pub kind: CgroupKind,
    /// Runtime labels allowed by `--container.label`, with the names that they have in
    /// `container_label_NAME`.
    pub labels: BTreeMap<String, String>,
    /// Whether the cgroup still exists.
    pub state: Life,
    /// Status according to the runtime: created, running, paused, restarting, exited.
    pub status: Option<String>,
    /// Result of the runtime's health check: starting, healthy, unhealthy.
    pub health: Option<String>,
    /// Exit code of the last run that ended.
    pub exit_code: Option<i64>,
    /// Reason of the exit, such as OOMKilled.
    pub exit_reason: Option<String>,
    /// Number of restarts by the runtime.
    pub restarts: Option<u64>,
    /// When it was created.
    #[schemars(extend("format" = "date-time"))]
    pub created: Option<String>,
    /// When its first process was started.
    #[schemars(extend("format" = "date-time"))]
    pub started: Option<String>,
    /// When it ended.
    #[schemars(extend("format" = "date-time"))]
    pub ended: Option<String>,
    /// When the snapshot was taken. All numbers are of that time.
    #[schemars(extend("format" = "date-time"))]
    pub timestamp: String,
    /// Interval of the rates in seconds: from the previous snapshot to this one. Null in the first
    /// answer after ten minutes without a request.
    pub interval_seconds: Option<f64>,
    /// CPU time used in the interval, in percent of one CPU.
    pub cpu_usage: Option<f64>,
    /// Memory in use, bytes.
    pub memory_usage: Option<u64>,
    /// Memory limit, bytes; null if there is none.
    pub memory_limit: Option<u64>,
    /// Bytes received; network.source says where they were counted.
    pub network_rx: Option<u64>,
    /// Bytes sent.
    pub network_tx: Option<u64>,
    /// Bytes read from disks. On stacked disks they count once for each.
    pub disk_read: Option<u64>,
    /// Bytes written to disks.
    pub disk_write: Option<u64>,
    /// Processes.
    pub process_count: Option<u64>,
    /// Threads.
    pub thread_count: Option<u64>,
    /// Open file descriptors.
    pub file_descriptors: Option<u64>,
    /// The application's own values by metric_name, followed by {label="value"} if they have labels
    /// of their own. Null if the value is not a finite number.
    pub custom_metrics: BTreeMap<String, Option<f64>>,
    /// CPU time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Network.
    pub network: Network,
    /// Disks.
    pub disk: Disk,
    /// Pressure stall information.
    pub pressure: Pressure,
    /// Processes killed by the kernel's OOM killer.
    pub oom_kills: Option<u64>,
    /// Growth of the counters per second, in the interval.
    pub rates: Option<Rates>,
    /// Quantiles of latencies: within the interval if there is one, else since the start.
    pub latency: Latency,
}

/// CPU time.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Cpu {
    /// CPU time used, seconds.
    pub usage_seconds: Option<f64>,
    /// CPU time used in user mode, seconds.
    pub user_seconds: Option<f64>,
    /// CPU time used in kernel mode, seconds.
    pub system_seconds: Option<f64>,
    /// Time that tasks waited for a CPU, seconds.
    pub runqueue_seconds: Option<f64>,
    /// Elapsed enforcement periods of the CPU quota.
    pub periods: Option<u64>,
    /// Periods in which the cgroup was throttled.
    pub throttled_periods: Option<u64>,
    /// Time for which the cgroup was throttled, seconds.
    pub throttled_seconds: Option<f64>,
}

/// Memory, bytes.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Memory {
    /// Memory in use, without what can be reclaimed easily.
    pub working_set: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// Page cache.
    pub cache: Option<u64>,
    /// Swap.
    pub swap: Option<u64>,
    /// Highest usage so far.
    pub peak: Option<u64>,
}

/// Where bytes of the network were counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkSource {
    /// At the interfaces of the container's own network namespace.
    Interfaces,
    /// At the cgroup's sockets, as it has no network namespace of its own.
    Sockets,
}

/// Network.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Network {
    /// Where network_rx and network_tx were counted.
    pub source: Option<NetworkSource>,
    /// Bytes received by its sockets.
    pub sockets_rx: Option<u64>,
    /// Bytes sent by its sockets.
    pub sockets_tx: Option<u64>,
    /// Open sockets.
    pub sockets: Option<u64>,
    /// TCP segments retransmitted.
    pub tcp_retransmits: Option<u64>,
}

/// Disks.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Disk {
    /// Read operations.
    pub reads: Option<u64>,
    /// Write operations.
    pub writes: Option<u64>,
}

/// Pressure by resource.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Pressure {
    /// CPU.
    pub cpu: Stall,
    /// Memory.
    pub memory: Stall,
    /// I/O.
    pub io: Stall,
}

/// Time lost while tasks waited for a resource.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Stall {
    /// Time in which at least one task waited, seconds.
    pub waiting_seconds: Option<f64>,
    /// Time in which all tasks waited, seconds.
    pub stalled_seconds: Option<f64>,
    /// Share of the interval in which at least one task waited.
    pub waiting: Option<f64>,
    /// Share of the interval in which all tasks waited.
    pub stalled: Option<f64>,
}

/// Rates per second.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Rates {
    /// CPU time in user mode, percent of one CPU.
    pub cpu_user: Option<f64>,
    /// CPU time in kernel mode, percent of one CPU.
    pub cpu_system: Option<f64>,
    /// Time that tasks waited for a CPU, percent: 100 is one task that waits all the time.
    pub runqueue: Option<f64>,
    /// Share of the quota's periods in which the cgroup was throttled, 0 to 1.
    pub throttled: Option<f64>,
    /// Bytes received.
    pub network_rx: Option<f64>,
    /// Bytes sent.
    pub network_tx: Option<f64>,
    /// Bytes read.
    pub disk_read: Option<f64>,
    /// Bytes written.
    pub disk_write: Option<f64>,
    /// Read operations.
    pub disk_reads: Option<f64>,
    /// Write operations.
    pub disk_writes: Option<f64>,
    /// TCP segments retransmitted.
    pub tcp_retransmits: Option<f64>,
}

/// Latencies.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Latency {
    /// Time that tasks waited for a CPU before each run.
    pub runqueue: Option<Quantiles>,
    /// Block I/O, from request to completion.
    pub block_io: Option<Quantiles>,
    /// Round-trip time of TCP connections, as last estimated before they were closed.
    pub tcp_rtt: Option<Quantiles>,
}

/// Quantiles in seconds, interpolated within log2 buckets as histogram_quantile() does.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Quantiles {
    /// Number of observed events.
    pub count: u64,
    /// Median.
    pub p50: Option<f64>,
    /// 90th percentile.
    pub p90: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
}

/// Formats a time as RFC 3339, which has the years up to 9999. A time that lies outside them or
/// before 1970, which only a wrong clock or a faulty runtime can say, becomes the nearest one.
pub fn rfc3339(time: SystemTime) -> String {
    let last = SystemTime::UNIX_EPOCH + Duration::from_millis(253_402_300_799_999);
    let time = time.clamp(SystemTime::UNIX_EPOCH, last);
    humantime::format_rfc3339_millis(time).to_string()
}

fn seconds(unix: f64) -> Option<SystemTime> {
    let since = Duration::try_from_secs_f64(unix).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}

/// Returns `None` for an empty text.
fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Starting => "starting",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
}

/// Numbers of one frame, and their growth since the previous one.
#[derive(Clone, Copy, Debug)]
pub struct Measured<'a> {
    /// When the frame was taken.
    pub time: SystemTime,
    /// What the frame says of the cgroup: counters, gauges and histograms.
    pub numbers: &'a Numbers,
    /// Growth since the previous frame, and the time in between.
    pub change: Option<(&'a Numbers, Duration)>,
}

impl Measured<'_> {
    fn rate(&self, field: Field) -> Option<f64> {
        let (change, interval) = self.change?;
        // No rate for a number that is not served any more.
        self.numbers.float(field)?;
        Some(change.float(field)? / interval.as_secs_f64())
    }

    fn percent(&self, field: Field) -> Option<f64> {
        self.rate(field).map(|rate| rate * 100.0)
    }

    fn quantiles(&self, quantity: Quantity) -> Option<Quantiles> {
        let numbers = self.change.map_or(self.numbers, |(change, _)| change);
        let events = numbers.histogram(quantity)?;
        Some(Quantiles {
            count: events.iter().sum(),
            p50: quantile::quantile(events, 0.5),
            p90: quantile::quantile(events, 0.9),
            p99: quantile::quantile(events, 0.99),
        })
    }

    fn stall(&self, waiting: Field, stalled: Field) -> Stall {
        Stall {
            waiting_seconds: self.numbers.float(waiting),
            stalled_seconds: self.numbers.float(stalled),
            waiting: self.rate(waiting),
            stalled: self.rate(stalled),
        }
    }

    /// Fields of the bytes received and sent, and where these are counted.
    fn network(&self) -> Option<(Field, Field, NetworkSource)> {
        if self.numbers.count(Field::InterfaceReceive).is_some() {
            return Some((
                Field::InterfaceReceive,
                Field::InterfaceTransmit,
                NetworkSource::Interfaces,
            ));
        }
        self.numbers.count(Field::SocketReceive)?;
        Some((
            Field::SocketReceive,
            Field::SocketTransmit,
            NetworkSource::Sockets,
        ))
    }

    fn rates(&self) -> Option<Rates> {
        let (change, _) = self.change?;
        let network = self.network();
        let throttled = || {
            let periods = change
                .count(Field::Periods)
                .filter(|&periods| periods > 0)?;
            Some(change.count(Field::ThrottledPeriods)? as f64 / periods as f64)
        };
        Some(Rates {
            cpu_user: self.percent(Field::CpuUser),
            cpu_system: self.percent(Field::CpuSystem),
            runqueue: self.percent(Field::Runqueue),
            throttled: throttled(),
            network_rx: network.and_then(|(rx, ..)| self.rate(rx)),
            network_tx: network.and_then(|(_, tx, _)| self.rate(tx)),
            disk_read: self.rate(Field::DiskRead),
            disk_write: self.rate(Field::DiskWrite),
            disk_reads: self.rate(Field::DiskReads),
            disk_writes: self.rate(Field::DiskWrites),
            tcp_retransmits: self.rate(Field::Retransmits),
        })
    }
}

impl Record {
    /// Makes the record of a cgroup.
    pub fn new(subject: &Subject, measured: Measured<'_>) -> Self {
        let numbers = measured.numbers;
        let count = |field| numbers.count(field);
        let float = |field| numbers.float(field);
        let label = |name: &str| numbers.identity.get(name).cloned();
        let container = subject.container.as_deref();
        let network = measured.network();
        let labels = numbers.identity.iter().filter_map(|(name, value)| {
            let name = name.strip_prefix(LABEL_PREFIX)?;
            Some((name.to_owned(), value.clone()))
        });
        let custom = numbers.custom.iter().map(|(name, &value)| {
            let finite = value.is_finite().then_some(value);
            (name.clone(), finite)
        });
        let time = |field| float(field).and_then(seconds);
        let created = container.and_then(|c| c.created);
        let started = container.and_then(|c| c.started);
        let ended = container.and_then(|c| c.finished);
        let pod = container.and_then(|c| c.pod.as_ref());
        let pod_uid = pod.and_then(|pod| non_empty(&pod.uid));
        Self {
            id: subject.container_id.clone(),
            name: label("name"),
            unit: label("unit"),
            image: label("image"),
            image_id: container.and_then(|c| non_empty(&c.image_id)),
            runtime: subject.runtime_name().map(str::to_owned),
            namespace: label("namespace"),
            pod: label("pod"),
            pod_uid: pod_uid.or_else(|| subject.pod_uid.clone()),
            container: label("container"),
            cgroup: subject.cgroup.clone(),
            kind: subject.kind,
            labels: labels.collect(),
            state: subject.life(),
            status: label("state"),
            health: container
                .and_then(|c| c.health)
                .map(|state| health(state).to_owned()),
            exit_code: container.and_then(|c| c.exit_code),
            exit_reason: container.and_then(|c| non_empty(&c.exit_reason)),
            restarts: container.and_then(|c| c.restarts),
            created: created.or_else(|| time(Field::Created)).map(rfc3339),
            started: started.or_else(|| time(Field::Started)).map(rfc3339),
            ended: subject.died.map(|died| ended.unwrap_or(died)).map(rfc3339),
            timestamp: rfc3339(measured.time),
            interval_seconds: measured.change.map(|(_, interval)| interval.as_secs_f64()),
            cpu_usage: measured.percent(Field::CpuUsage),
            memory_usage: count(Field::MemoryUsage),
            memory_limit: count(Field::MemoryLimit).filter(|&limit| limit > 0),
            network_rx: network.and_then(|(rx, ..)| count(rx)),
            network_tx: network.and_then(|(_, tx, _)| count(tx)),
            disk_read: count(Field::DiskRead),
            disk_write: count(Field::DiskWrite),
            process_count: count(Field::Processes),
            thread_count: count(Field::Threads),
            file_descriptors: count(Field::Descriptors),
            custom_metrics: custom.collect(),
            cpu: Cpu {
                usage_seconds: float(Field::CpuUsage),
                user_seconds: float(Field::CpuUser),
                system_seconds: float(Field::CpuSystem),
                runqueue_seconds: float(Field::Runqueue),
                periods: count(Field::Periods),
                throttled_periods: count(Field::ThrottledPeriods),
                throttled_seconds: float(Field::Throttled),
            },
            memory: Memory {
                working_set: count(Field::WorkingSet),
                rss: count(Field::Rss),
                cache: count(Field::Cache),
                swap: count(Field::Swap),
                peak: count(Field::MemoryPeak),
            },
            network: Network {
                source: network.map(|(.., source)| source),
                sockets_rx: count(Field::SocketReceive),
                sockets_tx: count(Field::SocketTransmit),
                sockets: count(Field::Sockets),
                tcp_retransmits: count(Field::Retransmits),
            },
            disk: Disk {
                reads: count(Field::DiskReads),
                writes: count(Field::DiskWrites),
            },
            pressure: Pressure {
                cpu: measured.stall(Field::CpuWaiting, Field::CpuStalled),
                memory: measured.stall(Field::MemoryWaiting, Field::MemoryStalled),
                io: measured.stall(Field::IoWaiting, Field::IoStalled),
            },
            oom_kills: count(Field::OomKills),
            rates: measured.rates(),
            latency: Latency {
                runqueue: measured.quantiles(Quantity::Runqueue),
                block_io: measured.quantiles(Quantity::BlockIo),
                tcp_rtt: measured.quantiles(Quantity::TcpRtt),
            },
        }
    }
}

impl Subject {
    /// Whether the cgroup still exists.
    pub fn life(&self) -> Life {
        if self.died.is_some() {
            Life::Ended
        } else {
            Life::Running
        }
    }

    /// Name of the runtime that runs the container.
    pub fn runtime_name(&self) -> Option<&'static str> {
        let reported = self.container.as_ref().map(|container| container.runtime);
        reported.map(|runtime| runtime.name()).or(self.runtime)
    }

    /// Whether it is a container, or a machine, which is reported like one.
    pub fn is_container(&self) -> bool {
        matches!(self.kind, CgroupKind::Container | CgroupKind::Machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_calendar_has_is_no_panic() {
        let day = Duration::from_secs(86_400);
        for (time, text) in [
            (SystemTime::UNIX_EPOCH, "1970-01-01T00:00:00.000Z"),
            (SystemTime::UNIX_EPOCH - day, "1970-01-01T00:00:00.000Z"),
            (SystemTime::UNIX_EPOCH + day, "1970-01-02T00:00:00.000Z"),
            (
                SystemTime::UNIX_EPOCH + day * 3_000_000,
                "9999-12-31T23:59:59.999Z",
            ),
        ] {
            assert_eq!(rfc3339(time), text);
        }
        assert_eq!(seconds(-1.0), None);
        assert_eq!(seconds(f64::NAN), None);
        assert_eq!(seconds(1e300), None);
    }
}
