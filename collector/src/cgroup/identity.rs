//! Whose a cgroup is: what its path tells, and what a container runtime knows.
//!
//! Invariant: this module takes values and asks nobody: paths come from the tree, records from
//! whoever follows the runtimes.

mod allow;
mod container;
mod names;
mod path;
mod runtime;

pub use allow::{AllowError, AllowList};
pub use container::{Container, Health, Limits, Pod, State, Writable};
pub use names::Names;
pub use path::{Kind, Place, Qos};
pub use runtime::{Naming, Runtime};
