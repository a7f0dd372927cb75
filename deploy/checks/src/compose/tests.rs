//! The file has no fault, and faults that are put in are found.

use super::{faults::faults, read, variables};

#[test]
fn the_stack_keeps_the_rules() {
    assert_eq!(faults(&read().unwrap()), [""; 0]);
}

/// Each change causes one more fault.
#[test]
fn faults_are_found() {
    let text = read().unwrap();
    let before = faults(&text).len();
    for (from, to, expected) in [
        (
            "127.0.0.1:9090:9090",
            "9090:9090",
            "prometheus: port \"9090:9090\"",
        ),
        ("127.0.0.1:3000:3000", "0.0.0.0:3000:3000", "grafana: port"),
        (
            "prom/prometheus:v2.55.1",
            "prom/prometheus:latest",
            "has no version",
        ),
        ("redis:7.2.5-alpine", "redis", "has no version"),
        (
            "jaegertracing/all-in-one:1.60",
            "jaegertracing/all-in-one:stable",
            "has no version",
        ),
        (
            "    mem_limit: 1g\n    cpus: 1\n    pids_limit: 256\n    healthcheck:\n      test: [CMD, wget",
            "    cpus: 1\n    pids_limit: 256\n    healthcheck:\n      test: [CMD, wget",
            "prometheus: has no mem_limit",
        ),
        (
            "test: [CMD, pg_isready, --username, shop, --dbname, shop]",
            "disable: true",
            "postgres: has no health check",
        ),
        (
            "cap_add: [SYS_ADMIN, SYS_PTRACE, NET_ADMIN]",
            "cap_add: [SYS_ADMIN, NET_ADMIN]",
            "cgmeter: cap_add",
        ),
        (
            "    read_only: true\n    cap_drop: [ALL]\n    cap_add",
            "    read_only: true\n    cap_add",
            "cgmeter: adds capabilities",
        ),
        (
            "    cgroup: host\n",
            "    cgroup: host\n    privileged: true\n",
            "cgmeter: has privileged",
        ),
        (
            "127.0.0.1:10295,172",
            "0.0.0.0:10295,172",
            "cgmeter: listens on",
        ),
        (
            "      # Loopback, and",
            "      CGMETER_STATE_PIN: /run/cgmeter\n      # Loopback, and",
            "cgmeter: CGMETER_STATE_PIN",
        ),
        (
            "    - /sys/fs/bpf:/sys/fs/bpf\n",
            "",
            "cgmeter: has /sys/fs/bpf",
        ),
        (
            "${GRAFANA_PASSWORD:?set GRAFANA_PASSWORD in .env}",
            "${GRAFANA_PASSWORD:-admin}",
            "without a default",
        ),
        (
            "/var/lib/docker/containers:ro",
            "/var/lib/docker/containers",
            "can be written",
        ),
        (
            "./filebeat/filebeat.yml",
            "./filebeat/other.yml",
            "is not in the repository",
        ),
        ("    restart: 'no'\n", "    restart: always\n", "runs once"),
    ] {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        let found = faults(&text.replace(from, to));
        let reported = found.iter().any(|fault| fault.contains(expected));
        assert!(reported && found.len() == before + 1, "{from}: {found:?}");
    }
    assert_eq!(
        faults("services: {}").last().unwrap(),
        "there are no services"
    );
    assert!(faults("a: [").concat().contains("no YAML"));
}

#[test]
fn variables_are_named_once() {
    assert_eq!(variables("${B:?x} $$C ${A} ${B:-y}"), ["A", "B"]);
}
