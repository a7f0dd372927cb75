//! The JSON API over real sockets: requests, their answers, and that the document describes them.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    sync::atomic::Ordering,
    time::{Duration, Instant, SystemTime},
};

use collector_common::histogram::BUCKETS;
use serde_json::{Map, Value, json};

use super::Server;
use crate::{
    agent::{
        AgentStatus, CgroupKind, Cgroups, Inventory, RuntimeStatus, SlotStates, SourceStatus,
        Subject,
    },
    exposition::{
        Encoder, Family, Histogram, LOG2, LabelSet, Labels, MetricKind, Unit, Value as Number,
    },
};

const WEB: &str = "aaaa1111222233334444555566667777888899990000aaaabbbbccccddddeeee";
const TWIN: &str = "aaaa9911222233334444555566667777888899990000aaaabbbbccccddddeeee";
const OLD: &str = "bbbb1111222233334444555566667777888899990000aaaabbbbccccddddeeee";

/// Path, container, name or unit, and index of the parent.
const CGROUPS: [(&str, Option<&str>, &str, Option<usize>); 7] = [
    ("/", None, "", None),
    ("/docker", None, "", Some(0)),
    ("/docker/web", Some(WEB), "web", Some(1)),
    ("/docker/twin", Some(TWIN), "db", Some(1)),
    ("/docker/old", Some(OLD), "web", Some(1)),
    ("/docker/web/in ner", None, "", Some(2)),
    ("/system.slice/ssh.service", None, "ssh.service", Some(0)),
];

fn family(name: &'static str, kind: MetricKind) -> Family {
    Family {
        name,
        help: "",
        kind,
        unit: Unit::None,
        labels: &[],
        origin: "",
        oracle: "",
    }
}

fn encode(out: &mut dyn Encoder, round: u64) {
    let sets = CGROUPS.iter().map(|(path, _, name, _)| {
        let image = if *name == "web" { "nginx:1" } else { "" };
        let called = if name.ends_with(".service") {
            "unit"
        } else {
            "name"
        };
        LabelSet::new(&[
            ("id", path),
            (called, name),
            ("image", image),
            ("container_label_tier", image),
        ])
    });
    let sets: Vec<LabelSet> = sets.collect();
    let mut gauge = |name, kind, value: fn(u64, u64) -> Number| {
        out.family(&family(name, kind));
        for (labels, at) in sets.iter().zip(1..) {
            out.sample(Labels::new(labels, &[]), value(at, round));
        }
    };
    gauge("container_last_seen", MetricKind::Gauge, |_, _| {
        Number::Count(1)
    });
    gauge(
        "container_memory_usage_bytes",
        MetricKind::Gauge,
        |at, _| Number::Count(at * 1000),
    );
    gauge(
        "container_spec_memory_limit_bytes",
        MetricKind::Gauge,
        |at, _| Number::Count(if at == 3 { 5000 } else { 0 }),
    );
    gauge(
        "container_cpu_usage_seconds_total",
        MetricKind::Counter,
        |at, round| Number::Nanos(round * at * 500_000_000),
    );
    out.family(&family(
        "container_fs_reads_bytes_total",
        MetricKind::Counter,
    ));
    out.family(&family(
        "container_sched_runqueue_latency_seconds",
        MetricKind::Histogram,
    ));
    let mut buckets = [0; BUCKETS];
    buckets[21] = round * 10;
    let histogram = Histogram {
        layout: &LOG2,
        buckets: &buckets,
        sum: Number::Nanos(0),
    };
    out.histogram(Labels::new(&sets[2], &[]), histogram);
    out.family(&family("container_custom_metric", MetricKind::Gauge));
    let value = Number::Float(7.5);
    out.sample(Labels::new(&sets[2], &[("metric_name", "jobs")]), value);
    let nan = Number::Float(f64::NAN);
    out.sample(Labels::new(&sets[2], &[("metric_name", "broken")]), nan);
}

/// An inventory with rates: the second of two frames that are two seconds apart.
pub(super) fn inventory() -> Inventory {
    let subjects = || {
        let subjects = CGROUPS.iter().map(|(path, id, _, parent)| Subject {
            cgroup: (*path).to_owned(),
            parent: *parent,
            died: (*id == Some(OLD)).then_some(SystemTime::UNIX_EPOCH),
            kind: if id.is_some() {
                CgroupKind::Container
            } else {
                CgroupKind::Other
            },
            container_id: id.map(str::to_owned),
            runtime: id.map(|_| "docker"),
            ..Subject::default()
        });
        subjects.collect::<Vec<_>>()
    };
    let (time, taken) = (SystemTime::UNIX_EPOCH, Instant::now());
    let first = Inventory::new(time, taken, subjects(), None, |out| encode(out, 1));
    let after = Duration::from_secs(2);
    Inventory::new(
        time + after,
        taken + after,
        subjects(),
        Some(&first),
        |out| encode(out, 2),
    )
}

pub(super) fn status() -> AgentStatus {
    AgentStatus {
        version: "1".to_owned(),
        target: "x".to_owned(),
        uptime_seconds: 1.5,
        kernel: "6.1".to_owned(),
        snapshot: "1970-01-01T00:00:00.000Z".to_owned(),
        complete: true,
        sources: vec![SourceStatus {
            name: "sched".to_owned(),
            up: false,
            absent: false,
            reason: Some("switched off".to_owned()),
            errors: 0,
        }],
        runtimes: vec![RuntimeStatus {
            name: "docker".to_owned(),
            socket: None,
            up: true,
        }],
        cgroups: Cgroups { live: 6, dead: 1 },
        slots: SlotStates {
            without: 0,
            without_by_parent: Vec::new(),
            used: 7,
            free: 8,
            quarantined: 0,
        },
        kernel_memory_bytes: 1,
        stages: BTreeMap::from([("slots".to_owned(), 0.25)]),
    }
}

/// Status code, head and JSON of an answer.
fn parsed(answer: &str) -> (u16, String, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(head.contains("content-type: application/json"), "{head}");
    assert!(head.contains("cache-control: no-store"), "{head}");
    assert!(!head.contains("access-control"), "{head}");
    (code, head.to_owned(), serde_json::from_str(body).unwrap())
}

fn server() -> Server {
    Server::start(Duration::ZERO, 4)
}

fn get(server: &Server, path: &str) -> (u16, Value) {
    let (code, _, body) = parsed(&server.get(path));
    (code, body)
}

fn names(list: &Value) -> Vec<&str> {
    let records = list["containers"].as_array().unwrap();
    let names = records.iter().map(|record| record["cgroup"].as_str());
    names.map(Option::unwrap).collect()
}

#[test]
fn lists() {
    let server = server();
    for (query, expected) in [
        ("", &["/docker/old", "/docker/twin", "/docker/web"][..]),
        ("?name=web", &["/docker/old", "/docker/web"]),
        ("?name=web&state=running", &["/docker/web"]),
        ("?state=ended", &["/docker/old"]),
        ("?name=w*b&state=ended", &["/docker/old"]),
        ("?image=nginx*", &["/docker/old", "/docker/web"]),
        ("?runtime=podman", &[]),
        ("?runtime=docker&limit=1&offset=1", &["/docker/twin"]),
        ("?id=aaaa1", &["/docker/web"]),
        ("?id=%2Fdocker%2Ft", &["/docker/twin"]),
        (
            "?all=true&sort=-memory_usage&limit=2",
            &["/system.slice/ssh.service", "/docker/web/in ner"],
        ),
        ("?all=true&id=/docker/web/in+ner", &["/docker/web/in ner"]),
        (
            "?sort=-cpu_usage",
            &["/docker/old", "/docker/twin", "/docker/web"],
        ),
        ("?offset=9", &[]),
        ("?all=true&name=ssh*", &[]),
        ("?all=true&unit=ssh*", &["/system.slice/ssh.service"]),
    ] {
        let (code, list) = get(&server, &format!("/api/v1/containers{query}"));
        assert_eq!(code, 200, "{query}: {list}");
        assert_eq!(names(&list), expected, "{query}");
    }
    let (_, list) = get(&server, "/api/v1/containers?limit=1");
    assert_eq!(
        (&list["total"], &list["interval_seconds"]),
        (&json!(3), &json!(2.0))
    );
}

#[test]
fn one_by_id_name_prefix_or_path() {
    let server = server();
    for (key, cgroup) in [
        (WEB, "/docker/web"),
        ("web", "/docker/web"),
        ("db", "/docker/twin"),
        ("aaaa1", "/docker/web"),
        ("bbbb", "/docker/old"),
        ("%2Fdocker%2Fweb%2Fin%20ner", "/docker/web/in ner"),
        ("/docker/twin", "/docker/twin"),
        ("%2F", "/"),
        ("ssh.service", "/system.slice/ssh.service"),
    ] {
        let (code, record) = get(&server, &format!("/api/v1/containers/{key}"));
        assert_eq!(
            (code, record["cgroup"].as_str()),
            (200, Some(cgroup)),
            "{key}"
        );
    }
    let (code, several) = get(&server, "/api/v1/containers/aaaa");
    assert_eq!((code, &several["matches"]), (400, &json!([WEB, TWIN])));
    for key in ["bbb", "nothing", "aaaa3", "%2Fdocker%2F", "docker"] {
        let (code, refusal) = get(&server, &format!("/api/v1/containers/{key}"));
        assert_eq!(code, 404, "{key}: {refusal}");
        assert!(
            refusal["error"].as_str().unwrap().contains("no c"),
            "{refusal}"
        );
    }
}

#[test]
fn a_record_has_the_numbers_of_the_families() {
    let server = server();
    let (_, record) = get(&server, "/api/v1/containers/web");
    let expected = json!({
        "id": WEB, "name": "web", "image": "nginx:1", "runtime": "docker", "kind": "container",
        "labels": { "tier": "nginx:1" }, "state": "running", "timestamp": "1970-01-01T00:00:02.000Z",
        "interval_seconds": 2.0, "cpu_usage": 75.0, "memory_usage": 3000, "memory_limit": 5000,
        "disk_read": 0, "disk_write": null, "network_rx": null, "health": null,
        "custom_metrics": { "jobs": 7.5, "broken": null },
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&record[name], value, "{name}");
    }
    assert_eq!(record["cpu"]["usage_seconds"], 3.0);
    // Within the interval there are ten events between 1 and 2 s, of twenty in total.
    let expected = json!({ "count": 10, "p50": 1.5, "p90": 1.9, "p99": 1.99 });
    assert_eq!(record["latency"]["runqueue"], expected);
    assert_eq!(record["latency"]["tcp_rtt"], Value::Null);
    let (_, root) = get(&server, "/api/v1/containers/%2F");
    assert_eq!(root["memory_limit"], Value::Null, "0 means no limit");
}

#[test]
fn trees() {
    let server = server();
    let (code, tree) = get(&server, "/api/v1/cgroups");
    assert_eq!(
        (code, &tree["shown"], &tree["left_out"]),
        (200, &json!(7), &json!(0))
    );
    let web = &tree["roots"][0]["children"][0]["children"][0];
    assert_eq!(web["cgroup"], "/docker/web");
    assert_eq!(web["children"][0]["cgroup"], "/docker/web/in ner");
    let (_, tree) = get(&server, "/api/v1/cgroups?root=/docker&depth=1");
    assert_eq!((&tree["shown"], &tree["left_out"]), (&json!(4), &json!(1)));
    assert_eq!(tree["roots"][0]["children"][0]["left_out"], 1);
    assert_eq!(tree["roots"][0]["left_out"], 1);
    let (_, tree) = get(&server, "/api/v1/cgroups?limit=2");
    assert_eq!((&tree["shown"], &tree["left_out"]), (&json!(2), &json!(5)));
    assert_eq!(get(&server, "/api/v1/cgroups?root=/none").0, 404);
}

#[test]
fn invalid_requests_get_an_error_that_says_why() {
    let server = server();
    for (path, code, part) in [
        ("containers?colour=red", 400, "no parameter \"colour\""),
        ("status?x=1", 400, "no parameter \"x\""),
        (
            "containers?limit=0",
            400,
            "limit=0: expected a whole number from 1 to 10000",
        ),
        ("containers?limit=-1", 400, "limit=-1"),
        ("containers?limit=+1", 400, "limit= 1"),
        ("containers?limit=1&limit=2", 400, "limit is given twice"),
        ("containers?all=yes", 400, "expected true or false"),
        (
            "containers?state=paused",
            400,
            "expected one of running, ended",
        ),
        ("containers?sort=colour", 400, "expected one of cgroup"),
        ("containers?name=", 400, "name: expected a non-empty text"),
        (
            "containers?name=%ff",
            400,
            "name: expected a non-empty text in UTF-8",
        ),
        (
            "containers?name=%zz",
            400,
            "\"%zz\" is not a percent-encoded byte",
        ),
        ("containers/%4", 400, "\"%4\" is not a percent-encoded byte"),
        ("containers/%ff", 400, "not UTF-8"),
        ("cgroups?depth=33", 400, "from 0 to 32"),
        ("containers/", 404, "there is nothing at"),
        ("nothing", 404, "there is nothing at /api/v1/nothing"),
        ("", 404, "there is nothing at"),
    ] {
        let (got, refusal) = get(&server, &format!("/api/v1/{path}"));
        assert_eq!(got, code, "{path}: {refusal}");
        let error = refusal["error"].as_str().unwrap();
        assert!(error.contains(part), "{path}: {error}");
    }
    let long = format!("/api/v1/containers?name={}", "a".repeat(5000));
    assert_eq!(get(&server, &long).0, 414);
    let long = format!("/api/v1/containers/{}", "a".repeat(5000));
    assert_eq!(get(&server, &long).0, 414);
}

#[test]
fn methods_and_media() {
    let server = server();
    let ask = |method: &str, accept: &str| {
        server.ask(&format!(
            "{method} /api/v1/containers HTTP/1.1\r\nHost: x\r\n{accept}Content-Length: 0\r\n\
             Connection: close\r\n\r\n"
        ))
    };
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "ODD"] {
        let (code, head, _) = parsed(&ask(method, ""));
        assert!(
            code == 405 && head.contains("allow: GET, HEAD"),
            "{method}: {head}"
        );
    }
    let (code, _, refusal) = parsed(&ask("GET", "Accept: text/html\r\n"));
    assert_eq!(code, 406, "{refusal}");
    assert_eq!(
        parsed(&ask("GET", "Accept: text/html, */*;q=0.1\r\n")).0,
        200
    );
    let answer = ask("HEAD", "");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
}

#[test]
fn too_many_requests_get_503_with_retry_after() {
    let server = Server::start(Duration::from_secs(2), 1);
    let mut slow = server.connect();
    slow.write_all(b"GET /api/v1/cgroups HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    while server.metrics.scrapes.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let (code, head, _) = parsed(&server.get("/api/v1/containers"));
    assert!(code == 503 && head.contains("retry-after: 1"), "{head}");
    // Scrapes are not counted with them.
    assert!(server.get("/metrics").ends_with("text 1\n"));
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    assert_eq!(parsed(&text).0, 200);
}

/// Checks a value against a schema. Fails for schema keywords that it does not know.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    let Some(schema) = schema.as_object() else {
        assert_eq!(schema, &json!(true), "{at}");
        return;
    };
    for (word, argument) in schema {
        match word.as_str() {
            "$ref" => {
                let pointer = argument.as_str().unwrap().trim_start_matches('#');
                check(document, document.pointer(pointer).unwrap(), value, at);
            }
            "type" => {
                let types = argument
                    .as_array()
                    .cloned()
                    .unwrap_or_else(|| vec![argument.clone()]);
                let is = |name: &Value| match name.as_str().unwrap() {
                    "null" => value.is_null(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "number" => value.is_number(),
                    "array" => value.is_array(),
                    "object" => value.is_object(),
                    other => panic!("{at}: type {other}"),
                };
                assert!(types.iter().any(is), "{at}: {value} is not {argument}");
            }
            "properties" => {
                let argument = argument.as_object().unwrap();
                let object = value.as_object().unwrap();
                for (name, value) in object {
                    let schema = argument.get(name);
                    let schema = schema.unwrap_or_else(|| panic!("{at}: {name} is not described"));
                    check(document, schema, value, &format!("{at}.{name}"));
                }
            }
            "required" => {
                for name in argument.as_array().unwrap() {
                    let name = name.as_str().unwrap();
                    assert!(value.get(name).is_some(), "{at}: no {name}");
                }
            }
            "items" => {
                for value in value.as_array().unwrap() {
                    check(document, argument, value, at);
                }
            }
            "additionalProperties" => {
                for value in value.as_object().unwrap().values() {
                    check(document, argument, value, at);
                }
            }
            "anyOf" | "oneOf" => {
                let fits = |schema: &&Value| {
                    let one = std::panic::AssertUnwindSafe(|| check(document, schema, value, at));
                    std::panic::catch_unwind(one).is_ok()
                };
                assert!(
                    argument.as_array().unwrap().iter().any(|s| fits(&s)),
                    "{at}: {value}"
                );
            }
            "const" => assert_eq!(argument, value, "{at}"),
            "enum" => assert!(
                argument.as_array().unwrap().contains(value),
                "{at}: {value}"
            ),
            "minimum" => assert!(
                value.is_null() || value.as_f64() >= argument.as_f64(),
                "{at}"
            ),
            "description" | "format" | "title" => {}
            other => panic!("{at}: {other} is not understood"),
        }
    }
}

#[test]
fn the_document_describes_the_answers() {
    let server = server();
    let (code, document) = get(&server, "/api/v1/openapi.json");
    assert_eq!((code, &document["openapi"]), (200, &json!("3.1.0")));
    let schema = |path: &str, code: &str| {
        let response = &document["paths"][path]["get"]["responses"][code];
        response["content"]["application/json"]["schema"].clone()
    };
    let mut paths: Vec<&String> = document["paths"]
        .as_object()
        .map(Map::keys)
        .unwrap()
        .collect();
    for (path, request) in [
        ("/api/v1/containers", "/api/v1/containers?all=true"),
        ("/api/v1/containers/{key}", "/api/v1/containers/web"),
        ("/api/v1/cgroups", "/api/v1/cgroups"),
        ("/api/v1/status", "/api/v1/status"),
        ("/api/v1/openapi.json", "/api/v1/openapi.json"),
    ] {
        let (code, answer) = get(&server, request);
        assert_eq!(code, 200);
        check(&document, &schema(path, "200"), &answer, path);
        paths.retain(|&found| found != path);
        let (code, refusal) = get(&server, &format!("{path}?nonsense=1"));
        let code = if path.contains('{') { 400 } else { code };
        check(&document, &schema(path, &code.to_string()), &refusal, path);
    }
    assert!(paths.is_empty(), "no request above covers {paths:?}");
    // Makes sure that the check can fail.
    let wrong = json!({ "error": 1 });
    let fails = std::panic::catch_unwind(|| {
        check(&document, &schema("/api/v1/status", "400"), &wrong, "");
    });
    assert!(fails.is_err());
}
