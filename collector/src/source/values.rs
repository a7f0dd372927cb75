//! Values by node of the cgroup tree.
//!
//! Every source keeps what it has of a node in the types of this module:
//!
//! - [`Column`]: a value for each node. A clone is cheap and does not change any more, so that a
//!   column can be handed out.
//! - [`Summed`]: what a source counts itself for each cgroup. A node's total is what is retained
//!   at the node, plus what its cgroup has now, plus the totals of its children.
//! - [`Continued`]: what the kernel counts for a cgroup, descendants included. A node's total is
//!   what the kernel says of the present cgroup, plus what it said last of earlier cgroups with
//!   the same path.
//!
//! **Invariants.** A total never falls. When a node is reaped, what is retained there goes to the
//! parent, and nothing is left under its number, which the tree gives to another cgroup later:
//! [`PerNode::reap`] does this for every source (see [`super::notify`]).

mod column;
mod continued;
mod numbers;
mod summed;
mod things;

pub use column::{Column, Places};
pub use continued::Continued;
pub(super) use numbers::sums;
pub use numbers::{AddFrom, Numbers};
pub use summed::{Summed, roll_up};
pub use things::Things;

use crate::cgroup::NodeId;

/// Values by node, whatever they are.
pub trait PerNode {
    /// The node `node` is about to be removed from the tree, and its number will be given to
    /// another cgroup. What is retained there goes to its parent, `into`; the rest is dropped.
    fn reap(&mut self, node: NodeId, into: NodeId);
}
