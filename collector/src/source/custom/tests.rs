//! The whole source, without the kernel: what the store has, as a scrape serves it.

use super::{
    series::Owner,
    store::{StoreContents, TextFile},
    *,
};
use crate::exposition::Format;
use parse::families;
use targets::tests::{ID, container, tree};

fn source(max_bytes: usize) -> Custom {
    let options = CustomOptions {
        max_bytes,
        max_samples: 100_000,
        rules: vec![EndpointRule {
            id: Some(regex::Regex::new("^/").unwrap()),
            name: None,
            unit: None,
            image: None,
            namespace: None,
            endpoint: Endpoint {
                port: 80,
                path: "/\"\\".to_owned(),
                interval: Duration::from_secs(15),
            },
        }],
        ..CustomOptions::for_tests()
    };
    Custom::new(options, "/nonexistent".into()).unwrap()
}

/// Has every endpoint answered with a text.
fn answer(custom: &mut Custom, tree: &Tree, text: impl Fn(usize) -> String) {
    custom.targets.discover(tree);
    let targets = custom.targets.list(tree);
    let mut contents = custom.store.lock();
    for (at, target) in targets.into_iter().enumerate() {
        let key = EndpointKey {
            cgroup: target.cgroup,
            port: target.endpoint.port,
            path: target.endpoint.path,
        };
        let outcome = RequestOutcome {
            owner: target.owner,
            up: true,
            took: Duration::from_nanos(1_234_567_891),
            good: Some((Instant::now(), Kept::new(families(&text(at))))),
            samples: 99_999,
            age: Duration::from_secs(60),
        };
        contents.outcomes.insert(key, outcome);
    }
    contents.changes += 1;
}

fn encoded(custom: &Custom, tree: &mut Tree, format: Format) -> String {
    let mut encoder = format.encoder();
    custom.reading().encode(&tree.nodes(), &mut *encoder);
    String::from_utf8(encoder.finish().to_vec()).unwrap()
}

/// Families of every type, with labels and values that need much room.
fn text(size: usize) -> String {
    (0..size)
        .map(|at| {
            let value = [0.1, 1e300, -5e-324, f64::NAN][at % 4];
            let label = "\\\\\\\"".repeat(at % 50);
            format!(
                "# HELP g{at} \"Help\"\\n of it.\n# TYPE g{at} gauge\ng{at}{{k=\"{label}\"}} {value}\n\
                 # TYPE c{at}_total counter\nc{at}_total 5\n\
                 # TYPE h{at} histogram\nh{at}_bucket{{k=\"{label}\",le=\"1e-300\"}} 1\n\
                 h{at}_bucket{{k=\"{label}\",le=\"+Inf\"}} 2\nh{at}_sum{{k=\"{label}\"}} 1e299\n\
                 # TYPE s{at} summary\ns{at}{{quantile=\"0.123456789012345\"}} 1e-300\ns{at}_count 2\n"
            )
        })
        .collect()
}

fn many_cgroups() -> Tree {
    let paths: Vec<String> = (0..60).map(|at| format!("/group/{at:02}")).collect();
    let docker = format!("/docker/{ID}");
    let paths: Vec<&str> = paths
        .iter()
        .map(String::as_str)
        .chain([docker.as_str()])
        .collect();
    let mut tree = tree(&paths);
    let node = tree.by_path(docker.as_bytes()).unwrap();
    tree.set_container(node, &container(&[], None));
    tree
}

#[test]
fn a_scrape_stays_below_the_limit_in_every_format() {
    let mut tree = many_cgroups();
    for max_bytes in [65_536, 1 << 20] {
        let mut custom = source(max_bytes);
        answer(&mut custom, &tree, |at| text(5 * at));
        // Files add to it, and so do their names.
        for at in 0..100 {
            let file = TextFile {
                modified: SystemTime::now(),
                families: vec![
                    (None, Kept::new(families(&text(2)))),
                    (
                        Some(Owner::Path("/group".to_owned())),
                        Kept::new(families(&text(1))),
                    ),
                ],
            };
            let name = format!("\"{at:0200}.prom");
            custom.store.lock().files.insert(name, file);
        }
        custom.refresh(&tree, true);
        for format in Format::ALL {
            let size = encoded(&custom, &mut tree, format).len();
            assert!(size <= max_bytes, "{size} of {max_bytes}");
            // What help texts and labels might need is reserved for each container.
            assert!(size > max_bytes / 3, "{size} of {max_bytes}");
        }
        let errors = &custom.counters.errors;
        assert!(errors[&Reason::Bytes] > 1000, "{errors:?}");
    }
}

#[test]
fn what_is_left_out_is_counted_once() {
    let tree = many_cgroups();
    let mut custom = source(65_536);
    answer(&mut custom, &tree, |_| text(50));
    custom.refresh(&tree, true);
    let first = custom.counters.errors[&Reason::Bytes];
    custom.refresh(&tree, true);
    assert_eq!(custom.counters.errors[&Reason::Bytes], first);
    answer(&mut custom, &tree, |_| text(51));
    custom.refresh(&tree, true);
    // Another 8 samples each.
    let more = custom.counters.errors[&Reason::Bytes] - first;
    assert!((500..700).contains(&more), "{more}");
}

#[test]
fn everything_is_served_where_there_is_room() {
    let mut tree = many_cgroups();
    let mut custom = source(64 << 20);
    answer(&mut custom, &tree, |_| text(4));
    custom.refresh(&tree, true);
    let lines = encoded(&custom, &mut tree, Format::Text);
    let count = |beginning: &str| {
        lines
            .lines()
            .filter(|line| line.starts_with(beginning))
            .count()
    };
    let endpoints = custom.outcomes.len();
    assert!(endpoints > 60);
    assert_eq!(count("custom_g"), 4 * endpoints);
    assert_eq!(count("container_custom_metric{"), 8 * endpoints);
    assert_eq!(count("container_custom_up{"), endpoints);
    assert!(
        custom.counters.errors.is_empty(),
        "{:?}",
        custom.counters.errors
    );
}

#[test]
fn answers_that_are_too_old_leave_the_memory() {
    let tree = many_cgroups();
    let mut custom = source(1 << 20);
    answer(&mut custom, &tree, |_| text(1));
    let age = |contents: &mut StoreContents| {
        for outcome in contents.outcomes.values_mut() {
            outcome.age = Duration::ZERO;
        }
    };
    age(&mut custom.store.lock());
    custom.refresh(&tree, true);
    let contents = custom.store.lock();
    assert!(
        contents
            .outcomes
            .values()
            .all(|outcome| outcome.good.is_none())
    );
    assert!(!contents.outcomes.is_empty());
}

#[test]
fn many_owners_that_do_not_exist_are_one_message() {
    let tree = many_cgroups();
    let mut custom = source(1 << 20);
    let text: String = (0..1000)
        .map(|at| format!("a{{id=\"/no/{at}\"}} 1\n"))
        .collect();
    let file = TextFile {
        modified: SystemTime::now(),
        families: families(&text)
            .into_iter()
            .flat_map(|family| family.series)
            .map(|series| (series.owner, Kept::new(Vec::new())))
            .collect(),
    };
    custom.store.lock().files.insert("a.prom".to_owned(), file);
    for _ in 0..2 {
        custom.refresh(&tree, true);
        assert_eq!(custom.counters.errors[&Reason::Owner], 1000);
        assert_eq!(custom.lost.len(), 1);
    }
}
