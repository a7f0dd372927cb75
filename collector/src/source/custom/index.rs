//! Merges the families of all containers for an exposition.
//!
//! Invariants: a family appears once, with one type and one help text, however many containers have
//! it. A sample's name belongs to one family, and never to one of the agent's. No series appears
//! twice. No cgroup has more than `--custom.max-samples`. What is left out is reported. The type of
//! a name stays as long as a container offers it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{series::AppFamily, store::Reason};
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
    /// The families that the application served.
    pub families: Arc<Vec<AppFamily>>,
}

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
    /// What was left out: a message, its reason, and the number of samples or families.
    pub losses: BTreeMap<String, (Reason, usize)>,
}

struct Making<'a> {
    prefix: &'a str,
    taken: &'a dyn Fn(&str) -> bool,
    groups: BTreeMap<String, Group>,
    /// Names of samples, and the groups that they belong to.
    claims: HashMap<String, String>,
    losses: BTreeMap<String, (Reason, usize)>,
}

impl Index {
    /// Merges the inputs. `taken` says whether a name belongs to the agent; `before` is the
    /// previous index.
    pub fn new(
        mut inputs: Vec<Input>,
        prefix: &str,
        max_samples: usize,
        taken: &dyn Fn(&str) -> bool,
        before: &Self,
    ) -> Self {
        inputs.sort_by(|left, right| left.path.cmp(&right.path));
        let known: HashMap<&str, MetricKind> = before
            .groups
            .iter()
            .map(|group| (group.name.as_str(), group.kind))
            .collect();
        let mut making = Making {
            prefix,
            taken,
            groups: BTreeMap::new(),
            claims: HashMap::new(),
            losses: BTreeMap::new(),
        };
        let mut samples: HashMap<NodeId, usize> = HashMap::new();
        let mut late = Vec::new();
        for input in &inputs {
            for (at, family) in input.families.iter().enumerate() {
                let sum = samples.entry(input.node).or_default();
                if *sum + family.samples() > max_samples {
                    let message = format!("{}: more samples than --custom.max-samples", input.path);
                    making.lose(message, Reason::Samples, family.samples());
                    continue;
                }
                *sum += family.samples();
                match known.get(family.name.as_str()) {
                    Some(kind) if *kind != family.kind => late.push((input, at)),
                    _ => making.add(input, at),
                }
            }
        }
        for (input, at) in late {
            making.add(input, at);
        }
        making.finish()
    }
}

impl Making<'_> {
    fn lose(&mut self, message: String, reason: Reason, count: usize) {
        self.losses.entry(message).or_insert((reason, 0)).1 += count;
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
                "{path}: {full} is a {} here, but a {} elsewhere",
                family.kind.name(),
                group.kind.name()
            );
            return self.lose(message, Reason::Conflict, 1);
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
                let message =
                    format!("{path}: {full} uses the name {name}, which belongs to {other}");
                return self.lose(message, Reason::Conflict, 1);
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
        let mut others = group
            .members
            .iter()
            .filter(|member| member.node == input.node)
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
        group.members.push(Member {
            node: input.node,
            cgroup: input.cgroup,
            families: Arc::clone(&input.families),
            at,
            twice: twice.clone(),
        });
        if !twice.is_empty() {
            let message = format!("{path}: {full} has duplicate series");
            self.lose(message, Reason::Conflict, twice.len());
        }
    }

    fn finish(self) -> Index {
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
            losses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::custom::parse::{TextLimits, parse};

    fn input(node: NodeId, path: &str, text: &str) -> Input {
        let limits = TextLimits {
            samples: 100,
            owners: false,
        };
        let parsed = parse(text.as_bytes(), limits);
        assert_eq!(parsed.bad.count, 0, "{:?}", parsed.bad);
        Input {
            node,
            cgroup: node as u64,
            path: path.to_owned(),
            families: Arc::new(parsed.families),
        }
    }

    fn index(inputs: Vec<Input>, before: &Index) -> Index {
        Index::new(inputs, "c_", 5, &|name| name == "c_own_total", before)
    }

    fn shown(index: &Index) -> Vec<(&str, MetricKind, usize)> {
        let series = |group: &Group| group.members.iter().flat_map(Member::series).count();
        index
            .groups
            .iter()
            .map(|group| (group.full.as_str(), group.kind, series(group)))
            .collect()
    }

    fn messages(index: &Index) -> Vec<&str> {
        index.losses.keys().map(String::as_str).collect()
    }

    #[test]
    fn families_of_containers_are_merged() {
        let a = input(2, "/a", "# HELP x Of a.\n# TYPE x gauge\nx 1\ny 2\n");
        let b = input(3, "/b", "# HELP x Of b.\n# TYPE x gauge\nx{k=\"v\"} 3\n");
        let index = index(vec![b, a], &Index::default());
        assert_eq!(
            shown(&index),
            [
                ("c_x", MetricKind::Gauge, 2),
                ("c_y", MetricKind::Untyped, 1)
            ]
        );
        assert_eq!(index.groups[0].help, "Of a.");
        assert!(index.losses.is_empty());
    }

    #[test]
    fn the_first_type_is_used_and_stays() {
        let gauge = input(2, "/a", "# TYPE x gauge\nx 1\n");
        let counter = input(3, "/b", "# TYPE x counter\nx 1\n");
        let first = index(vec![counter.clone()], &Index::default());
        let both = index(vec![gauge.clone(), counter], &first);
        assert_eq!(shown(&both), [("c_x", MetricKind::Counter, 1)]);
        assert_eq!(
            messages(&both),
            ["/a: c_x is a gauge here, but a counter elsewhere"]
        );
        let left = index(vec![gauge], &both);
        assert_eq!(shown(&left), [("c_x", MetricKind::Gauge, 1)]);
        assert!(left.losses.is_empty());
    }

    #[test]
    fn a_sample_s_name_belongs_to_one_family() {
        let histogram = "# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n";
        let inputs = vec![
            input(2, "/a", histogram),
            input(3, "/b", "h_count 1\nown_total 1\n"),
        ];
        let index = index(inputs, &Index::default());
        assert_eq!(shown(&index), [("c_h", MetricKind::Histogram, 1)]);
        let messages = messages(&index);
        assert!(
            messages[0].contains("c_h_count, which belongs to c_h"),
            "{messages:?}"
        );
        assert!(messages[1].contains("--custom.prefix"), "{messages:?}");
    }

    #[test]
    fn a_counter_s_name_without_total_may_be_taken() {
        let text = "# TYPE x_total counter\nx_total 1\n# TYPE x gauge\nx 1\n# TYPE y_total counter\ny_total 1\n";
        let index = index(vec![input(2, "/a", text)], &Index::default());
        let alone: Vec<bool> = index.groups.iter().map(|group| group.alone).collect();
        assert_eq!(alone, [true, false, true]);
    }

    #[test]
    fn duplicate_series_are_left_out() {
        let inputs = vec![
            input(2, "/a", "x{k=\"1\"} 1\nx{k=\"2\"} 2\n"),
            input(2, "/a", "x{k=\"2\"} 3\nx{k=\"3\"} 3\n"),
        ];
        let index = index(inputs, &Index::default());
        assert_eq!(shown(&index), [("c_x", MetricKind::Untyped, 3)]);
        assert_eq!(index.losses.values().next(), Some(&(Reason::Conflict, 1)));
    }

    #[test]
    fn a_cgroup_s_samples_are_limited() {
        let text = "x{k=\"1\"} 1\nx{k=\"2\"} 2\nx{k=\"3\"} 1\ny 1\nz 1\n";
        let index = index(
            vec![
                input(2, "/a", text),
                input(2, "/a", "v 1\nw 1\n"),
                input(3, "/b", "v 1\n"),
            ],
            &Index::default(),
        );
        assert_eq!(shown(&index).len(), 4);
        assert_eq!(index.losses.values().next(), Some(&(Reason::Samples, 2)));
    }
}
