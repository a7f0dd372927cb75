//! The cgroup tree: live and removed cgroups, and their names.
//!
//! Invariant: this module knows cgroupfs and lifecycle events; it knows nothing of BPF maps,
//! metrics or HTTP. A node's number stays the same from the cgroup's birth until it has been
//! reaped, so that sources can keep their values in vectors by node.

mod export;
mod filter;
mod identity;
mod label;
mod mounts;
mod tree;
mod v1;
mod walk;

pub use export::Export;
pub use filter::{ContainerRule, ContainerRuleError, ContainerRules, Filter, RuleField};
pub use identity::{
    AllowError, AllowList, Container, ContainerLimits, Health, NAME_LABELS, Names, Naming, Place,
    PlaceKind, Pod, Qos, Runtime, SANDBOX, State, Writable, is_users_own,
};
pub use label::printable;
pub(crate) use mounts::unescape;
pub use mounts::{Hierarchies, Mount, MountError, V1Mount};
pub use tree::{
    DeadMax, Earlier, Event, Node, NodeId, Nodes, ROOT, Reaped, Recalled, Tree, Walked,
};
pub use v1::V1Paths;
#[cfg(test)]
pub(crate) use walk::found;
pub use walk::{Found, walk};
