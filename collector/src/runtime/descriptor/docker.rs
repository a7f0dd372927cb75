//! Docker Engine.

use super::{Descriptor, RuntimeProtocol};
use crate::cgroup::Naming;

/// How the runtime is found, recognised and followed.
pub static DOCKER: Descriptor = Descriptor {
    naming: Naming {
        prefixes: &["docker"],
        folders: &["docker"],
        ..Naming::new("docker")
    },
    sockets: &["/run/docker.sock", "/var/run/docker.sock"],
    user_socket: None,
    protocol: RuntimeProtocol::Docker {
        answers_late: false,
    },
    reported_as: "Engine",
};
