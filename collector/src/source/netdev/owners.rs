//! Whose a network namespace is: the cgroup that its interfaces are served for.
//!
//! Invariants: the interfaces of a container's own namespace belong to the container, also where its
//! processes are in cgroups below it, and whenever the agent was started. They never go to someone
//! who has merely entered the namespace, also not once the container has ended. Checked by the tests
//! below and by tests/live/namespaces.rs.

use std::collections::HashMap;

use collector_common::netdev::Inhabitant;

use crate::cgroup::{NodeId, PlaceKind, ROOT, Tree};

/// Maximum number of pairs of a namespace and a cgroup with a process in it. Processes in others are
/// not looked at.
const MOST_PAIRS: usize = 1 << 16;

/// The owner of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its cgroup id.
    pub id: u64,
    /// Its node.
    pub node: NodeId,
    /// Whether it is a container and the namespace is the container's own.
    native: bool,
    /// The UID of its pod.
    pod: Option<Box<str>>,
}

/// A namespace with processes.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Its cookie.
    pub cookie: u64,
    /// Its owner, `None` if it is nobody's or its owner has no series.
    pub owner: Option<Owner>,
    /// The oldest process in it.
    pub oldest: Inhabitant,
}

/// The processes that a search has found: the oldest of each cgroup in each namespace.
#[derive(Debug, Default)]
pub struct Search {
    pairs: HashMap<(u64, u64), Inhabitant>,
    missed: u64,
}

impl Search {
    /// Notes a process.
    pub fn add(&mut self, inhabitant: &Inhabitant) {
        let key = (inhabitant.namespace, inhabitant.cgroup);
        if let Some(oldest) = self.pairs.get_mut(&key) {
            if age(inhabitant) < age(oldest) {
                *oldest = *inhabitant;
            }
        } else if self.pairs.len() < MOST_PAIRS {
            self.pairs.insert(key, *inhabitant);
        } else {
            self.missed += 1;
        }
    }

    /// Number of processes for which there was no room.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

/// Order of birth. Of two that were born in the same nanosecond, the one with the lower number is
/// older.
fn age(inhabitant: &Inhabitant) -> (u64, u64) {
    (inhabitant.start_time, inhabitant.pid)
}

/// The cgroup whose processes a nested cgroup's are: that of its container, machine or unit.
fn holder(tree: &Tree, node: NodeId) -> NodeId {
    let mut at = node;
    while let Some(found) = tree.node(at)
        && found.place.kind == PlaceKind::Nested
        && let Some(parent) = found.parent
    {
        at = parent;
    }
    at
}

fn is_container(tree: &Tree, node: NodeId) -> bool {
    tree.node(node).is_some_and(|node| {
        matches!(
            node.place.kind,
            PlaceKind::Container | PlaceKind::Machine | PlaceKind::Pod
        )
    })
}

/// What is known of a namespace from its processes.
struct Candidates {
    oldest: Inhabitant,
    /// The best claim, with its rank: a container's own namespace comes first, then the oldest
    /// process.
    best: Option<((bool, u64, u64), NodeId)>,
    /// Whether a process of the owner is there.
    has_owner: bool,
}

/// The owners of all namespaces with processes.
#[derive(Debug, Default)]
pub struct Owners {
    /// By cookie. An owner that is gone stays as long as the namespace has processes.
    known: HashMap<u64, Owner>,
}

impl Owners {
    /// Settles whose the namespaces are. An owner stays the owner as long as it has processes
    /// there.
    pub fn settle(&mut self, search: &Search, tree: &Tree) -> Vec<Namespace> {
        let living = search
            .pairs
            .iter()
            .filter_map(|(&(cookie, cgroup), oldest)| {
                let node = tree.living(cgroup)?;
                Some((cookie, node, holder(tree, node), oldest))
            });
        let living: Vec<_> = living.collect();
        // A container's own namespace is that of its oldest process.
        let mut homes: HashMap<NodeId, &Inhabitant> = HashMap::new();
        for &(_, _, holder, oldest) in &living {
            let home = homes.entry(holder).or_insert(oldest);
            if age(oldest) < age(home) {
                *home = oldest;
            }
        }
        let mut found: HashMap<u64, Candidates> = HashMap::new();
        for &(cookie, node, holder, oldest) in &living {
            let candidates = found.entry(cookie).or_insert_with(|| Candidates {
                oldest: *oldest,
                best: None,
                has_owner: false,
            });
            if age(oldest) < age(&candidates.oldest) {
                candidates.oldest = *oldest;
            }
            if let Some(owner) = self.known.get(&cookie) {
                candidates.has_owner |= tree.is_within(node, owner.node);
            }
            let at_home = homes
                .get(&holder)
                .is_some_and(|home| home.namespace == cookie);
            let claimant = if at_home { holder } else { node };
            let native = at_home && is_container(tree, holder);
            let rank = (!native, oldest.start_time, oldest.pid);
            if candidates.best.is_none_or(|(best, _)| rank < best) {
                candidates.best = Some((rank, claimant));
            }
        }
        self.known.retain(|cookie, _| found.contains_key(cookie));
        let settled = found.into_iter().map(|(cookie, candidates)| {
            let owner = self.owner(cookie, &candidates, tree);
            Namespace {
                cookie,
                // The root serves the host's interfaces; others must not be mixed in.
                owner: owner.filter(|owner| {
                    let exported = |node: &crate::cgroup::Node| node.exported;
                    owner.node != ROOT && tree.node(owner.node).is_some_and(exported)
                }),
                oldest: candidates.oldest,
            }
        });
        settled.collect()
    }

    fn owner(&mut self, cookie: u64, candidates: &Candidates, tree: &Tree) -> Option<Owner> {
        let best = candidates.best.and_then(|((foreign, ..), node)| {
            let found = tree.node(node)?;
            Some(Owner {
                id: found.id,
                node,
                native: !foreign,
                pod: found.place.pod.clone(),
            })
        });
        let Some(owner) = self.known.get(&cookie) else {
            self.known.insert(cookie, best.clone()?);
            return best;
        };
        let lives = tree.living(owner.id) == Some(owner.node);
        if lives && candidates.has_owner {
            let replaced = |best: &Owner| best.native && !owner.native;
            if !best.as_ref().is_some_and(replaced) {
                return Some(owner.clone());
            }
        } else if owner.native {
            // What is left has entered it from elsewhere, but for other containers of the pod.
            let of_pod = |best: &Owner| best.pod.is_some() && best.pod == owner.pod;
            if !best.as_ref().is_some_and(of_pod) {
                return None;
            }
        }
        self.known.insert(cookie, best.clone()?);
        best
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::cgroup::{Event, Filter, found};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

    /// /a with /a/below, /b, and two containers of Docker, one with a cgroup below it.
    fn tree() -> Tree {
        let found = [
            found(1, 0, ""),
            found(2, 1, "a"),
            found(3, 2, "below"),
            found(4, 1, "b"),
            found(5, 1, "docker"),
            found(6, 5, ID),
            found(7, 6, "init.scope"),
            found(8, 5, OTHER),
        ];
        Tree::new(&found, Filter::default())
    }

    /// Processes: namespace, cgroup, start time.
    fn search(processes: &[(u64, u64, u64)]) -> Search {
        let mut search = Search::default();
        for &(namespace, cgroup, start_time) in processes {
            search.add(&Inhabitant {
                namespace,
                cgroup,
                start_time,
                pid: start_time,
                ..Inhabitant::default()
            });
        }
        search
    }

    /// Settles, and returns namespaces and the ids of their owners.
    fn settle(owners: &mut Owners, tree: &Tree, processes: &[(u64, u64, u64)]) -> Vec<(u64, u64)> {
        let settled = owners.settle(&search(processes), tree);
        let mut settled: Vec<(u64, u64)> = settled
            .iter()
            .filter_map(|found| Some((found.cookie, found.owner.as_ref()?.id)))
            .collect();
        settled.sort_unstable();
        settled
    }

    fn fresh(processes: &[(u64, u64, u64)]) -> Vec<(u64, u64)> {
        settle(&mut Owners::default(), &tree(), processes)
    }

    #[test]
    fn a_namespace_belongs_to_the_oldest_process_s_cgroup_and_stays_there() {
        let (mut owners, tree) = (Owners::default(), tree());
        assert_eq!(settle(&mut owners, &tree, &[(70, 2, 10)]), [(70, 2)]);
        // An older process enters it from elsewhere.
        let entered = [(70, 2, 10), (70, 4, 5)];
        assert_eq!(settle(&mut owners, &tree, &entered), [(70, 2)]);
        // The owner's processes move below it.
        let moved = [(70, 3, 10), (70, 4, 5)];
        assert_eq!(settle(&mut owners, &tree, &moved), [(70, 2)]);
        // They leave.
        assert_eq!(settle(&mut owners, &tree, &[(70, 4, 5)]), [(70, 4)]);
    }

    #[test]
    fn a_container_s_namespace_is_the_container_s_wherever_its_processes_are() {
        assert_eq!(fresh(&[(70, 6, 10)]), [(70, 6)]);
        // Its first process has moved below it, before or after the agent was started.
        assert_eq!(fresh(&[(70, 7, 10)]), [(70, 6)]);
        assert_eq!(fresh(&[(70, 7, 10), (70, 6, 12)]), [(70, 6)]);
        // A namespace that was made inside is that of who is in it.
        assert_eq!(fresh(&[(70, 6, 10), (71, 7, 12)]), [(70, 6), (71, 7)]);
    }

    #[test]
    fn who_enters_a_container_s_namespace_never_owns_it() {
        // Older processes, of a cgroup and of another container.
        let entered = [(70, 6, 10), (70, 4, 5), (71, 8, 4), (70, 8, 6)];
        assert_eq!(fresh(&entered), [(70, 6), (71, 8)]);
        let (mut owners, mut tree) = (Owners::default(), tree());
        // Someone was there first, for instance to set it up.
        assert_eq!(settle(&mut owners, &tree, &[(70, 4, 5)]), [(70, 4)]);
        let started = [(70, 4, 5), (70, 6, 10)];
        assert_eq!(settle(&mut owners, &tree, &started), [(70, 6)]);
        // The container's processes end, and then it is removed.
        assert_eq!(settle(&mut owners, &tree, &[(70, 4, 5)]), []);
        let at = SystemTime::now();
        tree.apply(&Event::Removed { id: 6, at });
        assert_eq!(settle(&mut owners, &tree, &[(70, 4, 5)]), []);
        let other = [(70, 8, 20)];
        assert_eq!(settle(&mut owners, &tree, &other), []);
        // The namespace ends.
        assert_eq!(settle(&mut owners, &tree, &[]), []);
        assert!(owners.known.is_empty());
    }

    #[test]
    fn a_container_of_the_pod_inherits() {
        let pod = "pod01234567-89ab-cdef-0123-456789abcdef";
        let found = [
            found(1, 0, ""),
            found(2, 1, "kubepods"),
            found(3, 2, pod),
            found(4, 3, ID),
            found(5, 3, OTHER),
        ];
        let mut tree = Tree::new(&found, Filter::default());
        assert!(
            tree.node(tree.living(4).unwrap())
                .unwrap()
                .place
                .pod
                .is_some()
        );
        let mut owners = Owners::default();
        let both = [(70, 4, 10), (70, 5, 12)];
        assert_eq!(settle(&mut owners, &tree, &both), [(70, 4)]);
        let at = SystemTime::now();
        tree.apply(&Event::Removed { id: 4, at });
        assert_eq!(settle(&mut owners, &tree, &[(70, 5, 12)]), [(70, 5)]);
    }

    #[test]
    fn a_removed_owner_is_replaced_by_the_oldest_process_s_cgroup() {
        let (mut owners, mut tree) = (Owners::default(), tree());
        let both = [(70, 2, 10), (70, 4, 12)];
        assert_eq!(settle(&mut owners, &tree, &both), [(70, 2)]);
        let at = SystemTime::now();
        tree.apply(&Event::Removed { id: 2, at });
        assert_eq!(settle(&mut owners, &tree, &[(70, 4, 12)]), [(70, 4)]);
    }

    #[test]
    fn namespaces_of_the_root_and_of_unknown_cgroups_have_no_owner() {
        assert_eq!(fresh(&[(70, 1, 10), (71, 99, 10)]), []);
    }

    #[test]
    fn pairs_are_bounded() {
        let mut search = Search::default();
        for namespace in 0..MOST_PAIRS as u64 + 5 {
            let inhabitant = Inhabitant {
                namespace,
                ..Inhabitant::default()
            };
            search.add(&inhabitant);
        }
        assert_eq!((search.pairs.len(), search.missed()), (MOST_PAIRS, 5));
    }
}
