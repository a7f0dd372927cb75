//! Values by node of the cgroup tree.
//!
//! Every source stores its values of a node in the types of this module:
//!
//! - [`Column`]: a value for each node. A clone is cheap and does not change any more, so it can be
//!   handed out.
//! - [`Summed`]: what a source counts itself for each cgroup. A node's total is what is retained at
//!   the node, plus the values of its cgroup, plus the totals of its children.
//! - [`Continued`]: what the kernel counts for a cgroup, descendants included. A node's total is
//!   the kernel's value of the present cgroup, plus the last values of earlier cgroups with the
//!   same path.
//!
//! **Invariants.** A total never decreases. When a node is reaped, what is retained there goes to
//! the parent, and nothing is left under its number, which the tree later gives to another cgroup.
//! [`PerNode::reap`] does this for every source (see [`super::notify`]).

mod column;
mod continued;
mod packed;
mod summed;
mod sums;
mod things;
mod words;

pub use column::{Column, Places};
pub use continued::Continued;
pub use packed::{pack, unpack};
pub use summed::{Served, Summed, roll_up};
pub(super) use sums::sums;
pub use sums::{AddFrom, Summable};
pub use things::Things;
pub use words::{Retained, Words, digest, digest_of};

use crate::cgroup::NodeId;

/// Values by node.
pub trait PerNode {
    /// Called before the node `node` is removed from the tree and its number is given to another
    /// cgroup. What is retained there goes to its parent, `into`; the rest is dropped.
    fn reap(&mut self, node: NodeId, into: NodeId);
    /// Appends what a living node keeps from what is gone, for the next agent: what the kernel side doesn't
    /// have. Zeros alone stand for nothing.
    fn save(&self, node: NodeId, words: &mut Vec<u64>);
    /// The same of a removed node, whose values are all gone: what [`restore`](Self::restore) gives to a node
    /// that has no cgroup, or to that of a later cgroup of the path.
    fn save_end(&self, node: NodeId, words: &mut Vec<u64>) {
        self.save(node, words);
    }
    /// The same for an agent that can't have the kernel side's values, because its maps are others.
    fn save_total(&self, node: NodeId, words: &mut Vec<u64>) {
        self.save(node, words);
    }
    /// Says what the words of a node are, see [`Words::SHAPE`].
    fn shape(&self) -> u64;
    /// Takes what an earlier agent has saved of the node from the front of `words`. `None` if that is
    /// something else. Called before the first reading.
    fn restore(&mut self, node: NodeId, words: &mut &[u64]) -> Option<()>;
}
