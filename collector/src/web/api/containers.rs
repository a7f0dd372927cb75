//! `/api/v1/containers`: lists of records, and single records.

use std::cmp::Ordering;

use bytes::Bytes;
use hyper::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Refusal, Served,
    parameters::{Parameter, ParameterKind, Query},
    reply,
};
use crate::agent::{InventoryEntry, KeyMatch, Life, Record, SHORTEST_PREFIX, rfc3339};

const fn text(name: &'static str, about: &'static str) -> Parameter {
    Parameter {
        name,
        about,
        kind: ParameterKind::Text,
    }
}

/// Parameters of a list.
pub(super) const PARAMETERS: &[Parameter] = &[
    text("name", "Filter by name; * matches any text"),
    text("unit", "Filter by systemd unit; * matches any text"),
    text("image", "Filter by image; * matches any text"),
    text(
        "namespace",
        "Filter by Kubernetes namespace; * matches any text",
    ),
    text("pod", "Filter by pod; * matches any text"),
    text("runtime", "Filter by container runtime"),
    text(
        "id",
        "Filter by prefix: of the cgroup's path if it begins with a slash, else of the container's id",
    ),
    Parameter {
        name: "state",
        about: "Filter by state: running, or ended",
        kind: ParameterKind::OneOf(&["running", "ended"]),
    },
    Parameter {
        name: "all",
        about: "List every cgroup, not only containers",
        kind: ParameterKind::Flag,
    },
    Parameter {
        name: "sort",
        about: "Sort key; ascending, or descending with a minus sign before it. Records without a value \
                come last. Default: by path",
        kind: ParameterKind::OneOf(SORTS),
    },
    Parameter {
        name: "limit",
        about: "Maximum number of records in the answer",
        kind: ParameterKind::Number {
            min: 1,
            max: 10_000,
            default: 1_000,
        },
    },
    Parameter {
        name: "offset",
        about: "Number of records to skip",
        kind: ParameterKind::Number {
            min: 0,
            max: 1_000_000,
            default: 0,
        },
    },
];

/// A part of the list of containers.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Page {
    /// When the snapshot was taken.
    #[schemars(extend("format" = "date-time"))]
    timestamp: String,
    /// Interval of the rates in seconds: from the previous snapshot to this one.
    interval_seconds: Option<f64>,
    /// Number of records that match, in the answer or not.
    total: usize,
    /// The parameter offset.
    offset: usize,
    /// The parameter limit.
    limit: usize,
    /// The records.
    containers: Vec<Record>,
}

/// A value to sort by.
enum Key {
    Text(Option<String>),
    Number(Option<f64>),
}

type Sort = fn(&Record) -> Key;

fn whole(value: Option<u64>) -> Key {
    Key::Number(value.map(|value| value as f64))
}

const SORT_KEYS: &[(&str, Sort)] = &[
    ("cgroup", |r| Key::Text(Some(r.cgroup.clone()))),
    ("name", |r| Key::Text(r.name.clone())),
    ("unit", |r| Key::Text(r.unit.clone())),
    ("image", |r| Key::Text(r.image.clone())),
    ("created", |r| Key::Text(r.created.clone())),
    ("cpu_usage", |r| Key::Number(r.cpu_usage)),
    ("memory_usage", |r| whole(r.memory_usage)),
    ("network_rx", |r| whole(r.network_rx)),
    ("network_tx", |r| whole(r.network_tx)),
    ("disk_read", |r| whole(r.disk_read)),
    ("disk_write", |r| whole(r.disk_write)),
    ("process_count", |r| whole(r.process_count)),
    ("thread_count", |r| whole(r.thread_count)),
    ("file_descriptors", |r| whole(r.file_descriptors)),
];

const SORTS: &[&str] = &[
    "cgroup",
    "-cgroup",
    "name",
    "-name",
    "unit",
    "-unit",
    "image",
    "-image",
    "created",
    "-created",
    "cpu_usage",
    "-cpu_usage",
    "memory_usage",
    "-memory_usage",
    "network_rx",
    "-network_rx",
    "network_tx",
    "-network_tx",
    "disk_read",
    "-disk_read",
    "disk_write",
    "-disk_write",
    "process_count",
    "-process_count",
    "thread_count",
    "-thread_count",
    "file_descriptors",
    "-file_descriptors",
];

/// Compares two keys. Missing values come last in either order.
fn compare(one: &Key, other: &Key, falling: bool) -> Ordering {
    let turn = |order: Ordering| if falling { order.reverse() } else { order };
    let (missing, order) = match (one, other) {
        (Key::Text(a), Key::Text(b)) => ((a.is_none(), b.is_none()), a.cmp(b)),
        (Key::Number(a), Key::Number(b)) => {
            let number = |value: &Option<f64>| value.unwrap_or_default();
            ((a.is_none(), b.is_none()), number(a).total_cmp(&number(b)))
        }
        _ => return Ordering::Equal,
    };
    match missing {
        (false, false) => turn(order),
        (one, other) => one.cmp(&other),
    }
}

/// Whether a text matches a pattern in which `*` stands for any text.
fn like(text: &str, pattern: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return text == pattern;
    };
    let Some(mut text) = text.strip_prefix(first) else {
        return false;
    };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        let Some(at) = text.find(part) else {
            return false;
        };
        text = &text[at + part.len()..];
    }
    text.ends_with(last)
}

/// Whether an entry passes the filters of the query.
fn is_wanted(entry: &InventoryEntry, query: &Query) -> bool {
    let subject = &entry.subject;
    let labels = ["name", "unit", "image", "namespace", "pod"];
    let by_label = labels.into_iter().all(|name| {
        let pattern = query.text(name);
        pattern.is_none_or(|pattern| like(entry.label(name).unwrap_or_default(), pattern))
    });
    let begins = |prefix: &str| {
        if prefix.starts_with('/') {
            return subject.cgroup.starts_with(prefix);
        }
        let id = subject.container_id.as_deref();
        id.is_some_and(|id| id.starts_with(prefix))
    };
    let lives = |state: &str| (state == "running") == (subject.life() == Life::Running);
    let runtime = |name: &str| subject.runtime_name() == Some(name);
    by_label
        && (query.flag("all") || subject.is_container())
        && query.text("id").is_none_or(begins)
        && query.text("state").is_none_or(lives)
        && query.text("runtime").is_none_or(runtime)
}

/// Answers `/api/v1/containers`.
pub(super) fn list(served: &Served, query: &Query) -> Result<Bytes, Refusal> {
    let inventory = served.metrics.inventory().map_err(Refusal::failure)?;
    let wanted = inventory.entries.iter().filter(|e| is_wanted(e, query));
    let sort = query.text("sort").unwrap_or("cgroup");
    let (name, falling) = match sort.strip_prefix('-') {
        Some(name) => (name, true),
        None => (sort, false),
    };
    let key = SORT_KEYS.iter().find(|(found, _)| *found == name);
    let (_, key) = key.ok_or_else(|| Refusal::bad(format!("unknown sort key {name}")))?;
    let mut records: Vec<(Key, Record)> = wanted
        .map(|entry| inventory.record(entry))
        .map(|record| (key(&record), record))
        .collect();
    records.sort_by(|(one, a), (other, b)| {
        compare(one, other, falling).then_with(|| a.cgroup.cmp(&b.cgroup))
    });
    let (offset, limit) = (query.number("offset"), query.number("limit"));
    reply(&Page {
        timestamp: rfc3339(inventory.time),
        interval_seconds: inventory.interval.map(|interval| interval.as_secs_f64()),
        total: records.len(),
        offset,
        limit,
        containers: records
            .into_iter()
            .skip(offset)
            .take(limit)
            .map(|(_, record)| record)
            .collect(),
    })
}

/// Answers `/api/v1/containers/{key}`.
pub(super) fn one(served: &Served, query: &Query) -> Result<Bytes, Refusal> {
    let inventory = served.metrics.inventory().map_err(Refusal::failure)?;
    let key = query.text("key").unwrap_or_default();
    let missing = |error| Err(Refusal::new(StatusCode::NOT_FOUND, error));
    match inventory.find(key) {
        KeyMatch::One(at) => reply(&inventory.record(&inventory.entries[at])),
        KeyMatch::Several(matches) => {
            let error = format!(
                "{key:?} matches {} containers; use a longer prefix or a full id",
                matches.len()
            );
            Err(Refusal::bad(error).with(matches))
        }
        KeyMatch::Nothing if key.len() < SHORTEST_PREFIX => missing(format!(
            "no container has the name {key:?}; the prefix of an id needs at least {SHORTEST_PREFIX} \
             characters"
        )),
        KeyMatch::Nothing => missing(format!(
            "no container has the id or name {key:?}, and no cgroup has this path"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_match_any_text() {
        for (text, pattern, matches) in [
            ("web-1", "web-1", true),
            ("web-1", "web", false),
            ("web-1", "web*", true),
            ("web-1", "*1", true),
            ("web-1", "*e*-*", true),
            ("web-1", "*-*-*", false),
            ("web", "web*web", false),
            ("", "*", true),
            ("", "", true),
            ("aXbXc", "a*X*c", true),
        ] {
            assert_eq!(like(text, pattern), matches, "{text} {pattern}");
        }
    }

    #[test]
    fn every_key_sorts_both_ways() {
        let names: Vec<String> = SORT_KEYS
            .iter()
            .flat_map(|(name, _)| [(*name).to_owned(), format!("-{name}")])
            .collect();
        assert_eq!(names, SORTS);
    }

    #[test]
    fn missing_values_come_last_in_either_order() {
        let (none, one, two) = (
            Key::Number(None),
            Key::Number(Some(1.0)),
            Key::Number(Some(2.0)),
        );
        assert_eq!(compare(&one, &two, false), Ordering::Less);
        assert_eq!(compare(&one, &two, true), Ordering::Greater);
        for falling in [false, true] {
            assert_eq!(compare(&none, &one, falling), Ordering::Greater);
            assert_eq!(compare(&one, &none, falling), Ordering::Less);
        }
    }
}
