//! Builds families from lines, and renames their labels.
//!
//! A large text makes many series: a series under construction takes little more memory than a
//! finished one.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

use crate::{
    cgroup::NAME_LABELS,
    exposition::{Distribution, LabelSet, MetricKind, Points},
};

/// Whether a label is the cgroup's, or has the metric's name. An application's label with such a name is renamed as
/// Prometheus does.
fn is_reserved(label: &str) -> bool {
    matches!(label, "id" | "metric_name") || NAME_LABELS.contains(&label)
}

/// Prefix of the names of a container's allowed labels.
const ALLOWED: &str = "container_label_";

/// Owner of a sample in a text file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A cgroup, by its path.
    Path(String),
    /// A container, by its id or a prefix of it.
    ContainerId(String),
    /// A container, by its name.
    Container(String),
}

type Make = fn(String) -> Owner;

/// Labels by which a text file names the owner of a sample, in order of precedence.
const OWNERS: [(&str, Make); 3] = [
    ("id", Owner::Path),
    ("container_id", Owner::ContainerId),
    ("container", Owner::Container),
];

/// Finds the owner of a sample in its labels.
pub fn owner_of(labels: &[(String, String)]) -> Option<Owner> {
    OWNERS.iter().find_map(|(name, owner)| {
        let (_, value) = labels
            .iter()
            .find(|(found, value)| found == name && !value.is_empty())?;
        Some(owner(value.clone()))
    })
}

/// A family of an application.
#[derive(Clone, Debug, PartialEq)]
pub struct AppFamily {
    /// Name of its samples; for a histogram or summary without their suffixes.
    pub name: String,
    /// Help text as given; may be empty.
    pub help: String,
    /// Type of the family.
    pub kind: MetricKind,
    /// The family's series.
    pub series: Vec<AppSeries>,
}

impl AppFamily {
    /// Returns the number of its samples.
    pub fn samples(&self) -> usize {
        self.series
            .iter()
            .map(|series| series.points.samples())
            .sum()
    }
}

/// One series: labels and values.
#[derive(Clone, Debug, PartialEq)]
pub struct AppSeries {
    /// Owner, if a text file names one.
    pub owner: Option<Owner>,
    /// Labels of the application; those with names of the cgroup's labels are renamed.
    pub labels: LabelSet,
    /// The series' values.
    pub points: Points,
}

/// Names and values of labels.
pub type LabelPairs = Vec<(String, String)>;

/// A series under construction.
#[derive(Debug)]
struct Part {
    line: usize,
    owner: Option<Owner>,
    labels: LabelSet,
    single: Option<f64>,
    distribution: Distribution,
}

/// Lines that could not be parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bad {
    /// Number of bad lines.
    pub count: usize,
    /// The first bad lines: line number, from 1, and what is wrong.
    pub first: Vec<(usize, &'static str)>,
}

impl Bad {
    pub(super) fn add(&mut self, line: usize, what: &'static str) {
        self.count += 1;
        if self.first.len() < 3 {
            self.first.push((line, what));
        }
    }
}

/// A family under construction.
#[derive(Debug)]
pub struct FamilyDraft {
    /// Name of the family, as in [`AppFamily`].
    pub name: String,
    /// Help text of the family, as in [`AppFamily`].
    pub help: String,
    /// `None` until the type is declared or the first sample is found.
    pub kind: Option<MetricKind>,
    parts: Vec<Part>,
    /// Places in `parts` by a hash of owner and labels, if there are more than [`FEW`].
    index: HashMap<u64, usize>,
}

/// Parts that are looked through one after the other.
const FEW: usize = 8;

fn hash(owner: Option<&Owner>, labels: &LabelSet) -> u64 {
    static RANDOM: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    RANDOM.hash_one((owner, labels))
}

/// Removes the owner's labels and empty ones, renames reserved names, and sorts.
fn settle(labels: LabelPairs, owned: bool) -> LabelSet {
    let mut kept: LabelPairs = labels
        .into_iter()
        .filter(|(name, value)| {
            let owner = owned && OWNERS.iter().any(|(owner, _)| owner == name);
            !value.is_empty() && !owner
        })
        .collect();
    for at in 0..kept.len() {
        while is_reserved(&kept[at].0)
            || kept[at].0.starts_with(ALLOWED)
            || kept
                .iter()
                .enumerate()
                .any(|(other, (name, _))| other != at && *name == kept[at].0)
        {
            kept[at].0.insert_str(0, "exported_");
        }
    }
    kept.sort();
    let pairs = kept.iter();
    LabelSet::empty().with(pairs.map(|(name, value)| (name.as_str(), value.as_str())))
}

impl FamilyDraft {
    /// Makes a family without samples.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            help: String::new(),
            kind: None,
            parts: Vec::new(),
            index: HashMap::new(),
        }
    }

    fn series(&mut self, line: usize, labels: LabelPairs, owner: Option<Owner>) -> &mut Part {
        let labels = settle(labels, owner.is_some());
        let at = self.find(owner.as_ref(), &labels).unwrap_or_else(|| {
            let at = self.parts.len();
            if at == 0 {
                // Most families of a text with many have one series.
                self.parts.reserve_exact(1);
            }
            self.parts.push(Part {
                line,
                owner,
                labels,
                single: None,
                distribution: Distribution::default(),
            });
            let unindexed = if at == FEW { 0 } else { at };
            for at in unindexed..self.parts.len() {
                self.enter(at);
            }
            at
        });
        &mut self.parts[at]
    }

    /// Finds a part.
    fn find(&self, owner: Option<&Owner>, labels: &LabelSet) -> Option<usize> {
        let same = |part: &Part| part.owner.as_ref() == owner && part.labels == *labels;
        if self.parts.len() <= FEW {
            return self.parts.iter().position(same);
        }
        let mut hash = hash(owner, labels);
        loop {
            let at = *self.index.get(&hash)?;
            if self.parts.get(at).is_some_and(same) {
                return Some(at);
            }
            hash = hash.wrapping_add(1);
        }
    }

    /// Enters a part into the index, if there is one.
    fn enter(&mut self, at: usize) {
        if self.parts.len() <= FEW {
            return;
        }
        let part = &self.parts[at];
        let mut hash = hash(part.owner.as_ref(), &part.labels);
        while self.index.contains_key(&hash) {
            hash = hash.wrapping_add(1);
        }
        self.index.insert(hash, at);
    }

    /// Adds a plain sample.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn single(
        &mut self,
        line: usize,
        labels: LabelPairs,
        owner: Option<Owner>,
        value: f64,
    ) -> Result<(), &'static str> {
        if self.kind == Some(MetricKind::Counter) && (value.is_nan() || value < 0.0) {
            return Err("the value of a counter is negative or not a number");
        }
        let part = self.series(line, labels, owner);
        if part.single.is_some() {
            return Err("duplicate series");
        }
        part.single = Some(value);
        Ok(())
    }

    /// Adds a sample of a histogram or summary, by the suffix of its name.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn part(
        &mut self,
        line: usize,
        suffix: &str,
        mut labels: LabelPairs,
        owner: Option<Owner>,
        value: f64,
    ) -> Result<(), &'static str> {
        let step = match suffix {
            "_bucket" => Some("le"),
            "" => Some("quantile"),
            _ => None,
        };
        let bound = match step {
            Some(label) => {
                let at = labels
                    .iter()
                    .position(|(name, _)| name == label)
                    .ok_or("missing label le or quantile")?;
                let bound: f64 = labels
                    .swap_remove(at)
                    .1
                    .parse()
                    .map_err(|_| "the label le or quantile is not a number")?;
                if bound.is_nan() || (label == "quantile" && !(0.0..=1.0).contains(&bound)) {
                    return Err("the label le or quantile is out of range");
                }
                Some(bound)
            }
            None => None,
        };
        let distribution = &mut self.series(line, labels, owner).distribution;
        if let Some(bound) = bound {
            distribution.steps.push((bound, value));
            return Ok(());
        }
        let place = if suffix == "_sum" {
            &mut distribution.sum
        } else {
            &mut distribution.count
        };
        if place.replace(value).is_some() {
            return Err("duplicate series");
        }
        Ok(())
    }

    /// Returns the family with the series that are valid; the others count as bad lines.
    pub fn finish(self, bad: &mut Bad) -> AppFamily {
        let kind = self.kind.unwrap_or(MetricKind::Untyped);
        let mut series = Vec::with_capacity(self.parts.len());
        for part in self.parts {
            let points = match part.single {
                Some(value) => Ok(Points::Single(value)),
                None => checked(part.distribution, kind == MetricKind::Histogram)
                    .map(Points::Distribution),
            };
            match points {
                Ok(points) => series.push(AppSeries {
                    owner: part.owner,
                    labels: part.labels,
                    points,
                }),
                Err(what) => bad.add(part.line, what),
            }
        }
        AppFamily {
            name: self.name,
            help: self.help,
            kind,
            series,
        }
    }
}

/// Whether a value is a whole number that is not negative.
fn is_count(value: f64) -> bool {
    value >= 0.0 && value.is_finite() && value.fract() == 0.0
}

fn checked(mut of: Distribution, histogram: bool) -> Result<Distribution, &'static str> {
    of.sum = of.sum.filter(|sum| !sum.is_nan());
    if of.count.is_some_and(|count| !is_count(count)) {
        return Err("_count is not a count");
    }
    of.steps.sort_by(|left, right| left.0.total_cmp(&right.0));
    if of.steps.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err("duplicate bucket or quantile");
    }
    if !histogram {
        return Ok(of);
    }
    if of.steps.last().is_none_or(|last| last.0 != f64::INFINITY) {
        let count = of.count.ok_or("a histogram without the bucket +Inf")?;
        of.steps.push((f64::INFINITY, count));
    }
    if of.steps.iter().any(|step| !is_count(step.1)) {
        return Err("the value of a bucket is not a count");
    }
    if of.steps.windows(2).any(|pair| pair[0].1 > pair[1].1) {
        return Err("a histogram's buckets are not cumulative");
    }
    let total = of.steps.last().map(|last| last.1);
    if of.count.is_some() && of.count != total {
        return Err("_count differs from the last bucket");
    }
    of.count = total;
    Ok(of)
}
