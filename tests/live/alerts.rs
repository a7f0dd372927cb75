//! From a cgroup in trouble to a message: the shipped rules and routes, in real Prometheus and
//! Alertmanager, by a webhook of the test's own. Oracle: the trouble is real, and the kernel's files
//! say so.

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
        "alerts::trouble_reaches_the_webhook_and_resolves",
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
        "alerts::an_agent_that_is_down_keeps_its_containers_quiet",
        &[
            Need::Agent,
            Need::Program("prometheus"),
            Need::Program("prometheus-alertmanager"),
            Need::Program("amtool"),
        ],
        down,
    ),
];

/// The alerts that a container at its quota may raise: where both do, one holds back the other.
const QUOTA: &[&str] = &["CpuThrottled", "RunQueueLatencyOwnQuota"];

/// Whether labels are those of one of some alerts, on a cgroup.
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
    // With swap it would only get slow.
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
    let mut eater = Worker::start(&greedy)?;
    memory.admit(eater.pid())?;
    let doomed = Worker::start(&victim)?;
    let neighbour = Worker::start(&quiet)?;

    let stack = Stack::start(agent.port, receiver.port)?;
    // Long enough for what is new to be told from what was only not yet scraped.
    let known = format!("up{{job=\"cgmeter\"}} offset {WINDOW}s == 1");
    stack.wait("a first look at the agent", || stack.holds(&known))?;
    ensure!(
        receiver
            .posts()
            .iter()
            .all(|post| !mentions(&post.body, &busy.id)),
        "told too early"
    );

    limit_cpu(&cpu)?;
    burner.order("forever")?;
    limit_memory(&memory, 16 << 20)?;
    ensure!(eater.run("anon 64").is_err(), "64 MiB fit into 16");
    let killed = memory.stat(
        if memory.v1 {
            "memory.oom_control"
        } else {
            "memory.events"
        },
        "oom_kill",
    )?;
    ensure!(killed == 1.0, "the kernel says {killed} kills");
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
            Ok(receiver.told("firing", of(names, id)))
        })?;
    }
    let throttled = cpu.stat("cpu.stat", "nr_throttled")?;
    ensure!(throttled > 0.0, "the kernel has throttled nothing");
    // The critical one is also PagerDuty's and Slack's, with the secrets from their files.
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
            Ok(receiver.told("resolved", of(names, id)))
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

/// Whether a message has a word in it.
fn mentions(body: &Value, word: &str) -> bool {
    body.to_string().contains(&format!("\"{word}\""))
        || body.to_string().contains(&format!("{word} "))
}

/// Tells Alertmanager of an alert on a container of an instance.
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
        !receiver.told("firing", of_agent),
        "told of an agent that is up"
    );
    agent.stop(libc::SIGKILL)?;
    stack.wait("CgmeterDown firing", || {
        Ok(receiver.told("firing", of_agent))
    })?;

    add_alert(&stack, "OfItsContainer", &instance)?;
    add_alert(&stack, "OfAnother", "127.0.0.1:1")?;
    stack.wait("what is on the same instance held back", || {
        Ok(stack.states("alertname", "OfItsContainer")? == ["suppressed"])
    })?;
    stack.wait("what is on another instance told", || {
        Ok(receiver.told("firing", |labels| labels["alertname"] == "OfAnother"))
    })?;
    let held = |labels: &Value| labels["alertname"] == "OfItsContainer";
    ensure!(!receiver.told("firing", held), "told nevertheless");

    let again = Agent::start(&["--web.listen-address", &instance])?;
    stack.wait("CgmeterDown resolved", || {
        Ok(receiver.told("resolved", of_agent))
    })?;
    drop(again);
    Ok(())
}
