//! Label sets of series that a cgroup has one of for each of several things: devices, reasons.

use std::sync::Arc;

use super::values::{Column, PerNode, Things};
use crate::{
    cgroup::NodeId,
    exposition::{Family, LabelSet},
};

/// Labels of a thing: names and values.
pub type ThingLabels = Vec<(&'static str, String)>;

/// Label sets by node and thing, each made once.
#[derive(Clone, Debug)]
pub struct Series {
    /// Names of labels that the families have, each list once.
    lists: Vec<&'static [&'static str]>,
    /// For each thing of a node, a set for each of the lists: the node's labels and those of the
    /// thing that are in the list.
    sets: Column<Things<Arc<[LabelSet]>>>,
}

impl Series {
    /// For the series of `families`.
    pub fn new(families: impl IntoIterator<Item = &'static Family>) -> Self {
        let mut lists = Vec::new();
        for family in families {
            if !lists.contains(&family.labels) {
                lists.push(family.labels);
            }
        }
        Self {
            lists,
            sets: Column::default(),
        }
    }

    /// Makes the label sets of a node's things that have none yet. `labels` gives a thing's labels.
    pub fn name(
        &mut self,
        node: NodeId,
        own: &LabelSet,
        things: impl Iterator<Item = u64>,
        mut labels: impl FnMut(u64) -> ThingLabels,
    ) {
        for what in things {
            let known = self.sets.get(node).and_then(|sets| sets.get(what));
            if known.is_some() {
                continue;
            }
            let pairs = labels(what);
            let set = |names: &&[&str]| {
                let of_family = pairs.iter().filter(|(name, _)| names.contains(name));
                own.with(of_family.map(|(name, value)| (*name, value.as_str())))
            };
            *self.sets.at(node).of(what) = self.lists.iter().map(set).collect();
        }
    }

    /// The place of a family's label sets among those of a thing.
    pub fn place(&self, family: &Family) -> Option<usize> {
        self.lists.iter().position(|list| *list == family.labels)
    }

    /// The label sets of a node's thing.
    pub fn get(&self, node: NodeId, what: u64) -> Option<&[LabelSet]> {
        self.sets.get(node)?.get(what).map(|sets| &**sets)
    }

    /// Drops the label sets of a node, whose labels have changed.
    pub fn relabel(&mut self, node: NodeId) {
        self.sets.reap(node, node);
    }
}

impl PerNode for Series {
    fn reap(&mut self, node: NodeId, into: NodeId) {
        self.sets.reap(node, into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{Kind, Unit};

    const fn family(labels: &'static [&'static str]) -> Family {
        Family {
            name: "n",
            help: "h",
            kind: Kind::Counter,
            unit: Unit::None,
            labels,
            origin: "o",
            oracle: "o",
        }
    }

    static PLAIN: Family = family(&[]);
    static BY_DEVICE: Family = family(&["device"]);

    #[test]
    fn series_are_named_once_and_again_when_their_node_s_labels_change() {
        let mut series = Series::new([&BY_DEVICE, &PLAIN, &BY_DEVICE]);
        let mut asked = 0;
        let mut name = |series: &mut Series, own: &LabelSet| {
            series.name(5, own, [7, 8].into_iter(), |what| {
                asked += 1;
                vec![("device", format!("d{what}")), ("minor", what.to_string())]
            });
            asked
        };
        let a = LabelSet::new(&[("id", "/a")]);
        assert_eq!(name(&mut series, &a), 2);
        assert_eq!(name(&mut series, &a), 2);
        assert_eq!(
            series.get(5, 7),
            Some(&[a.with([("device", "d7")]), a.clone()][..])
        );
        assert_eq!(
            (series.place(&PLAIN), series.place(&BY_DEVICE)),
            (Some(1), Some(0))
        );
        // The node's number is used again, or its container has got a name.
        let b = LabelSet::new(&[("id", "/b.service"), ("name", "b.service")]);
        series.relabel(5);
        assert_eq!(series.get(5, 7), None);
        assert_eq!(name(&mut series, &b), 4);
        assert_eq!(
            series.get(5, 8),
            Some(&[b.with([("device", "d8")]), b.clone()][..])
        );
    }
}
