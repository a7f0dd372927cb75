use std::collections::BTreeMap;

use super::*;
use crate::{
    cgroup::{Filter, Found, Pod, Runtime, State},
    source::custom::EndpointRule,
};

pub const ID: &str = "c0ffee0d9e2b4a5f6071829304a5b6c7d8e9f00112233445566778899aabbccd";

/// Makes a tree of these paths and their ancestors.
pub fn tree(paths: &[&str]) -> Tree {
    let mut found = vec![Found {
        id: 1,
        parent: 0,
        name: Vec::new(),
        path: b"/".to_vec(),
    }];
    for path in paths {
        let mut parent = 1;
        let mut below = String::new();
        for name in path.trim_start_matches('/').split('/') {
            below = format!("{below}/{name}");
            let known = found.iter().find(|found| found.path == below.as_bytes());
            parent = match known {
                Some(known) => known.id,
                None => {
                    let id = 100 + found.len() as u64;
                    found.push(Found {
                        id,
                        parent,
                        name: name.into(),
                        path: below.clone().into(),
                    });
                    id
                }
            };
        }
    }
    Tree::new(&found, Filter::default())
}

pub fn container(labels: &[(&str, &str)], pod: Option<&str>) -> Arc<Container> {
    let pairs = labels.iter();
    let labels: BTreeMap<_, _> = pairs
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    // Those of a pod are annotations.
    let (labels, annotations) = match pod {
        Some(_) => (BTreeMap::new(), labels),
        None => (labels, BTreeMap::new()),
    };
    Arc::new(Container {
        name: "shop".to_owned(),
        labels,
        annotations,
        pod: pod.map(|container| Pod {
            namespace: "prod".to_owned(),
            name: "shop-1".to_owned(),
            uid: "uid".to_owned(),
            container: container.to_owned(),
        }),
        state: State::Running,
        pid: Some(77),
        ..Container::new(ID, Runtime::DOCKER)
    })
}

const LABELS: &[(&str, &str)] = &[
    ("prometheus.io/scrape", "true"),
    ("prometheus.io/port", "8080"),
];

/// Lists owner, address and port of the endpoints.
fn listed(targets: &mut Targets, tree: &Tree) -> Vec<(String, String, u16)> {
    targets.discover(tree);
    let list = targets.list(tree);
    let owner = |target: &Target| tree.node(targets.node(target.cgroup).unwrap()).unwrap();
    list.iter()
        .map(|target| {
            assert_eq!(target.cgroup, owner(target).id);
            let directory = target.directory.display().to_string();
            (
                printable(&owner(target).path),
                directory,
                target.endpoint.port,
            )
        })
        .collect()
}

fn targets(options: CustomOptions) -> Targets {
    Targets::new(options, "/sys".into(), Store::default())
}

#[test]
fn targets_follow_a_container_with_labels() {
    let path = format!("/docker/{ID}");
    let mut tree = tree(&[&path, "/other"]);
    let node = tree.by_path(path.as_bytes()).unwrap();
    let mut targets = targets(CustomOptions::for_tests());
    assert_eq!(listed(&mut targets, &tree), []);
    tree.set_container(node, &container(LABELS, None));
    let expected = (path.clone(), format!("/sys{path}"), 8080);
    assert_eq!(listed(&mut targets, &tree), [expected]);
    assert!(!targets.discover(&tree), "nothing has changed");
    // Invalid labels are an error, counted once.
    let wrong = container(&LABELS[..1], None);
    for _ in 0..2 {
        tree.set_container(node, &wrong);
        assert_eq!(listed(&mut targets, &tree), []);
    }
    let errors = targets.store.lock().counters.errors.clone();
    assert_eq!(errors.get(&Reason::Discovery), Some(&1));
    tree.set_container(node, &container(LABELS, None));
    assert_eq!(listed(&mut targets, &tree).len(), 1);
    let id = tree.node(node).unwrap().id;
    tree.apply(&crate::cgroup::Event::Removed {
        id,
        at: std::time::SystemTime::now(),
    });
    assert_eq!(listed(&mut targets, &tree), []);
}

#[test]
fn an_endpoint_of_a_pod_is_listed_once_for_the_pod() {
    let pod = "/kubepods/burstable/pod01234567-89ab-cdef-0123-456789abcdef";
    let one = format!("{pod}/{ID}");
    let other = format!("{pod}/{}", ID.replace('c', "d"));
    let mut tree = tree(&[&one, &other]);
    for (path, name) in [(&one, "POD"), (&other, "web")] {
        let node = tree.by_path(path.as_bytes()).unwrap();
        tree.set_container(node, &container(LABELS, Some(name)));
    }
    let mut targets = targets(CustomOptions::for_tests());
    let expected = (pod.to_owned(), format!("/sys{one}"), 8080);
    assert_eq!(listed(&mut targets, &tree), [expected]);
}

/// A rule for the cgroups whose path matches.
fn rule(id: &str, port: u16) -> EndpointRule {
    EndpointRule {
        id: Some(regex::Regex::new(id).unwrap()),
        name: None,
        unit: None,
        image: None,
        namespace: None,
        endpoint: Endpoint {
            port,
            path: "/metrics".to_owned(),
            interval: std::time::Duration::from_secs(1),
        },
    }
}

#[test]
fn rules_apply_to_matching_cgroups() {
    let options = CustomOptions {
        // The same endpoint from a second rule is listed once.
        rules: vec![rule("^/a", 1), rule("^/a$", 1), rule("^/a$", 2)],
        ..CustomOptions::for_tests()
    };
    let tree = tree(&["/a/b", "/c"]);
    let owner = |path: &str, port| (path.to_owned(), format!("/sys{path}"), port);
    assert_eq!(
        listed(&mut targets(options), &tree),
        [owner("/a", 1), owner("/a", 2), owner("/a/b", 1)]
    );
}

#[test]
fn a_container_with_many_endpoints_leaves_others_theirs() {
    let options = CustomOptions {
        rules: vec![rule("^/a.service", 1), rule("^/a.service", 2)],
        ..CustomOptions::for_tests()
    };
    // Cgroups that a unit has made itself count as the unit's.
    let docker = format!("/docker/{ID}");
    let mut tree = tree(&["/a.service/x", "/a.service/y/z", &docker]);
    let node = tree.by_path(docker.as_bytes()).unwrap();
    tree.set_container(node, &container(LABELS, None));
    let mut targets = targets(options);
    targets.discover(&tree);
    let all = targets.list(&tree);
    assert_eq!(all.len(), 9);
    for _ in 0..2 {
        let mut bounded = all.clone();
        targets.bound(&mut bounded, 4);
        let ports: Vec<u16> = bounded.iter().map(|target| target.endpoint.port).collect();
        assert_eq!(ports.len(), 4);
        assert!(ports.contains(&8080));
    }
    let errors = targets.store.lock().counters.errors.clone();
    assert_eq!(errors.get(&Reason::Endpoints), Some(&5), "counted once");
}
