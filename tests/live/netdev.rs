//! Interfaces by network namespace. Oracle: /proc/PID/net/dev inside the namespace. How long namespaces
//! are held, whose they are and how many are read is tested in `namespaces`.

use std::{fs, thread::sleep, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    metrics::{Metrics, same},
    needs::Need,
    wire::{self, End, V4},
    worker::Worker,
};

pub const WIRE: &[Need] = &[Need::Agent, Need::Program("ip")];

pub const TESTS: &[Test] = &[
    ("netdev::equal_to_proc_net_dev", WIRE, equal),
    ("netdev::interfaces_of_the_host", &[Need::Agent], host),
    ("netdev::shared_namespaces_are_reported_once", WIRE, shared),
    ("netdev::counting_continues_with_a_new_owner", WIRE, heir),
    ("netdev::renamed_and_removed_interfaces", WIRE, renamed),
    ("netdev::excluded_interfaces", WIRE, left_out),
];

/// Families in the order of [`End::interface`].
pub const NAMES: [&str; 8] = [
    "container_network_receive_bytes_total",
    "container_network_receive_packets_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_packets_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
];

/// The counters of an interface at a cgroup, in the order of [`NAMES`].
pub fn counters(metrics: &Metrics, id: &str, interface: &str) -> Result<[f64; 8]> {
    let mut found = [0.0; 8];
    for (value, name) in found.iter_mut().zip(NAMES) {
        *value = metrics.get(name, &[("id", id), ("interface", interface)])?;
    }
    Ok(found)
}

/// The number of interfaces at a cgroup.
pub fn interfaces(metrics: &Metrics, id: &str) -> usize {
    metrics.count(NAMES[0], &[("id", id)])
}

/// Compares the counters of an interface.
pub fn equals(what: &str, found: [f64; 8], expected: [f64; 8]) -> Result<()> {
    ensure!(
        found == expected,
        "{what}: {found:?} instead of {expected:?} (bytes, packets, errors, drops; in, out)"
    );
    Ok(())
}

/// Scrapes until no packet was counted during the scrape, and returns the counters of `eth0` of each end.
/// The kernel sends some packets by itself when an interface comes up.
pub fn scrape_at_rest<const N: usize>(
    agent: &Agent,
    ends: [&Worker; N],
) -> Result<(Metrics, [[f64; 8]; N])> {
    scrape_at_rest_of(agent, ends.map(|end| (end, "eth0")))
}

/// Like [`scrape_at_rest`], for an interface of each end.
fn scrape_at_rest_of<const N: usize>(
    agent: &Agent,
    interfaces: [(&Worker, &str); N],
) -> Result<(Metrics, [[f64; 8]; N])> {
    let statistics = || -> Result<[[f64; 8]; N]> {
        let mut statistics = [[0.0; 8]; N];
        for (counters, (end, name)) in statistics.iter_mut().zip(interfaces) {
            *counters = wire::interface_of(end.pid(), name)?;
        }
        Ok(statistics)
    };
    for _ in 0..100 {
        let before = statistics()?;
        let metrics = agent.scrape()?;
        if statistics()? == before {
            return Ok((metrics, before));
        }
        sleep(Duration::from_millis(50));
    }
    anyhow::bail!("the interfaces don't become idle")
}

fn equals_proc(metrics: &Metrics, end: &End, expected: [f64; 8]) -> Result<()> {
    let found = counters(metrics, &end.cgroup.id, "eth0")?;
    equals(&end.cgroup.id, found, expected)
}

/// Sends datagrams from the first end to the second.
fn datagrams(ends: &mut [End; 2], count: u32) -> Result<()> {
    let [one, other] = ends;
    other.worker.run(&format!("udp-bind {}:1001", V4[1]))?;
    one.worker.run(&format!("udp-bind {}:1001", V4[0]))?;
    other.worker.order(&format!("udp-receive {count}"))?;
    one.worker
        .run(&format!("udp-send {}:1001 {count} 500", V4[1]))?;
    other.worker.wait_done()
}

fn equal() -> Result<()> {
    let agent = Agent::start(&[])?;
    let mut ends = wire::pair()?;
    datagrams(&mut ends, 60)?;
    ends[0].worker.run("frames eth0 7")?;
    let [one, other] = &ends;
    let (metrics, statistics) = scrape_at_rest(&agent, [&one.worker, &other.worker])?;
    equals_proc(&metrics, one, statistics[0])?;
    equals_proc(&metrics, other, statistics[1])?;
    let [bytes, packets, _, dropped, ..] = counters(&metrics, &other.cgroup.id, "eth0")?;
    same("frames of an unknown protocol", dropped, 7.0)?;
    ensure!(packets >= 67.0 && bytes >= 60.0 * 542.0 + 7.0 * 60.0);
    // The same at later scrapes.
    datagrams(&mut ends, 30)?;
    let [one, other] = &ends;
    let (metrics, statistics) = scrape_at_rest(&agent, [&one.worker, &other.worker])?;
    equals_proc(&metrics, one, statistics[0])?;
    equals_proc(&metrics, other, statistics[1])?;
    // An agent that starts later sees the same.
    drop(agent);
    let agent = Agent::start(&[])?;
    let (metrics, statistics) = scrape_at_rest(&agent, [&one.worker, &other.worker])?;
    equals_proc(&metrics, one, statistics[0])?;
    equals_proc(&metrics, other, statistics[1])
}

fn host() -> Result<()> {
    let agent = Agent::start(&[])?;
    let text = fs::read_to_string("/proc/self/net/dev")?;
    let left_out = |name: &str| {
        name == "lo"
            || ["veth", "docker", "nerdctl"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
    };
    let names: Vec<&str> = text
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .filter(|name| !left_out(name))
        .collect();
    let pid = std::process::id();
    for name in &names {
        let before = wire::interface_of(pid, name)?;
        let metrics = agent.scrape()?;
        let after = wire::interface_of(pid, name)?;
        let found = counters(&metrics, "/", name)?;
        for (at, what) in NAMES.iter().enumerate() {
            ensure!(
                (before[at]..=after[at]).contains(&found[at]),
                "{what}{{interface={name}}}: {} is not in {}..{}",
                found[at],
                before[at],
                after[at]
            );
        }
    }
    let metrics = agent.scrape()?;
    same(
        "the host's interfaces",
        interfaces(&metrics, "/") as f64,
        names.len() as f64,
    )?;
    // A cgroup in the host's namespace has no interfaces of its own.
    let cgroup = Cgroup::new()?;
    let _worker = Worker::start(&cgroup)?;
    same(
        "interfaces of a cgroup in the host's namespace",
        interfaces(&agent.scrape()?, &cgroup.id) as f64,
        0.0,
    )
}

/// A worker of another cgroup that joins the namespace of an end.
fn guest(end: &End) -> Result<(Cgroup, Worker)> {
    let cgroup = Cgroup::new()?;
    let mut worker = Worker::start(&cgroup)?;
    worker.run(&format!("join-net {}", end.worker.pid()))?;
    Ok((cgroup, worker))
}

fn shared() -> Result<()> {
    let agent = Agent::start(&[])?;
    // A worker that is older than the namespace's own one, but joins after the agent has seen that
    // one.
    let early = Cgroup::new()?;
    let mut older = Worker::start(&early)?;
    let mut ends = wire::pair()?;
    let (younger, _worker) = guest(&ends[0])?;
    datagrams(&mut ends, 20)?;
    let [one, other] = &ends;
    for _ in 0..2 {
        let (metrics, statistics) = scrape_at_rest(&agent, [&one.worker, &other.worker])?;
        equals_proc(&metrics, one, statistics[0])?;
        for guest in [&younger, &early] {
            same(
                "interfaces of a guest",
                interfaces(&metrics, &guest.id) as f64,
                0.0,
            )?;
        }
        older.run(&format!("join-net {}", one.worker.pid()))?;
    }
    Ok(())
}

fn heir() -> Result<()> {
    let agent = Agent::start(&[])?;
    let mut ends = wire::pair()?;
    let (heir, heirs) = guest(&ends[0])?;
    datagrams(&mut ends, 20)?;
    let [one, other] = ends;
    let (metrics, statistics) = scrape_at_rest(&agent, [&one.worker, &other.worker])?;
    equals_proc(&metrics, &one, statistics[0])?;
    let id = one.cgroup.id.clone();
    // The owner ends. It retains its counts, and new packets are counted for the heir.
    let End { worker, cgroup } = one;
    drop(worker);
    cgroup.remove()?;
    let first = counters(&agent.scrape()?, &id, "eth0")?;
    let mut heirs = heirs;
    heirs.run(&format!("udp-bind {}:1002", V4[0]))?;
    heirs.run(&format!("udp-send {}:1001 15 100", V4[1]))?;
    let (metrics, [now]) = scrape_at_rest(&agent, [&heirs])?;
    let (had, gained) = (
        counters(&metrics, &id, "eth0")?,
        counters(&metrics, &heir.id, "eth0")?,
    );
    equals("the removed owner", had, first)?;
    ensure!(gained[5] >= 15.0, "the heir sent {} packets", gained[5]);
    let mut sum = had;
    for (value, more) in sum.iter_mut().zip(gained) {
        *value += more;
    }
    equals("owner and heir", sum, now)
}

fn renamed() -> Result<()> {
    let agent = Agent::start(&[])?;
    let mut ends = wire::pair()?;
    datagrams(&mut ends, 20)?;
    let (metrics, _) = scrape_at_rest(&agent, [&ends[0].worker, &ends[1].worker])?;
    let id = ends[0].cgroup.id.clone();
    let before = counters(&metrics, &id, "eth0")?;
    ends[0].worker.run("ip link set eth0 down")?;
    ends[0].worker.run("ip link set eth0 name net1")?;
    // An interface that is down still counts what the other end sends: as dropped.
    let (metrics, [device]) = scrape_at_rest_of(&agent, [(&ends[0].worker, "net1")])?;
    same(
        "interfaces after the renaming",
        interfaces(&metrics, &id) as f64,
        1.0,
    )?;
    // The counts of the old name are not reported again under the new one.
    let found = counters(&metrics, &id, "net1")?;
    let mut expected = device;
    for (value, before) in expected.iter_mut().zip(before) {
        *value -= before;
    }
    equals("the new name", found, expected)?;
    ends[0].worker.run("ip link del net1")?;
    let metrics = agent.scrape()?;
    same(
        "interfaces after the removal",
        interfaces(&metrics, &id) as f64,
        0.0,
    )
}

fn left_out() -> Result<()> {
    let agent = Agent::start(&[])?;
    let mut end = End::new()?;
    end.worker
        .run("ip link add veth7 type veth peer name net7")?;
    end.worker
        .run("ip link add docker9 type veth peer name dock9")?;
    let metrics = agent.scrape()?;
    let has = |name: &str| metrics.has(NAMES[0], &[("id", &end.cgroup.id), ("interface", name)]);
    ensure!(has("net7") && has("dock9"));
    ensure!(!has("lo") && !has("veth7") && !has("docker9"));
    Ok(())
}
