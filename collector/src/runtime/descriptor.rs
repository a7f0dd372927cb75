//! What there is to know of each runtime: its name, how it names cgroups, where it listens, how it is
//! followed.
//!
//! To add a runtime, add a file with its [`Descriptor`] and a line to [`ALL`]. A runtime that speaks
//! neither of the [`RuntimeProtocol`]s needs a follower as well.

pub(super) mod containerd;
pub(super) mod crio;
pub(super) mod docker;
pub(super) mod podman;
#[cfg(test)]
mod tests;

use std::{mem::discriminant, path::PathBuf};

use crate::cgroup::{Naming, Runtime};

/// Every runtime, in the order in which sockets are looked for.
static ALL: &[&Descriptor] = &[
    &docker::DOCKER,
    &podman::PODMAN,
    &containerd::CONTAINERD,
    &crio::CRIO,
];

/// Folder of the users' own folders for sockets.
const USERS: &str = "/run/user";

/// A container runtime that the agent can follow.
#[derive(Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its name and that of its cgroups.
    pub(super) naming: Naming,
    /// Where it listens, the usual place first.
    pub(super) sockets: &'static [&'static str],
    /// Where it listens below the runtime folder of a user who runs it without root.
    pub(super) user_socket: Option<&'static str>,
    /// How it is followed.
    pub(super) protocol: RuntimeProtocol,
    /// Beginning of the name by which it reports itself. Another runtime may listen at its socket.
    pub(super) reported_as: &'static str,
}

/// How a runtime is followed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RuntimeProtocol {
    /// By the API of Docker Engine.
    Docker {
        /// Whether it answers about a container only after the container has started. If so, new
        /// containers are looked up in its log of events.
        answers_late: bool,
    },
    /// By the Kubernetes container runtime interface, version 1.
    Cri {
        /// Whether containers are named as Docker named those of pods. If not, their ids are their
        /// names.
        named: bool,
    },
}

impl Descriptor {
    /// Returns the descriptors of all runtimes.
    pub(super) fn all() -> impl Iterator<Item = &'static Self> {
        ALL.iter().copied()
    }

    /// Returns the runtime, for identities by path.
    pub fn runtime(&'static self) -> Runtime {
        Runtime::new(&self.naming)
    }

    /// Of the runtimes with the same protocol, the one that reports itself by one of these names;
    /// else this one.
    pub(super) fn reported<'a>(
        &'static self,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> &'static Self {
        let alike = |other: &&Self| discriminant(&other.protocol) == discriminant(&self.protocol);
        let reported = |other: &&Self| {
            names
                .clone()
                .any(|name| name.starts_with(other.reported_as))
        };
        Self::all().filter(alike).find(reported).unwrap_or(self)
    }

    /// Sockets where it may listen, those of users included.
    pub(super) fn candidates(&self) -> impl Iterator<Item = PathBuf> {
        let users = self.user_socket.map(|socket| {
            let users = std::fs::read_dir(USERS).into_iter().flatten().flatten();
            users.map(move |user| user.path().join(socket))
        });
        let sockets = self.sockets.iter().map(PathBuf::from);
        sockets.chain(users.into_iter().flatten())
    }
}

/// The runtimes whose cgroups are recognised by their paths.
pub fn runtimes() -> Vec<Runtime> {
    Descriptor::all().map(Descriptor::runtime).collect()
}
