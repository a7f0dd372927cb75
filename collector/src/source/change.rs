//! What happens to cgroups, as sources hear of it.

use collector_common::pass::CgroupRecord;

use super::Source;
use crate::cgroup::{NodeId, Tree};

/// A change of the tree, or of what the kernel side keeps of a cgroup.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// A cgroup was made.
    Made {
        /// Its node.
        node: NodeId,
        /// Whether the node was that of an earlier cgroup with the same path, the counters of
        /// which go on.
        again: bool,
    },
    /// The labels of a node have changed: what was made from them is out of date.
    Relabelled {
        /// The node.
        node: NodeId,
    },
    /// A cgroup was removed from cgroup2.
    Removed {
        /// Its cgroup id.
        id: u64,
        /// Its node, `None` if the agent never knew it.
        node: Option<NodeId>,
        /// What the kernel had counted for it when it was removed, if there is a record of that.
        record: Option<&'a CgroupRecord>,
    },
    /// A cgroup was removed from a v1 hierarchy.
    RemovedV1 {
        /// The node of the cgroup with the same path in cgroup2.
        node: NodeId,
        /// What the kernel had counted for it when it was removed.
        record: &'a CgroupRecord,
    },
    /// Removed cgroups are past their quarantine: what the kernel side still has of cgroups that
    /// are gone is to be taken out.
    QuarantineOver {
        /// The tree.
        tree: &'a Tree,
    },
    /// The slot of a removed cgroup is about to be given to another: its numbers are final.
    SlotRecycled {
        /// The slot.
        slot: u32,
        /// The node that its numbers belong to.
        node: NodeId,
    },
    /// A node is about to be removed from the tree. Its values are dropped or retained at its
    /// parent before sources hear of this, see [`notify`].
    Reaped {
        /// The node, the number of which will be given to another cgroup.
        node: NodeId,
        /// Its parent.
        into: NodeId,
    },
}

impl<'a> Change<'a> {
    /// The final record of a removed cgroup, and its node.
    pub fn final_record(&self) -> Option<(NodeId, &'a CgroupRecord)> {
        match *self {
            Self::Removed { node, record, .. } => Some((node?, record?)),
            Self::RemovedV1 { node, record } => Some((node, record)),
            _ => None,
        }
    }
}

/// Tells sources of a change. The values of a node that is reaped are taken from every source here,
/// so that none can leave any to the next cgroup with the number.
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
