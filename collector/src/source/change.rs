//! Changes of cgroups, as sources are notified of them.

use collector_common::cgroup_iterator::CgroupRecord;

use super::Source;
use crate::cgroup::NodeId;

/// A change of the tree, or of the values that the kernel side holds for a cgroup.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// A cgroup was created.
    Made {
        /// Node of the new cgroup.
        node: NodeId,
        /// Whether the node belonged to an earlier cgroup with the same path. Its counters
        /// continue.
        again: bool,
    },
    /// The labels of a node have changed. Whatever was made from them is out of date.
    Relabelled {
        /// Node whose labels have changed.
        node: NodeId,
    },
    /// A cgroup was removed from cgroup2.
    Removed {
        /// Id of the removed cgroup.
        id: u64,
        /// Its node, `None` if the agent never knew the cgroup.
        node: Option<NodeId>,
        /// Its final record, if there is one.
        record: Option<&'a CgroupRecord>,
    },
    /// A cgroup was removed from a v1 hierarchy.
    RemovedV1 {
        /// The node of the cgroup with the same path in cgroup2.
        node: NodeId,
        /// The removed cgroup's final record.
        record: &'a CgroupRecord,
    },
    /// A removed cgroup's slot has its last values. From now on they count in the parent's slot, or
    /// will as soon as they are moved there.
    SlotRetired {
        /// The slot.
        slot: u32,
        /// The node that had it.
        node: NodeId,
    },
    /// What was read of the slots just now may be wrong, because values were moved meanwhile. It is read
    /// again.
    ReadAgain,
    /// A node is about to be removed from the tree. Before sources are notified of this, its values
    /// are dropped or retained at its parent, see [`notify`].
    Reaped {
        /// The node. Its number will be given to another cgroup.
        node: NodeId,
        /// Node of the parent, whose totals grow by those of the reaped node.
        into: NodeId,
    },
}

impl<'a> Change<'a> {
    /// Returns the final record of a removed cgroup, and its node.
    pub fn final_record(&self) -> Option<(NodeId, &'a CgroupRecord)> {
        match *self {
            Self::Removed { node, record, .. } => Some((node?, record?)),
            Self::RemovedV1 { node, record } => Some((node, record)),
            _ => None,
        }
    }
}

/// Notifies sources of a change. Takes the values of a reaped node out of every source, so that no
/// source can leave any to the next cgroup with the same number.
pub fn notify<'a>(sources: impl IntoIterator<Item = &'a mut Box<dyn Source>>, change: &Change<'_>) {
    for source in sources {
        if let Change::Reaped { node, into } = *change {
            for values in source.values() {
                values.reap(node, into);
            }
        }
        source.change(change);
    }
}
