//! Programs that tests run or compare with, from Debian's packages.
//!
//! Invariant: what is missing and can't be installed is a warning that names the tests that are
//! skipped without it.

use std::process::Command;

use crate::{apt, shell::program};

/// What tests use: how it is found, its Debian package, and the tests that are skipped without it.
pub const TESTS: &[(Tool, &str, &str)] = &[
    (
        Tool::Program("prometheus"),
        "prometheus",
        "scrapes by a real Prometheus",
    ),
    (
        Tool::Program("promtool"),
        "prometheus",
        "checks of the exposition",
    ),
    (
        Tool::Program("prometheus-alertmanager"),
        "prometheus-alertmanager",
        "alerts that reach a webhook",
    ),
    (
        Tool::Program("amtool"),
        "prometheus-alertmanager",
        "checks of Alertmanager's configuration",
    ),
    (
        Tool::Program("mkfs.ext4"),
        "e2fsprogs",
        "block I/O of a file system",
    ),
    (
        Tool::Program("dmsetup"),
        "dmsetup",
        "block I/O of mapped disks",
    ),
    (
        Tool::Python("prometheus_client"),
        "python3-prometheus-client",
        "parses by its Python client",
    ),
    (
        Tool::Program("ip"),
        "iproute2",
        "those in network namespaces",
    ),
    (
        Tool::Program("strace"),
        "strace",
        "those of system calls that fail",
    ),
    (
        Tool::Program("setpriv"),
        "util-linux",
        "those of an agent that is not root",
    ),
    (
        Tool::Program("bpftool"),
        "bpftool",
        "the reader of the kernel's types",
    ),
    (
        Tool::Program("dockerd"),
        "docker.io",
        "the agent's container image, and those of Docker's containers",
    ),
    (
        Tool::Program("docker"),
        "docker.io",
        "the agent's container image, and those of Docker's containers",
    ),
    (
        Tool::Program("podman"),
        "podman",
        "those of Podman's containers",
    ),
    (
        Tool::Program("containerd"),
        "containerd",
        "those of Kubernetes' pods",
    ),
    (Tool::Program("runc"), "runc", "those of containers"),
    (
        Tool::Program("busybox"),
        "busybox-static",
        "those of containers",
    ),
    (
        Tool::Program("systemd-nspawn"),
        "systemd-container",
        "those of systemd's units",
    ),
    (
        Tool::Program("curl"),
        "curl",
        "those of Podman's containers and Kubernetes' pods",
    ),
    (
        Tool::Program("docker-compose"),
        "docker-compose",
        "the compose stack's configuration",
    ),
    (
        Tool::Python("ensurepip"),
        "python3-venv",
        "the API by schemathesis",
    ),
];

/// What runs virtual machines, in the same way.
pub const GUESTS: &[(Tool, &str, &str)] = &[
    (
        Tool::Program("ip"),
        "iproute2",
        "those of packets between network namespaces",
    ),
    (
        Tool::Program("qemu-system-x86_64"),
        "qemu-system-x86",
        "those on other kernels",
    ),
    (
        Tool::Program("busybox"),
        "busybox-static",
        "those on other kernels",
    ),
    (Tool::Program("cpio"), "cpio", "those on other kernels"),
    (Tool::Program("depmod"), "kmod", "those on other kernels"),
    (Tool::Program("xz"), "xz-utils", "those on other kernels"),
];

/// A tool, by how it is found.
#[derive(Clone, Copy)]
pub enum Tool {
    /// A program on the path, or among the administrator's.
    Program(&'static str),
    /// A module of Debian's Python: another Python on the path does not see Debian's packages.
    Python(&'static str),
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Program(name) | Self::Python(name) => name,
        }
    }

    /// Whether it is installed.
    pub fn is_there(self) -> bool {
        match self {
            Self::Program(name) => program(name).is_some(),
            Self::Python(name) => Command::new("/usr/bin/python3")
                .args(["-c", &format!("import {name}")])
                .output()
                .is_ok_and(|output| output.status.success()),
        }
    }
}

/// Installs what is missing of a table.
///
/// # Errors
///
/// What could not be installed, in short; a warning has named each.
pub fn install(tools: &[(Tool, &str, &str)]) -> Result<(), String> {
    let missing = || tools.iter().filter(|(tool, ..)| !tool.is_there());
    let mut packages: Vec<&str> = missing().map(|&(_, package, _)| package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let outcome = match apt::usable() {
        Ok(()) => apt::install(&packages).map_err(|error| format!("{error:#}")),
        Err(why) => Err(why.to_owned()),
    };
    let why = outcome
        .err()
        .unwrap_or_else(|| "its package does not bring it".to_owned());
    for (tool, package, tests) in missing() {
        eprintln!(
            "xtask: warning: {} is missing, so these tests are skipped: {tests}. {why}: \
             apt-get install {package}",
            tool.name()
        );
    }
    let lacking: Vec<&str> = missing().map(|(tool, ..)| tool.name()).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(format!("no {}: {why}", lacking.join(", no ")))
}
