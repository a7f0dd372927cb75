//! Identity of a cgroup: by its path, and by the record of a container runtime.
//!
//! Invariant: this module does no I/O. Paths come from the tree, records from the runtimes' followers.

mod allow;
mod container;
mod names;
mod path;
mod runtime;

pub use allow::{AllowError, AllowList};
pub use container::{Container, ContainerLimits, Health, Pod, State, Writable};
pub use names::{NAME_LABELS, Names};
pub use path::{Place, PlaceKind, Qos, is_users_own};
pub use runtime::{Naming, Runtime, SANDBOX};
