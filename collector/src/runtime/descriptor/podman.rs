//! Podman, by the part of its API that is Docker's.

use super::{Descriptor, RuntimeProtocol};
use crate::cgroup::Naming;

/// How the runtime is found, recognised and followed.
pub static PODMAN: Descriptor = Descriptor {
    naming: Naming {
        // The second prefix is that of containers that share their service's cgroup
        // (--cgroups=split).
        prefixes: &["libpod", "libpod-payload"],
        monitors: &["libpod-conmon"],
        groups: &["libpod_parent"],
        ..Naming::new("podman")
    },
    sockets: &["/run/podman/podman.sock"],
    user_socket: Some("podman/podman.sock"),
    protocol: RuntimeProtocol::Docker { answers_late: true },
    reported_as: "Podman",
};
