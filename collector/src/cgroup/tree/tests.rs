use std::time::Duration;

use super::*;
use crate::cgroup::{Filter, found};

fn tree() -> Tree {
    let found = [found(1, 0, ""), found(2, 1, "a"), found(3, 2, "b")];
    Tree::new(&found, Filter::default())
}

fn made(id: u64, parent: u64, name: &str) -> Event {
    Event::Made {
        id,
        parent,
        name: name.into(),
        at: SystemTime::now(),
    }
}

fn path(tree: &Tree, id: u64) -> Option<String> {
    Some(String::from_utf8_lossy(&tree.node(tree.by_id(id)?)?.path).into_owned())
}

#[test]
fn paths_follow_parents() {
    let mut tree = tree();
    tree.apply(&made(4, 3, "c"));
    assert_eq!(path(&tree, 4).as_deref(), Some("/a/b/c"));
    assert_eq!(path(&tree, 1).as_deref(), Some("/"));
    assert_eq!(tree.counts(), (4, 0));
}

#[test]
fn parents_come_first_even_when_numbers_are_used_again() {
    let mut tree = tree();
    tree.apply(&Event::Removed {
        id: 3,
        at: SystemTime::UNIX_EPOCH,
    });
    tree.reap(Instant::now(), Duration::ZERO, |_| false);
    tree.apply(&made(4, 2, "d"));
    tree.apply(&made(5, 4, "e"));
    let order: Vec<u64> = tree.iter().map(|(_, node)| node.id).collect();
    assert_eq!(order, [1, 2, 4, 5]);
}

#[test]
fn removed_cgroups_linger_then_are_reaped_deepest_first() {
    let mut tree = tree();
    // What the wall clock says makes no difference: somebody may have set it since.
    let set_back = SystemTime::now() + Duration::from_secs(86_400);
    tree.apply(&Event::Removed {
        id: 3,
        at: set_back,
    });
    tree.apply(&Event::Removed {
        id: 2,
        at: SystemTime::UNIX_EPOCH,
    });
    let linger = Duration::from_secs(300);
    let now = Instant::now();
    let reaped = tree.reap(now + Duration::from_secs(299), linger, |_| false);
    assert!(reaped.is_empty());
    let next = tree.next_reaping(linger).unwrap();
    assert!(next <= now + linger && next > now + linger - Duration::from_secs(60));
    let reaped = tree.reap(now + linger, linger, |_| false);
    let reaped: Vec<_> = reaped.iter().map(|one| (one.node, one.into)).collect();
    assert_eq!(reaped, [(2, 1), (1, ROOT)]);
    assert_eq!(tree.counts(), (1, 0));
    assert_eq!(tree.by_id(3), Some(ROOT), "a straggler counts at the root");
}

#[test]
fn ids_whose_slots_are_still_to_be_read_lead_to_a_live_ancestor() {
    let mut tree = tree();
    let now = SystemTime::now();
    tree.apply(&Event::Removed { id: 3, at: now });
    tree.apply(&Event::Removed { id: 2, at: now });
    tree.reap(Instant::now(), Duration::ZERO, |id| id == 3);
    assert_eq!(tree.by_id(3), Some(ROOT));
    assert!(tree.knows(3) && !tree.knows(2));
    tree.forget_alias(3);
    assert!(!tree.knows(3));
}

#[test]
fn a_path_made_again_is_the_same_node() {
    let mut tree = tree();
    tree.apply(&Event::Removed {
        id: 3,
        at: SystemTime::now(),
    });
    let again = tree.apply(&made(9, 2, "b"));
    assert_eq!(again, Some((tree.by_id(3).unwrap(), true)));
    assert_eq!(tree.by_id(9), tree.by_id(3));
    assert_eq!(tree.counts(), (3, 0));
    // The predecessor's removal, reported late, doesn't end the successor.
    tree.apply(&Event::Removed {
        id: 3,
        at: SystemTime::now(),
    });
    assert_eq!(tree.counts(), (3, 0));
}

#[test]
fn who_lives_and_which_node_was_whose() {
    let mut tree = tree();
    let now = SystemTime::now();
    let b = tree.living(3).unwrap();
    assert!(tree.is_within(b, ROOT) && tree.is_within(b, b) && !tree.is_within(ROOT, b));
    tree.apply(&Event::Removed { id: 3, at: now });
    assert!(tree.living(3).is_none() && tree.of_path(3) == Some(b));
    // Its path is another's now, which goes on with its values.
    tree.apply(&made(9, 2, "b"));
    assert_eq!((tree.of_path(3), tree.of_path(9)), (Some(b), Some(b)));
    assert_eq!(tree.living(9), Some(b));
    assert_eq!((tree.present(3), tree.present(9)), (None, Some(b)));
    tree.apply(&Event::Removed { id: 9, at: now });
    assert_eq!((tree.living(9), tree.present(9)), (None, Some(b)));
    tree.reap(Instant::now(), Duration::ZERO, |id| id == 9);
    // The id leads to the parent, which is another path.
    assert_eq!((tree.by_id(9), tree.of_path(9)), (tree.by_id(2), None));
    tree.forget_alias(9);
    assert_eq!(tree.of_path(9), None);
}

#[test]
fn a_walk_repairs_what_lost_events_left() {
    let mut tree = tree();
    tree.merge(
        &[found(1, 0, ""), found(2, 1, "a"), found(7, 1, "new")],
        SystemTime::now(),
    );
    assert_eq!(tree.counts(), (3, 1));
    assert_eq!(path(&tree, 7).as_deref(), Some("/new"));
}

#[test]
fn a_path_made_again_while_events_were_lost_is_reported_as_remade() {
    let mut tree = tree();
    let now = SystemTime::now();
    let [a, b] = [2, 3].map(|id| tree.by_id(id).unwrap());
    // `b` is gone and nothing was lost so far; then `/a` and `/a/b` come again with new ids.
    tree.apply(&Event::Removed { id: 3, at: now });
    let walked = tree.merge(
        &[
            found(1, 0, ""),
            found(8, 1, "a"),
            found(9, 8, "b"),
            found(10, 9, "c"),
        ],
        now,
    );
    assert_eq!(walked.remade, [a, b]);
    assert_eq!(walked.born, [tree.by_id(10).unwrap()]);
    // The removal of 3 had been reported, that of 2 was lost.
    assert_eq!(walked.removed, [2]);
    assert_eq!((tree.living(8), tree.living(9)), (Some(a), Some(b)));
    // A second walk finds nothing new.
    let found = [
        found(1, 0, ""),
        found(8, 1, "a"),
        found(9, 8, "b"),
        found(10, 9, "c"),
    ];
    assert_eq!(tree.merge(&found, now), Walked::default());
}

#[test]
fn a_removal_that_was_lost_before_the_path_came_again_is_found_by_the_walk() {
    let mut tree = tree();
    let again = tree.apply(&made(9, 2, "b"));
    assert_eq!(again, Some((tree.by_id(9).unwrap(), true)));
    let found = [found(1, 0, ""), found(2, 1, "a"), found(9, 2, "b")];
    let walked = tree.merge(&found, SystemTime::now());
    assert_eq!(walked.removed, [3]);
    assert!(walked.remade.is_empty(), "the event had reported it");
}

#[test]
fn cgroups_outside_the_root_are_nobody_s() {
    let mut tree = Tree::new(&[found(500, 0, "")], Filter::default());
    assert_eq!(tree.apply(&made(4, 3, "c")), None);
    assert_eq!(tree.by_id(4), None);
}

/// A tree with `/docker`, and with removed cgroups below it, all of which have counted.
fn tree_with_removed(names: impl Iterator<Item = String>, max: DeadMax) -> Tree {
    let found = [found(1, 0, ""), found(2, 1, "docker")];
    let mut tree = Tree::new(&found, Filter::default());
    tree.set_dead_max(max);
    for (id, name) in (10..).zip(names) {
        let at = SystemTime::now();
        let made = Event::Made {
            id,
            parent: 2,
            name: name.into_bytes(),
            at,
        };
        tree.apply(&made);
        tree.apply(&Event::Removed { id, at });
        tree.discard(|_| true, |_| false);
        reap_excess(&mut tree);
    }
    tree
}

fn reap_excess(tree: &mut Tree) -> usize {
    let linger = Duration::from_secs(3600);
    tree.reap(Instant::now(), linger, |_| false).len()
}

#[test]
fn removed_cgroups_are_bounded_and_the_oldest_leave_first() {
    let max = DeadMax {
        containers: 40,
        others: 16,
    };
    let tree = tree_with_removed((0..1000).map(|n| format!("job-{n}")), max);
    let (live, dead) = tree.counts();
    assert_eq!(live, 2);
    assert_eq!(dead, 16);
    assert_eq!(tree.unreported(), 1000 - dead as u64);
    assert!(tree.by_path(b"/docker/job-999").is_some() && tree.by_path(b"/docker/job-0").is_none());
    assert!(tree.capacity() < 30, "node numbers are used again");
}

#[test]
fn containers_do_not_leave_for_the_sake_of_others() {
    let max = DeadMax {
        containers: 40,
        others: 8,
    };
    let id = "0123456789abcdef".repeat(4);
    let names = (0..200).map(|n| match n {
        7 => id.clone(),
        n => format!("job-{n}"),
    });
    let tree = tree_with_removed(names, max);
    assert!(tree.by_path(format!("/docker/{id}").as_bytes()).is_some());
    assert!(tree.counts().1 <= 9);
}

#[test]
fn a_removed_cgroup_that_was_shown_is_not_unreported() {
    let max = DeadMax {
        containers: 0,
        others: 1000,
    };
    let mut tree = tree_with_removed((0..5).map(|n| format!("job-{n}")), max);
    tree.served();
    tree.set_dead_max(DeadMax::new(0));
    assert_eq!(reap_excess(&mut tree), 5);
    assert_eq!((tree.counts(), tree.unreported()), ((2, 0), 0));
}

#[test]
fn what_never_counted_anything_is_not_kept() {
    let mut tree = tree();
    let at = SystemTime::now();
    // 3 is below 2 and counted; 2 had no event of its own.
    tree.apply(&Event::Removed { id: 3, at });
    tree.apply(&Event::Removed { id: 2, at });
    tree.discard(|id| id == 3, |_| false);
    assert_eq!(tree.counts().1, 2);
    let made = |id| Event::Made {
        id,
        parent: 1,
        name: format!("empty-{id}").into_bytes(),
        at,
    };
    for id in 100..200 {
        tree.apply(&made(id));
        tree.apply(&Event::Removed { id, at });
    }
    let discarded = tree.discard(|id| id == 3, |_| false);
    assert_eq!((discarded.len(), tree.counts().1), (100, 2));
    assert_eq!(tree.unreported(), 0);
    // A parent without events of its own is kept as long as its children's values lie there.
    tree.reap(Instant::now(), Duration::ZERO, |_| false);
    assert_eq!(tree.counts().1, 0);
}

#[test]
fn ids_of_removed_cgroups_whose_path_was_made_again_are_passed_on() {
    let mut tree = tree();
    let at = SystemTime::now();
    tree.apply(&Event::Removed { id: 3, at });
    tree.apply(&made(4, 2, "b"));
    let b = tree.by_id(4).unwrap();
    assert_eq!(tree.aliases().collect::<Vec<_>>(), [(3, b)]);
    // Another agent, which has never seen it.
    let mut next = Tree::new(
        &[found(1, 0, ""), found(2, 1, "a"), found(4, 2, "b")],
        Filter::default(),
    );
    let b = next.by_id(4).unwrap();
    next.set_alias(3, b);
    next.set_alias(2, b);
    assert_eq!(next.of_path(3), Some(b));
    assert_eq!(next.aliases().collect::<Vec<_>>(), [(3, b)]);
    next.forget_alias(3);
    assert_eq!(next.of_path(3), None);
}

/// A tree with containers and others that come and go, all of which count.
struct Host {
    tree: Tree,
    ids: u64,
}

impl Host {
    fn new(max: DeadMax) -> Self {
        let found = [found(1, 0, ""), found(2, 1, "docker")];
        let mut tree = Tree::new(&found, Filter::default());
        tree.set_dead_max(max);
        Self { tree, ids: 10 }
    }

    fn container(n: u64) -> String {
        format!("{n:064x}")
    }

    fn make(&mut self, parent: u64, name: &str) -> u64 {
        self.ids += 1;
        self.tree.apply(&made(self.ids, parent, name));
        self.ids
    }

    fn remove(&mut self, id: u64, activity: u64) {
        let at = SystemTime::now();
        self.tree.apply(&Event::Removed { id, at });
        self.tree.note_activity(id, activity);
        self.tree.discard(|_| true, |_| false);
    }

    /// A cgroup comes and goes.
    fn live(&mut self, name: &str, activity: u64) {
        let id = self.make(2, name);
        self.remove(id, activity);
    }

    fn kept(&self) -> Vec<String> {
        let dead = self.tree.iter().filter(|(_, node)| node.died.is_some());
        let names = dead.map(|(_, node)| String::from_utf8_lossy(&node.path[1..]).into_owned());
        let mut names: Vec<_> = names
            .map(
                |name| match name.trim_start_matches("docker/").trim_start_matches('0') {
                    "" => "0".to_owned(),
                    name => name.to_owned(),
                },
            )
            .collect();
        names.sort();
        names
    }
}

#[test]
fn containers_that_no_scrape_has_shown_stay_longest() {
    let mut host = Host::new(DeadMax {
        containers: 3,
        others: 0,
    });
    let old: Vec<u64> = (1..=3).map(|n| host.make(2, &Host::container(n))).collect();
    host.live(&Host::container(4), 0);
    host.tree.served();
    // 4 was shown after its end. 5 and 6 come and go between two scrapes, before and after 1, 2 and 3 go,
    // which were shown while they lived.
    host.live(&Host::container(5), 0);
    old.iter().for_each(|&id| host.remove(id, 1 << 40));
    host.live(&Host::container(6), 0);
    assert_eq!(reap_excess(&mut host.tree), 3);
    assert_eq!(host.kept(), ["3", "5", "6"]);
    assert_eq!(host.tree.unreported(), 0, "4, 1 and 2 were shown");
    host.live(&Host::container(7), 0);
    host.live(&Host::container(8), 0);
    assert_eq!(reap_excess(&mut host.tree), 2);
    assert_eq!(host.kept(), ["6", "7", "8"]);
    assert_eq!(host.tree.unreported(), 1, "5 was not");
    // After a scrape all are equal, and the oldest leave first.
    host.tree.served();
    host.live(&Host::container(9), 0);
    reap_excess(&mut host.tree);
    assert_eq!(host.kept(), ["7", "8", "9"]);
    assert_eq!(host.tree.unreported(), 1);
}

#[test]
fn of_other_cgroups_the_most_active_stay() {
    let mut host = Host::new(DeadMax {
        containers: 1,
        others: 2,
    });
    host.live(&Host::container(1), 0);
    for (name, activity) in [
        ("a", 5),
        ("b", 900),
        ("c", 7),
        ("d", 0),
        ("e", 100),
        ("f", 6),
    ] {
        host.live(name, activity);
        reap_excess(&mut host.tree);
    }
    assert_eq!(host.kept(), ["1", "b", "e"]);
    // Where they were equally active, the oldest leave first.
    host.live("g", 900);
    host.live("h", 900);
    reap_excess(&mut host.tree);
    assert_eq!(host.kept(), ["1", "g", "h"]);
    assert_eq!(host.tree.unreported(), 6);
    // A path that is made again and removed has the activity of the later cgroup.
    host.live("h", 1);
    host.live("i", 2);
    reap_excess(&mut host.tree);
    assert_eq!(host.kept(), ["1", "g", "i"]);
    // The linger goes by time alone.
    let reaped = host.tree.reap(Instant::now(), Duration::ZERO, |_| false);
    assert_eq!((reaped.len(), host.tree.counts()), (3, (2, 0)));
}

#[test]
fn a_parent_leaves_after_its_children_whatever_their_order() {
    let mut host = Host::new(DeadMax {
        containers: 0,
        others: 1,
    });
    let parent = host.make(2, "parent");
    let child = host.make(parent, "child");
    host.remove(child, 50);
    host.remove(parent, 10);
    host.live("a", 60);
    let reaped = host
        .tree
        .reap(Instant::now(), Duration::from_secs(3600), |_| false);
    let into: Vec<_> = reaped.iter().map(|reaped| reaped.into).collect();
    assert_eq!(into, [reaped[1].node, host.tree.by_id(2).unwrap()]);
    assert_eq!(host.kept(), ["a"]);
}

#[test]
fn an_excluded_parent_is_not_kept_longer_than_its_children() {
    let filter = Filter {
        exclude: Some(regex::Regex::new("parent$").unwrap()),
        ..Filter::default()
    };
    let mut tree = Tree::new(&[found(1, 0, "")], filter);
    let (at, linger) = (SystemTime::now(), Duration::from_secs(3600));
    tree.apply(&made(2, 1, "parent"));
    tree.apply(&made(3, 2, "child"));
    for id in [3, 2] {
        tree.apply(&Event::Removed { id, at });
        tree.discard(|_| true, |_| false);
    }
    tree.reap(Instant::now(), linger, |_| false);
    assert_eq!(tree.counts().1, 2);
    tree.set_dead_max(DeadMax::new(0));
    tree.reap(Instant::now(), linger, |_| false);
    tree.discard(|_| true, |_| false);
    assert_eq!((tree.counts(), tree.unreported()), ((1, 0), 1));
}

/// Taking nodes out of the order goes over all of them, so it has to be rare.
#[test]
fn a_removal_costs_the_same_however_many_nodes_there_are() {
    let mut host = Host::new(DeadMax {
        containers: 0,
        others: 0,
    });
    (0..4000).for_each(|n| _ = host.make(2, &format!("lives-{n}")));
    let compacted = (0..20_000).filter(|n| {
        host.live(&format!("job-{n}"), 0);
        reap_excess(&mut host.tree);
        host.tree.vacated.is_empty()
    });
    // Each time at least 1,000 nodes had gone.
    assert!(compacted.count() <= 20);
    assert_eq!(host.tree.counts(), (4002, 0));
    assert!(host.tree.capacity() < 6000, "numbers are used again");
}

/// Between two scrapes, [`Tree::discard`] may not be called for long.
#[test]
fn who_lives_is_not_reaped_in_the_place_of_who_was() {
    let mut tree = Tree::new(
        &[found(1, 0, ""), found(2, 1, "a"), found(3, 1, "b")],
        Filter::default(),
    );
    let at = SystemTime::now();
    let made = |tree: &mut Tree, id: u64, name: &str| {
        let event = Event::Made {
            id,
            parent: 1,
            name: name.as_bytes().to_vec(),
            at,
        };
        tree.apply(&event).unwrap()
    };
    for id in [2, 3] {
        tree.apply(&Event::Removed { id, at });
    }
    // One path is made again, the other node is reaped, and its number is a third cgroup's.
    assert!(made(&mut tree, 4, "a").1);
    let gone = tree.by_id(3).unwrap();
    let reap = |tree: &mut Tree| tree.reap(Instant::now(), Duration::ZERO, |_| false).len();
    assert_eq!(reap(&mut tree), 1);
    assert_eq!(made(&mut tree, 5, "c"), (gone, false));
    assert_eq!(reap(&mut tree), 0);
    assert!([4, 5].iter().all(|&id| tree.living(id).is_some()));
    assert_eq!(tree.counts(), (3, 0));
}
