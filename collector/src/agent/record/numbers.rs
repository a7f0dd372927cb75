//! Numbers of one cgroup, taken from the families that are served.
//!
//! Invariant: a number comes from one family, found by its name, from the same call that encodes
//! the text. A record can't contain anything that `/metrics` doesn't. Series of a family that
//! differ by device, interface or the like are summed.

use std::collections::{BTreeMap, HashMap};

use collector_common::histogram::BUCKETS;

use crate::{
    cgroup::NAME_LABELS,
    exposition::{Distribution, Encoder, Histogram, Labels, Metadata, Value},
};

/// A number. A cgroup has one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Field {
    CpuUsage,
    CpuUser,
    CpuSystem,
    Runqueue,
    Periods,
    ThrottledPeriods,
    Throttled,
    MemoryUsage,
    WorkingSet,
    Rss,
    Cache,
    Swap,
    MemoryPeak,
    MemoryLimit,
    InterfaceReceive,
    InterfaceTransmit,
    SocketReceive,
    SocketTransmit,
    Retransmits,
    DiskRead,
    DiskWrite,
    DiskReads,
    DiskWrites,
    Processes,
    Threads,
    ThreadsMax,
    Descriptors,
    Sockets,
    OomKills,
    CpuWaiting,
    CpuStalled,
    MemoryWaiting,
    MemoryStalled,
    IoWaiting,
    IoStalled,
    Created,
    Started,
}

const FIELDS: usize = Field::Started as usize + 1;

/// A quantity with a histogram for each cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Quantity {
    Runqueue,
    BlockIo,
    TcpRtt,
}

const QUANTITIES: usize = Quantity::TcpRtt as usize + 1;

/// What becomes of a family's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Take {
    Field(Field),
    /// A counter whose series appears with its first event: without a series it is 0.
    Events(Field),
    Histogram(Quantity),
    /// Labels that identify the cgroup.
    Identity,
    Custom,
}

/// The families that a record is made from.
const FAMILIES: &[(&str, Take)] = &[
    ("container_last_seen", Take::Identity),
    ("container_info", Take::Identity),
    ("container_custom_metric", Take::Custom),
    (
        "container_cpu_usage_seconds_total",
        Take::Field(Field::CpuUsage),
    ),
    (
        "container_cpu_user_seconds_total",
        Take::Field(Field::CpuUser),
    ),
    (
        "container_cpu_system_seconds_total",
        Take::Field(Field::CpuSystem),
    ),
    (
        "container_cpu_schedstat_runqueue_seconds_total",
        Take::Field(Field::Runqueue),
    ),
    (
        "container_sched_runqueue_latency_seconds",
        Take::Histogram(Quantity::Runqueue),
    ),
    (
        "container_cpu_cfs_periods_total",
        Take::Field(Field::Periods),
    ),
    (
        "container_cpu_cfs_throttled_periods_total",
        Take::Field(Field::ThrottledPeriods),
    ),
    (
        "container_cpu_cfs_throttled_seconds_total",
        Take::Field(Field::Throttled),
    ),
    (
        "container_memory_usage_bytes",
        Take::Field(Field::MemoryUsage),
    ),
    (
        "container_memory_working_set_bytes",
        Take::Field(Field::WorkingSet),
    ),
    ("container_memory_rss", Take::Field(Field::Rss)),
    ("container_memory_cache", Take::Field(Field::Cache)),
    ("container_memory_swap", Take::Field(Field::Swap)),
    (
        "container_memory_max_usage_bytes",
        Take::Field(Field::MemoryPeak),
    ),
    (
        "container_spec_memory_limit_bytes",
        Take::Field(Field::MemoryLimit),
    ),
    (
        "container_network_receive_bytes_total",
        Take::Field(Field::InterfaceReceive),
    ),
    (
        "container_network_transmit_bytes_total",
        Take::Field(Field::InterfaceTransmit),
    ),
    (
        "container_socket_receive_bytes_total",
        Take::Events(Field::SocketReceive),
    ),
    (
        "container_socket_transmit_bytes_total",
        Take::Events(Field::SocketTransmit),
    ),
    (
        "container_tcp_retransmits_total",
        Take::Field(Field::Retransmits),
    ),
    (
        "container_tcp_rtt_seconds",
        Take::Histogram(Quantity::TcpRtt),
    ),
    (
        "container_fs_reads_bytes_total",
        Take::Events(Field::DiskRead),
    ),
    (
        "container_fs_writes_bytes_total",
        Take::Events(Field::DiskWrite),
    ),
    ("container_fs_reads_total", Take::Events(Field::DiskReads)),
    ("container_fs_writes_total", Take::Events(Field::DiskWrites)),
    (
        "container_block_io_latency_seconds",
        Take::Histogram(Quantity::BlockIo),
    ),
    ("container_processes", Take::Field(Field::Processes)),
    ("container_threads", Take::Field(Field::Threads)),
    ("container_threads_max", Take::Field(Field::ThreadsMax)),
    (
        "container_file_descriptors",
        Take::Field(Field::Descriptors),
    ),
    ("container_sockets", Take::Field(Field::Sockets)),
    ("container_oom_events_total", Take::Field(Field::OomKills)),
    (
        "container_pressure_cpu_waiting_seconds_total",
        Take::Field(Field::CpuWaiting),
    ),
    (
        "container_pressure_cpu_stalled_seconds_total",
        Take::Field(Field::CpuStalled),
    ),
    (
        "container_pressure_memory_waiting_seconds_total",
        Take::Field(Field::MemoryWaiting),
    ),
    (
        "container_pressure_memory_stalled_seconds_total",
        Take::Field(Field::MemoryStalled),
    ),
    (
        "container_pressure_io_waiting_seconds_total",
        Take::Field(Field::IoWaiting),
    ),
    (
        "container_pressure_io_stalled_seconds_total",
        Take::Field(Field::IoStalled),
    ),
    (
        "container_creation_time_seconds",
        Take::Field(Field::Created),
    ),
    ("container_start_time_seconds", Take::Field(Field::Started)),
];

/// Which fields and quantities had a family in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    fields: [bool; FIELDS],
    histograms: [bool; QUANTITIES],
}

impl Families {
    const NONE: Self = Self {
        fields: [false; FIELDS],
        histograms: [false; QUANTITIES],
    };
    /// All of them: for a cgroup that did not exist.
    pub const ALL: Self = Self {
        fields: [true; FIELDS],
        histograms: [true; QUANTITIES],
    };
}

/// Numbers of a cgroup. `None` stands for what is not served.
#[derive(Clone, Debug)]
pub struct Numbers {
    values: [Option<Value>; FIELDS],
    histograms: [Option<Box<[u64; BUCKETS]>>; QUANTITIES],
    /// Labels that identify the cgroup, without `id`.
    pub identity: BTreeMap<String, String>,
    /// Custom values by `metric_name`, and by further labels if there are any.
    pub custom: BTreeMap<String, f64>,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            values: [None; FIELDS],
            histograms: [const { None }; QUANTITIES],
            identity: BTreeMap::new(),
            custom: BTreeMap::new(),
        }
    }
}

fn number(value: Value) -> f64 {
    match value {
        Value::Count(count) => count as f64,
        Value::Nanos(ns) => ns as f64 / 1e9,
        Value::Float(float) => float,
    }
}

impl Numbers {
    fn add(&mut self, field: Field, value: Value) {
        let sum = &mut self.values[field as usize];
        *sum = Some(match (*sum, value) {
            (None, value) => value,
            (Some(Value::Count(a)), Value::Count(b)) => Value::Count(a.saturating_add(b)),
            (Some(Value::Nanos(a)), Value::Nanos(b)) => Value::Nanos(a.saturating_add(b)),
            (Some(a), b) => Value::Float(number(a) + number(b)),
        });
    }

    /// Returns a number in its unit: seconds, bytes or events.
    pub fn float(&self, field: Field) -> Option<f64> {
        self.values[field as usize].map(number)
    }

    /// Returns a whole number.
    pub fn count(&self, field: Field) -> Option<u64> {
        match self.values[field as usize]? {
            Value::Count(count) => Some(count),
            // No field that is read as a whole number is measured in seconds.
            Value::Nanos(_) => None,
            Value::Float(float) => Some(float as u64),
        }
    }

    /// Returns the events by bucket.
    pub fn histogram(&self, quantity: Quantity) -> Option<&[u64; BUCKETS]> {
        self.histograms[quantity as usize].as_deref()
    }

    /// Returns the growth since `earlier`. A series that did not exist then counts from 0, but not one
    /// of a family that was not `served`, because its source could not be read.
    pub fn since(&self, earlier: &Self, served: &Families) -> Self {
        let mut change = Self::default();
        for (field, now) in self.values.iter().enumerate() {
            let now = now.filter(|_| served.fields[field]);
            change.values[field] = now.map(|now| match (now, earlier.values[field]) {
                (now, None) => now,
                (Value::Count(now), Some(Value::Count(then))) => {
                    Value::Count(now.saturating_sub(then))
                }
                (Value::Nanos(now), Some(Value::Nanos(then))) => {
                    Value::Nanos(now.saturating_sub(then))
                }
                (now, Some(then)) => Value::Float((number(now) - number(then)).max(0.0)),
            });
        }
        for (quantity, now) in self.histograms.iter().enumerate() {
            let now = now.as_ref().filter(|_| served.histograms[quantity]);
            change.histograms[quantity] = now.map(|now| {
                let mut events = now.clone();
                if let Some(then) = &earlier.histograms[quantity] {
                    for (events, then) in events.iter_mut().zip(then.iter()) {
                        *events = events.saturating_sub(*then);
                    }
                }
                events
            });
        }
        change
    }
}

/// An encoder that takes the numbers of all cgroups.
#[derive(Debug)]
pub struct Capture {
    takes: HashMap<&'static str, Take>,
    take: Option<Take>,
    /// Fields that are 0 where they are not served, because their source runs.
    events: Vec<Field>,
    served: Families,
    by_id: HashMap<String, usize>,
    numbers: Vec<Numbers>,
}

impl Capture {
    /// Prepares for the cgroups with these values of the label `id`.
    pub fn new<'a>(ids: impl Iterator<Item = &'a str>) -> Self {
        let by_id: HashMap<String, usize> = ids.map(str::to_owned).zip(0..).collect();
        Self {
            takes: FAMILIES.iter().copied().collect(),
            take: None,
            events: Vec::new(),
            served: Families::NONE,
            numbers: vec![Numbers::default(); by_id.len()],
            by_id,
        }
    }

    /// Returns the numbers, in the order of the ids, and what was served at all.
    pub fn finish(mut self) -> (HashMap<String, usize>, Vec<Numbers>, Families) {
        for numbers in &mut self.numbers {
            for &field in &self.events {
                numbers.values[field as usize].get_or_insert(Value::Count(0));
            }
        }
        (self.by_id, self.numbers, self.served)
    }

    fn of(&mut self, labels: Labels<'_>) -> Option<&mut Numbers> {
        let number = *self.by_id.get(labels.get("id")?.as_ref())?;
        self.numbers.get_mut(number)
    }
}

impl Encoder for Capture {
    fn begin(&mut self, metadata: &Metadata<'_>) {
        self.take = self.takes.get(metadata.name).copied();
        match self.take {
            Some(Take::Field(field)) => self.served.fields[field as usize] = true,
            Some(Take::Events(field)) => {
                self.served.fields[field as usize] = true;
                self.events.push(field);
            }
            Some(Take::Histogram(quantity)) => self.served.histograms[quantity as usize] = true,
            Some(Take::Identity | Take::Custom) | None => {}
        }
    }

    fn sample(&mut self, labels: Labels<'_>, value: Value) {
        let Some(take) = self.take else {
            return;
        };
        let Some(numbers) = self.of(labels) else {
            return;
        };
        match take {
            Take::Field(field) | Take::Events(field) => numbers.add(field, value),
            Take::Identity => {
                let others = labels
                    .iter()
                    .filter(|(name, value)| *name != "id" && !value.is_empty());
                let others = others.map(|(name, value)| (name.to_owned(), value.into_owned()));
                numbers.identity.extend(others);
            }
            Take::Custom => {
                let key = custom_key(labels, &numbers.identity);
                numbers.custom.insert(key, number(value));
            }
            Take::Histogram(_) => {}
        }
    }

    fn histogram(&mut self, labels: Labels<'_>, histogram: Histogram<'_>) {
        let Some(Take::Histogram(quantity)) = self.take else {
            return;
        };
        let Some(numbers) = self.of(labels) else {
            return;
        };
        let sums = numbers.histograms[quantity as usize].get_or_insert_with(Default::default);
        for (sum, events) in sums.iter_mut().zip(histogram.buckets) {
            *sum += events;
        }
    }

    /// No field of a record is a distribution.
    fn distribution(&mut self, _: Labels<'_>, _: &Distribution) {}
}

/// Key of a custom value: its `metric_name`, followed by `{a="b"}` if the application gave it
/// labels of its own.
fn custom_key(labels: Labels<'_>, identity: &BTreeMap<String, String>) -> String {
    let mut key = labels.get("metric_name").unwrap_or_default().into_owned();
    let shared = |name: &str| {
        matches!(name, "id" | "metric_name")
            || identity.contains_key(name)
            || NAME_LABELS.contains(&name)
            || name.starts_with(super::LABEL_PREFIX)
    };
    let own: Vec<String> = labels
        .iter()
        .filter(|(name, _)| !shared(name))
        .map(|(name, value)| format!("{name}={value:?}"))
        .collect();
    if !own.is_empty() {
        key = format!("{key}{{{}}}", own.join(","));
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        exposition::{Family, LabelSet, MetricKind, Unit},
        source::{FAMILIES as OWN, LIFECYCLE_FAMILIES, SOURCES},
    };

    #[test]
    fn every_family_is_served() {
        let sources = SOURCES.iter().flat_map(|source| (source.families)());
        let served: Vec<&str> = sources
            .chain(LIFECYCLE_FAMILIES.iter().chain(OWN).copied())
            .map(|family| family.name)
            .collect();
        for (name, take) in FAMILIES {
            // These two come from sources that may be off.
            let optional = ["container_info", "container_custom_metric"].contains(name);
            assert!(optional || served.contains(name), "{name}: {take:?}");
        }
    }

    fn family(name: &'static str) -> Family {
        Family {
            name,
            help: "",
            kind: MetricKind::Counter,
            unit: Unit::None,
            labels: &[],
            origin: "",
            oracle: "",
        }
    }

    #[test]
    fn series_are_summed_and_events_begin_at_0() {
        let mut capture = Capture::new(["/", "/a"].into_iter());
        let out: &mut dyn Encoder = &mut capture;
        out.family(&family("container_fs_reads_bytes_total"));
        for device in ["sda", "sdb"] {
            let labels = LabelSet::new(&[("id", "/a"), ("device", device)]);
            out.sample(Labels::new(&labels, &[]), Value::Count(3));
        }
        out.family(&family("container_custom_metric"));
        let labels = LabelSet::new(&[("id", "/a"), ("name", "x")]);
        out.sample(
            Labels::new(&labels, &[("metric_name", "plain")]),
            Value::Float(1.5),
        );
        let extra = [("metric_name", "queue"), ("of", "mail")];
        out.sample(Labels::new(&labels, &extra), Value::Count(2));
        let (by_id, numbers, served) = capture.finish();
        assert!(served.fields[Field::DiskRead as usize]);
        assert!(!served.fields[Field::DiskWrite as usize]);
        let a = &numbers[by_id["/a"]];
        assert_eq!(a.count(Field::DiskRead), Some(6));
        assert_eq!(numbers[by_id["/"]].count(Field::DiskRead), Some(0));
        assert_eq!(a.count(Field::DiskWrite), None, "no source serves it");
        let custom: Vec<_> = a.custom.iter().collect();
        assert_eq!(
            custom,
            [
                (&"plain".to_owned(), &1.5),
                (&"queue{of=\"mail\"}".to_owned(), &2.0)
            ]
        );
    }

    #[test]
    fn a_change_is_the_growth_since() {
        let numbers = |read: u64, events: Option<[u64; BUCKETS]>| {
            let mut numbers = Numbers::default();
            numbers.add(Field::DiskRead, Value::Count(read));
            numbers.add(Field::CpuUsage, Value::Nanos(read * 1_000_000_000));
            numbers.histograms[Quantity::TcpRtt as usize] = events.map(Box::new);
            numbers
        };
        let now = numbers(7, Some([2; BUCKETS]));
        let change = now.since(&numbers(3, None), &Families::ALL);
        assert_eq!(change.count(Field::DiskRead), Some(4));
        assert_eq!(change.float(Field::CpuUsage), Some(4.0));
        assert_eq!(change.float(Field::CpuUser), None);
        assert_eq!(change.histogram(Quantity::TcpRtt), Some(&[2; BUCKETS]));
        // A source could not be read then: all that it has counted since it began is no growth.
        let change = now.since(&Numbers::default(), &Families::NONE);
        assert_eq!(change.count(Field::DiskRead), None);
        assert_eq!(change.histogram(Quantity::TcpRtt), None);
    }
}
