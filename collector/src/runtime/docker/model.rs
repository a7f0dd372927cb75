//! The fields of the Docker Engine API that are used, as Docker and Podman fill them.
//!
//! Invariant: a field that is missing, null or empty is unknown, never an error.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, SystemTime},
};

use hyper::HeaderMap;
use serde::{Deserialize, Deserializer};

use crate::cgroup::{Container, ContainerLimits, Health, Pod, Runtime, State};

/// Reads null as the default.
fn nullable<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The version of the API that this client uses, if the daemon offers it.
const API: (u32, u32) = (1, 41);

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Version {
    pub(super) version: String,
    api_version: String,
    #[serde(rename = "MinAPIVersion")]
    min_api_version: String,
    #[serde(deserialize_with = "nullable")]
    components: Vec<Component>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Component {
    name: String,
}

impl Version {
    /// Podman's version, from the headers of its answers; `None` for another service.
    pub(super) fn of_podman(headers: &HeaderMap) -> Option<Self> {
        let value = |name| headers.get(name)?.to_str().ok();
        Some(Self {
            version: value("libpod-api-version")?.to_owned(),
            api_version: value("api-version")?.to_owned(),
            components: vec![Component {
                name: "Podman".to_owned(),
            }],
            ..Self::default()
        })
    }

    /// Names of the service's components; one is the runtime's.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.components
            .iter()
            .map(|component| component.name.as_str())
    }

    /// The version to use, as the beginning of paths: `/v1.41`.
    pub(super) fn prefix(&self) -> String {
        let number = |text: &str| {
            let (major, minor) = text.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        let newest = number(&self.api_version).unwrap_or(API);
        let oldest = number(&self.min_api_version).unwrap_or(API);
        let (major, minor): (u32, u32) = API.min(newest).max(oldest.min(newest));
        format!("/v{major}.{minor}")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Listed {
    pub(super) id: String,
    #[serde(deserialize_with = "nullable")]
    names: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    image: String,
    #[serde(rename = "ImageID", deserialize_with = "nullable")]
    image_id: String,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    state: String,
    created: Option<i64>,
    pub(super) size_rw: Option<i64>,
}

impl Listed {
    /// The record that a list's entry makes. Inspection has more.
    pub(super) fn container(self, runtime: Runtime) -> Container {
        let name = self.names.first().map(String::as_str).unwrap_or_default();
        Container {
            image_id: self.image_id,
            state: state(&self.state),
            created: self
                .created
                .and_then(|seconds| seconds_since_epoch(seconds, 0)),
            ..bare(self.id, runtime, name, self.image, self.labels)
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Inspected {
    pub(super) id: String,
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    created: String,
    #[serde(deserialize_with = "nullable")]
    image: String,
    restart_count: Option<i64>,
    #[serde(deserialize_with = "nullable")]
    config: Config,
    #[serde(deserialize_with = "nullable")]
    host_config: HostConfig,
    #[serde(deserialize_with = "nullable")]
    state: InspectedState,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    #[serde(deserialize_with = "nullable")]
    image: String,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    memory: Option<i64>,
    cpu_shares: Option<i64>,
    cpu_period: Option<i64>,
    cpu_quota: Option<i64>,
    nano_cpus: Option<i64>,
    pids_limit: Option<i64>,
    #[serde(deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InspectedState {
    #[serde(deserialize_with = "nullable")]
    status: String,
    #[serde(rename = "OOMKilled")]
    oom_killed: Option<bool>,
    pid: Option<i64>,
    exit_code: Option<i64>,
    #[serde(deserialize_with = "nullable")]
    started_at: String,
    #[serde(deserialize_with = "nullable")]
    finished_at: String,
    health: Option<Check>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Check {
    #[serde(deserialize_with = "nullable")]
    status: String,
}

fn positive(number: Option<i64>) -> Option<u64> {
    number
        .and_then(|number| u64::try_from(number).ok())
        .filter(|&number| number > 0)
}

impl HostConfig {
    fn limits(&self) -> ContainerLimits {
        // --cpus sets a quota for the default period.
        let cpus = positive(self.nano_cpus).map(|nanos| nanos / 10_000);
        let quota = positive(self.cpu_quota).or(cpus);
        ContainerLimits {
            memory: positive(self.memory),
            cpu_quota: quota,
            cpu_period: positive(self.cpu_period).or(quota.map(|_| 100_000)),
            cpu_shares: positive(self.cpu_shares),
            pids: positive(self.pids_limit),
        }
    }
}

impl Inspected {
    pub(super) fn container(self, runtime: Runtime) -> Container {
        let status = self.state;
        let state = state(&status.status);
        // While it runs, the code is 0 and says nothing of the last run.
        let ended = state == State::Exited;
        let exit_code = status.exit_code.filter(|_| ended);
        Container {
            image_id: self.image,
            annotations: self.host_config.annotations.clone(),
            state,
            health: status.health.and_then(|check| match check.status.as_str() {
                "starting" => Some(Health::Starting),
                "healthy" => Some(Health::Healthy),
                "unhealthy" => Some(Health::Unhealthy),
                _ => None,
            }),
            exit_code,
            exit_reason: if ended {
                reason(exit_code, status.oom_killed == Some(true))
            } else {
                String::new()
            },
            restarts: self
                .restart_count
                .and_then(|count| u64::try_from(count).ok()),
            created: time(&self.created),
            started: time(&status.started_at),
            finished: time(&status.finished_at),
            pid: positive(status.pid).and_then(|pid| u32::try_from(pid).ok()),
            limits: self.host_config.limits(),
            ..bare(
                self.id,
                runtime,
                &self.name,
                self.config.image,
                self.config.labels,
            )
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DockerEvent {
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    pub(super) actor: Actor,
    #[serde(rename = "timeNano")]
    time_nano: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Actor {
    #[serde(rename = "ID")]
    pub(super) id: String,
    #[serde(rename = "Attributes", deserialize_with = "nullable")]
    pub(super) attributes: HashMap<String, String>,
}

impl DockerEvent {
    /// The action without its argument: `health_status: healthy` is `health_status`.
    pub(super) fn name(&self) -> &str {
        self.action.split(':').next().unwrap_or_default()
    }

    pub(super) fn time(&self) -> Option<SystemTime> {
        let (seconds, nanos) = (
            self.time_nano / 1_000_000_000,
            self.time_nano % 1_000_000_000,
        );
        seconds_since_epoch(seconds, u32::try_from(nanos).ok()?).filter(|_| self.time_nano > 0)
    }

    pub(super) fn exit_code(&self) -> Option<i64> {
        let attributes = &self.actor.attributes;
        let code = attributes
            .get("exitCode")
            .or(attributes.get("containerExitCode"));
        code?.parse().ok()
    }

    /// The record that a birth makes: its attributes are the labels, the name and the image.
    pub(super) fn container(&self, runtime: Runtime) -> Container {
        let mut labels: BTreeMap<_, _> = self.actor.attributes.clone().into_iter().collect();
        let name = labels.remove("name").unwrap_or_default();
        let image = labels.remove("image").unwrap_or_default();
        labels.remove("podId");
        labels.remove("containerExitCode");
        Container {
            state: State::Created,
            created: self.time(),
            ..bare(self.actor.id.clone(), runtime, &name, image, labels)
        }
    }
}

fn bare(
    id: String,
    runtime: Runtime,
    name: &str,
    image: String,
    labels: BTreeMap<String, String>,
) -> Container {
    Container {
        name: name.trim_start_matches('/').to_owned(),
        image,
        pod: pod(&labels),
        labels,
        ..Container::new(id, runtime)
    }
}

/// The pod, by the labels of dockershim and cri-dockerd.
fn pod(labels: &BTreeMap<String, String>) -> Option<Pod> {
    let label = |name: &str| labels.get(&format!("io.kubernetes.{name}")).cloned();
    Some(Pod {
        name: label("pod.name")?,
        namespace: label("pod.namespace")?,
        uid: label("pod.uid").unwrap_or_default(),
        container: label("container.name").unwrap_or_default(),
    })
}

fn state(text: &str) -> State {
    match text {
        "created" | "configured" | "initialized" => State::Created,
        "running" | "stopping" => State::Running,
        "paused" => State::Paused,
        "restarting" => State::Restarting,
        "exited" | "dead" | "removing" | "stopped" => State::Exited,
        _ => State::Unknown,
    }
}

/// Why a container ended, in Kubernetes's words.
pub(super) fn reason(code: Option<i64>, oom: bool) -> String {
    match (oom, code) {
        (true, _) => "OOMKilled",
        (false, Some(0)) => "Completed",
        (false, Some(_)) => "Error",
        (false, None) => "",
    }
    .to_owned()
}

fn seconds_since_epoch(seconds: i64, nanos: u32) -> Option<SystemTime> {
    let since = Duration::new(u64::try_from(seconds).ok()?, nanos);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

/// RFC 3339 with any offset; year 1 means never.
fn time(text: &str) -> Option<SystemTime> {
    if let Ok(time) = humantime::parse_rfc3339(text) {
        return Some(time).filter(|time| *time > SystemTime::UNIX_EPOCH);
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let seconds = hours.parse::<u64>().ok()? * 3600 + minutes.parse::<u64>().ok()? * 60;
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    match offset.as_bytes().first()? {
        b'+' => local.checked_sub(Duration::from_secs(seconds)),
        b'-' => local.checked_add(Duration::from_secs(seconds)),
        _ => None,
    }
    .filter(|time| *time > SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let prefix = |newest: &str, oldest: &str| {
            let version = Version {
                api_version: newest.to_owned(),
                min_api_version: oldest.to_owned(),
                ..Version::default()
            };
            version.prefix()
        };
        assert_eq!(prefix("1.41", "1.12"), "/v1.41");
        assert_eq!(prefix("1.52", "1.44"), "/v1.44");
        assert_eq!(prefix("1.30", "1.12"), "/v1.30");
        assert_eq!(prefix("", ""), "/v1.41");
    }

    #[test]
    fn times() {
        let utc = time("2026-01-02T03:04:05.5Z");
        assert!(utc.is_some());
        assert_eq!(time("2026-01-02T05:04:05.5+02:00"), utc);
        assert_eq!(time("2026-01-01T21:34:05.5-05:30"), utc);
        for never in [
            "0001-01-01T00:00:00Z",
            "",
            "soon",
            "é:00",
            "0001-01-01T00:00:00+00:00",
        ] {
            assert_eq!(time(never), None, "{never}");
        }
    }

    #[test]
    fn what_is_missing_or_null_is_unknown() {
        let bare: Inspected = serde_json::from_str(r#"{"Id":"a"}"#).unwrap();
        let bare = bare.container(Runtime::DOCKER);
        assert_eq!(
            (bare.state, bare.pid, bare.restarts),
            (State::Unknown, None, None)
        );
        let text = r#"{"Id":"a","Name":"/web","RestartCount":2,"HostConfig":{"Memory":0,"NanoCpus":500000000,
            "PidsLimit":-1},"Config":{"Image":"i:1","Labels":null},"State":{"Status":"exited","ExitCode":137,
            "OOMKilled":true,"Pid":0,"Health":{"Status":""},"FinishedAt":"2026-01-02T03:04:05Z"}}"#;
        let ended: Inspected = serde_json::from_str(text).unwrap();
        let ended = ended.container(Runtime::DOCKER);
        assert_eq!((ended.name.as_str(), ended.image.as_str()), ("web", "i:1"));
        assert_eq!(
            (ended.exit_code, ended.exit_reason.as_str()),
            (Some(137), "OOMKilled")
        );
        assert_eq!(
            (ended.restarts, ended.pid, ended.health),
            (Some(2), None, None)
        );
        let limits = ended.limits;
        assert_eq!(
            (limits.cpu_quota, limits.cpu_period),
            (Some(50_000), Some(100_000))
        );
        assert_eq!((limits.memory, limits.pids), (None, None));
        assert!(ended.finished.is_some());
    }

    #[test]
    fn an_event_makes_a_record() {
        let text = r#"{"Type":"container","Action":"create","timeNano":1700000000500000000,"Actor":{"ID":"ab",
            "Attributes":{"name":"short","image":"i","io.kubernetes.pod.name":"p","io.kubernetes.pod.namespace":"n",
            "io.kubernetes.container.name":"POD"}}}"#;
        let event: DockerEvent = serde_json::from_str(text).unwrap();
        let made = event.container(Runtime::DOCKER);
        assert_eq!((made.name.as_str(), made.image.as_str()), ("short", "i"));
        let pod = made.pod.unwrap();
        assert_eq!((pod.name.as_str(), pod.container.as_str()), ("p", "POD"));
        assert!(made.created.is_some() && !made.labels.contains_key("name"));
    }
}
