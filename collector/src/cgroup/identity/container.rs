//! What a runtime knows of a container.

use std::{collections::BTreeMap, time::SystemTime};

use super::runtime::Runtime;

/// What a runtime knows of a container. What it does not tell is `None` or empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Full id.
    pub id: String,
    /// Who runs it.
    pub runtime: Runtime,
    /// Its name, without a leading slash. Of a container of a pod: as cAdvisor has it under
    /// Kubernetes, the runtime's own name (of containerd: the id).
    pub name: String,
    /// Image as it was asked for.
    pub image: String,
    /// Digest or id of the image.
    pub image_id: String,
    /// Labels, unfiltered.
    pub labels: BTreeMap<String, String>,
    /// Annotations: of the container and, under Kubernetes, of its pod.
    pub annotations: BTreeMap<String, String>,
    /// The pod, under Kubernetes.
    pub pod: Option<Pod>,
    /// State.
    pub state: State,
    /// Health as the runtime checks it; `None` without a check.
    pub health: Option<Health>,
    /// Exit code of the last run that ended.
    pub exit_code: Option<i64>,
    /// Why it ended, such as `OOMKilled` or `Error`; empty while unknown.
    pub exit_reason: String,
    /// How often the runtime has started it again.
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
    pub limits: Limits,
    /// Its writable layer, as the runtime last accounted for it.
    pub writable: Option<Writable>,
}

impl Container {
    /// One of which nothing else is known.
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
            limits: Limits::default(),
            writable: None,
        }
    }
}

/// Where a container belongs under Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Name of the container within the pod; `POD` of the sandbox.
    pub container: String,
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Paused.
    Paused,
    /// Being started again.
    Restarting,
    /// Ended.
    Exited,
    /// The runtime doesn't say.
    Unknown,
}

impl State {
    /// As labels have it; empty where it isn't known.
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

/// Health by the runtime's own check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Within its start period.
    Starting,
    /// Healthy.
    Healthy,
    /// Unhealthy.
    Unhealthy,
}

/// Limits as configured; `None`: no limit, or not told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory, bytes.
    pub memory: Option<u64>,
    /// CPU time per period, µs.
    pub cpu_quota: Option<u64>,
    /// The period, µs.
    pub cpu_period: Option<u64>,
    /// CPU shares, of which 1,024 are usual.
    pub cpu_shares: Option<u64>,
    /// Tasks.
    pub pids: Option<u64>,
}

/// Size of a writable layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writable {
    /// Bytes.
    pub bytes: u64,
    /// Inodes, where the runtime tells.
    pub inodes: Option<u64>,
}
