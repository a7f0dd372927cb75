//! containerd: by Kubernetes, nerdctl and ctr.

use super::{Descriptor, RuntimeProtocol};
use crate::cgroup::Naming;

/// How the runtime is found, recognised and followed.
pub static CONTAINERD: Descriptor = Descriptor {
    naming: Naming {
        prefixes: &["cri-containerd", "containerd", "nerdctl"],
        folders: &["k8s.io"],
        namespaces: &["k8s.io", "default"],
        sandbox: "",
        ..Naming::new("containerd")
    },
    sockets: &[
        "/run/containerd/containerd.sock",
        "/run/k3s/containerd/containerd.sock",
    ],
    user_socket: None,
    protocol: RuntimeProtocol::Cri { named: false },
    reported_as: "containerd",
};
