//! Label sets of families that have several series per cgroup: one for each device, reason or the
//! like (a *thing*).

use std::sync::Arc;

use super::values::{Column, PerNode, Things};
use crate::{
    cgroup::NodeId,
    exposition::{Family, LabelSet},
};

/// Labels of a thing: names and values.
pub type ThingLabels = Vec<(&'static str, String)>;

/// Label sets by node and thing. Each is made once.
#[derive(Clone, Debug)]
pub struct Series {
    /// Lists of label names in the families, without duplicates.
    lists: Vec<&'static [&'static str]>,
    /// For each thing of a node, one label set per list: the node's labels, and the labels of the
    /// thing that are in the list.
    sets: Column<Things<Arc<[LabelSet]>>>,
}

impl Series {
    /// Prepares for the series of `families`.
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

    /// Makes the missing label sets of a node's things. `labels` returns the labels of a thing.
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

    /// Returns the index of a family's label set among those of a thing.
    pub fn place(&self, family: &Family) -> Option<usize> {
        self.lists.iter().position(|list| *list == family.labels)
    }

    /// Returns the label sets of a node's thing.
    pub fn get(&self, node: NodeId, what: u64) -> Option<&[LabelSet]> {
        self.sets.get(node)?.get(what).map(|sets| &**sets)
    }

    /// Drops the label sets of a node whose labels have changed.
    pub fn relabel(&mut self, node: NodeId) {
        self.sets.forget(node);
    }
}

impl PerNode for Series {
    fn reap(&mut self, node: NodeId, _into: NodeId) {
        self.sets.forget(node);
    }

    fn shape(&self) -> u64 {
        0
    }

    /// They are made from names.
    fn save(&self, _: NodeId, _: &mut Vec<u64>) {}

    fn restore(&mut self, _: NodeId, _: &mut &[u64]) -> Option<()> {
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{MetricKind, Unit};

    const fn family(labels: &'static [&'static str]) -> Family {
        Family {
            name: "n",
            help: "h",
            kind: MetricKind::Counter,
            unit: Unit::None,
            labels,
            origin: "o",
            oracle: "o",
        }
    }

    static PLAIN: Family = family(&[]);
    static BY_DEVICE: Family = family(&["device"]);

    #[test]
    fn label_sets_are_made_once_and_again_when_labels_change() {
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
        // The node's number was reused, or its container got a name.
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
