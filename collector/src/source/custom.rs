//! Custom metrics: an application's own metrics, served with the labels of its container.
//!
//! They come from two places: an application's own Prometheus endpoint, requested from inside its
//! network namespace (`worker`), and text files in a directory (`textfile`). Each has its own
//! thread with limits of time and size, and puts its results into the `store`. The `index` merges
//! the families of all containers. A scrape reads the latest results and waits for nothing.
//!
//! A plain value appears twice: in `container_custom_metric` with its name as a label, and under
//! its own name with `--custom.prefix`. Histograms and summaries appear only under their own names.
//! The metrics of a cgroup's application end with the cgroup.
//!
//! Invariants: a reader of the store never waits for an application or a file. What an application
//! exports is bounded, parsed and renamed before it gets here. Only ports in the container's own
//! network namespace are requested; those of the host's only if `--custom.host-network` allows it.
//! Oracle: the tests' own endpoints and files (tests/live/custom.rs).

mod endpoint;
mod enter;
mod fetch;
mod index;
mod options;
mod owners;
mod parse;
mod series;
mod store;
mod targets;
mod textfile;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use super::{
    Change, FAMILIES as OWN, Inputs, LIFECYCLE_FAMILIES, Reading, Registration, SOURCES, Source,
    values::PerNode,
};
use crate::{
    cgroup::{Node, NodeId, Nodes, ROOT, Tree, printable},
    exposition::{Encoder, Family, LabelSet, Labels, Metadata, MetricKind, Points, Unit, Value},
    kernel::programs::Requirement,
};
pub use endpoint::{Endpoint, EndpointRule, path_of};
use index::{Index, Input};
pub use options::CustomOptions;
use owners::Owners;
use store::{CustomCounters, EndpointKey, Reason, RequestOutcome, Store};
use targets::Targets;
use textfile::TextFileReader;

const fn family(name: &'static str, help: &'static str, kind: MetricKind) -> Family {
    Family {
        name,
        help,
        kind,
        unit: Unit::None,
        labels: &["port", "path"],
        origin: "the agent",
        oracle: "the tests' own endpoints",
    }
}

const METRIC: Family = Family {
    labels: &["metric_name"],
    origin: "the application's endpoint, or a text file",
    ..family(
        "container_custom_metric",
        "Plain values of an application's own metrics, by name, with the application's labels. \
         Every family is also served under its own name with the prefix --custom.prefix.",
        MetricKind::Gauge,
    )
};
const UP: Family = family(
    "container_custom_up",
    "Whether an application's endpoint answered the last request (1) or not (0).",
    MetricKind::Gauge,
);
const SAMPLES: Family = family(
    "container_custom_samples",
    "Number of samples in an endpoint's last answer; 0 if the request failed.",
    MetricKind::Gauge,
);
const DURATION: Family = Family {
    unit: Unit::Seconds,
    ..family(
        "container_custom_scrape_duration_seconds",
        "Duration of the last request to an endpoint.",
        MetricKind::Gauge,
    )
};
const SCRAPES: Family = Family {
    labels: &["result"],
    ..family(
        "cgmeter_custom_scrapes_total",
        "Requests to applications' endpoints, by result.",
        MetricKind::Counter,
    )
};
const ERRORS: Family = Family {
    labels: &["reason"],
    ..family(
        "cgmeter_custom_errors_total",
        "Errors of custom metrics by reason; the log has the details. A conflict, a missing owner \
         and samples beyond a cgroup's limit count once while they last.",
        MetricKind::Counter,
    )
};
const FILE_TIME: Family = Family {
    labels: &["file"],
    unit: Unit::Seconds,
    oracle: "the file's own time",
    ..family(
        "cgmeter_custom_file_mtime_seconds",
        "Modification time of each text file in --custom.textfile-directory that could be read.",
        MetricKind::Gauge,
    )
};

const FAMILIES: [&Family; 7] = [
    &METRIC, &UP, &SAMPLES, &DURATION, &SCRAPES, &ERRORS, &FILE_TIME,
];

/// Registers the source `custom` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "custom",
        required: &[],
        optional: &[],
    },
    families: || FAMILIES.to_vec(),
    build: |builder| {
        let root = builder.hierarchies.unified.path.clone();
        Ok(Box::new(Custom::new(builder.custom.clone(), root)?))
    },
};

/// How a family is read from the result of requesting an endpoint.
type Read = fn(&RequestOutcome) -> Value;

struct Custom {
    options: CustomOptions,
    store: Store,
    targets: Targets,
    _reader: Option<TextFileReader>,
    /// The store's change counter as of the index.
    changes: Option<u64>,
    index: Arc<Index>,
    /// Owners in text files that do not exist.
    lost: BTreeSet<String>,
    names: BTreeSet<String>,
    outcomes: Arc<RequestOutcomes>,
    files: Arc<BTreeMap<String, SystemTime>>,
    counters: CustomCounters,
    /// When the next part of the index becomes too old.
    expiry: Option<Instant>,
}

/// Names of the agent's own samples. Those that are registered elsewhere begin with `cgmeter_` or
/// `process_`.
fn own_names() -> BTreeSet<String> {
    let families = SOURCES
        .iter()
        .flat_map(|source| (source.families)())
        .chain(LIFECYCLE_FAMILIES.iter().chain(OWN).copied());
    let mut names = BTreeSet::new();
    for family in families {
        let suffixes = family.kind.suffixes().iter();
        names.extend(suffixes.map(|suffix| format!("{}{suffix}", family.name)));
        // The name of a counter in OpenMetrics.
        names.extend(family.name.strip_suffix("_total").map(str::to_owned));
    }
    names
}

impl Custom {
    fn new(options: CustomOptions, root: PathBuf) -> Result<Self> {
        let store = Store::default();
        let reader = options
            .textfile_directory
            .clone()
            .map(|directory| TextFileReader::start(directory, &options, store.clone()))
            .transpose()
            .context("starting the thread that reads text files")?;
        Ok(Self {
            targets: Targets::new(options.clone(), root, store.clone()),
            options,
            store,
            _reader: reader,
            changes: None,
            index: Arc::default(),
            lost: BTreeSet::new(),
            names: own_names(),
            outcomes: Arc::default(),
            files: Arc::default(),
            counters: CustomCounters::default(),
            expiry: None,
        })
    }

    /// Reads the store, and rebuilds the index if necessary.
    fn refresh(&mut self, tree: &Tree, renew: bool) {
        let now = Instant::now();
        let store = self.store.clone();
        let mut contents = store.lock();
        let stale = self.expiry.is_some_and(|expiry| expiry <= now);
        let owned = contents
            .files
            .values()
            .any(|file| file.families.iter().any(|(owner, _)| owner.is_some()));
        if !renew && !stale && !owned && self.changes == Some(contents.changes) {
            self.counters = contents.counters.clone();
            return;
        }
        self.changes = Some(contents.changes);
        self.expiry = None;
        let mut outcomes = Vec::new();
        let mut inputs = Vec::new();
        let mut ends = Vec::new();
        for (key, outcome) in &contents.outcomes {
            let node = self.targets.node(key.cgroup);
            let Some((number, node)) = node.and_then(|number| Some((number, tree.node(number)?)))
            else {
                continue;
            };
            outcomes.push((number, key.clone(), outcome.clone()));
            let Some((at, families)) = &outcome.good else {
                continue;
            };
            let end = *at + outcome.age;
            if end > now {
                ends.push(end);
                inputs.push(input(number, node, families));
            }
        }
        self.outcomes = Arc::new(outcomes);
        let mut lost = BTreeSet::new();
        let mut files = BTreeMap::new();
        let owners = owned.then(|| Owners::new(tree));
        for (name, file) in &contents.files {
            files.insert(name.clone(), file.modified);
            // A modification time in the future counts as new.
            let age = file.modified.elapsed().unwrap_or_default();
            let Some(left) = self
                .options
                .file_age()
                .checked_sub(age)
                .filter(|left| !left.is_zero())
            else {
                continue;
            };
            ends.push(now + left);
            for (owner, families) in &file.families {
                let number = match (owner, &owners) {
                    (Some(owner), Some(owners)) => owners.find(owner),
                    _ => Some(ROOT),
                };
                match number.and_then(|number| Some((number, tree.node(number)?))) {
                    Some((number, node)) => inputs.push(input(number, node, families)),
                    None => {
                        lost.insert(format!("{name}: {owner:?}"));
                    }
                }
            }
        }
        self.files = Arc::new(files);
        self.expiry = ends.into_iter().min();
        for owner in lost.difference(&self.lost) {
            contents.counters.add(Reason::Owner, 1);
            tracing::warn!("custom metrics: {owner} does not exist, or is not exported");
        }
        self.lost = lost;
        let names = &self.names;
        let taken = |name: &str| {
            names.contains(name) || name.starts_with("cgmeter_") || name.starts_with("process_")
        };
        let options = &self.options;
        let index = Index::new(
            inputs,
            &options.prefix,
            options.max_samples,
            &taken,
            &self.index,
        );
        for (message, &(reason, count)) in &index.losses {
            if !self.index.losses.contains_key(message) {
                contents.counters.add(reason, count);
                tracing::warn!("custom metrics: left out: {message}");
            }
        }
        self.index = Arc::new(index);
        self.counters = contents.counters.clone();
    }
}

fn input(number: NodeId, node: &Node, families: &Arc<Vec<series::AppFamily>>) -> Input {
    Input {
        node: number,
        cgroup: node.id,
        path: printable(&node.path),
        families: Arc::clone(families),
    }
}

impl Source for Custom {
    fn name(&self) -> &'static str {
        "custom"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        // All values are stored with the cgroup's id, so a reused node number does no harm.
        Vec::new()
    }

    fn change(&mut self, _: &Change<'_>) {}

    fn collect(&mut self, inputs: &Inputs<'_>) -> Result<()> {
        let changed = self.targets.follow(inputs.tree)?;
        self.refresh(inputs.tree, changed);
        Ok(())
    }

    fn reading(&self) -> Box<dyn Reading> {
        Box::new(CustomReading {
            index: Arc::clone(&self.index),
            outcomes: Arc::clone(&self.outcomes),
            files: Arc::clone(&self.files),
            counters: self.counters.clone(),
        })
    }
}

/// Latest results of endpoints: node, endpoint, result.
type RequestOutcomes = Vec<(NodeId, EndpointKey, RequestOutcome)>;

/// What the source serves in one frame.
struct CustomReading {
    index: Arc<Index>,
    outcomes: Arc<RequestOutcomes>,
    files: Arc<BTreeMap<String, SystemTime>>,
    counters: CustomCounters,
}

impl Reading for CustomReading {
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
        // The index may contain a cgroup that has been removed since.
        let labels = |number: NodeId, cgroup: u64| {
            nodes
                .node(number)
                .filter(|node| node.id == cgroup && node.died.is_none() && node.exported)
                .map(|node| &node.labels)
        };
        out.family(&METRIC);
        for group in self
            .index
            .groups
            .iter()
            .filter(|group| group.kind.is_plain())
        {
            for member in &group.members {
                let Some(of) = labels(member.node, member.cgroup) else {
                    continue;
                };
                let of = of.with([("metric_name", group.name.as_str())]);
                for series in member.series() {
                    if let Points::Single(value) = series.points {
                        let labels = Labels::with_own(&of, &series.labels);
                        out.sample(labels, Value::Float(value));
                    }
                }
            }
        }
        for group in &self.index.groups {
            out.begin(&Metadata {
                name: &group.full,
                help: &group.help,
                kind: group.kind,
                unit: Unit::None,
                base_is_free: group.alone,
            });
            for member in &group.members {
                let Some(of) = labels(member.node, member.cgroup) else {
                    continue;
                };
                for series in member.series() {
                    let labels = Labels::with_own(of, &series.labels);
                    match &series.points {
                        Points::Single(value) => out.sample(labels, Value::Float(*value)),
                        Points::Distribution(distribution) => {
                            out.distribution(labels, distribution);
                        }
                    }
                }
            }
        }
        self.encode_outcomes(&labels, out);
        self.encode_counters(out);
    }
}

impl CustomReading {
    fn encode_outcomes<'a>(
        &self,
        labels: &dyn Fn(NodeId, u64) -> Option<&'a LabelSet>,
        out: &mut dyn Encoder,
    ) {
        let families: [(&Family, Read); 3] = [
            (&UP, |outcome| Value::Count(u64::from(outcome.up))),
            (&SAMPLES, |outcome| Value::Count(outcome.samples as u64)),
            (&DURATION, |outcome| nanos(outcome.took)),
        ];
        for (family, read) in families {
            out.family(family);
            for (number, key, outcome) in &*self.outcomes {
                if let Some(of) = labels(*number, key.cgroup) {
                    let port = key.port.to_string();
                    out.sample(
                        Labels::new(of, &[("port", &port), ("path", &key.path)]),
                        read(outcome),
                    );
                }
            }
        }
    }

    fn encode_counters(&self, out: &mut dyn Encoder) {
        let none = LabelSet::empty();
        out.family(&SCRAPES);
        let results = [
            ("answered", self.counters.good),
            ("failed", self.counters.failed),
        ];
        for (result, count) in results.into_iter().filter(|(_, count)| *count > 0) {
            out.sample(
                Labels::new(&none, &[("result", result)]),
                Value::Count(count),
            );
        }
        out.family(&ERRORS);
        for (reason, &count) in &self.counters.errors {
            out.sample(
                Labels::new(&none, &[("reason", reason.name())]),
                Value::Count(count),
            );
        }
        out.family(&FILE_TIME);
        for (file, modified) in &*self.files {
            let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
            out.sample(Labels::new(&none, &[("file", file)]), nanos(since));
        }
    }
}

fn nanos(duration: Duration) -> Value {
    Value::Nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}
