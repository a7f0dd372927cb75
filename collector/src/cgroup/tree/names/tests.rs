use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::*;
use crate::{
    cgroup::{
        AllowList, ContainerRules, Event, Export, Filter, Found, Runtime, State, found,
        is_users_own,
    },
    exposition::LabelSet,
};

const A: &str = "3f8a0c1d9e2b4a5f6071829304a5b6c7d8e9f00112233445566778899aabbccd";
const B: &str = "00aa11bb22cc33dd44ee55ff6600778899aabbccddeeff001122334455667788";

fn container(id: &str, name: &str, pod: Option<(&str, &str, &str)>) -> Arc<Container> {
    let labels = [("com.docker.compose.project", "shop"), ("secret", "x")];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Arc::new(Container {
        name: name.to_owned(),
        image: "busybox:1".to_owned(),
        labels: BTreeMap::from(labels),
        pod: pod.map(|(namespace, name, container)| Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: String::new(),
            container: container.to_owned(),
        }),
        state: State::Running,
        ..Container::new(id, Runtime::DOCKER)
    })
}

/// /docker/A with /docker/A/init, /kubepods/podUID with a sandbox B, and a service with a child.
fn hierarchy() -> Vec<Found> {
    vec![
        found(1, 0, ""),
        found(2, 1, "docker"),
        found(3, 2, A),
        found(4, 3, "init"),
        found(5, 1, "kubepods"),
        found(6, 5, "pod4bd2f0a8-7c31-4f62-9a0e-5d6c1b2a3f44"),
        found(7, 6, B),
        found(8, 1, "system.slice"),
        found(9, 8, "web.service"),
        found(10, 9, "worker"),
    ]
}

fn tree(rules: (&[&str], &[&str]), max: usize) -> Tree {
    let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let containers = ContainerRules {
        include: parse(rules.0),
        exclude: parse(rules.1),
    };
    let filter = Filter {
        containers,
        ..Filter::default()
    };
    let labels = AllowList::new(["com.docker.*"]).unwrap();
    let export = Export {
        filter,
        labels,
        max,
    };
    let mut tree = Tree::new(&hierarchy(), export);
    tree.settle();
    tree
}

fn unruled() -> Tree {
    tree((&[], &[]), usize::MAX)
}

fn set_container(tree: &mut Tree, id: u64, container: &Arc<Container>) -> Vec<u64> {
    let number = tree.by_id(id).unwrap();
    let changed = tree.set_container(number, container);
    changed
        .iter()
        .map(|&number| tree.node(number).unwrap().id)
        .collect()
}

fn labels(tree: &Tree, id: u64) -> &LabelSet {
    &tree.node(tree.by_id(id).unwrap()).unwrap().labels
}

fn exported(tree: &Tree) -> Vec<u64> {
    let exported = tree.iter().filter(|(_, node)| node.exported);
    exported.map(|(_, node)| node.id).collect()
}

/// Labels under Kubernetes: the hierarchy has a pod.
fn set(pairs: &[(&str, &str)]) -> LabelSet {
    let (allowed, own): (Vec<_>, Vec<_>) = pairs
        .iter()
        .partition(|(name, _)| name.starts_with("container_label_"));
    LabelSet::new(&own)
        .with_empty(&["namespace", "pod", "container"])
        .with(allowed)
}

#[test]
fn a_container_s_own_cgroup_is_named_and_what_is_nested_is_not() {
    let mut tree = unruled();
    let path = format!("/docker/{A}");
    assert_eq!(labels(&tree, 3), &set(&[("id", &path)]));
    assert_eq!(set_container(&mut tree, 3, &container(A, "web", None)), [3]);
    let expected = set(&[
        ("id", &path),
        ("name", "web"),
        ("image", "busybox:1"),
        ("container_label_com_docker_compose_project", "shop"),
    ]);
    assert_eq!(labels(&tree, 3), &expected);
    let nested = format!("/docker/{A}/init");
    assert_eq!(labels(&tree, 4), &set(&[("id", &nested)]));
}

#[test]
fn only_a_change_of_labels_is_reported() {
    let mut tree = unruled();
    let first = container(A, "web", None);
    assert_eq!(set_container(&mut tree, 3, &first), [3]);
    assert!(set_container(&mut tree, 3, &first).is_empty());
    let mut paused = (*first).clone();
    paused.state = State::Paused;
    let paused = Arc::new(paused);
    assert!(set_container(&mut tree, 3, &paused).is_empty());
    let node = tree.node(tree.by_id(3).unwrap()).unwrap();
    assert_eq!(node.container.as_ref().unwrap().state, State::Paused);
    assert_eq!(
        set_container(&mut tree, 3, &container(A, "renamed", None)),
        [3]
    );
}

#[test]
fn a_pod_s_own_cgroup_has_namespace_and_pod_alone() {
    let mut tree = unruled();
    let sandbox = container(B, "k8s-web", Some(("shop", "web-0", "POD")));
    assert_eq!(set_container(&mut tree, 7, &sandbox), [7, 6]);
    let pod = "/kubepods/pod4bd2f0a8-7c31-4f62-9a0e-5d6c1b2a3f44";
    let expected = set(&[("id", pod), ("namespace", "shop"), ("pod", "web-0")]);
    assert_eq!(labels(&tree, 6), &expected);
    let own = format!("{pod}/{B}");
    let expected = set(&[
        ("id", &own),
        ("name", "k8s-web"),
        ("image", "busybox:1"),
        ("namespace", "shop"),
        ("pod", "web-0"),
        ("container", "POD"),
        ("container_label_com_docker_compose_project", "shop"),
    ]);
    assert_eq!(labels(&tree, 7), &expected);
    // The pod's other containers say nothing new of it.
    let app = container(B, "app", Some(("shop", "web-0", "app")));
    assert_eq!(set_container(&mut tree, 7, &app), [7]);
}

#[test]
fn a_unit_has_its_name_in_a_label_of_its_own() {
    let tree = unruled();
    let expected = set(&[("id", "/system.slice/web.service"), ("unit", "web.service")]);
    assert_eq!(labels(&tree, 9), &expected);
    assert_eq!(labels(&tree, 8), &set(&[("id", "/system.slice")]));
}

#[test]
fn removed_and_remade_cgroups_keep_their_names() {
    let mut tree = unruled();
    set_container(&mut tree, 3, &container(A, "web", None));
    let named = labels(&tree, 3).clone();
    let at = SystemTime::now();
    tree.apply(&Event::Removed { id: 3, at });
    assert_eq!(labels(&tree, 3), &named);
    tree.apply(&Event::Made {
        id: 33,
        parent: 2,
        name: A.into(),
        at,
    });
    assert_eq!(labels(&tree, 33), &named);
}

#[test]
fn an_excluded_container_takes_what_is_nested_along_once_its_name_is_learnt() {
    let mut tree = tree((&[], &["name=^web", "unit=^web"]), usize::MAX);
    // The service is called so from the start.
    assert_eq!(exported(&tree), [1, 2, 3, 4, 5, 6, 7, 8]);
    set_container(&mut tree, 3, &container(A, "web", None));
    tree.settle();
    assert_eq!(exported(&tree), [1, 2, 5, 6, 7, 8]);
    set_container(&mut tree, 3, &container(A, "db", None));
    tree.settle();
    assert_eq!(exported(&tree), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn an_included_container_is_shown_once_it_is_known() {
    let mut tree = tree((&["namespace=^shop$"], &[]), usize::MAX);
    assert_eq!(exported(&tree), [1, 2, 5, 8, 9, 10]);
    let sandbox = container(B, "k8s-web", Some(("shop", "web-0", "POD")));
    set_container(&mut tree, 7, &sandbox);
    tree.settle();
    assert_eq!(exported(&tree), [1, 2, 5, 6, 7, 8, 9, 10]);
}

#[test]
fn where_there_are_too_many_containers_stay_longest() {
    assert_eq!(tree((&[], &[]), 10).suppressed(), 0);
    for (max, expected) in [
        (9, &[1, 2, 3, 4, 5, 6, 7, 8, 9][..]),
        (7, &[1, 3, 5, 6, 7, 8, 9]),
        (4, &[1, 3, 6, 7]),
        (1, &[1]),
    ] {
        let tree = tree((&[], &[]), max);
        assert_eq!(exported(&tree), expected, "at most {max}");
        assert_eq!(tree.suppressed(), 10 - max);
    }
}

#[test]
fn live_cgroups_come_before_removed_ones_and_room_is_used_again() {
    let mut tree = tree((&[], &[]), 4);
    let at = SystemTime::now();
    tree.apply(&Event::Removed { id: 4, at });
    tree.apply(&Event::Removed { id: 3, at });
    let made = Event::Made {
        id: 11,
        parent: 2,
        name: B.into(),
        at,
    };
    tree.apply(&made);
    tree.settle();
    assert_eq!(exported(&tree), [1, 6, 7, 11]);
    assert_eq!(tree.suppressed(), 7);
    for id in [10, 9, 8, 11] {
        tree.apply(&Event::Removed { id, at });
    }
    tree.reap(std::time::Instant::now(), Duration::ZERO, |_| false);
    tree.settle();
    assert_eq!(exported(&tree), [1, 5, 6, 7]);
    assert_eq!(tree.suppressed(), 1);
}

#[test]
fn one_parent_has_at_most_half_of_what_cgroups_without_a_name_have() {
    let mut all = vec![found(1, 0, ""), found(2, 1, "many"), found(3, 1, "few")];
    all.extend((10..30).map(|id| found(id, 2, &format!("c{id}"))));
    all.extend((40..44).map(|id| found(id, 3, &format!("c{id}"))));
    let export = Export {
        max: 13,
        ..Export::default()
    };
    let mut tree = Tree::new(&all, export);
    tree.settle();
    // Room for twelve beside the root, half of it for one parent's.
    let of = |ids: std::ops::Range<u64>| {
        exported(&tree)
            .into_iter()
            .filter(|id| ids.contains(id))
            .count()
    };
    assert_eq!((of(1..4), of(10..30), of(40..44)), (3, 6, 4));
}

#[test]
fn slices_pods_and_folders_of_runtimes_are_for_what_is_known() {
    let tree = tree((&[], &[]), 20);
    let known: Vec<u64> = tree
        .iter()
        .filter(|&(number, _)| tree.is_for_known(number))
        .map(|(_, node)| node.id)
        .collect();
    assert_eq!(known, [2, 5, 6, 8]);
}

#[test]
fn nothing_below_a_user_s_manager_is_for_what_is_known() {
    let tree = Tree::new(
        &[
            found(1, 0, ""),
            found(2, 1, "user.slice"),
            found(3, 2, "user-7.slice"),
            found(4, 3, "user@7.service"),
            found(5, 4, "app.slice"),
        ],
        Export::default(),
    );
    let of = |id| {
        let number = tree.by_id(id).unwrap();
        let own = is_users_own(&tree.node(number).unwrap().path);
        (tree.is_for_known(number), own)
    };
    assert_eq!(
        [2, 3, 4, 5].map(of),
        [(true, false), (true, false), (false, true), (false, true)]
    );
}

#[test]
fn the_first_pod_gives_every_cgroup_empty_labels() {
    let before = [
        found(1, 0, ""),
        found(2, 1, "system.slice"),
        found(3, 1, "kubepods"),
    ];
    let mut tree = Tree::new(&before, Filter::default());
    tree.settle();
    assert_eq!(labels(&tree, 2), &LabelSet::new(&[("id", "/system.slice")]));
    tree.apply(&Event::Made {
        id: 4,
        parent: 3,
        name: "pod4bd2f0a8-7c31-4f62-9a0e-5d6c1b2a3f44".into(),
        at: SystemTime::now(),
    });
    tree.settle();
    for id in [1, 2, 3, 4] {
        let names: Vec<_> = labels(&tree, id)
            .iter()
            .map(|(name, _)| name.to_owned())
            .collect();
        assert_eq!(names, ["id", "namespace", "pod", "container"], "{id}");
    }
    let changed = tree.take_relabelled();
    assert_eq!(changed, [1, 2, 3].map(|id| tree.by_id(id).unwrap()));
    tree.settle();
    assert!(tree.take_relabelled().is_empty());
}
