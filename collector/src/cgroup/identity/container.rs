//! Records of containers.

use std::{collections::BTreeMap, time::SystemTime};

use super::runtime::{Runtime, SANDBOX};

/// A runtime's record of a container. Unknown fields are `None` or empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// The full id, as the runtime has it.
    pub id: String,
    /// The runtime that runs it.
    pub runtime: Runtime,
    /// Its name, without a leading slash. For a container of a pod, as in cAdvisor, the runtime's own
    /// name (containerd: the id).
    pub name: String,
    /// The image, as it was requested.
    pub image: String,
    /// Digest or id of the image.
    pub image_id: String,
    /// All labels, whether they are exported or not.
    pub labels: BTreeMap<String, String>,
    /// Annotations: of the container and, under Kubernetes, of its pod.
    pub annotations: BTreeMap<String, String>,
    /// The pod, under Kubernetes.
    pub pod: Option<Pod>,
    /// Whether it runs, as the runtime reports it.
    pub state: State,
    /// Health as the runtime checks it; `None` without a check.
    pub health: Option<Health>,
    /// Exit code of the last run that ended.
    pub exit_code: Option<i64>,
    /// Why it ended, such as `OOMKilled` or `Error`; empty while unknown.
    pub exit_reason: String,
    /// How often the runtime has restarted it.
    pub restarts: Option<u64>,
    /// When it was created.
    pub created: Option<SystemTime>,
    /// When it was last started.
    pub started: Option<SystemTime>,
    /// When it last ended.
    pub finished: Option<SystemTime>,
    /// Process id of its first process, in the host's PID namespace, while it runs.
    pub pid: Option<u32>,
    /// Limits as configured.
    pub limits: ContainerLimits,
    /// Size of its writable layer, as last reported.
    pub writable: Option<Writable>,
}

impl Container {
    /// A record of which nothing else is known.
    pub fn new(id: impl Into<String>, runtime: Runtime) -> Self {
        Self {
            id: id.into(),
            runtime,
            name: String::new(),
            image: String::new(),
            image_id: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            pod: None,
            state: State::Unknown,
            health: None,
            exit_code: None,
            exit_reason: String::new(),
            restarts: None,
            created: None,
            started: None,
            finished: None,
            pid: None,
            limits: ContainerLimits::default(),
            writable: None,
        }
    }
}

/// Where a container belongs under Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Namespace of the pod in Kubernetes.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// Name of the container within the pod; [`SANDBOX`] of the sandbox.
    pub container: String,
}

impl Pod {
    /// Whether the container is the pod's sandbox.
    pub fn is_of_sandbox(&self) -> bool {
        self.container == SANDBOX
    }
}

/// State of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was created and has not been started.
    Created,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// The runtime is about to start it again.
    Restarting,
    /// It has ended.
    Exited,
    /// The runtime does not say.
    Unknown,
}

impl State {
    /// As in labels; empty if unknown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Unknown => "",
        }
    }
}

/// Result of the runtime's health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It is within its start period: failed checks do not count yet.
    Starting,
    /// Its last check succeeded.
    Healthy,
    /// Too many checks in a row have failed.
    Unhealthy,
}

/// Limits as configured; `None`: no limit, or not reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerLimits {
    /// Limit of memory, bytes.
    pub memory: Option<u64>,
    /// CPU time per period, µs.
    pub cpu_quota: Option<u64>,
    /// The period of the CPU quota, µs.
    pub cpu_period: Option<u64>,
    /// CPU shares; 1,024 is the default.
    pub cpu_shares: Option<u64>,
    /// Most tasks.
    pub pids: Option<u64>,
}

/// Size of a writable layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writable {
    /// Bytes in use.
    pub bytes: u64,
    /// Inodes in use, if the runtime reports them.
    pub inodes: Option<u64>,
}
