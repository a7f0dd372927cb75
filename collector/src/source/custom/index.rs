//! Merges the families of all containers for an exposition.
//!
//! Invariants: a family appears once, with one type and one help text, however many containers have
//! it. A sample's name belongs to one family, and never to one of the agent's. No series appears
//! twice. No cgroup has more than `--custom.max-samples`, which its endpoints and files share
//! fairly. All together need at most `--custom.max-bytes` of an exposition, which containers share
//! fairly ([`fair`]). What is left out is reported. The type of a name stays as long as a container
//! offers it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{
    fair,
    measure::{self, SampleCount, TextSize},
    series::AppFamily,
    store::Reason,
};
use crate::{
    cgroup::NodeId,
    exposition::{LabelSet, MetricKind},
};

/// Families from an endpoint or a file, for one cgroup.
#[derive(Clone, Debug)]
pub struct Input {
    /// The cgroup's node.
    pub node: NodeId,
    /// Id of the cgroup.
    pub cgroup: u64,
    /// The cgroup's path, for the log.
    pub path: String,
    /// Id of the cgroup whose share it takes: the container's.
    pub owner: u64,
    /// The cgroup's labels.
    pub labels: LabelSet,
    /// The families that the application served.
    pub families: Arc<Vec<AppFamily>>,
    /// Number of samples that were left out before.
    pub lost: usize,
    /// Bytes of the series that describe the endpoint or the file itself.
    pub about: usize,
}

/// Limits of an exposition, and how names are made.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// `--custom.prefix`
    pub prefix: &'a str,
    /// Name of the family that has plain values of all applications.
    pub plain: &'a str,
    /// `--custom.max-samples`
    pub samples: usize,
    /// Bytes of an exposition.
    pub bytes: usize,
}

impl Limits<'_> {
    /// How the metrics of a cgroup with these labels are measured.
    fn measure<'a>(&'a self, labels: &'a LabelSet) -> TextSize<'a> {
        TextSize {
            labels,
            prefix: self.prefix.len(),
            plain: self.plain,
        }
    }
}

/// What was left out of a cgroup's metrics for one reason.
#[derive(Debug, Default)]
pub struct Loss {
    /// Number of samples or families.
    pub count: usize,
    /// What is wrong, for the log: the first [`MESSAGES`] messages.
    pub messages: BTreeSet<String>,
}

/// Maximum number of messages about one cgroup and reason.
const MESSAGES: usize = 8;

/// A family of an exposition.
#[derive(Debug)]
pub struct Group {
    /// Name with the prefix.
    pub full: String,
    /// Name without the prefix.
    pub name: String,
    /// The first help text that is not empty.
    pub help: String,
    /// Type of the family.
    pub kind: MetricKind,
    /// Whether no other family has the name that this counter has without `_total`.
    pub alone: bool,
    /// The cgroups that have it.
    pub members: Vec<Member>,
}

/// A cgroup's part of a family.
#[derive(Debug)]
pub struct Member {
    /// The cgroup's node.
    pub node: NodeId,
    /// Id of the cgroup.
    pub cgroup: u64,
    families: Arc<Vec<AppFamily>>,
    at: usize,
    /// Series that another member of the same cgroup already has.
    twice: HashSet<LabelSet>,
}

impl Member {
    /// Returns its series.
    pub fn series(&self) -> impl Iterator<Item = &super::series::AppSeries> {
        let all = self.families.get(self.at).map(|family| &family.series);
        all.into_iter()
            .flatten()
            .filter(|series| self.twice.is_empty() || !self.twice.contains(&series.labels))
    }
}

/// The families of all applications, put together by name.
#[derive(Debug, Default)]
pub struct Index {
    /// Families ordered by name.
    pub groups: Vec<Group>,
    /// Inputs, as numbered by the caller, that are not even described: there is no room.
    pub unserved: HashSet<usize>,
    /// What was left out, by the cgroup's path and the reason.
    pub losses: Losses,
}

type Losses = BTreeMap<(String, Reason), Loss>;

struct Making<'a> {
    prefix: &'a str,
    taken: &'a dyn Fn(&str) -> bool,
    groups: BTreeMap<String, Group>,
    /// Names of samples, and the groups that they belong to.
    claims: HashMap<String, String>,
    losses: Losses,
}

impl Index {
    /// Merges the inputs. `taken` says whether a name belongs to the agent; `before` is the
    /// previous index.
    pub fn new(
        inputs: Vec<Input>,
        limits: Limits<'_>,
        taken: &dyn Fn(&str) -> bool,
        before: &Self,
    ) -> Self {
        let mut inputs: Vec<(usize, Input)> = inputs.into_iter().enumerate().collect();
        inputs.sort_by(|(_, left), (_, right)| {
            (&left.path, left.node).cmp(&(&right.path, right.node))
        });
        let known: HashMap<&str, MetricKind> = before
            .groups
            .iter()
            .map(|group| (group.name.as_str(), group.kind))
            .collect();
        let mut making = Making {
            prefix: limits.prefix,
            taken,
            groups: BTreeMap::new(),
            claims: HashMap::new(),
            losses: Losses::new(),
        };
        making.cut_samples(&mut inputs, limits.samples);
        let unserved = making.cut_bytes(&mut inputs, limits);
        let mut late = Vec::new();
        for (_, input) in &inputs {
            for (at, family) in input.families.iter().enumerate() {
                match known.get(family.name.as_str()) {
                    Some(kind) if *kind != family.kind => late.push((input, at)),
                    _ => making.add(input, at),
                }
            }
        }
        for (input, at) in late {
            making.add(input, at);
        }
        making.finish(unserved)
    }
}

impl Making<'_> {
    fn lose(&mut self, path: &str, reason: Reason, count: usize, message: String) {
        if count == 0 {
            return;
        }
        let loss = self.losses.entry((path.to_owned(), reason)).or_default();
        loss.count += count;
        if loss.messages.len() < MESSAGES {
            loss.messages.insert(message);
        }
    }

    /// Leaves out samples beyond the limit of a cgroup.
    fn cut_samples(&mut self, inputs: &mut [(usize, Input)], limit: usize) {
        let wanted: Vec<(NodeId, usize)> = inputs
            .iter()
            .map(|(_, input)| (input.node, measure::samples(&input.families)))
            .collect();
        let shares = fair::within(&wanted, limit);
        for (((_, input), (_, wanted)), share) in inputs.iter_mut().zip(wanted).zip(shares) {
            input.families = measure::cut(&input.families, share, &SampleCount);
            let lost = wanted - measure::samples(&input.families);
            let message = "more samples than --custom.max-samples".to_owned();
            self.lose(&input.path, Reason::Samples, lost, message);
        }
    }

    /// Leaves out what is beyond a container's share of the bytes. Returns the inputs that can't
    /// even be described.
    fn cut_bytes(&mut self, inputs: &mut [(usize, Input)], limits: Limits<'_>) -> HashSet<usize> {
        let wanted: Vec<(u64, usize)> = inputs
            .iter()
            .map(|(_, input)| {
                let size = measure::size(&input.families, &limits.measure(&input.labels));
                (input.owner, input.about + size)
            })
            .collect();
        let shares = fair::shares(&wanted, limits.bytes);
        let mut unserved = HashSet::new();
        for ((number, input), share) in inputs.iter_mut().zip(shares) {
            if share < input.about {
                unserved.insert(*number);
            }
            let share = share.saturating_sub(input.about);
            let before = measure::samples(&input.families);
            input.families = measure::cut(&input.families, share, &limits.measure(&input.labels));
            let lost = input.lost + before - measure::samples(&input.families);
            let message = "more than a fair share of --custom.max-bytes".to_owned();
            self.lose(&input.path, Reason::Bytes, lost, message);
        }
        unserved
    }

    fn add(&mut self, input: &Input, at: usize) {
        let Some(family) = input.families.get(at) else {
            return;
        };
        let full = format!("{}{}", self.prefix, family.name);
        let path = &input.path;
        if let Some(group) = self.groups.get(&full)
            && group.kind != family.kind
        {
            let message = format!(
                "{full} is a {} here, but a {} elsewhere",
                family.kind.name(),
                group.kind.name()
            );
            return self.lose(path, Reason::Conflict, 1, message);
        }
        if !self.groups.contains_key(&full) {
            let names = family.kind.suffixes().iter();
            let names: Vec<String> = names.map(|suffix| format!("{full}{suffix}")).collect();
            for name in &names {
                let other = match self.claims.get(name) {
                    Some(other) => other.as_str(),
                    None if (self.taken)(name) => {
                        "a metric of the agent itself, see --custom.prefix"
                    }
                    None => continue,
                };
                let message = format!("{full} uses the name {name}, which belongs to {other}");
                return self.lose(path, Reason::Conflict, 1, message);
            }
            self.claims
                .extend(names.into_iter().map(|name| (name, full.clone())));
            let group = Group {
                full: full.clone(),
                name: family.name.clone(),
                help: String::new(),
                kind: family.kind,
                alone: true,
                members: Vec::new(),
            };
            self.groups.insert(full.clone(), group);
        }
        let Some(group) = self.groups.get_mut(&full) else {
            return;
        };
        if group.help.is_empty() {
            group.help.clone_from(&family.help);
        }
        // The inputs of a cgroup come one after the other.
        let mut others = group
            .members
            .iter()
            .rev()
            .take_while(|member| member.node == input.node)
            .peekable();
        let mut twice = HashSet::new();
        if others.peek().is_some() {
            let there: HashSet<&LabelSet> = others
                .flat_map(Member::series)
                .map(|series| &series.labels)
                .collect();
            let labels = family.series.iter().map(|series| &series.labels);
            twice = labels
                .filter(|labels| there.contains(labels))
                .cloned()
                .collect();
        }
        let doubles = twice.len();
        group.members.push(Member {
            node: input.node,
            cgroup: input.cgroup,
            families: Arc::clone(&input.families),
            at,
            twice,
        });
        let message = format!("{full} has duplicate series");
        self.lose(path, Reason::Conflict, doubles, message);
    }

    fn finish(self, unserved: HashSet<usize>) -> Index {
        let Self {
            groups,
            claims,
            losses,
            taken,
            ..
        } = self;
        // In OpenMetrics a counter also has the names without `_total` and with `_created`.
        let bases: BTreeSet<String> = groups
            .values()
            .filter(|group| group.kind == MetricKind::Counter)
            .filter_map(|group| group.full.strip_suffix("_total"))
            .filter(|base| {
                let used = |name: &str| claims.contains_key(name) || taken(name);
                used(base) || used(&format!("{base}_created"))
            })
            .map(str::to_owned)
            .collect();
        let groups = groups.into_values().map(|mut group| {
            let base = group.full.strip_suffix("_total");
            group.alone = base.is_none_or(|base| !bases.contains(base));
            group
        });
        Index {
            groups: groups.collect(),
            unserved,
            losses,
        }
    }
}

#[cfg(test)]
mod tests;
