use super::*;
use crate::source::custom::parse::{TextLimits, parse};

fn input(node: NodeId, path: &str, text: &str) -> Input {
    let limits = TextLimits {
        samples: 100,
        owners: false,
    };
    let parsed = parse(text.as_bytes(), limits);
    assert_eq!(parsed.bad.count, 0, "{:?}", parsed.bad);
    Input {
        node,
        cgroup: node as u64,
        path: path.to_owned(),
        owner: node as u64,
        labels: LabelSet::new(&[("id", path)]),
        families: Arc::new(parsed.families),
        lost: 0,
        about: 0,
    }
}

const LIMITS: Limits<'_> = Limits {
    prefix: "c_",
    plain: "plain",
    samples: 5,
    bytes: 1 << 20,
};

fn index(inputs: Vec<Input>, before: &Index) -> Index {
    Index::new(inputs, LIMITS, &|name| name == "c_own_total", before)
}

fn shown(index: &Index) -> Vec<(&str, MetricKind, usize)> {
    let series = |group: &Group| group.members.iter().flat_map(Member::series).count();
    index
        .groups
        .iter()
        .map(|group| (group.full.as_str(), group.kind, series(group)))
        .collect()
}

fn messages(index: &Index) -> Vec<String> {
    let messages = |((path, _), loss): (&(String, Reason), &Loss)| {
        let messages = loss.messages.iter();
        messages
            .map(|message| format!("{path}: {message}"))
            .collect::<Vec<_>>()
    };
    index.losses.iter().flat_map(messages).collect()
}

/// What was left out of a cgroup's metrics.
fn lost(index: &Index, path: &str, reason: Reason) -> usize {
    let loss = index.losses.get(&(path.to_owned(), reason));
    loss.map_or(0, |loss| loss.count)
}

#[test]
fn families_of_containers_are_merged() {
    let a = input(2, "/a", "# HELP x Of a.\n# TYPE x gauge\nx 1\ny 2\n");
    let b = input(3, "/b", "# HELP x Of b.\n# TYPE x gauge\nx{k=\"v\"} 3\n");
    let index = index(vec![b, a], &Index::default());
    assert_eq!(
        shown(&index),
        [
            ("c_x", MetricKind::Gauge, 2),
            ("c_y", MetricKind::Untyped, 1)
        ]
    );
    assert_eq!(index.groups[0].help, "Of a.");
    assert!(index.losses.is_empty());
}

#[test]
fn the_first_type_is_used_and_stays() {
    let gauge = input(2, "/a", "# TYPE x gauge\nx 1\n");
    let counter = input(3, "/b", "# TYPE x counter\nx 1\n");
    let first = index(vec![counter.clone()], &Index::default());
    let both = index(vec![gauge.clone(), counter], &first);
    assert_eq!(shown(&both), [("c_x", MetricKind::Counter, 1)]);
    assert_eq!(
        messages(&both),
        ["/a: c_x is a gauge here, but a counter elsewhere"]
    );
    let left = index(vec![gauge], &both);
    assert_eq!(shown(&left), [("c_x", MetricKind::Gauge, 1)]);
    assert!(left.losses.is_empty());
}

#[test]
fn a_sample_s_name_belongs_to_one_family() {
    let histogram = "# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n";
    let inputs = vec![
        input(2, "/a", histogram),
        input(3, "/b", "h_count 1\nown_total 1\n"),
    ];
    let index = index(inputs, &Index::default());
    assert_eq!(shown(&index), [("c_h", MetricKind::Histogram, 1)]);
    let messages = messages(&index);
    assert!(
        messages[0].contains("c_h_count, which belongs to c_h"),
        "{messages:?}"
    );
    assert!(messages[1].contains("--custom.prefix"), "{messages:?}");
}

#[test]
fn a_counter_s_name_without_total_may_be_taken() {
    let text = "# TYPE x_total counter\nx_total 1\n# TYPE x gauge\nx 1\n# TYPE y_total counter\ny_total 1\n";
    let index = index(vec![input(2, "/a", text)], &Index::default());
    let alone: Vec<bool> = index.groups.iter().map(|group| group.alone).collect();
    assert_eq!(alone, [true, false, true]);
}

#[test]
fn duplicate_series_are_left_out() {
    let inputs = vec![
        input(2, "/a", "x{k=\"1\"} 1\nx{k=\"2\"} 2\n"),
        input(2, "/a", "x{k=\"2\"} 3\nx{k=\"3\"} 3\n"),
    ];
    let index = index(inputs, &Index::default());
    assert_eq!(shown(&index), [("c_x", MetricKind::Untyped, 3)]);
    assert_eq!(lost(&index, "/a", Reason::Conflict), 1);
}

#[test]
fn a_cgroup_s_samples_are_limited() {
    let text = "x{k=\"1\"} 1\nx{k=\"2\"} 2\nx{k=\"3\"} 1\ny 1\nz 1\n";
    let inputs = vec![
        input(2, "/a", text),
        input(2, "/a", "v 1\nw 1\n"),
        input(3, "/b", "v 1\n"),
    ];
    let index = index(inputs, &Index::default());
    let series: Vec<_> = shown(&index)
        .into_iter()
        .map(|(name, _, series)| (name, series))
        .collect();
    assert_eq!(series, [("c_v", 2), ("c_w", 1), ("c_x", 3)]);
    assert_eq!(lost(&index, "/a", Reason::Samples), 2);
    assert_eq!(
        messages(&index),
        ["/a: more samples than --custom.max-samples"]
    );
}

#[test]
fn a_large_text_file_takes_nothing_from_small_ones() {
    let large: String = (0..100).map(|at| format!("a{at} 1\n")).collect();
    let inputs = vec![
        input(0, "/", &large),
        input(0, "/", "y 1\nz 1\n"),
        input(0, "/", "x 1\n"),
    ];
    let index = index(inputs, &Index::default());
    let names: Vec<_> = shown(&index).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["c_a0", "c_a1", "c_x", "c_y", "c_z"]);
    assert_eq!(lost(&index, "/", Reason::Samples), 98);
}

/// Size of a container's part of an exposition.
fn text_size(index: &Index, node: NodeId, labels: &LabelSet) -> usize {
    let measure = LIMITS.measure(labels);
    let members = index.groups.iter().flat_map(|group| &group.members);
    members
        .filter(|member| member.node == node)
        .map(|member| measure::size(&member.families[member.at..=member.at], &measure))
        .sum()
}

#[test]
fn containers_share_the_bytes_and_one_that_needs_little_has_all_it_needs() {
    let text = |count| -> String {
        (0..count)
            .map(|at| format!("metric_{at:02}{{k=\"{}\"}} 1\n", "v".repeat(200)))
            .collect()
    };
    let mut inputs: Vec<Input> = (1..=60)
        .map(|node| input(node, &format!("/{node:02}"), &text(100)))
        .collect();
    // One container has its samples in cgroups of its own.
    for nested in 1000..1050 {
        inputs.push(Input {
            owner: 1,
            ..input(nested, &format!("/01/{nested}"), &text(100))
        });
    }
    inputs.push(input(99, "/small", &text(2)));
    let limits = Limits {
        samples: 1000,
        bytes: 500_000,
        ..LIMITS
    };
    let labels: Vec<(u64, NodeId, LabelSet)> = inputs
        .iter()
        .map(|input| (input.owner, input.node, input.labels.clone()))
        .collect();
    let index = Index::new(inputs, limits, &|_| false, &Index::default());
    let mut sizes: BTreeMap<u64, usize> = BTreeMap::new();
    for (owner, node, labels) in &labels {
        *sizes.entry(*owner).or_default() += text_size(&index, *node, labels);
    }
    let sum: usize = sizes.values().sum();
    assert!(sum <= 500_000, "{sum}");
    assert_eq!(lost(&index, "/small", Reason::Bytes), 0);
    let share = (500_000 - sizes[&99]) / 60;
    for (owner, size) in sizes
        .iter()
        .filter(|(owner, _)| **owner > 1 && **owner < 99)
    {
        assert!(
            *size <= share && *size + 700 > share,
            "{owner} has {size} of {share}"
        );
        assert!(lost(&index, &format!("/{owner:02}"), Reason::Bytes) > 70);
    }
    assert!(sizes[&1] <= share);
    assert!(index.unserved.is_empty());
}

#[test]
fn what_has_no_room_is_not_even_described() {
    let limits = Limits {
        bytes: 1000,
        ..LIMITS
    };
    let of = |about| {
        let inputs = (0..3).map(|node| Input {
            about,
            lost: 7,
            ..input(node, &format!("/{node}"), "x 1\n")
        });
        Index::new(inputs.collect(), limits, &|_| false, &Index::default())
    };
    let index = of(400);
    assert_eq!(index.unserved.len(), 3);
    assert!(index.groups.is_empty());
    assert_eq!(lost(&index, "/1", Reason::Bytes), 8);
    let index = of(100);
    assert!(index.unserved.is_empty());
    assert_eq!(index.groups[0].members.len(), 3);
    assert_eq!(lost(&index, "/1", Reason::Bytes), 7);
}

#[test]
fn many_conflicts_of_a_container_are_counted_and_some_are_named() {
    let text: String = (0..90)
        .map(|at| format!("# TYPE m{at} gauge\nm{at} 1\n"))
        .collect();
    let other = text.replace("gauge", "counter");
    let limits = Limits {
        samples: 1000,
        ..LIMITS
    };
    let inputs = vec![input(2, "/a", &text), input(3, "/b", &other)];
    let index = Index::new(inputs, limits, &|_| false, &Index::default());
    assert_eq!(lost(&index, "/b", Reason::Conflict), 90);
    assert_eq!(messages(&index).len(), MESSAGES);
}
