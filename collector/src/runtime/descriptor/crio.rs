//! CRI-O.

use super::{Descriptor, RuntimeProtocol};
use crate::cgroup::Naming;

/// How the runtime is found, recognised and followed.
pub static CRIO: Descriptor = Descriptor {
    naming: Naming {
        prefixes: &["crio"],
        monitors: &["crio-conmon"],
        ..Naming::new("crio")
    },
    sockets: &["/run/crio/crio.sock"],
    user_socket: None,
    protocol: RuntimeProtocol::Cri { named: true },
    reported_as: "cri-o",
};
