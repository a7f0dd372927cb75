//! Families as they are put together from lines, and what becomes of their labels.

use std::collections::HashMap;

use super::parse::Bad;
use crate::exposition::{Distribution, Kind, LabelSet, Points};

/// Labels of the cgroup's own: an application's label of that name is renamed as Prometheus would.
const RESERVED: &[&str] = &[
    "id",
    "name",
    "image",
    "namespace",
    "pod",
    "container",
    "metric_name",
];

/// What the names of a container's allowed labels begin with.
const ALLOWED: &str = "container_label_";

/// Whose a sample of a text file is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A cgroup, by its path.
    Path(String),
    /// A container, by its id or the beginning of it.
    ContainerId(String),
    /// A container, by its name.
    Container(String),
}

type Make = fn(String) -> Owner;

/// Labels by which a text file says whose a sample is, in the order in which they count.
const OWNERS: [(&str, Make); 3] = [
    ("id", Owner::Path),
    ("container_id", Owner::ContainerId),
    ("container", Owner::Container),
];

/// Whose a sample is, by its labels.
pub fn owner_of(labels: &[(String, String)]) -> Option<Owner> {
    OWNERS.iter().find_map(|(name, owner)| {
        let (_, value) = labels
            .iter()
            .find(|(found, value)| found == name && !value.is_empty())?;
        Some(owner(value.clone()))
    })
}

/// A family that an application defines.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Name of its samples; of a histogram or summary without their suffixes.
    pub name: String,
    /// Help as told, may be empty.
    pub help: String,
    /// Kind.
    pub kind: Kind,
    /// Series.
    pub series: Vec<Series>,
}

impl Family {
    /// Samples in it.
    pub fn samples(&self) -> usize {
        self.series
            .iter()
            .map(|series| series.points.samples())
            .sum()
    }
}

/// One series.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Whose it is, if a text file says so.
    pub owner: Option<Owner>,
    /// The application's labels, those of the cgroup's names renamed.
    pub labels: LabelSet,
    /// Values.
    pub points: Points,
}

/// Names and values.
pub type Labels = Vec<(String, String)>;

/// A series under construction.
#[derive(Debug)]
struct Part {
    line: usize,
    owner: Option<Owner>,
    labels: Labels,
    single: Option<f64>,
    distribution: Distribution,
}

/// A family under construction.
#[derive(Debug)]
pub struct Draft {
    /// See [`Family`].
    pub name: String,
    /// See [`Family`].
    pub help: String,
    /// `None` until it is told, or a sample came first.
    pub kind: Option<Kind>,
    parts: Vec<Part>,
    index: HashMap<(Option<Owner>, Labels), usize>,
}

/// Takes out what tells the owner, leaves out what is empty, renames what is reserved, and sorts.
fn settle(labels: Labels, owned: bool) -> Labels {
    let mut kept: Labels = labels
        .into_iter()
        .filter(|(name, value)| {
            let owner = owned && OWNERS.iter().any(|(owner, _)| owner == name);
            !value.is_empty() && !owner
        })
        .collect();
    for at in 0..kept.len() {
        while RESERVED.contains(&kept[at].0.as_str())
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
    kept
}

impl Draft {
    /// One without samples.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            help: String::new(),
            kind: None,
            parts: Vec::new(),
            index: HashMap::new(),
        }
    }

    fn series(&mut self, line: usize, labels: Labels, owner: Option<Owner>) -> &mut Part {
        let labels = settle(labels, owner.is_some());
        let next = self.parts.len();
        let at = *self
            .index
            .entry((owner.clone(), labels.clone()))
            .or_insert(next);
        if at == next {
            self.parts.push(Part {
                line,
                owner,
                labels,
                single: None,
                distribution: Distribution::default(),
            });
        }
        &mut self.parts[at]
    }

    /// A plain sample.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn single(
        &mut self,
        line: usize,
        labels: Labels,
        owner: Option<Owner>,
        value: f64,
    ) -> Result<(), &'static str> {
        if self.kind == Some(Kind::Counter) && (value.is_nan() || value < 0.0) {
            return Err("a counter below 0, or not a number");
        }
        let part = self.series(line, labels, owner);
        if part.single.is_some() {
            return Err("a series twice");
        }
        part.single = Some(value);
        Ok(())
    }

    /// A part of a histogram or summary, by the suffix of its sample's name.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn part(
        &mut self,
        line: usize,
        suffix: &str,
        mut labels: Labels,
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
                    .ok_or("no label le, or quantile")?;
                let bound: f64 = labels
                    .swap_remove(at)
                    .1
                    .parse()
                    .map_err(|_| "le, or quantile, is not a number")?;
                if bound.is_nan() || (label == "quantile" && !(0.0..=1.0).contains(&bound)) {
                    return Err("le, or quantile, is out of range");
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
            return Err("a series twice");
        }
        Ok(())
    }

    /// The family, its series checked.
    pub fn finish(self, bad: &mut Bad) -> Family {
        let kind = self.kind.unwrap_or(Kind::Untyped);
        let mut series = Vec::with_capacity(self.parts.len());
        for part in self.parts {
            let points = match part.single {
                Some(value) => Ok(Points::Single(value)),
                None => {
                    checked(part.distribution, kind == Kind::Histogram).map(Points::Distribution)
                }
            };
            match points {
                Ok(points) => series.push(Series {
                    owner: part.owner,
                    labels: LabelSet::empty().with(
                        part.labels
                            .iter()
                            .map(|(name, value)| (name.as_str(), value.as_str())),
                    ),
                    points,
                }),
                Err(what) => bad.add(part.line, what),
            }
        }
        Family {
            name: self.name,
            help: self.help,
            kind,
            series,
        }
    }
}

/// A count of events: whole, and not negative.
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
        return Err("a bucket, or quantile, twice");
    }
    if !histogram {
        return Ok(of);
    }
    if of.steps.last().is_none_or(|last| last.0 != f64::INFINITY) {
        let count = of
            .count
            .ok_or("a histogram without its last bucket, +Inf")?;
        of.steps.push((f64::INFINITY, count));
    }
    if of.steps.iter().any(|step| !is_count(step.1)) {
        return Err("a bucket's value is not a count");
    }
    if of.steps.windows(2).any(|pair| pair[0].1 > pair[1].1) {
        return Err("a histogram's buckets are not cumulative");
    }
    let total = of.steps.last().map(|last| last.1);
    if of.count.is_some() && of.count != total {
        return Err("_count is not the last bucket's");
    }
    of.count = total;
    Ok(of)
}
