//! Container runtimes, as far as paths distinguish them.
//!
//! Which runtimes there are is not known here: the tree is given the [`Runtime`]s whose paths it
//! recognises. Each is described in one place, `runtime::descriptor`.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

/// What a runtime calls itself and its containers' cgroups.
#[derive(Debug, PartialEq, Eq)]
pub struct Naming {
    /// Name of the runtime, as flags and labels have it.
    pub name: &'static str,
    /// `PREFIX-ID`, `PREFIX-ID.scope` and `SLICE:PREFIX:ID` are containers.
    pub prefixes: &'static [&'static str],
    /// `PREFIX-ID` and `PREFIX-ID.scope` are processes that watch over a container.
    pub monitors: &'static [&'static str],
    /// `FOLDER/ID` is a container.
    pub folders: &'static [&'static str],
    /// `/FOLDER/NAME` is a container, which may have any name for an id.
    pub namespaces: &'static [&'static str],
    /// `FOLDER/ID` is a group of containers.
    pub groups: &'static [&'static str],
    /// The label `container` of a pod's sandbox, as the kubelet's endpoint has it: a label of the sandbox, which dockershim
    /// and CRI-O set, and containerd does not.
    pub sandbox: &'static str,
}

/// What a sandbox is called where it has a name.
pub const SANDBOX: &str = "POD";

impl Naming {
    /// Names of a runtime whose cgroups can't be recognised by their paths.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            prefixes: &[],
            monitors: &[],
            folders: &[],
            namespaces: &[],
            groups: &[],
            sandbox: SANDBOX,
        }
    }
}

/// A container runtime.
#[derive(Clone, Copy)]
pub struct Runtime(&'static Naming);

impl Runtime {
    /// The runtime that names its cgroups so.
    pub const fn new(naming: &'static Naming) -> Self {
        Self(naming)
    }

    /// As flags and labels have it.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// How it names cgroups.
    pub(super) fn naming(self) -> &'static Naming {
        self.0
    }
}

impl PartialEq for Runtime {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Runtime {}

impl Hash for Runtime {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// For tests of modules that know no runtime: one whose containers are at `/docker/ID`.
#[cfg(test)]
impl Runtime {
    pub(crate) const DOCKER: Self = Self(&Naming {
        folders: &["docker"],
        ..Naming::new("docker")
    });
}
