//! Container runtimes: what they know of their containers.
//!
//! Tasks of their own follow the runtimes' events, ask within limits of time and size, and leave what
//! they learn in the [`Directory`]. What differs from runtime to runtime is in its [`Descriptor`].

mod choice;
mod cri;
mod descriptor;
mod directory;
mod docker;
mod follow;
mod link;
mod questions;
mod status;
#[cfg(test)]
mod tests;
mod wire;

pub use choice::{Choice, RuntimeChoice};
pub use descriptor::{Descriptor, runtimes};
pub use directory::Directory;
pub use follow::{Followers, ask, follow};
pub use status::{RuntimeState, SocketStatus};
