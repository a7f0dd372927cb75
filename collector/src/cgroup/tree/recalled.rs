//! Cgroups that an earlier agent knew and that are gone: they linger as if there had been one agent.

use std::time::{Duration, Instant, SystemTime};

use super::{NodeId, Tree};

/// A cgroup that an earlier agent knew, and that does not live any more.
#[derive(Clone, Copy, Debug)]
pub struct Earlier<'a> {
    /// Its id.
    pub id: u64,
    /// Its path.
    pub path: &'a [u8],
    /// When it was made, if that agent knew.
    pub created: Option<SystemTime>,
    /// When it was removed; `None` if that happened while no agent ran.
    pub removed: Option<SystemTime>,
    /// Whether it is known to have counted an event.
    pub counted: bool,
    /// Whether a scrape has shown it.
    pub shown: bool,
    /// Its CPU time, ns, as [`Tree::note_activity`] has it.
    pub activity: u64,
}

/// Where the values of such a cgroup belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recalled {
    /// Another cgroup has its path, and goes on with its counters.
    Remade(NodeId),
    /// It has a node of its own, and lingers.
    Gone(NodeId),
}

impl Tree {
    /// Takes over a cgroup from an earlier agent: to be called for parents before their children, and for the
    /// last cgroup of each path. `None` if its parent is not known any more.
    pub fn recall(&mut self, cgroup: &Earlier<'_>) -> Option<Recalled> {
        if let Some(number) = self.by_path(cgroup.path) {
            self.set_alias(cgroup.id, number);
            return Some(Recalled::Remade(number));
        }
        let slash = cgroup.path.iter().rposition(|&byte| byte == b'/')?;
        let parent = self.by_path(&cgroup.path[..slash.max(1)])?;
        let number = self.add(
            cgroup.id,
            Some(parent),
            cgroup.path.to_vec(),
            cgroup.created,
        );
        let now = SystemTime::now();
        let age = |died| now.duration_since(died).unwrap_or(Duration::ZERO);
        let age = cgroup.removed.map_or(Duration::ZERO, age);
        let instant = Instant::now();
        // The machine may not have been up for so long.
        let gone = instant.checked_sub(age).unwrap_or(instant);
        let node = self.node_mut(number)?;
        node.died = Some(cgroup.removed.unwrap_or(now));
        node.gone = Some(gone);
        node.activity = cgroup.activity;
        node.counted = cgroup.counted;
        if cgroup.shown {
            node.birth = 0;
        }
        self.dead.add(number, gone);
        self.unsettled = true;
        Some(Recalled::Gone(number))
    }

    /// How active a removed cgroup was, see [`note_activity`](Self::note_activity).
    pub fn activity(&self, number: NodeId) -> u64 {
        self.node(number).map_or(0, |node| node.activity)
    }

    /// Whether a cgroup has children, removed ones included.
    pub fn has_children(&self, number: NodeId) -> bool {
        self.node(number).is_some_and(|node| node.children > 0)
    }

    /// Whether a scrape has shown a cgroup.
    pub fn has_shown(&self, number: NodeId) -> bool {
        self.node(number)
            .is_some_and(|node| self.dead.has_shown(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Event, Filter, found};

    fn earlier(id: u64, path: &str, removed: Option<SystemTime>) -> Earlier<'_> {
        Earlier {
            id,
            path: path.as_bytes(),
            created: None,
            removed,
            counted: removed.is_some(),
            shown: false,
            activity: 0,
        }
    }

    fn tree() -> Tree {
        Tree::new(&[found(1, 0, ""), found(2, 1, "a")], Filter::default())
    }

    #[test]
    fn what_was_removed_goes_on_lingering() {
        let mut tree = tree();
        let minute = Duration::from_secs(60);
        let died = SystemTime::now() - minute;
        let Some(Recalled::Gone(parent)) = tree.recall(&earlier(7, "/a/b", Some(died))) else {
            panic!("its parent lives");
        };
        let child = tree.recall(&earlier(8, "/a/b/c", Some(died)));
        let Some(Recalled::Gone(child)) = child else {
            panic!("its parent is known");
        };
        assert_eq!(tree.recall(&earlier(9, "/x/y", Some(died))), None);
        let node = tree.node(child).unwrap();
        assert_eq!((node.parent, node.died), (Some(parent), Some(died)));
        tree.discard(|_| false, |_| false);
        assert_eq!(tree.counts(), (2, 2));
        // It has a minute behind it.
        let now = Instant::now();
        assert!(tree.reap(now, 2 * minute, |_| false).is_empty());
        let later = now + minute + Duration::from_secs(1);
        assert_eq!(tree.reap(later, 2 * minute, |_| false).len(), 2);
        assert_eq!(tree.unreported(), 2);
    }

    #[test]
    fn what_a_scrape_has_shown_is_not_missed() {
        let mut tree = tree();
        let shown = Earlier {
            shown: true,
            ..earlier(7, "/a/b", Some(SystemTime::now()))
        };
        let Some(Recalled::Gone(number)) = tree.recall(&shown) else {
            panic!("its parent lives");
        };
        assert!(tree.has_shown(number));
        tree.discard(|_| false, |_| false);
        assert_eq!(
            tree.reap(Instant::now(), Duration::ZERO, |_| false).len(),
            1
        );
        assert_eq!(tree.unreported(), 0);
    }

    #[test]
    fn a_path_that_was_made_again_has_what_its_earlier_cgroup_had() {
        let mut tree = tree();
        let a = tree.by_id(2).unwrap();
        assert_eq!(
            tree.recall(&earlier(7, "/a", None)),
            Some(Recalled::Remade(a))
        );
        assert_eq!(tree.of_path(7), Some(a));
        assert_eq!(tree.node(a).unwrap().died, None);
    }

    #[test]
    fn an_event_tells_when_it_was_removed() {
        let mut tree = tree();
        let Some(Recalled::Gone(number)) = tree.recall(&earlier(7, "/a/b", None)) else {
            panic!("its parent lives");
        };
        let at = SystemTime::now() - Duration::from_secs(5);
        tree.apply(&Event::Removed { id: 7, at });
        assert_eq!(tree.node(number).unwrap().died, Some(at));
        assert_eq!(tree.counts(), (2, 1));
        // It never counted anything.
        assert_eq!(tree.discard(|_| false, |_| false).len(), 1);
    }
}
