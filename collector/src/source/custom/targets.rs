//! Chooses the endpoints to request: those of the cgroups in the tree.
//!
//! Invariants: a cgroup is examined when it is created and when its labels change. Otherwise a
//! scrape only compares numbers and pointers. There are at most [`ENDPOINTS`] endpoints, which
//! containers share fairly.

#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};

use super::{
    endpoint::{Endpoint, by_labels},
    fair,
    options::CustomOptions,
    store::{Reason, Store},
    worker::{Target, Worker},
};
use crate::cgroup::{Container, Names, Node, NodeId, PlaceKind, Tree, printable};

/// Maximum number of endpoints that are requested.
const ENDPOINTS: usize = 4096;

/// Endpoints found for a node, and what they were found from.
#[derive(Clone, Debug, Default)]
struct Seen {
    cgroup: u64,
    container: Option<Arc<Container>>,
    /// Endpoints, and whether they belong to the pod.
    endpoints: Vec<(Endpoint, bool)>,
    error: Option<String>,
}

/// The endpoints to request.
pub struct Targets {
    options: CustomOptions,
    root: PathBuf,
    store: Store,
    worker: Worker,
    /// Results by node.
    seen: Vec<Option<Seen>>,
    targets: Vec<Target>,
    /// Nodes of the targets' cgroups, by cgroup id.
    nodes: HashMap<u64, NodeId>,
    /// Number of endpoints beyond a container's share, by the path of their cgroup.
    excess: BTreeMap<String, usize>,
}

impl Targets {
    /// Starts without endpoints.
    pub fn new(options: CustomOptions, root: PathBuf, store: Store) -> Self {
        Self {
            worker: Worker::new(options.clone(), store.clone()),
            options,
            root,
            store,
            seen: Vec::new(),
            targets: Vec::new(),
            nodes: HashMap::new(),
            excess: BTreeMap::new(),
        }
    }

    /// Returns the node of a target's cgroup.
    pub fn node(&self, cgroup: u64) -> Option<NodeId> {
        self.nodes.get(&cgroup).copied()
    }

    /// Updates the targets from the tree. Returns whether anything changed.
    ///
    /// # Errors
    ///
    /// When the thread that requests endpoints can't be created.
    pub fn follow(&mut self, tree: &Tree) -> Result<bool> {
        if !self.discover(tree) {
            return Ok(false);
        }
        let targets = self.list(tree);
        if targets != self.targets {
            self.worker
                .set_targets(targets.clone())
                .context("starting the thread that requests endpoints")?;
            self.targets = targets;
        }
        Ok(true)
    }

    /// Updates the endpoints of changed nodes. Returns whether any endpoint changed.
    pub(super) fn discover(&mut self, tree: &Tree) -> bool {
        let mut changed = false;
        let nodes = tree.capacity().max(self.seen.len());
        self.seen.resize(nodes, None);
        for (number, node) in tree.iter() {
            let alive = node.died.is_none() && node.exported;
            let seen = &mut self.seen[number];
            let container = container_of(node);
            let same = match (&seen, alive) {
                (None, false) => true,
                (Some(seen), true) => {
                    seen.cgroup == node.id
                        && match (&seen.container, container) {
                            (None, None) => true,
                            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
                            _ => false,
                        }
                }
                _ => false,
            };
            if same {
                continue;
            }
            let found = alive.then(|| look(&self.options, node, container));
            if let Some(error) = found.as_ref().and_then(|found| found.error.as_ref())
                && seen.as_ref().and_then(|seen| seen.error.as_ref()) != Some(error)
            {
                self.store.lock().counters.add(Reason::Discovery, 1);
                tracing::warn!(
                    cgroup = printable(&node.path),
                    error,
                    "custom metrics: the container's labels or annotations are invalid"
                );
            }
            let endpoints =
                |seen: &Option<Seen>| seen.as_ref().is_some_and(|seen| !seen.endpoints.is_empty());
            changed |= endpoints(seen) || endpoints(&found);
            *seen = found;
        }
        // Drops nodes that have been reaped.
        for (number, seen) in self.seen.iter_mut().enumerate() {
            if seen.is_some() && tree.node(number).is_none() {
                changed |= seen.take().is_some_and(|seen| !seen.endpoints.is_empty());
            }
        }
        changed
    }

    /// Lists the endpoints of all cgroups.
    pub(super) fn list(&mut self, tree: &Tree) -> Vec<Target> {
        self.nodes.clear();
        let mut targets = Vec::new();
        let mut pods = BTreeSet::new();
        for (number, seen) in self.seen.iter().enumerate() {
            let (Some(seen), Some(node)) = (seen, tree.node(number)) else {
                continue;
            };
            for (endpoint, whole) in &seen.endpoints {
                // Containers of a pod share a network namespace and annotations. An endpoint in it
                // is listed once, and belongs to the pod's cgroup if the pod's annotations name it.
                let owner = if *whole { pod_of(tree, number) } else { None };
                let (owner, cgroup) = owner.unwrap_or((number, node.id));
                let pod = seen.container.as_ref().and_then(|of| of.pod.as_ref());
                if let Some(pod) = pod
                    && !pods.insert((&pod.uid, endpoint.port, &endpoint.path))
                {
                    continue;
                }
                self.nodes.insert(cgroup, owner);
                targets.push(Target {
                    cgroup,
                    owner: self::owner(tree, owner).map_or(cgroup, |owner| owner.id),
                    path: printable(&node.path),
                    directory: directory(&self.root, &node.path),
                    pid: seen.container.as_ref().and_then(|container| container.pid),
                    endpoint: endpoint.clone(),
                });
            }
        }
        self.bound(&mut targets, ENDPOINTS);
        targets
    }

    /// Leaves out endpoints beyond a container's share of the limit.
    fn bound(&mut self, targets: &mut Vec<Target>, limit: usize) {
        let mut wanted: HashMap<u64, usize> = HashMap::new();
        for target in &*targets {
            *wanted.entry(target.owner).or_default() += 1;
        }
        let level = fair::level(wanted.into_values(), limit);
        let mut taken: HashMap<u64, usize> = HashMap::new();
        let mut excess: BTreeMap<String, usize> = BTreeMap::new();
        targets.retain(|target| {
            let taken = taken.entry(target.owner).or_default();
            *taken += 1;
            if *taken > level {
                *excess.entry(target.path.clone()).or_default() += 1;
            }
            *taken <= level
        });
        for (path, count) in &excess {
            let before = self.excess.get(path).copied().unwrap_or(0);
            let mut contents = self.store.lock();
            contents
                .counters
                .add(Reason::Endpoints, count.saturating_sub(before));
            if before == 0 {
                tracing::warn!(
                    cgroup = path,
                    count,
                    "custom metrics: left out: more endpoints than a fair share of the {limit} that \
                     are requested"
                );
            }
        }
        self.excess = excess;
    }
}

/// Returns the container of a cgroup.
pub fn container_of(node: &Node) -> Option<&Arc<Container>> {
    node.container.as_ref()
}

/// Returns the cgroup that a cgroup lies in and was not made by its processes: the container, the
/// machine or the unit. It is the cgroup itself where it lies in none.
pub fn owner(tree: &Tree, number: NodeId) -> Option<&Node> {
    let mut node = tree.node(number)?;
    while node.place.kind == PlaceKind::Nested {
        node = tree.node(node.parent?)?;
    }
    Some(node)
}

/// Returns the node and id of the pod's cgroup that contains a cgroup.
fn pod_of(tree: &Tree, number: NodeId) -> Option<(NodeId, u64)> {
    let mut at = tree.node(number)?.parent;
    while let Some(number) = at {
        let node = tree.node(number)?;
        if node.place.kind == PlaceKind::Pod && node.exported {
            return Some((number, node.id));
        }
        at = node.parent;
    }
    None
}

/// Finds the endpoints of a cgroup.
fn look(options: &CustomOptions, node: &Node, container: Option<&Arc<Container>>) -> Seen {
    let mut seen = Seen {
        cgroup: node.id,
        container: container.cloned(),
        ..Seen::default()
    };
    match container.map(|container| by_labels(container, options.interval)) {
        None | Some(Ok(None)) => {}
        Some(Ok(Some(endpoint))) => seen.endpoints.push(endpoint),
        Some(Err(error)) => seen.error = Some(error),
    }
    if !options.rules.is_empty() {
        let path = printable(&node.path);
        let container = container.map(|container| &**container);
        let names = Names::of(&node.place, container, node.pod.as_deref());
        for rule in &options.rules {
            let endpoint = &rule.endpoint;
            let known = seen
                .endpoints
                .iter()
                .any(|(known, _)| known.port == endpoint.port && known.path == endpoint.path);
            if !known && rule.fits(&path, &names) {
                seen.endpoints.push((endpoint.clone(), false));
            }
        }
    }
    seen
}

fn directory(root: &Path, path: &[u8]) -> PathBuf {
    let below = path.strip_prefix(b"/").unwrap_or(path);
    root.join(OsStr::from_bytes(below))
}
