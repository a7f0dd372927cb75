//! Queries as in dashboards and recording rules written for cAdvisor, for Docker and for
//! Kubernetes. A real Prometheus evaluates them while it scrapes the agent next to real containers.
//! Each query must return data, and as many series as it has containers.

use std::{process::Command, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cri::Containerd,
    docker::{Docker, FOREVER},
    needs::Need,
    queried::Queried,
    runtimes::output,
};

pub const TESTS: &[Test] = &[(
    "dashboards::queries_of_docker_and_kubernetes",
    &[
        Need::Agent,
        Need::Program("dockerd"),
        Need::Program("docker"),
        Need::Program("containerd"),
        Need::Program("ctr"),
        Need::Program("runc"),
        Need::Program("curl"),
        Need::Program("busybox"),
        Need::Program("ip"),
        Need::Program("nsenter"),
        Need::Program("prometheus"),
    ],
    queries,
)];

/// Queries for Docker, with the minimum number of series that each returns. `$w` is the rate's
/// window.
const DOCKER: &[(&str, usize)] = &[
    (
        r#"sum by (name) (rate(container_cpu_usage_seconds_total{name=~".+"}[$w])) * 100"#,
        3,
    ),
    (
        r#"sum by (name) (container_memory_usage_bytes{image!="",name=~".+"})"#,
        3,
    ),
    (
        r#"topk(5, container_memory_working_set_bytes{name=~"busy|idle|peer"})"#,
        3,
    ),
    (
        r#"sum(rate(container_cpu_user_seconds_total{name="busy"}[$w])) > 0"#,
        1,
    ),
    (
        r#"rate(container_cpu_system_seconds_total{name="busy"}[$w])"#,
        1,
    ),
    (
        r#"sum by (name) (rate(container_network_receive_bytes_total{name=~"idle|peer"}[$w])) > 0"#,
        2,
    ),
    (
        r#"sum by (name) (rate(container_network_transmit_bytes_total{name=~"idle|peer"}[$w])) > 0"#,
        2,
    ),
    (
        r#"rate(container_network_receive_errors_total{name="peer",interface="eth0"}[$w])"#,
        1,
    ),
    (
        r#"sum by (container_label_com_docker_compose_project, container_label_com_docker_compose_service) (rate(container_cpu_usage_seconds_total{container_label_com_docker_compose_project="shop"}[$w]))"#,
        2,
    ),
    (
        r#"count(container_last_seen{image!="",name=~".+"}) >= 4"#,
        1,
    ),
    (r#"time() - container_last_seen{name="gone"} > 1"#, 1),
    (r#"absent(container_last_seen{name="never"})"#, 1),
    (
        r#"container_memory_working_set_bytes{name="busy"} / container_spec_memory_limit_bytes{name="busy"} * 100 > 0 < 100"#,
        1,
    ),
    (
        r#"(container_spec_memory_limit_bytes{name="idle"} == 0) or absent(container_spec_memory_limit_bytes{name="idle"})"#,
        1,
    ),
    (
        r#"sum by (name) (rate(container_fs_writes_bytes_total{name="busy",device!=""}[$w])) > 0"#,
        1,
    ),
    (
        r#"sum by (name) (rate(container_fs_writes_total{name="busy"}[$w])) > 0"#,
        1,
    ),
    (
        r#"time() - container_start_time_seconds{name="idle"} > 0 < 1000"#,
        1,
    ),
    (
        r#"rate(container_cpu_cfs_throttled_seconds_total{name="busy"}[$w]) > 0"#,
        1,
    ),
    (
        r#"container_spec_cpu_quota{name="busy"} / container_spec_cpu_period{name="busy"} == 0.2"#,
        1,
    ),
    (
        r#"increase(container_oom_events_total{name=~"busy|idle"}[$w]) == 0"#,
        2,
    ),
    (r#"container_health_state{name=~"busy|idle"} == -1"#, 2),
    (
        r#"sum(container_memory_usage_bytes{name=~".+"}) / scalar(machine_memory_bytes) > 0 < 1"#,
        1,
    ),
    (
        r#"sum(rate(container_cpu_usage_seconds_total{id="/"}[$w])) / scalar(machine_cpu_cores) > 0"#,
        1,
    ),
    (
        r#"container_fs_usage_bytes{id="/"} / container_fs_limit_bytes{id="/"} > 0 < 1"#,
        1,
    ),
    (
        r#"container_fs_inodes_free{id="/"} / container_fs_inodes_total{id="/"}"#,
        1,
    ),
    (
        r#"container_memory_rss{name="busy"} * on (id) group_left (runtime, container_id) container_info{runtime="docker"}"#,
        1,
    ),
];

/// Queries for Kubernetes.
const KUBERNETES: &[(&str, usize)] = &[
    (
        r#"sum by (namespace, pod, container) (irate(container_cpu_usage_seconds_total{namespace!="",image!="",container!=""}[$w])) >= 0"#,
        3,
    ),
    (
        r#"sum by (namespace, pod, container) (rate(container_cpu_usage_seconds_total{image!=""}[$w])) * on (namespace, pod, container) group_left (runtime) max by (namespace, pod, container, runtime) (container_info{image!="",container!="POD",runtime="containerd"})"#,
        // With containerd's sandboxes, as on the kubelet's endpoint.
        5,
    ),
    (
        r#"sum by (namespace) (container_memory_working_set_bytes{namespace!="",container!="",container!="POD",image!=""}) > 0"#,
        2,
    ),
    (
        r#"max by (namespace, pod) (container_memory_working_set_bytes{pod!="",container=""}) > 0"#,
        2,
    ),
    (
        r#"container_memory_rss{namespace!="",container!="",container!="POD"}"#,
        3,
    ),
    (
        r#"container_memory_cache{namespace!="",container!="",container!="POD"}"#,
        3,
    ),
    (
        r#"sum by (namespace, pod, container) (increase(container_cpu_cfs_throttled_periods_total{container!="",namespace="shop"}[$w])) / sum by (namespace, pod, container) (increase(container_cpu_cfs_periods_total{container!="",namespace="shop"}[$w])) > 0.25"#,
        1,
    ),
    // One of the pods is on the host's network, so its sandbox has no network counters.
    (
        r#"sum by (namespace, pod) (container_network_receive_bytes_total{namespace="back",container=""}) > 0"#,
        1,
    ),
    (
        r#"sum by (namespace, pod) (irate(container_network_transmit_packets_total{namespace="back",pod!=""}[$w]))"#,
        1,
    ),
    (
        r#"sum by (namespace, pod) (irate(container_network_receive_packets_dropped_total{namespace="back",pod!=""}[$w]))"#,
        1,
    ),
    (
        r#"ceil(sum by (namespace, pod) (rate(container_fs_writes_total{container!="",namespace="shop",device!=""}[$w]))) > 0"#,
        1,
    ),
    (
        r#"sum by (namespace, pod) (rate(container_fs_writes_bytes_total{container!="",namespace="shop"}[$w])) > 0"#,
        1,
    ),
    (
        r#"count by (namespace) (sum by (namespace, pod) (container_memory_working_set_bytes{pod!="",container!=""}))"#,
        2,
    ),
    // A pod's own cgroup has at least the sum of its containers.
    (
        r#"(sum by (namespace, pod) (container_cpu_usage_seconds_total{pod!="",container=""}) - sum by (namespace, pod) (container_cpu_usage_seconds_total{pod!="",container!=""})) > -0.001"#,
        2,
    ),
    (
        r#"container_spec_cpu_quota{namespace="shop",container="busy"} / container_spec_cpu_period{namespace="shop",container="busy"} == 0.2"#,
        1,
    ),
    (
        r#"changes(container_start_time_seconds{namespace!="",container!="",container!="POD"}[$w]) == 0"#,
        3,
    ),
];

/// Queries that return nothing on a host like this one, with the reason. A query that returns data
/// must be removed from the list.
fn nothing(unified_memory: bool) -> Vec<(&'static str, &'static str)> {
    let mut list = Vec::new();
    if !unified_memory {
        list.push((
            r#"rate(container_memory_events_high_total{name="busy"}[$w])"#,
            "memory.events is of cgroup2's memory controller, which is in v1 here",
        ));
    }
    list
}

/// Uses CPU time, and writes through to the disk.
const BUSY: &str = "while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; \
                    dd if=/dev/zero of=/tmp/data bs=64k count=4 conv=fsync 2>/dev/null; done";

/// Connects two containers with a veth pair.
fn join(docker: &Docker, names: [&str; 2]) -> Result<()> {
    let mut pids = Vec::new();
    for name in names {
        pids.push(docker.inspect(name, "{{.State.Pid}}")?);
    }
    output(
        Command::new("ip")
            .args(["link", "add", "eth0", "netns", &pids[0], "type", "veth"])
            .args(["peer", "name", "eth0", "netns", &pids[1]]),
    )?;
    for (pid, address) in pids.iter().zip(["10.79.0.1/24", "10.79.0.2/24"]) {
        let enter = |words: &[&str]| {
            output(
                Command::new("nsenter")
                    .args(["--target", pid, "--net", "ip"])
                    .args(words),
            )
        };
        enter(&["addr", "add", address, "dev", "eth0"])?;
        enter(&["link", "set", "eth0", "up"])?;
    }
    docker.run(&["exec", "--detach", names[0], "ping", "10.79.0.2"])?;
    Ok(())
}

fn queries() -> Result<()> {
    let docker = Docker::start()?;
    let mut containerd = Containerd::start()?;
    let agent = Agent::start(&[
        "--container.runtime",
        &docker.flag(),
        "--container.runtime",
        &containerd.flag(),
    ])?;
    let compose = ["--label=com.docker.compose.project=shop"];
    let label = |service: &str| format!("--label=com.docker.compose.service={service}");
    let (web, database) = (label("web"), label("database"));
    let limits = ["--name=busy", "--cpus=0.2", "--memory=64m", &web];
    docker.container(&[&limits[..], &compose].concat(), &["sh", "-c", BUSY])?;
    docker.container(&["--name=idle", compose[0], &database], FOREVER)?;
    docker.container(&["--name=peer"], FOREVER)?;
    join(&docker, ["idle", "peer"])?;
    let front = containerd.pod("shop", "front-0")?;
    containerd.container(&front, "busy", 0, &["sh", "-c", BUSY])?;
    containerd.container(&front, "idle", 0, FOREVER)?;
    let back = containerd.networked_pod("back", "back-0")?;
    containerd.container(&back, "only", 0, FOREVER)?;

    let prometheus = Queried::start(&[("cgmeter", agent.port)], &[])?;
    docker.container(&["--name=gone"], FOREVER)?;
    prometheus.query(r#"container_last_seen{name="gone"}"#)?;
    docker.run(&["kill", "gone"])?;

    let mut failures = Vec::new();
    for &(query, least) in DOCKER.iter().chain(KUBERNETES) {
        let query = query.replace("$w", "15s");
        let result = prometheus.query_within(&query, Duration::from_secs(25));
        let found = result.as_ref().map_or(0, Vec::len);
        if found < least {
            let why =
                result.map_or_else(|error| format!("{error:#}"), |found| format!("{found:?}"));
            let why = why.lines().next().unwrap_or_default().to_owned();
            failures.push(format!("{query}: {found} instead of {least}: {why}"));
        }
    }
    let unified = crate::needs::missing(&[Need::Unified("memory")]).is_none();
    for (query, why) in nothing(unified) {
        let query = query.replace("$w", "15s");
        if prometheus.query_within(&query, Duration::ZERO).is_ok() {
            failures.push(format!("{query} has data now, although {why}"));
        }
    }
    ensure!(
        failures.is_empty(),
        "{}\n{}",
        failures.join("\n"),
        agent.log()
    );
    Ok(())
}
