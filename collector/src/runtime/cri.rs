//! containerd and CRI-O by the Kubernetes container runtime interface, CRI v1.
//!
//! The lists are compared every few seconds; a new cgroup's container is asked for at once.
//!
//! Invariant: a sandbox has a record like a container, with [`SANDBOX`](crate::cgroup::SANDBOX) as the container's name.

mod message;
mod record;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use prost::Message;
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{MissedTickBehavior, interval_at},
};

use self::message::{
    Containers, Empty, Filter, ListRequest, Listed, Sandbox, SandboxStatusResponse, Sandboxes,
    Stats, StatusRequest, StatusResponse, Version,
};
use super::{
    descriptor::Descriptor,
    link::Link,
    wire::{Channel, Fault, LIST, ONE, TIME},
};
use crate::cgroup::{Container, Writable};

/// How often the lists are compared.
const LISTED: Duration = Duration::from_secs(10);
/// How often the writable layers are asked for, and how long that may take.
const SIZES: Duration = Duration::from_secs(60);
const SIZES_TIME: Duration = Duration::from_secs(20);
/// Most records of one runtime.
const MOST: usize = 65_536;

struct Session<'a> {
    link: &'a Link,
    channel: Channel,
    runtime: &'static Descriptor,
    sandboxes: HashMap<String, Sandbox>,
    /// State by id, as of the last status that was read.
    known: HashMap<String, i32>,
}

/// Follows the runtime until a request fails; with `once`, until each container has been asked for.
pub(super) async fn session(
    link: &Link,
    wanted: &mut Receiver<String>,
    once: bool,
) -> Result<(), Fault> {
    let channel = Channel::connect(&link.socket).await;
    let channel = channel.inspect_err(|fault| {
        link.status
            .count::<()>(&Err(Fault::Broken(fault.to_string())), Duration::ZERO);
    })?;
    let mut session = Session {
        link,
        channel,
        runtime: link.descriptor,
        sandboxes: HashMap::new(),
        known: HashMap::new(),
    };
    let version: Version = session.call("Version", &Empty {}, ONE, TIME).await?;
    session.runtime = link
        .descriptor
        .reported(std::iter::once(version.runtime_name.as_str()));
    session.list().await?;
    link.status
        .up(session.runtime.runtime(), &version.runtime_version);
    link.settle();
    if once {
        return Ok(());
    }
    let now = tokio::time::Instant::now();
    let mut listing = interval_at(now + LISTED, LISTED);
    let mut sizes = interval_at(now + Duration::from_secs(2), SIZES);
    for timer in [&mut listing, &mut sizes] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        tokio::select! {
            id = wanted.recv() => match id {
                Ok(id) => session.find(&id).await?,
                Err(RecvError::Lagged(_)) => session.list().await?,
                Err(RecvError::Closed) => return Ok(()),
            },
            _ = listing.tick() => session.list().await?,
            _ = sizes.tick() => session.sizes().await?,
        }
    }
}

/// Ignores faults that concern one answer only. They are counted.
fn minor<T>(result: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match result {
        Ok(answer) => Ok(Some(answer)),
        Err(
            Fault::Unknown
            | Fault::Unsupported(_)
            | Fault::Garbage(_)
            | Fault::Large(_)
            | Fault::Refused(_),
        ) => Ok(None),
        Err(fault) => Err(fault),
    }
}

fn path(method: &str) -> &'static str {
    match method {
        "Version" => "/runtime.v1.RuntimeService/Version",
        "ListPodSandbox" => "/runtime.v1.RuntimeService/ListPodSandbox",
        "ListContainers" => "/runtime.v1.RuntimeService/ListContainers",
        "ContainerStatus" => "/runtime.v1.RuntimeService/ContainerStatus",
        "PodSandboxStatus" => "/runtime.v1.RuntimeService/PodSandboxStatus",
        _ => "/runtime.v1.RuntimeService/ListContainerStats",
    }
}

impl Session<'_> {
    async fn call<A: Message + Default>(
        &self,
        method: &str,
        question: &impl Message,
        limit: usize,
        time: Duration,
    ) -> Result<A, Fault> {
        let begin = Instant::now();
        let result = self.channel.call(path(method), question, limit, time).await;
        self.link.status.count(&result, begin.elapsed());
        result
    }

    /// Compares with the runtime's lists.
    async fn list(&mut self) -> Result<(), Fault> {
        let all = ListRequest::default();
        let sandboxes: Sandboxes = self.call("ListPodSandbox", &all, LIST, 2 * TIME).await?;
        let containers: Containers = self.call("ListContainers", &all, LIST, 2 * TIME).await?;
        let mut found = HashSet::new();
        let mut changed = Vec::new();
        self.sandboxes.clear();
        for sandbox in sandboxes.items.into_iter().take(MOST) {
            found.insert(sandbox.id.clone());
            // Negative, so that it is no container's state.
            if self.known.insert(sandbox.id.clone(), -1 - sandbox.state) != Some(-1 - sandbox.state)
            {
                let record = record::of_sandbox(self.runtime, &sandbox);
                self.put_first(&record);
                changed.push((record, true));
            }
            self.sandboxes.insert(sandbox.id.clone(), sandbox);
        }
        for listed in containers.containers.into_iter().take(MOST) {
            found.insert(listed.id.clone());
            if self.known.insert(listed.id.clone(), listed.state) != Some(listed.state) {
                let record = self.record(&listed);
                self.put_first(&record);
                changed.push((record, false));
            }
        }
        // All names are known now. The details follow.
        for (record, sandbox) in changed {
            self.refine(record, sandbox).await?;
        }
        let directory = &self.link.directory;
        self.known.retain(|id, _| {
            let stays = found.contains(id);
            if !stays {
                directory.gone(id);
            }
            stays
        });
        self.link.status.set_containers(self.known.len());
        Ok(())
    }

    /// Puts a record that has the name alone, unless there is one.
    fn put_first(&self, record: &Container) {
        if self.link.directory.get(&record.id).is_none() {
            self.link.directory.put(record.clone());
        }
    }

    fn record(&self, listed: &Listed) -> Container {
        record::of_container(self.runtime, listed, self.sandboxes.get(&listed.sandbox))
    }

    /// Asks for an id, which may be a container's, a sandbox's or another runtime's.
    async fn find(&mut self, id: &str) -> Result<(), Fault> {
        let only = |id: &str| ListRequest {
            filter: Some(Filter { id: id.to_owned() }),
        };
        let question = only(id);
        let found = self.call::<Containers>("ListContainers", &question, ONE, TIME);
        let found = minor(found.await)?.unwrap_or_default().containers;
        if let Some(listed) = found.into_iter().find(|listed| listed.id == id) {
            if !self.sandboxes.contains_key(&listed.sandbox) {
                self.find_sandbox(only(&listed.sandbox)).await?;
            }
            let record = self.record(&listed);
            self.put_first(&record);
            self.known.insert(listed.id, listed.state);
            self.refine(record, false).await?;
        } else {
            self.find_sandbox(only(id)).await?;
        }
        if self.link.directory.get(id).is_none() {
            self.link.directory.denied(id, &self.link.status);
        }
        self.link.status.set_containers(self.known.len());
        Ok(())
    }

    async fn find_sandbox(&mut self, only: ListRequest) -> Result<(), Fault> {
        let found = self.call::<Sandboxes>("ListPodSandbox", &only, ONE, TIME);
        for sandbox in minor(found.await)?.unwrap_or_default().items {
            if only
                .filter
                .as_ref()
                .is_some_and(|filter| filter.id == sandbox.id)
            {
                let record = record::of_sandbox(self.runtime, &sandbox);
                self.put_first(&record);
                self.known.insert(sandbox.id.clone(), -1 - sandbox.state);
                self.sandboxes.insert(sandbox.id.clone(), sandbox);
                self.refine(record, true).await?;
            }
        }
        Ok(())
    }

    /// Adds what only the status has.
    async fn refine(&self, mut record: Container, sandbox: bool) -> Result<(), Fault> {
        let question = StatusRequest {
            id: record.id.clone(),
            verbose: true,
        };
        if sandbox {
            let answer =
                self.call::<SandboxStatusResponse>("PodSandboxStatus", &question, ONE, TIME);
            if let Some(answer) = minor(answer.await)? {
                record::refine(&mut record, &answer.info);
            }
        } else {
            let answer = self.call::<StatusResponse>("ContainerStatus", &question, ONE, TIME);
            let Some(answer) = minor(answer.await)? else {
                return Ok(());
            };
            if let Some(status) = &answer.status {
                record::add(&mut record, status);
            }
            record::refine(&mut record, &answer.info);
        }
        self.link.directory.put(record);
        Ok(())
    }

    /// Reads the sizes of writable layers.
    async fn sizes(&self) -> Result<(), Fault> {
        let all = ListRequest::default();
        let stats = self.call::<Stats>("ListContainerStats", &all, LIST, SIZES_TIME);
        for stat in minor(stats.await)?.unwrap_or_default().stats {
            let (Some(attributes), Some(usage)) = (stat.attributes, stat.writable) else {
                continue;
            };
            let Some(bytes) = usage.bytes else { continue };
            self.link.directory.update(&attributes.id, |container| {
                container.writable = Some(Writable {
                    bytes: bytes.value,
                    inodes: usage.inodes.map(|inodes| inodes.value),
                });
            });
        }
        Ok(())
    }
}
