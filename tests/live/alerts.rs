//! Alerts from a cgroup in trouble to the message: the shipped rules and routes in a real
//! Prometheus and Alertmanager, with a webhook that the test runs. Oracle: the trouble is real, and
//! the kernel's files show it.

mod receiver;
mod stack;

use std::process::Command;

use anyhow::{Result, ensure};
use receiver::Receiver;
use serde_json::Value;
use stack::{PAGER_KEY, Stack, TOKEN, WINDOW};

use crate::{Test, agent::Agent, cgroup::Cgroup, needs::Need, twin::Twin, worker::Worker};

pub const TESTS: &[Test] = &[
    (
        "alerts::alerts_reach_the_webhook_and_resolve",
        &[
            Need::Agent,
            Need::Program("prometheus"),
            Need::Program("prometheus-alertmanager"),
            Need::Controller("cpu"),
            Need::Controller("memory"),
        ],
        trouble,
    ),
    (
        "alerts::an_agent_that_is_down_inhibits_alerts_of_its_containers",
        &[
            Need::Agent,
            Need::Program("prometheus"),
            Need::Program("prometheus-alertmanager"),
            Need::Program("amtool"),
        ],
        down,
    ),
];

/// The alerts that a container at its quota may raise. If both fire, one inhibits the other.
const QUOTA: &[&str] = &["CpuThrottled", "RunQueueLatencyOwnQuota"];

/// Matches the labels of an alert with one of these names, for this cgroup.
fn of<'a>(names: &'a [&str], id: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |labels| {
        let name = labels["alertname"].as_str().unwrap_or_default();
        names.contains(&name) && labels["id"] == id
    }
}

fn limit_memory(twin: &Twin, bytes: u64) -> Result<()> {
    let (limit, swap) = if twin.v1 {
        ("memory.limit_in_bytes", "memory.swappiness")
    } else {
        ("memory.max", "memory.swap.max")
    };
    twin.write(limit, &bytes.to_string())?;
    // With swap the process would only become slow.
    twin.write(swap, "0")
}

fn limit_cpu(twin: &Twin) -> Result<()> {
    if twin.v1 {
        twin.write("cpu.cfs_period_us", "100000")?;
        twin.write("cpu.cfs_quota_us", "20000")
    } else {
        twin.write("cpu.max", "20000 100000")
    }
}

fn trouble() -> Result<()> {
    let agent = Agent::start(&["--cgroup.linger", "12s"])?;
    let receiver = Receiver::start()?;
    let (busy, greedy, victim, quiet) = (
        Cgroup::new()?,
        Cgroup::new()?,
        Cgroup::new()?,
        Cgroup::new()?,
    );
    let cpu = Twin::of(&busy, "cpu")?;
    let memory = Twin::of(&greedy, "memory")?;
    let mut burner = Worker::start(&busy)?;
    cpu.admit(burner.pid())?;
    // Two, because one OOM kill is a warning and the second makes it critical.
    let mut eaters = [Worker::start(&greedy)?, Worker::start(&greedy)?];
    for eater in &eaters {
        memory.admit(eater.pid())?;
    }
    let doomed = Worker::start(&victim)?;
    let neighbour = Worker::start(&quiet)?;

    let stack = Stack::start(agent.port, receiver.port)?;
    // Wait until a counter that starts now can be distinguished from one that was not scraped
    // before.
    let known = format!("up{{job=\"cgmeter\"}} offset {WINDOW}s == 1");
    stack.wait("the first scrapes of the agent", || stack.holds(&known))?;
    ensure!(
        receiver
            .posts()
            .iter()
            .all(|post| !mentions(&post.body, &busy.id)),
        "notified too early"
    );

    limit_cpu(&cpu)?;
    burner.order("forever")?;
    limit_memory(&memory, 16 << 20)?;
    for eater in &mut eaters {
        ensure!(eater.run("anon 64").is_err(), "64 MiB fit into 16 MiB");
    }
    let killed = memory.stat(
        if memory.v1 {
            "memory.oom_control"
        } else {
            "memory.events"
        },
        "oom_kill",
    )?;
    ensure!(killed == 2.0, "the kernel counted {killed} kills");
    victim.remove_tasks()?;
    drop(doomed);
    victim.remove()?;

    let expected: [(&[&str], &str); 3] = [
        (QUOTA, &busy.id),
        (&["ContainerOomKilled"], &greedy.id),
        (&["ContainerKilled"], &victim.id),
    ];
    for (names, id) in expected {
        stack.wait(&format!("{names:?} firing for {id}"), || {
            Ok(receiver.notified("firing", of(names, id)))
        })?;
    }
    let throttled = cpu.stat("cpu.stat", "nr_throttled")?;
    ensure!(throttled > 0.0, "the kernel has not throttled the cgroup");
    // The critical alert also goes to PagerDuty and Slack, with the secrets from their files.
    for path in ["/pagerduty", "/slack"] {
        stack.wait(&format!("a message at {path}"), || {
            let posts = receiver.posts();
            Ok(posts
                .iter()
                .any(|post| post.path == path && mentions(&post.body, "ContainerOomKilled")))
        })?;
    }

    drop(burner);
    for (names, id) in expected {
        stack.wait(&format!("{names:?} resolved for {id}"), || {
            Ok(receiver.notified("resolved", of(names, id)))
        })?;
    }
    for post in receiver.posts() {
        ensure!(
            !mentions(&post.body, &quiet.id),
            "of one at rest: {}",
            post.body
        );
        match post.path.as_str() {
            "/alerts" => {
                let expected = format!("Bearer {TOKEN}");
                ensure!(post.authorization == expected, "{:?}", post.authorization);
                let parent = |alert: &Value| {
                    alert["labels"]["scope"] == "container"
                        && alert["labels"]["id"] == "/"
                        && alert["labels"]["alertname"] == "ContainerOomKilled"
                };
                let alerts = post.body["alerts"].as_array();
                ensure!(
                    !alerts.is_some_and(|all| all.iter().any(parent)),
                    "also of /"
                );
            }
            "/pagerduty" => ensure!(post.body["routing_key"] == PAGER_KEY, "{}", post.body),
            _ => {}
        }
    }
    drop(neighbour);
    Ok(())
}

/// Whether a message contains a word.
fn mentions(body: &Value, word: &str) -> bool {
    body.to_string().contains(&format!("\"{word}\""))
        || body.to_string().contains(&format!("{word} "))
}

/// Sends Alertmanager an alert on a container of an instance.
fn add_alert(stack: &Stack, name: &str, instance: &str) -> Result<()> {
    let output = Command::new("amtool")
        .arg(format!(
            "--alertmanager.url=http://127.0.0.1:{}",
            stack.alertmanager_port
        ))
        .args([
            "alert",
            "add",
            name,
            "scope=container",
            "severity=warning",
            "team=platform",
        ])
        .args(["cluster=home", &format!("instance={instance}")])
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn down() -> Result<()> {
    let agent = Agent::start(&[])?;
    let receiver = Receiver::start()?;
    let port = agent.port;
    let instance = format!("127.0.0.1:{port}");
    let stack = Stack::start(port, receiver.port)?;
    stack.wait("the first scrape", || {
        stack.holds("up{job=\"cgmeter\"} == 1")
    })?;
    let of_agent = |labels: &Value| {
        labels["alertname"] == "CgmeterDown" && labels["instance"] == instance.as_str()
    };
    ensure!(
        !receiver.notified("firing", of_agent),
        "notified about an agent that is up"
    );
    agent.stop(libc::SIGKILL)?;
    stack.wait("CgmeterDown firing", || {
        Ok(receiver.notified("firing", of_agent))
    })?;

    add_alert(&stack, "OfItsContainer", &instance)?;
    add_alert(&stack, "OfAnother", "127.0.0.1:1")?;
    stack.wait("the alert of the same instance is inhibited", || {
        Ok(stack.states("alertname", "OfItsContainer")? == ["suppressed"])
    })?;
    stack.wait("the alert of another instance is sent", || {
        Ok(receiver.notified("firing", |labels| labels["alertname"] == "OfAnother"))
    })?;
    let held = |labels: &Value| labels["alertname"] == "OfItsContainer";
    ensure!(!receiver.notified("firing", held), "notified nevertheless");

    let again = Agent::start(&["--web.listen-address", &instance])?;
    stack.wait("CgmeterDown resolved", || {
        Ok(receiver.notified("resolved", of_agent))
    })?;
    drop(again);
    Ok(())
}
