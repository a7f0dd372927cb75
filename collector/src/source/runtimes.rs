//! The container runtimes that are followed, as the agent sees them.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    exposition::{Encoder, Family, Kind, LabelSet, Labels, Unit, Value},
    runtime::Status,
};

const fn family(name: &'static str, help: &'static str, kind: Kind) -> Family {
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
        "Whether a container runtime answers (1) or not (0); the log says why.",
        Kind::Gauge,
    )
};
pub(super) const REQUESTS: Family = Family {
    labels: &["runtime", "result"],
    ..family(
        "cgmeter_runtime_requests_total",
        "Requests to a container runtime by how they ended; events that make no sense count as invalid.",
        Kind::Counter,
    )
};
pub(super) const SECONDS: Family = Family {
    unit: Unit::Seconds,
    ..family(
        "cgmeter_runtime_request_seconds_total",
        "Time that requests to a container runtime have taken.",
        Kind::Counter,
    )
};
pub(super) const CONTAINERS: Family = Family {
    labels: &["runtime", "socket"],
    ..family(
        "cgmeter_runtime_containers",
        "Containers that a runtime has, those that have ended included.",
        Kind::Gauge,
    )
};
pub(super) const REFUSED: Family = Family {
    labels: &[],
    ..family(
        "cgmeter_runtime_containers_refused_total",
        "Records of containers that were not kept because there were too many.",
        Kind::Counter,
    )
};

/// What is told of one kind of runtime.
#[derive(Default)]
struct Sum {
    results: BTreeMap<&'static str, u64>,
    nanos: u64,
}

pub(super) fn encode(statuses: &[Arc<Status>], refused: u64, out: &mut dyn Encoder) {
    let none = LabelSet::empty();
    let mut sums: BTreeMap<&'static str, Sum> = BTreeMap::new();
    let known: Vec<_> = statuses
        .iter()
        .filter_map(|status| {
            let told = status.told();
            let name = told.runtime.name();
            let sum = sums.entry(name).or_default();
            for (result, count) in status.results() {
                *sum.results.entry(result).or_default() += count;
            }
            sum.nanos += u64::try_from(status.waited().as_nanos()).unwrap_or(u64::MAX);
            let socket = status.socket().to_string_lossy().into_owned();
            Some((name, socket, told.up?, status.containers() as u64))
        })
        .collect();
    out.family(&UP);
    for (name, socket, up, _) in &known {
        let labels = [("runtime", *name), ("socket", socket.as_str())];
        out.sample(Labels::new(&none, &labels), Value::Count(u64::from(*up)));
    }
    out.family(&REQUESTS);
    for (name, sum) in &sums {
        for (result, count) in &sum.results {
            let labels = [("runtime", *name), ("result", *result)];
            out.sample(Labels::new(&none, &labels), Value::Count(*count));
        }
    }
    out.family(&SECONDS);
    for (name, sum) in &sums {
        out.sample(
            Labels::new(&none, &[("runtime", *name)]),
            Value::Nanos(sum.nanos),
        );
    }
    out.family(&CONTAINERS);
    for (name, socket, _, containers) in &known {
        let labels = [("runtime", *name), ("socket", socket.as_str())];
        out.sample(Labels::new(&none, &labels), Value::Count(*containers));
    }
    out.family(&REFUSED);
    out.sample(Labels::new(&none, &[]), Value::Count(refused));
}
