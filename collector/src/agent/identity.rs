//! Joins the tree with the records of container runtimes. Names can arrive late, change, and
//! outlive their cgroup.
//!
//! Invariant: records are looked up only for new nodes, or if a record has changed, and only for
//! nodes with a container id. A frame waits for the names of containers that have just started, for
//! [`PATIENCE`] in total per container. It does not wait for runtimes that are down or slow.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    cgroup::{NodeId, Tree},
    runtime::Directory,
};

/// Delay before a container without a record is requested again.
const FIRST: Duration = Duration::from_secs(1);
/// The longest delay. Some ids belong to no runtime.
const LAST: Duration = Duration::from_secs(60);

/// How long frames wait for one container's name, in total.
const PATIENCE: Duration = Duration::from_millis(250);
/// Shortest time between two looks at all containers, but for frames: each costs what there are
/// containers, and many may come and go.
const PAUSE: Duration = Duration::from_millis(250);
/// A frame waits for a name only within this time of the first request for the container.
const YOUNG: Duration = Duration::from_secs(5);

/// The agent's view of the runtimes' directory.
pub(super) struct Identities {
    directory: Arc<Directory>,
    /// The directory's change counter when it was last read.
    changes: Option<u64>,
    /// When all containers were last looked at.
    looked: Option<Instant>,
    /// When those without a record were.
    asked: Option<Instant>,
    /// Containers without a record.
    unknown: HashMap<NodeId, Asked>,
    /// Those requested since the last read. Their record may be older than the cgroup.
    new: Vec<NodeId>,
}

/// Requests for one container.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// The node's cgroup at the time of the first request.
    cgroup: u64,
    first: Instant,
    again: Instant,
    delay: Duration,
    /// How long frames may still wait for the name.
    patience: Duration,
}

impl Identities {
    pub(super) fn new(directory: Arc<Directory>) -> Self {
        Self {
            directory,
            changes: None,
            looked: None,
            asked: None,
            unknown: HashMap::new(),
            new: Vec::new(),
        }
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Requests the container of a new or remade cgroup, whether or not a record exists.
    pub(super) fn ask(&mut self, tree: &Tree, number: NodeId, now: Instant) {
        let Some(node) = tree.node(number) else {
            return;
        };
        let Some(id) = &node.place.container else {
            return;
        };
        self.directory.want(id);
        if node.container.is_none() {
            let asked = Asked {
                cgroup: node.id,
                first: now,
                again: now + FIRST,
                delay: FIRST,
                patience: PATIENCE,
            };
            self.unknown.insert(number, asked);
            self.new.push(number);
        }
    }

    /// Requests all containers that have no record and were not requested before.
    pub(super) fn ask_all(&mut self, tree: &Tree, now: Instant) {
        let new: Vec<NodeId> = tree
            .containers()
            .filter(|(number, node, _)| {
                let known = self.unknown.get(number);
                node.container.is_none() && known.is_none_or(|asked| asked.cgroup != node.id)
            })
            .map(|(number, ..)| number)
            .collect();
        for number in new {
            self.ask(tree, number, now);
        }
    }

    /// Whether records have changed that [`refresh`](Self::refresh) has not read. It will from now on.
    pub(super) fn is_behind(&mut self) -> bool {
        self.looked = None;
        self.changes != Some(self.directory.changes())
    }

    /// Reads changed records, or those of new containers alone if all were looked at just before. Returns
    /// the nodes whose labels have changed.
    pub(super) fn refresh(&mut self, tree: &mut Tree, now: Instant) -> Vec<NodeId> {
        let mut renamed = Vec::new();
        // The counter is read first, so that a change in between is read the next time.
        let changes = self.directory.changes();
        let new = std::mem::take(&mut self.new);
        let record = |number: NodeId| {
            let id = tree.node(number)?.place.container.as_deref()?;
            Some((number, self.directory.get(id)?))
        };
        let early = |looked: Instant| now.saturating_duration_since(looked) < PAUSE;
        let records: Vec<_> = if self.changes == Some(changes) || self.looked.is_some_and(early) {
            new.into_iter().filter_map(record).collect()
        } else {
            (self.changes, self.looked) = (Some(changes), Some(now));
            let containers = tree.containers().map(|(number, ..)| number);
            containers.filter_map(record).collect()
        };
        for (number, container) in records {
            self.unknown.remove(&number);
            renamed.extend(tree.set_container(number, &container));
        }
        let early = |asked: Instant| now.saturating_duration_since(asked) < FIRST;
        if self.asked.is_some_and(early) {
            return renamed;
        }
        self.asked = Some(now);
        let directory = &self.directory;
        self.unknown.retain(|&number, asked| {
            let Some(node) = tree.node(number) else {
                return false;
            };
            if node.id != asked.cgroup || node.container.is_some() {
                return false;
            }
            if let (true, Some(id)) = (now >= asked.again, &node.place.container) {
                directory.want(id);
                asked.delay = (asked.delay * 2).min(LAST);
                asked.again = now + asked.delay;
            }
            true
        });
        renamed
    }

    /// Waits for the names of containers that have just started. Returns whether there were any.
    pub(super) fn wait(&mut self, tree: &Tree, now: Instant) -> bool {
        let young = |asked: &Asked| !asked.patience.is_zero() && now - asked.first < YOUNG;
        let mut limit = Duration::ZERO;
        let mut containers = Vec::new();
        for (&number, asked) in self.unknown.iter().filter(|(_, asked)| young(asked)) {
            let place = tree.node(number).map(|node| &node.place);
            if let Some((id, place)) = place.and_then(|it| Some((it.container.as_deref()?, it))) {
                containers.push((id, place.runtime));
                limit = limit.max(asked.patience);
            }
        }
        if containers.is_empty() {
            return false;
        }
        let waited = self.directory.wait(&containers, limit);
        tracing::debug!(containers = containers.len(), ?waited, "waited for names");
        for asked in self.unknown.values_mut().filter(|asked| young(asked)) {
            asked.patience = asked.patience.saturating_sub(waited);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::sync::mpsc::UnboundedReceiver;

    use super::*;
    use crate::cgroup::{Container, Event, Filter, Runtime, State, found};

    const A: &str = "3f8a0c1d9e2b4a5f6071829304a5b6c7d8e9f00112233445566778899aabbccd";

    fn container(name: &str) -> Container {
        Container {
            name: name.to_owned(),
            state: State::Running,
            ..Container::new(A, Runtime::DOCKER)
        }
    }

    struct Host {
        directory: Arc<Directory>,
        asked: UnboundedReceiver<String>,
        tree: Tree,
        identities: Identities,
    }

    impl Host {
        fn new() -> Self {
            let found = [
                found(1, 0, ""),
                found(2, 1, "docker"),
                found(3, 2, A),
                found(4, 3, "x"),
            ];
            let (directory, asked) = Directory::new();
            Self {
                identities: Identities::new(Arc::clone(&directory)),
                directory,
                asked,
                tree: Tree::new(&found, Filter::default()),
            }
        }

        fn asked(&mut self) -> usize {
            std::iter::from_fn(|| self.asked.try_recv().ok())
                .inspect(|id| assert_eq!(id, A))
                .count()
        }

        /// As for a frame.
        fn refresh(&mut self, now: Instant) -> usize {
            self.identities.is_behind();
            self.identities.refresh(&mut self.tree, now).len()
        }

        fn name(&self) -> Option<String> {
            let (_, node, _) = self.tree.containers().next()?;
            Some(node.container.as_ref()?.name.clone())
        }
    }

    #[test]
    fn a_record_that_is_there_before_the_cgroup_names_it_at_once() {
        let mut host = Host::new();
        let now = Instant::now();
        let id = A.replace('3', "4");
        // The runtime reports the container before it makes the cgroup, and the directory is read for
        // another reason in between.
        host.directory.put(Container {
            id: id.clone(),
            name: "early".to_owned(),
            ..Container::new(id.clone(), Runtime::DOCKER)
        });
        host.refresh(now);
        let made = Event::Made {
            id: 9,
            parent: 2,
            name: id.into(),
            at: SystemTime::now(),
        };
        let (number, _) = host.tree.apply(&made).unwrap();
        host.identities.ask(&host.tree, number, now);
        assert_eq!(host.refresh(now), 1);
        let node = host.tree.node(number).unwrap();
        assert_eq!(node.container.as_ref().unwrap().name, "early");
        assert_eq!(host.refresh(now), 0);
    }

    #[test]
    fn an_unknown_container_is_requested_with_growing_delays() {
        let mut host = Host::new();
        let start = Instant::now();
        host.identities.ask_all(&host.tree, start);
        assert_eq!(
            host.asked(),
            1,
            "the container is requested at once, and nothing else"
        );
        let mut asked = Vec::new();
        for second in 1..=200 {
            host.refresh(start + Duration::from_secs(second));
            if host.asked() > 0 {
                asked.push(second);
            }
        }
        assert_eq!(asked, [1, 3, 7, 15, 31, 63, 123, 183]);
        // A second walk does not request the same container again.
        host.identities.ask_all(&host.tree, start);
        assert_eq!(host.asked(), 0);
        host.directory.put(container("web"));
        assert_eq!(host.refresh(start), 1);
        assert_eq!(host.name().as_deref(), Some("web"));
        host.refresh(start + Duration::from_secs(1000));
        assert_eq!(host.asked(), 0);
    }

    #[test]
    fn a_frame_waits_only_for_new_containers_and_for_a_limited_time() {
        let mut host = Host::new();
        let start = Instant::now();
        assert!(
            !host.identities.wait(&host.tree, start),
            "nothing was requested"
        );
        host.identities.ask_all(&host.tree, start);
        // No runtime is up: waiting would not bring a name.
        assert!(host.identities.wait(&host.tree, start));
        let asked = |host: &Host| host.identities.unknown.values().next().copied().unwrap();
        assert!(asked(&host).patience > PATIENCE / 2, "it did not wait");
        assert!(
            !host.identities.wait(&host.tree, start + YOUNG),
            "the container is not new any more"
        );
        host.identities
            .unknown
            .values_mut()
            .for_each(|asked| asked.patience = Duration::ZERO);
        assert!(
            !host.identities.wait(&host.tree, start),
            "its patience is used up"
        );
        host.directory.put(container("web"));
        host.refresh(start);
        assert_eq!(host.name().as_deref(), Some("web"));
    }

    #[test]
    fn changed_names_are_read_and_forgotten_names_stay() {
        let mut host = Host::new();
        let now = Instant::now();
        host.directory.put(container("web"));
        assert_eq!(host.refresh(now), 1);
        assert_eq!(host.refresh(now), 0, "nothing has changed");
        host.directory.put(container("renamed"));
        assert_eq!(host.refresh(now), 1);
        let at = SystemTime::now();
        host.tree.apply(&Event::Removed { id: 3, at });
        host.directory.gone(A);
        host.directory.sweep(Duration::ZERO);
        assert_eq!(host.refresh(now), 0);
        assert_eq!(host.name().as_deref(), Some("renamed"));
    }

    /// Each look costs what there are containers, and many may come and go.
    #[test]
    fn between_frames_all_containers_are_looked_at_now_and_then() {
        let mut host = Host::new();
        let start = Instant::now();
        let renamed = |host: &mut Host, name: &str, ms| {
            host.directory.put(container(name));
            let now = start + Duration::from_millis(ms);
            host.identities.refresh(&mut host.tree, now).len()
        };
        assert_eq!(renamed(&mut host, "a", 0), 1);
        assert_eq!(renamed(&mut host, "b", 100), 0);
        assert_eq!(renamed(&mut host, "c", 200), 0);
        assert_eq!(renamed(&mut host, "c", 300), 1);
        assert_eq!(host.name().as_deref(), Some("c"));
        assert_eq!(renamed(&mut host, "d", 310), 0);
        assert!(host.identities.is_behind(), "a frame reads it");
        assert_eq!(renamed(&mut host, "d", 320), 1);
    }

    #[test]
    fn a_removed_cgroup_gets_a_name_that_arrives_late() {
        let mut host = Host::new();
        let now = Instant::now();
        host.identities.ask_all(&host.tree, now);
        let at = SystemTime::now();
        host.tree.apply(&Event::Removed { id: 3, at });
        assert_eq!(host.refresh(now), 0);
        host.directory.put(container("short"));
        assert_eq!(host.refresh(now), 1);
        assert_eq!(host.name().as_deref(), Some("short"));
    }

    #[test]
    fn a_remade_container_is_requested_again() {
        let mut host = Host::new();
        let now = Instant::now();
        host.directory.put(container("web"));
        host.refresh(now);
        let at = SystemTime::now();
        host.tree.apply(&Event::Removed { id: 3, at });
        let made = Event::Made {
            id: 9,
            parent: 2,
            name: A.into(),
            at,
        };
        let (number, _) = host.tree.apply(&made).unwrap();
        host.identities.ask(&host.tree, number, now);
        assert_eq!(host.asked(), 1);
        assert!(host.identities.unknown.is_empty());
        assert_eq!(host.name().as_deref(), Some("web"));
    }
}
