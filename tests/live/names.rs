//! Identity from the path, without a runtime: names, kinds, filters, and the limit on series.
//!
//! The tests create cgroups with the names that runtimes and systemd use. Records of containers are
//! tested with real runtimes (`docker`, `podman`, `cri`).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    metrics::{Metrics, agree, same},
    needs::Need,
    queried::Queried,
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "names::units_and_containers_have_names_and_nested_cgroups_have_none",
        &[Need::Agent],
        named,
    ),
    (
        "names::every_series_of_a_unit_has_its_name",
        &[Need::Agent],
        everywhere,
    ),
    (
        "names::an_excluded_unit_and_its_descendants_count_in_the_parent",
        &[Need::Agent],
        excluded,
    ),
    (
        "names::cgroups_beyond_the_limit_count_in_their_parents",
        &[Need::Agent],
        excess,
    ),
    (
        "names::a_target_s_own_labels_are_no_cgroup_s",
        &[Need::Agent, Need::Program("prometheus")],
        honored,
    ),
];

const USAGE: &str = "container_cpu_usage_seconds_total";
const ID: &str = "3f8a0c1d9e2b4a5f6071829304a5b6c7d8e9f00112233445566778899aabbccd";
const UID: &str = "4bd2f0a8-7c31-4f62-9a0e-5d6c1b2a3f44";

/// Number of series of a cgroup's CPU time with these labels besides the path.
fn usage(metrics: &Metrics, cgroup: &Cgroup, labels: &[(&str, &str)]) -> usize {
    let own = [("id", cgroup.id.as_str())];
    metrics.count(USAGE, &[&own, labels].concat())
}

fn named() -> Result<()> {
    let agent = Agent::start(&[])?;
    let top = Cgroup::new()?;
    let docker = top.child("docker")?;
    let container = docker.child(ID)?;
    let init = container.child("init.scope")?;
    let kubepods = top.child("kubepods")?;
    let pod = kubepods.child(&format!("pod{UID}"))?;
    let member = pod.child(ID)?;
    let unit = top.child(r"a\x2db.service")?;
    let metrics = agent.scrape()?;
    let container_id = [("container_id", ID), ("runtime", "docker")];
    let info = metrics.get(
        "container_info",
        &[&[("id", container.id.as_str())], &container_id[..]].concat(),
    )?;
    same("container_info", info, 1.0)?;
    let of_pod = [("id", member.id.as_str()), ("pod_uid", UID)];
    same("of a pod", metrics.get("container_info", &of_pod)?, 1.0)?;
    let infos = |cgroup: &Cgroup| metrics.count("container_info", &[("id", &cgroup.id)]);
    for cgroup in [&top, &docker, &init, &kubepods, &pod, &unit] {
        ensure!(infos(cgroup) == 0, "{} is no container", cgroup.id);
    }
    // The label has no backslash any more. The path's is escaped.
    let labels = [("unit", "a-b.service")];
    ensure!(metrics.count(USAGE, &labels) == 1, "the unit has no label");
    let named = [("name", "a-b.service")];
    ensure!(metrics.count(USAGE, &named) == 0, "the unit has a name");
    let text = agent.body("/metrics", "")?;
    for cgroup in [&top, &docker, &container, &init, &pod, &member] {
        ensure!(usage(&metrics, cgroup, &[]) == 1, "{}", cgroup.id);
        // Without a record of a runtime there are no more labels, but for the empty ones where there are pods.
        let series = format!(
            "{USAGE}{{id=\"{}\",namespace=\"\",pod=\"\",container=\"\",cpu=\"total\"}}",
            cgroup.id
        );
        ensure!(text.contains(&series), "{} has other labels", cgroup.id);
    }
    Ok(())
}

fn everywhere() -> Result<()> {
    let agent = Agent::start(&[])?;
    let top = Cgroup::new()?;
    let unit = top.child("web.service")?;
    Worker::once(&unit, "spin 20")?;
    let text = agent.body("/metrics", "")?;
    let own = format!("{{id=\"{}\"", unit.id);
    let series: Vec<&str> = text.lines().filter(|line| line.contains(&own)).collect();
    ensure!(series.len() > 30, "{} series", series.len());
    let named = format!("{own},unit=\"web.service\"");
    for line in series {
        ensure!(line.contains(&named), "{line}");
    }
    Ok(())
}

fn excluded() -> Result<()> {
    let agent = Agent::start(&[
        "--container.exclude",
        "unit=^web",
        "--container.exclude",
        "name=^app",
    ])?;
    let top = Cgroup::new()?;
    let (web, app) = (top.child("web.service")?, top.child("app.service")?);
    let (in_web, in_app) = (web.child("worker")?, app.child("worker")?);
    Worker::once(&in_web, "spin 60")?;
    let metrics = agent.scrape()?;
    for (cgroup, exported) in [(&top, 1), (&web, 0), (&in_web, 0), (&app, 1), (&in_app, 1)] {
        ensure!(usage(&metrics, cgroup, &[]) == exported, "{}", cgroup.id);
    }
    let (found, expected) = (metrics.of(&top.id, USAGE)?, web.cpu_seconds()?);
    agree(&top.id, found, expected, 0.001, 0.001)
}

fn excess() -> Result<()> {
    let top = Cgroup::new()?;
    let agent = Agent::start(&[
        "--cgroup.include",
        &format!("^{}(/|$)", top.id),
        "--cgroup.export-max",
        "5",
        "--cgroup.linger",
        "2s",
    ])?;
    let nameless = (0..3)
        .map(|n| top.child(&format!("n{n}")))
        .collect::<Result<Vec<_>>>()?;
    let metrics = agent.scrape()?;
    same(
        "suppressed",
        metrics.get("cgmeter_cgroups_suppressed", &[])?,
        0.0,
    )?;
    let (one, two) = (top.child("one.service")?, top.child("two.service")?);
    Worker::once(&nameless[2], "spin 60")?;
    let metrics = agent.scrape()?;
    same(
        "suppressed",
        metrics.get("cgmeter_cgroups_suppressed", &[])?,
        1.0,
    )?;
    // Cgroups with a name have priority, then older ones.
    for (cgroup, exported) in [
        (&top, 1),
        (&nameless[0], 1),
        (&nameless[1], 1),
        (&nameless[2], 0),
        (&one, 1),
        (&two, 1),
    ] {
        ensure!(usage(&metrics, cgroup, &[]) == exported, "{}", cgroup.id);
    }
    let (found, expected) = (metrics.of(&top.id, USAGE)?, nameless[2].cpu_seconds()?);
    agree(&top.id, found, expected, 0.001, 0.001)?;
    agent.scrape()?;
    let logged = |text: &str| agent.log().matches(text).count();
    ensure!(logged("--cgroup.export-max") == 1, "{}", agent.log());
    one.remove()?;
    let until = Instant::now() + Duration::from_secs(20);
    while agent.scrape()?.get("cgmeter_cgroups_suppressed", &[])? > 0.0 {
        ensure!(Instant::now() < until, "{} is still reported", one.id);
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(usage(&agent.scrape()?, &nameless[2], &[]) == 1);
    ensure!(
        logged("every cgroup is exported again") == 1,
        "{}",
        agent.log()
    );
    Ok(())
}

/// Under Kubernetes a scraper adds the labels of its target, the agent's pod, to what has none (`honor_labels`).
fn honored() -> Result<()> {
    let top = Cgroup::new()?;
    let kubepods = top.child("kubepods")?;
    let pod = kubepods.child(&format!("pod{UID}"))?;
    let agent = Agent::start(&[])?;
    let prometheus = Queried::start_with(
        &[("cgmeter", agent.port)],
        &[],
        "namespace: agents, pod: agent-0, container: agent",
        "  honor_labels: true\n",
    )?;
    // The agent's own series are the target's.
    prometheus.value("count(cgmeter_build_info{namespace=\"agents\",pod=\"agent-0\"}) == 1")?;
    for id in ["/", &top.id, &pod.id] {
        let found = prometheus.query(&format!("container_last_seen{{id=\"{id}\"}}"))?;
        ensure!(found.len() == 1, "{id}: {found:?}");
    }
    for label in [
        "namespace=\"agents\"",
        "pod=\"agent-0\"",
        "container=\"agent\"",
    ] {
        prometheus.value(&format!(
            "absent({{__name__=~\"container_.*\",id!=\"\",{label}}}) == 1"
        ))?;
    }
    Ok(())
}
