//! Container runtimes that the agent follows, and the state of their connections.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    exposition::{Encoder, Family, LabelSet, Labels, MetricKind, Unit, Value},
    runtime::SocketStatus,
};

const fn family(name: &'static str, help: &'static str, kind: MetricKind) -> Family {
    Family {
        name,
        help,
        kind,
        unit: Unit::None,
        labels: &["runtime"],
        origin: "the agent",
        oracle: "servers that misbehave, in the tests of collector/src/runtime.rs",
    }
}

pub(super) const UP: Family = Family {
    labels: &["runtime", "socket"],
    ..family(
        "cgmeter_runtime_up",
        "Whether a container runtime answers (1) or not (0); the log has the reason.",
        MetricKind::Gauge,
    )
};
pub(super) const REQUESTS: Family = Family {
    labels: &["runtime", "result"],
    ..family(
        "cgmeter_runtime_requests_total",
        "Requests to a container runtime by result; malformed events count as invalid.",
        MetricKind::Counter,
    )
};
pub(super) const SECONDS: Family = Family {
    unit: Unit::Seconds,
    ..family(
        "cgmeter_runtime_request_seconds_total",
        "Total duration of requests to a container runtime.",
        MetricKind::Counter,
    )
};
pub(super) const CONTAINERS: Family = Family {
    labels: &["runtime", "socket"],
    ..family(
        "cgmeter_runtime_containers",
        "Number of containers of a runtime, including ended ones.",
        MetricKind::Gauge,
    )
};
pub(super) const REFUSED: Family = Family {
    labels: &[],
    ..family(
        "cgmeter_runtime_containers_refused_total",
        "Records of containers that were dropped because there were too many.",
        MetricKind::Counter,
    )
};

/// Counters of all sockets of one runtime.
#[derive(Debug, Default)]
struct Sum {
    results: BTreeMap<&'static str, u64>,
    nanos: u64,
}

/// One runtime at one socket.
#[derive(Debug)]
struct Known {
    name: &'static str,
    socket: String,
    up: bool,
    /// If it is up.
    version: Option<String>,
    containers: u64,
}

/// State of the runtimes at one moment.
#[derive(Debug)]
pub struct RuntimesReport {
    sums: BTreeMap<&'static str, Sum>,
    /// Runtimes that have been contacted.
    known: Vec<Known>,
    refused: u64,
}

/// How a value is read from a runtime's state.
type ReadKnown = fn(&Known) -> u64;

impl RuntimesReport {
    /// Makes the report of all followed runtimes. `refused` counts records of containers that were
    /// dropped because there were too many.
    pub fn new(statuses: &[Arc<SocketStatus>], refused: u64) -> Self {
        let mut sums: BTreeMap<&'static str, Sum> = BTreeMap::new();
        let mut known = Vec::new();
        for status in statuses {
            let reported = status.reported();
            let name = reported.runtime.name();
            let sum = sums.entry(name).or_default();
            for (result, count) in status.results() {
                *sum.results.entry(result).or_default() += count;
            }
            sum.nanos += u64::try_from(status.waited().as_nanos()).unwrap_or(u64::MAX);
            if let Some(up) = reported.up {
                known.push(Known {
                    name,
                    socket: status.socket().to_string_lossy().into_owned(),
                    up,
                    version: up.then_some(reported.text),
                    containers: status.containers() as u64,
                });
            }
        }
        Self {
            sums,
            known,
            refused,
        }
    }

    /// Returns name, socket and state of the runtimes that have been contacted.
    pub fn up(&self) -> impl Iterator<Item = (&'static str, &str, bool)> {
        let known = self.known.iter();
        known.map(|known| (known.name, known.socket.as_str(), known.up))
    }

    /// The version of a runtime that answers.
    pub(super) fn version(&self, name: &str) -> Option<&str> {
        let mut of_name = self.known.iter().filter(|known| known.name == name);
        of_name.find_map(|known| known.version.as_deref())
    }

    /// Encodes the families.
    pub(super) fn encode(&self, out: &mut dyn Encoder) {
        let none = LabelSet::empty();
        let read: [(&Family, ReadKnown); 2] = [
            (&UP, |known| u64::from(known.up)),
            (&CONTAINERS, |known| known.containers),
        ];
        for (family, read) in read {
            out.family(family);
            for known in &self.known {
                let labels = [("runtime", known.name), ("socket", known.socket.as_str())];
                out.sample(Labels::new(&none, &labels), Value::Count(read(known)));
            }
        }
        out.family(&REQUESTS);
        for (name, sum) in &self.sums {
            for (result, count) in &sum.results {
                let labels = [("runtime", *name), ("result", *result)];
                out.sample(Labels::new(&none, &labels), Value::Count(*count));
            }
        }
        out.family(&SECONDS);
        for (name, sum) in &self.sums {
            let labels = [("runtime", *name)];
            out.sample(Labels::new(&none, &labels), Value::Nanos(sum.nanos));
        }
        out.family(&REFUSED);
        out.sample(Labels::new(&none, &[]), Value::Count(self.refused));
    }
}
