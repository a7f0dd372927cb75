//! Records from CRI's answers.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, SystemTime},
};

use serde::Deserialize;

use super::{
    super::descriptor::{Descriptor, RuntimeProtocol},
    message::{ContainerStatus, Listed, Sandbox},
};
use crate::cgroup::{Container, ContainerLimits, Pod, SANDBOX, State};

/// The fields of verbose information that containerd and CRI-O share.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Info {
    pid: Option<u32>,
    /// Image of a sandbox, which no field of CRI has.
    image: Option<String>,
    #[serde(rename = "runtimeSpec")]
    spec: Option<Spec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    resources: Option<Resources>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resources {
    memory: Option<Limit>,
    cpu: Option<Cpu>,
    pids: Option<Limit>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Limit {
    limit: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cpu {
    shares: Option<u64>,
    quota: Option<i64>,
    period: Option<u64>,
}

fn positive(number: Option<i64>) -> Option<u64> {
    number
        .and_then(|number| u64::try_from(number).ok())
        .filter(|&number| number > 0)
}

/// Adds process and limits from verbose information, if there is any.
pub(super) fn refine(container: &mut Container, info: &HashMap<String, String>) {
    let Some(info) = info
        .get("info")
        .and_then(|text| serde_json::from_str::<Info>(text).ok())
    else {
        return;
    };
    if container.image.is_empty() {
        container.image = info.image.unwrap_or_default();
    }
    let runs = container.state == State::Running;
    container.pid = info.pid.filter(|&pid| runs && pid > 0);
    let resources = info
        .spec
        .and_then(|spec| spec.linux)
        .and_then(|linux| linux.resources)
        .unwrap_or_default();
    let cpu = resources.cpu.unwrap_or_default();
    let quota = positive(cpu.quota);
    container.limits = ContainerLimits {
        memory: positive(resources.memory.and_then(|memory| memory.limit)),
        cpu_quota: quota,
        cpu_period: cpu.period.filter(|&period| period > 0),
        cpu_shares: cpu.shares.filter(|&shares| shares > 0),
        pids: positive(resources.pids.and_then(|pids| pids.limit)),
    };
}

fn time(nanos: i64) -> Option<SystemTime> {
    let nanos = u64::try_from(nanos).ok().filter(|&nanos| nanos > 0)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(nanos))
}

fn sorted(map: &HashMap<String, String>) -> BTreeMap<String, String> {
    map.iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn state(number: i32) -> State {
    match number {
        0 => State::Created,
        1 => State::Running,
        2 => State::Exited,
        _ => State::Unknown,
    }
}

/// The runtime's own name of a container.
fn name(runtime: &Descriptor, id: &str, pod: &Pod, attempt: u32) -> String {
    if runtime.protocol != (RuntimeProtocol::Cri { named: true }) {
        return id.to_owned();
    }
    let Pod {
        container,
        name,
        namespace,
        uid,
    } = pod;
    format!("k8s_{container}_{name}_{namespace}_{uid}_{attempt}")
}

/// The pod of a sandbox.
fn pod(sandbox: &Sandbox, container: &str) -> Pod {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    Pod {
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        container: container.to_owned(),
    }
}

/// The record of a sandbox.
pub(super) fn of_sandbox(runtime: &'static Descriptor, sandbox: &Sandbox) -> Container {
    let pod = pod(sandbox, SANDBOX);
    let attempt = sandbox.metadata.as_ref().map_or(0, |it| it.attempt);
    Container {
        name: name(runtime, &sandbox.id, &pod, attempt),
        labels: sorted(&sandbox.labels),
        annotations: sorted(&sandbox.annotations),
        pod: Some(pod),
        state: if sandbox.state == 0 {
            State::Running
        } else {
            State::Exited
        },
        restarts: Some(u64::from(attempt)),
        created: time(sandbox.created_at),
        started: time(sandbox.created_at),
        ..Container::new(sandbox.id.as_str(), runtime.runtime())
    }
}

/// The record of a list's entry, with its pod's annotations.
pub(super) fn of_container(
    runtime: &'static Descriptor,
    listed: &Listed,
    sandbox: Option<&Sandbox>,
) -> Container {
    let metadata = listed.metadata.clone().unwrap_or_default();
    let label = |name: &str| {
        let label = listed.labels.get(&format!("io.kubernetes.pod.{name}"));
        label.cloned().unwrap_or_default()
    };
    let pod = match sandbox {
        Some(sandbox) => pod(sandbox, &metadata.name),
        // By the kubelet's labels.
        None => Pod {
            namespace: label("namespace"),
            name: label("name"),
            uid: label("uid"),
            container: metadata.name.clone(),
        },
    };
    let mut annotations = sandbox.map_or_else(BTreeMap::new, |it| sorted(&it.annotations));
    annotations.extend(sorted(&listed.annotations));
    let image = listed.image.clone().unwrap_or_default();
    Container {
        name: name(runtime, &listed.id, &pod, metadata.attempt),
        image: if image.user_specified.is_empty() {
            image.image
        } else {
            image.user_specified
        },
        image_id: listed.image_ref.clone(),
        labels: sorted(&listed.labels),
        annotations,
        pod: Some(pod),
        state: state(listed.state),
        restarts: Some(u64::from(metadata.attempt)),
        created: time(listed.created_at),
        ..Container::new(listed.id.as_str(), runtime.runtime())
    }
}

/// Adds what only the status has.
pub(super) fn add(container: &mut Container, status: &ContainerStatus) {
    container.state = state(status.state);
    container.created = time(status.created_at).or(container.created);
    container.started = time(status.started_at);
    container.finished = time(status.finished_at);
    if container.state == State::Exited {
        container.exit_code = Some(i64::from(status.exit_code));
        container.exit_reason.clone_from(&status.reason);
    }
    // In lists the image may be an id; the status has its name.
    let image = status.image.clone().unwrap_or_default();
    let named = if image.user_specified.is_empty() {
        image.image
    } else {
        image.user_specified
    };
    if !named.is_empty() && !named.starts_with("sha256:") {
        container.image = named;
    }
    if !status.image_ref.is_empty() {
        container.image_id.clone_from(&status.image_ref);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            super::descriptor::{containerd::CONTAINERD, crio::CRIO},
            message::{Image, Metadata, SandboxMetadata},
        },
        *,
    };

    fn sandbox() -> Sandbox {
        Sandbox {
            id: "s".to_owned(),
            metadata: Some(SandboxMetadata {
                name: "shop-1".to_owned(),
                uid: "u".to_owned(),
                namespace: "prod".to_owned(),
                attempt: 0,
            }),
            annotations: [("a".to_owned(), "1".to_owned())].into(),
            created_at: 5,
            ..Sandbox::default()
        }
    }

    fn listed() -> Listed {
        Listed {
            id: "c".to_owned(),
            metadata: Some(Metadata {
                name: "web".to_owned(),
                attempt: 3,
            }),
            image: Some(Image {
                image: "sha256:1".to_owned(),
                user_specified: String::new(),
            }),
            state: 1,
            ..Listed::default()
        }
    }

    #[test]
    fn names_and_pods() {
        let made = of_container(&CRIO, &listed(), Some(&sandbox()));
        assert_eq!(made.name, "k8s_web_shop-1_prod_u_3");
        assert_eq!(made.annotations["a"], "1");
        assert_eq!(made.restarts, Some(3));
        let made = of_container(&CONTAINERD, &listed(), None);
        assert_eq!(
            (made.name.as_str(), made.pod.unwrap().container.as_str()),
            ("c", "web")
        );
        let pod = of_sandbox(&CONTAINERD, &sandbox());
        assert_eq!(pod.state, State::Running);
        let mut paused = pod.clone();
        let text = r#"{"image":"pause:3","pid":9}"#;
        refine(&mut paused, &[("info".to_owned(), text.to_owned())].into());
        assert_eq!((paused.image.as_str(), paused.pid), ("pause:3", Some(9)));
        assert!(pod.pod.unwrap().is_of_sandbox());
    }

    #[test]
    fn status_and_information() {
        let mut made = of_container(&CONTAINERD, &listed(), Some(&sandbox()));
        let text = r#"{"pid":42,"runtimeSpec":{"linux":{"resources":{"memory":{"limit":1048576},
            "cpu":{"shares":512,"quota":50000,"period":100000}}}}}"#;
        refine(&mut made, &[("info".to_owned(), text.to_owned())].into());
        assert_eq!((made.pid, made.limits.memory), (Some(42), Some(1_048_576)));
        let status = ContainerStatus {
            state: 2,
            exit_code: 137,
            finished_at: 7,
            image: Some(Image {
                image: "docker.io/library/web:1".to_owned(),
                user_specified: String::new(),
            }),
            reason: "OOMKilled".to_owned(),
            ..ContainerStatus::default()
        };
        add(&mut made, &status);
        assert_eq!(
            (made.exit_code, made.exit_reason.as_str()),
            (Some(137), "OOMKilled")
        );
        assert_eq!(made.image, "docker.io/library/web:1");
        refine(&mut made, &[("info".to_owned(), "{".to_owned())].into());
    }
}
