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
mod fair;
mod fetch;
mod index;
mod lanes;
mod measure;
mod options;
mod owners;
mod parse;
mod series;
mod stopwatch;
mod store;
mod targets;
#[cfg(test)]
mod tests;
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
    exposition::{
        Encoder, Family, LabelSet, Labels, Metadata, MetricKind, Points, Unit, Value, line_size,
    },
    kernel::programs::Requirement,
};
pub use endpoint::{Endpoint, EndpointRule, path_of};
use index::{Index, Input, Limits};
pub use options::CustomOptions;
use owners::Owners;
use store::{CustomCounters, EndpointKey, Kept, Reason, RequestOutcome, Store};
use targets::{Targets, owner};
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
         and samples beyond a limit count once while they last.",
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

/// Room for what does not depend on the number of containers and files: metadata, and counters.
const FIXED: usize = 8 << 10;

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
    /// Owners in text files that do not exist, by file.
    lost: BTreeMap<String, LostOwners>,
    names: BTreeSet<String>,
    outcomes: Arc<RequestOutcomes>,
    files: Arc<Vec<(String, SystemTime)>>,
    counters: CustomCounters,
    /// When the next part of the index becomes too old.
    expiry: Option<Instant>,
}

/// Owners in a text file that do not exist.
#[derive(Debug, Default)]
struct LostOwners {
    count: usize,
    /// One of them, for the log.
    example: String,
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
            lost: BTreeMap::new(),
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
        let contents = &mut *contents;
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
        for (key, outcome) in &mut contents.outcomes {
            if let Some((at, _)) = &outcome.good {
                let end = *at + outcome.age;
                if end > now {
                    ends.push(end);
                } else {
                    outcome.good = None;
                }
            }
            let node = self.targets.node(key.cgroup);
            let Some((number, node)) = node.and_then(|number| Some((number, tree.node(number)?)))
            else {
                continue;
            };
            let kept = outcome.good.as_ref().map(|(_, kept)| kept);
            inputs.push(Input {
                owner: outcome.owner,
                about: size_of_outcome(node, key),
                ..input(tree, number, node, kept)
            });
            // A frame that lives on must not keep the answer in memory.
            let described = RequestOutcome {
                good: None,
                ..outcome.clone()
            };
            outcomes.push((inputs.len() - 1, (number, key.clone(), described)));
        }
        let mut lost: BTreeMap<String, LostOwners> = BTreeMap::new();
        let mut files = Vec::new();
        let owners = owned.then(|| Owners::new(tree));
        for (name, file) in &contents.files {
            if let Some(root) = tree.node(ROOT) {
                inputs.push(Input {
                    about: size_of_file(name),
                    ..input(tree, ROOT, root, None)
                });
                files.push((inputs.len() - 1, (name.clone(), file.modified)));
            }
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
            for (owner, kept) in &file.families {
                let number = match (owner, &owners) {
                    (Some(owner), Some(owners)) => owners.find(owner),
                    _ => Some(ROOT),
                };
                match number.and_then(|number| Some((number, tree.node(number)?))) {
                    Some((number, node)) => inputs.push(input(tree, number, node, Some(kept))),
                    None => {
                        let lost = lost.entry(name.clone()).or_default();
                        lost.count += 1;
                        if lost.example.is_empty() {
                            lost.example = format!("{owner:?}").chars().take(LONGEST).collect();
                        }
                    }
                }
            }
        }
        self.expiry = ends.into_iter().min();
        for (name, LostOwners { count, example }) in &lost {
            let before = self.lost.get(name).map_or(0, |lost| lost.count);
            contents
                .counters
                .add(Reason::Owner, count.saturating_sub(before));
            if before == 0 {
                tracing::warn!(
                    name,
                    count,
                    example,
                    "custom metrics: a text file has samples of cgroups or containers that do not \
                     exist, or are not exported"
                );
            }
        }
        self.lost = lost;
        let names = &self.names;
        let taken = |name: &str| {
            names.contains(name) || name.starts_with("cgmeter_") || name.starts_with("process_")
        };
        let options = &self.options;
        let limits = Limits {
            prefix: &options.prefix,
            plain: METRIC.name,
            samples: options.max_samples,
            bytes: options.max_bytes.saturating_sub(FIXED),
        };
        let index = Index::new(inputs, limits, &taken, &self.index);
        for ((path, reason), loss) in &index.losses {
            let before = self.index.losses.get(&(path.clone(), *reason));
            let count = before.map_or(0, |before| before.count);
            contents
                .counters
                .add(*reason, loss.count.saturating_sub(count));
            for message in &loss.messages {
                if before.is_none_or(|before| !before.messages.contains(message)) {
                    let count = loss.count;
                    tracing::warn!(cgroup = path, count, "custom metrics: left out: {message}");
                }
            }
        }
        let served = |number: &usize| !index.unserved.contains(number);
        let outcomes = outcomes.into_iter().filter(|(number, _)| served(number));
        self.outcomes = Arc::new(outcomes.map(|(_, outcome)| outcome).collect());
        let files = files.into_iter().filter(|(number, _)| served(number));
        self.files = Arc::new(files.map(|(_, file)| file).collect());
        self.index = Arc::new(index);
        self.counters = contents.counters.clone();
    }
}

/// Longest part of a text that is logged, characters.
const LONGEST: usize = 100;

fn input(tree: &Tree, number: NodeId, node: &Node, kept: Option<&Kept>) -> Input {
    Input {
        node: number,
        cgroup: node.id,
        path: printable(&node.path),
        owner: owner(tree, number).map_or(node.id, |owner| owner.id),
        labels: node.labels.clone(),
        families: kept
            .map(|kept| Arc::clone(&kept.families))
            .unwrap_or_default(),
        lost: kept.map_or(0, |kept| kept.lost),
        about: 0,
    }
}

/// Most bytes of the lines that describe an endpoint.
fn size_of_outcome(node: &Node, key: &EndpointKey) -> usize {
    // A path is ASCII, and escaping at most doubles it.
    let labels = node.labels.text_len() + ",port=\"65535\",path=\"\"".len() + 2 * key.path.len();
    let families = [&UP, &SAMPLES, &DURATION];
    let lines = families.map(|family| line_size(family.name.len(), labels, 0.0));
    lines.into_iter().sum()
}

/// Most bytes of the line that describes a text file.
fn size_of_file(name: &str) -> usize {
    line_size(
        FILE_TIME.name.len(),
        "file=\"\"".len() + 2 * name.len(),
        0.0,
    )
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
    files: Arc<Vec<(String, SystemTime)>>,
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
