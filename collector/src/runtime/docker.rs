//! Docker Engine's API, which Podman has as well: events name containers, inspection has the details.
//!
//! Invariant: a record is made from the event before anything is asked, so that a container that is
//! removed at once has a name.

mod model;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    task::JoinSet,
    time::{MissedTickBehavior, interval_at},
};

use self::model::{DockerEvent, Inspected, Listed, Version};
use super::{
    descriptor::RuntimeProtocol,
    link::Link,
    wire::{self, Fault, LIST, ONE, TIME},
};
use crate::cgroup::{Runtime, State, Writable};

/// Concurrent inspections, by [`Urgency`]. Routine ones leave the runtime time for others.
const AT_ONCE: [usize; 2] = [4, 2];
/// Most containers that wait to be inspected.
const QUEUE: usize = 65_536;
/// How often the list is compared, since events can be lost.
const LISTED: Duration = Duration::from_secs(60);
/// How far back births are looked up.
const BIRTH: Duration = Duration::from_secs(60);
/// How often the runtime is pinged.
const PING: Duration = Duration::from_secs(10);
/// How often the sizes of writable layers are asked for, and how long that may take.
const SIZES: Duration = Duration::from_secs(60);
const SIZES_TIME: Duration = Duration::from_secs(50);

struct Session<'a> {
    link: &'a Link,
    runtime: Runtime,
    /// Whether the runtime answers about a container only after it has started.
    answers_late: bool,
    /// What requests begin with: the version of the API, such as `/v1.41`.
    prefix: String,
    known: HashSet<String>,
    /// Containers that became known while a list is being asked for. They may not be in it.
    since_listed: Option<HashSet<String>>,
    pending: HashMap<String, Pending>,
    queues: [Queue; 2],
    /// Containers whose births are being looked up.
    births: HashSet<String>,
    tasks: JoinSet<Done>,
}

/// How soon a container is inspected.
#[derive(Clone, Copy, Debug)]
enum Urgency {
    /// It is new or has changed.
    Now,
    /// It is in the list; its events may have been lost.
    Routine,
}

/// Ids to inspect, and how many of them are being inspected.
#[derive(Debug, Default)]
struct Queue {
    ids: VecDeque<String>,
    running: usize,
}

/// An inspection that has not been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Queued,
    Running,
    /// Something has happened since it was asked.
    Outdated,
}

enum Done {
    Listed(Result<Vec<Listed>, Fault>),
    Inspected(String, Urgency, Result<Box<Inspected>, Fault>),
    Sizes(Result<Vec<Listed>, Fault>),
    Alive(Result<(), Fault>),
    Births(String, Result<bytes::Bytes, Fault>),
}

fn parse<'a, T: serde::Deserialize<'a>>(text: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(text).map_err(|error| Fault::Garbage(error.to_string()))
}

impl Link {
    async fn json<T: serde::de::DeserializeOwned>(
        &self,
        target: &str,
        limit: usize,
        time: Duration,
    ) -> Result<T, Fault> {
        let (_, text) = self.get(target, limit, time).await?;
        let parsed = parse(&text);
        if parsed.is_err() {
            self.status.count(&parsed, Duration::ZERO);
        }
        parsed
    }
}

/// What the service reports of itself. Podman's /version looks up packages of the host, which takes
/// seconds on a busy one; its /_ping has the same in headers.
async fn version(link: &Link) -> Result<Version, Fault> {
    match link.get("/_ping", ONE, TIME).await {
        Ok((headers, _)) => {
            if let Some(version) = Version::of_podman(&headers) {
                return Ok(version);
            }
        }
        Err(Fault::Unknown) => {}
        Err(fault) => return Err(fault),
    }
    link.json("/version", ONE, TIME).await
}

/// Follows the runtime until a request fails; with `once`, until each container has been asked for.
pub(super) async fn session(
    link: &Link,
    wanted: &mut Receiver<String>,
    once: bool,
) -> Result<(), Fault> {
    let version = version(link).await?;
    let descriptor = link.descriptor.reported(version.names());
    let runtime = descriptor.runtime();
    let mut session = Session {
        link,
        runtime,
        answers_late: descriptor.protocol == RuntimeProtocol::Docker { answers_late: true },
        prefix: version.prefix(),
        known: HashSet::new(),
        since_listed: None,
        pending: HashMap::new(),
        queues: Default::default(),
        births: HashSet::new(),
        tasks: JoinSet::new(),
    };
    // Before the list, so that no event between them is missed.
    let filters = "%7B%22type%22%3A%5B%22container%22%5D%7D";
    let target = format!("{}/events?filters={filters}", session.prefix);
    let mut events = wire::stream(&link.socket, &target).await?;
    let listed = list(link, &session.prefix).await?;
    session.listed(listed);
    link.status.up(runtime, &version.version);
    link.settle();
    let now = tokio::time::Instant::now();
    let mut listing = interval_at(now + LISTED, LISTED);
    let mut sizes = interval_at(now + Duration::from_secs(2), SIZES);
    let mut ping = interval_at(now + PING, PING);
    for timer in [&mut listing, &mut sizes, &mut ping] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        session.pump();
        if once && session.tasks.is_empty() {
            return Ok(());
        }
        tokio::select! {
            line = events.line() => match line? {
                Some(line) => session.event(&line),
                None => return Err(Fault::Broken("the events have ended".to_owned())),
            },
            id = wanted.recv() => match id {
                Ok(id) => {
                    session.ask_birth(&id);
                    session.inspect(id, Urgency::Now);
                }
                Err(RecvError::Lagged(_)) => session.ask_list(),
                Err(RecvError::Closed) => return Ok(()),
            },
            Some(done) = session.tasks.join_next() => {
                if let Ok(done) = done {
                    session.done(done)?;
                }
            }
            _ = listing.tick() => session.ask_list(),
            _ = sizes.tick() => session.ask_sizes(),
            _ = ping.tick() => session.ask_alive(),
        }
    }
}

/// The runtime's list of all containers.
async fn list(link: &Link, prefix: &str) -> Result<Vec<Listed>, Fault> {
    let target = format!("{prefix}/containers/json?all=1");
    link.json(&target, LIST, 2 * TIME).await
}

impl Session<'_> {
    /// Asks for the list. This is a task, so that a long list does not delay new containers.
    fn ask_list(&mut self) {
        if self.since_listed.is_some() {
            return;
        }
        self.since_listed = Some(HashSet::new());
        let (link, prefix) = (self.link.clone(), self.prefix.clone());
        self.tasks
            .spawn(async move { Done::Listed(list(&link, &prefix).await) });
    }

    /// Compares with the runtime's list.
    fn listed(&mut self, listed: Vec<Listed>) {
        let mut found = HashSet::with_capacity(listed.len());
        for listed in listed {
            let id = listed.id.clone();
            if !valid(&id) || found.len() >= QUEUE {
                continue;
            }
            if self.link.directory.get(&id).is_none() {
                self.link.directory.put(listed.container(self.runtime));
            }
            found.insert(id.clone());
            self.inspect(id, Urgency::Routine);
        }
        let since = self.since_listed.take().unwrap_or_default();
        found.extend(since.into_iter().filter(|id| self.known.contains(id)));
        for id in self.known.difference(&found) {
            self.link.directory.gone(id);
        }
        self.known = found;
        self.link.status.set_containers(self.known.len());
    }

    /// Notes that the runtime has a container.
    fn know(&mut self, id: &str) {
        self.known.insert(id.to_owned());
        if let Some(since) = &mut self.since_listed {
            since.insert(id.to_owned());
        }
    }

    fn inspect(&mut self, id: String, urgency: Urgency) {
        if !valid(&id) {
            return;
        }
        match (self.pending.get(&id), urgency) {
            (Some(Pending::Queued), Urgency::Routine) => return,
            // It moves to the urgent queue. Its place in the other queue is skipped later.
            (Some(Pending::Queued), Urgency::Now) => {}
            (Some(_), _) => {
                self.pending.insert(id, Pending::Outdated);
                return;
            }
            (None, _) if self.pending.len() >= QUEUE => return,
            (None, _) => {
                self.pending.insert(id.clone(), Pending::Queued);
            }
        }
        self.queues[urgency as usize].ids.push_back(id);
    }

    /// Starts queued inspections.
    fn pump(&mut self) {
        for urgency in [Urgency::Now, Urgency::Routine] {
            let queue = &mut self.queues[urgency as usize];
            while queue.running < AT_ONCE[urgency as usize]
                && let Some(id) = queue.ids.pop_front()
            {
                match self.pending.get_mut(&id) {
                    // An event from here on makes the answer outdated.
                    Some(pending @ Pending::Queued) => *pending = Pending::Running,
                    // It was started from the other queue.
                    _ => continue,
                }
                queue.running += 1;
                let link = self.link.clone();
                let target = format!("{}/containers/{id}/json", self.prefix);
                self.tasks.spawn(async move {
                    let result = link.json(&target, ONE, TIME).await;
                    Done::Inspected(id, urgency, result)
                });
            }
        }
    }

    /// Looks up a container's birth in the log of events of a runtime that answers about it only
    /// after it has started. The stream of events would bring it late, because Podman reads its log
    /// only now and then.
    fn ask_birth(&mut self, id: &str) {
        let known = self.link.directory.get(id).is_some();
        if !self.answers_late || known || !valid(id) || self.tasks.len() >= QUEUE {
            return;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let since = now.map_or(0, |now| now.as_secs().saturating_sub(BIRTH.as_secs()));
        // {"type":["container"],"event":["create"],"container":["…"]}
        let filters = format!(
            "%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22create%22%5D%2C\
             %22container%22%3A%5B%22{id}%22%5D%7D"
        );
        let target = format!(
            "{}/events?stream=false&since={since}&filters={filters}",
            self.prefix
        );
        if self.births.insert(id.to_owned()) {
            let (link, id) = (self.link.clone(), id.to_owned());
            self.tasks.spawn(async move {
                let answer = link.get(&target, ONE, TIME).await;
                Done::Births(id, answer.map(|(_, lines)| lines))
            });
        }
    }

    /// Makes a record from a container's birth, unless there is one.
    fn born(&mut self, event: &DockerEvent) {
        let id = &event.actor.id;
        if valid(id) && self.link.directory.get(id).is_none() {
            self.link.directory.put(event.container(self.runtime));
            self.know(id);
        }
    }

    /// Reports that there is no record, unless a pending request may still bring one.
    fn no_record(&self, id: &str) {
        let coming = self.births.contains(id) || self.pending.contains_key(id);
        if !coming && self.link.directory.get(id).is_none() {
            self.link.directory.denied(id, &self.link.status);
        }
    }

    fn ask_sizes(&mut self) {
        let link = self.link.clone();
        let target = format!("{}/containers/json?size=1", self.prefix);
        self.tasks
            .spawn(async move { Done::Sizes(link.json(&target, LIST, SIZES_TIME).await) });
    }

    fn ask_alive(&mut self) {
        let link = self.link.clone();
        self.tasks
            .spawn(async move { Done::Alive(link.get("/_ping", 4096, TIME).await.map(|_| ())) });
    }

    fn done(&mut self, done: Done) -> Result<(), Fault> {
        let fault = match done {
            Done::Listed(result) => match result {
                Ok(listed) => {
                    self.listed(listed);
                    None
                }
                Err(fault) => return Err(fault),
            },
            Done::Inspected(id, urgency, result) => {
                let again = self.pending.remove(&id) == Some(Pending::Outdated);
                self.queues[urgency as usize].running -= 1;
                let fault = match result {
                    Ok(inspected) if inspected.id == id => {
                        self.link.directory.put(inspected.container(self.runtime));
                        self.know(&id);
                        self.link.status.set_containers(self.known.len());
                        None
                    }
                    // The id was a name, or the beginning of an id.
                    Ok(_) => None,
                    Err(Fault::Unknown) => {
                        if self.known.remove(&id) {
                            self.link.directory.gone(&id);
                            self.link.status.set_containers(self.known.len());
                        }
                        None
                    }
                    Err(fault) => Some(fault),
                };
                if again {
                    self.inspect(id, Urgency::Now);
                } else {
                    self.no_record(&id);
                }
                fault
            }
            Done::Sizes(Ok(listed)) => {
                for listed in listed {
                    let bytes = listed.size_rw.unwrap_or(0).max(0).unsigned_abs();
                    self.link.directory.update(&listed.id, |container| {
                        container.writable = Some(Writable {
                            bytes,
                            inodes: None,
                        });
                    });
                }
                None
            }
            // Sizes take long where layers are large: the runtime is not down.
            Done::Sizes(Err(fault)) => {
                tracing::debug!(socket = %self.link.socket.display(), reason = %fault, "no sizes");
                None
            }
            Done::Alive(result) => result.err(),
            Done::Births(id, result) => {
                self.births.remove(&id);
                // If this failed, the inspection has the name.
                let lines = result.unwrap_or_default();
                for line in lines.split(|&byte| byte == b'\n') {
                    if let Ok(event) = parse::<DockerEvent>(line)
                        && event.name() == "create"
                    {
                        self.born(&event);
                    }
                }
                self.no_record(&id);
                None
            }
        };
        match fault {
            // It concerns one container. It is counted.
            None | Some(Fault::Garbage(_) | Fault::Large(_) | Fault::Refused(_)) => Ok(()),
            Some(fault) => Err(fault),
        }
    }

    fn event(&mut self, line: &[u8]) {
        let event: DockerEvent = match parse(line) {
            Ok(event) => event,
            Err(fault) => {
                self.link.status.count::<()>(&Err(fault), Duration::ZERO);
                return;
            }
        };
        let id = event.actor.id.clone();
        if !valid(&id) {
            return;
        }
        let directory = &self.link.directory;
        match event.name() {
            "create" | "init" => self.born(&event),
            "rename" => directory.update(&id, |container| {
                if let Some(name) = event.actor.attributes.get("name") {
                    container.name = name.trim_start_matches('/').to_owned();
                }
            }),
            "oom" => directory.update(&id, |container| {
                "OOMKilled".clone_into(&mut container.exit_reason);
            }),
            "die" | "died" => directory.update(&id, |container| {
                let running = container.state != State::Exited;
                container.state = State::Exited;
                container.pid = None;
                container.finished = event.time();
                container.exit_code = event.exit_code();
                if !(running && container.exit_reason == "OOMKilled") {
                    container.exit_reason = model::reason(container.exit_code, false);
                }
            }),
            "destroy" | "remove" => {
                if self.known.remove(&id) {
                    directory.gone(&id);
                }
                self.link.status.set_containers(self.known.len());
                return;
            }
            "start" | "restart" | "pause" | "unpause" | "update" | "stop" | "kill"
            | "health_status" => {}
            _ => return,
        }
        self.link.status.set_containers(self.known.len());
        self.inspect(id, Urgency::Now);
    }
}

/// Whether an id is well-formed. It becomes part of a request's path.
fn valid(id: &str) -> bool {
    (12..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}
