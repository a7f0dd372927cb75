//! TCP, in two network namespaces for the test. Oracles: /proc/net/snmp of each namespace, which
//! has no other traffic, getsockopt(TCP_INFO), and known numbers of connections.
//!
//! Loss is simulated by a socket filter at the receiver that passes nothing: the packet arrives and
//! is dropped before TCP sees it (net/ipv4/tcp_ipv4.c, `tcp_filter`).

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    egress::Blocked,
    metrics::{Metrics, same},
    needs::Need,
    netns::{LEFT, Namespaces, RIGHT, snmp},
    worker::Worker,
};

const NEEDS: &[Need] = &[Need::Agent, Need::Program("ip")];

pub const TESTS: &[Test] = &[
    ("tcp::opened_and_closed", NEEDS, opened_and_closed),
    ("tcp::refused", NEEDS, refused),
    ("tcp::reset", NEEDS, reset),
    ("tcp::retransmitted_segments", NEEDS, sent_again),
    ("tcp::failed_retransmissions", NEEDS, not_sent_again),
    ("tcp::unanswered_connections", NEEDS, nobody_answers),
    ("tcp::abandoned_connections", NEEDS, given_up),
    ("tcp::retransmitted_handshakes", NEEDS, handshakes),
    ("tcp::simultaneous_open", NEEDS, both_ask),
    (
        "tcp::connections_older_than_the_agent",
        NEEDS,
        older_than_the_agent,
    ),
    (
        "tcp::an_interrupted_cgroup_is_not_charged",
        NEEDS,
        interrupted,
    ),
    (
        "tcp::mptcp_subflows_count_once",
        &[
            Need::Agent,
            Need::Program("ip"),
            Need::File("/proc/sys/net/mptcp/enabled"),
        ],
        mptcp,
    ),
    (
        "tcp::connections_of_removed_cgroups",
        NEEDS,
        removed_while_closing,
    ),
];

const RETRANSMITS: &str = "container_tcp_retransmits_total";
const OPENED: &str = "container_tcp_connections_opened_total";
const FAILURES: &str = "container_tcp_connect_failures_total";
const RESETS: &str = "container_tcp_resets_total";
const RTT: &str = "container_tcp_rtt_seconds";
const DURATION: &str = "container_tcp_connection_duration_seconds";

/// One side: a worker in its own cgroup and namespace.
struct Side {
    cgroup: Cgroup,
    worker: Worker,
}

impl Side {
    /// A counter of its namespace.
    fn snmp(&self, name: &str) -> Result<f64> {
        snmp(self.worker.pid(), "Tcp", name)
    }

    /// Sums over its open connections: retransmitted segments, smoothed round-trip time in seconds.
    fn info(&mut self) -> Result<(f64, f64)> {
        let numbers = self.worker.ask("tcp info")?;
        Ok((numbers[1], numbers[2] / 1e6))
    }

    fn get(&self, metrics: &Metrics, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let mut all = vec![("id", self.cgroup.id.as_str())];
        all.extend_from_slice(labels);
        metrics.get(name, &all)
    }

    /// Compares all counters: connections opened by this side and by the other, failures, resets
    /// sent and received, retransmitted segments.
    fn counts(&self, metrics: &Metrics, expected: [f64; 6]) -> Result<()> {
        let series: [(&str, &[(&str, &str)]); 6] = [
            (OPENED, &[("direction", "active")]),
            (OPENED, &[("direction", "passive")]),
            (FAILURES, &[]),
            (RESETS, &[("direction", "sent")]),
            (RESETS, &[("direction", "received")]),
            (RETRANSMITS, &[]),
        ];
        for ((name, labels), expected) in series.into_iter().zip(expected) {
            let what = format!("{name}{labels:?} of {}", self.cgroup.id);
            same(&what, self.get(metrics, name, labels)?, expected)?;
        }
        Ok(())
    }

    /// What the agent and the kernel have counted, for the message of a failure.
    fn summary(&self, metrics: &Metrics) -> Result<String> {
        let of_agent = [OPENED, FAILURES, RESETS, RETRANSMITS].map(|name| {
            let sum = metrics.sum(name, &[("id", &self.cgroup.id)]);
            format!("{name} {sum}")
        });
        let (rtt, duration) = (
            self.observed(metrics, RTT),
            self.observed(metrics, DURATION),
        );
        let mut of_kernel = Vec::new();
        for name in ["ActiveOpens", "PassiveOpens", "CurrEstab", "RetransSegs"] {
            of_kernel.push(format!("{name} {}", self.snmp(name)?));
        }
        Ok(format!(
            "agent: {}, round-trip times {rtt}, durations {duration}; kernel: {}",
            of_agent.join(", "),
            of_kernel.join(", ")
        ))
    }

    /// Number of observations of a histogram. 0 if it is absent.
    fn observed(&self, metrics: &Metrics, name: &str) -> f64 {
        metrics.sum(&format!("{name}_count"), &[("id", &self.cgroup.id)])
    }
}

/// Two connected sides and an agent.
struct Scene {
    agent: Agent,
    client: Side,
    server: Side,
    namespaces: Namespaces,
}

impl Scene {
    fn new() -> Result<Self> {
        Self::with(Agent::start(&[])?)
    }

    fn with(agent: Agent) -> Result<Self> {
        let namespaces = Namespaces::new()?;
        let side = |namespace| -> Result<Side> {
            let cgroup = Cgroup::new()?;
            let worker = Worker::start_in(&cgroup, Some(namespace))?;
            Ok(Side { cgroup, worker })
        };
        Ok(Self {
            agent,
            client: side(namespaces.left())?,
            server: side(namespaces.right())?,
            namespaces,
        })
    }

    /// Opens so many connections to each address of the server.
    fn open(&mut self, count: usize, options: &str) -> Result<()> {
        for (port, address) in (4000..).zip(RIGHT) {
            self.server
                .worker
                .run(&format!("tcp listen {address} {port} {options}"))?;
            self.client
                .worker
                .run(&format!("tcp connect {address} {port} {count} {options}"))?;
            self.server.worker.run(&format!("tcp accept {count}"))?;
        }
        Ok(())
    }

    /// Scrapes until a condition holds that depends on packets still in flight.
    fn scrape_when(
        &self,
        mut holds: impl FnMut(&Self, &Metrics) -> Result<bool>,
    ) -> Result<Metrics> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let metrics = self.agent.scrape()?;
            if holds(self, &metrics)? {
                return Ok(metrics);
            }
            if Instant::now() >= end {
                bail!(
                    "the condition does not become true. Client: {}. Server: {}. {} sockets without state",
                    self.client.summary(&metrics)?,
                    self.server.summary(&metrics)?,
                    metrics.sum("cgmeter_untracked_sockets_total", &[])
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the client's namespace has retransmitted so many segments.
    fn wait_sent_again(&self, count: f64) -> Result<()> {
        self.scrape_when(|scene, _| Ok(scene.client.snmp("RetransSegs")? >= count))
            .map(drop)
    }
}

fn opened_and_closed() -> Result<()> {
    const EACH: usize = 20;
    let count = 2.0 * EACH as f64;
    let mut scene = Scene::new()?;
    let begin = Instant::now();
    scene.open(EACH, "")?;
    let open = Instant::now();
    let metrics = scene.agent.scrape()?;
    let (client, server) = (&scene.client, &scene.server);
    same("active opens", client.snmp("ActiveOpens")?, count)?;
    same("passive opens", server.snmp("PassiveOpens")?, count)?;
    client.counts(&metrics, [count, 0.0, 0.0, 0.0, 0.0, 0.0])?;
    server.counts(&metrics, [0.0, count, 0.0, 0.0, 0.0, 0.0])?;
    for side in [client, server] {
        same("closed", side.observed(&metrics, RTT), 0.0)?;
    }
    std::thread::sleep(Duration::from_millis(150));
    let close = Instant::now();
    scene.client.worker.run("tcp close")?;
    scene.server.worker.run("tcp close")?;
    let metrics = scene.scrape_when(|scene, metrics| {
        let observed = |side: &Side| side.observed(metrics, DURATION);
        Ok(observed(&scene.client) + observed(&scene.server) >= 2.0 * count)
    })?;
    let (least, most) = (close - open, begin.elapsed());
    for side in [&scene.client, &scene.server] {
        same("durations", side.observed(&metrics, DURATION), count)?;
        same("round-trip times", side.observed(&metrics, RTT), count)?;
        let sum = side.get(&metrics, &format!("{DURATION}_sum"), &[])?;
        // The socket's clock counts microseconds, as of the first packet.
        let bounds = (least.as_secs_f64() - 1e-5) * count..most.as_secs_f64() * count;
        ensure!(
            bounds.contains(&sum),
            "{count} durations sum up to {sum} s instead of {bounds:?}"
        );
    }
    Ok(())
}

fn refused() -> Result<()> {
    const EACH: usize = 15;
    let count = 2.0 * EACH as f64;
    let mut scene = Scene::new()?;
    for address in RIGHT {
        let order = format!("tcp refused {address} 9 {EACH}");
        scene.client.worker.run(&order)?;
    }
    let metrics = scene.agent.scrape()?;
    let (client, server) = (&scene.client, &scene.server);
    same("failed", client.snmp("AttemptFails")?, count)?;
    same("resets", server.snmp("OutRsts")?, count)?;
    client.counts(&metrics, [0.0, 0.0, count, 0.0, count, 0.0])?;
    server.counts(&metrics, [0.0; 6])?;
    for name in [RTT, DURATION] {
        same(name, client.observed(&metrics, name), 0.0)?;
    }
    Ok(())
}

/// A connection that is reset keeps its last round-trip time, which is the one that TCP_INFO
/// reported.
fn reset() -> Result<()> {
    const EACH: usize = 12;
    let count = 2.0 * EACH as f64;
    let mut scene = Scene::new()?;
    scene.open(EACH, "")?;
    scene.client.worker.run("tcp write 1000")?;
    scene.server.worker.run("tcp read 1000")?;
    scene.server.worker.run("tcp write 5000")?;
    scene.client.worker.run("tcp read 5000")?;
    // The last acknowledgement may be delayed by 40 ms. After that the connection is idle.
    std::thread::sleep(Duration::from_millis(300));
    let rtt = [scene.client.info()?.1, scene.server.info()?.1];
    scene.client.worker.run("tcp reset")?;
    let metrics =
        scene.scrape_when(|scene, metrics| Ok(scene.server.observed(metrics, RTT) >= count))?;
    let (client, server) = (&scene.client, &scene.server);
    same("sent", client.snmp("OutRsts")?, count)?;
    same("received", server.snmp("EstabResets")?, count)?;
    client.counts(&metrics, [count, 0.0, 0.0, count, 0.0, 0.0])?;
    server.counts(&metrics, [0.0, count, 0.0, 0.0, count, 0.0])?;
    for (side, expected) in [(client, rtt[0]), (server, rtt[1])] {
        same("round-trip times", side.observed(&metrics, RTT), count)?;
        let sum = side.get(&metrics, &format!("{RTT}_sum"), &[])?;
        let us = |seconds: f64| (seconds * 1e6).round();
        same("sum of round-trip times, µs", us(sum), us(expected))?;
    }
    Ok(())
}

fn sent_again() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.open(2, "")?;
    scene.server.worker.run("tcp deaf")?;
    // More data than fits into the buffers. The order ends once the other side receives it.
    scene.client.worker.order("tcp write 30000")?;
    scene.wait_sent_again(6.0)?;
    // Lost data is retransmitted in bursts, with several segments in one packet.
    scene.server.worker.run("tcp hear")?;
    scene.server.worker.run("tcp read 30000")?;
    scene.client.worker.wait_done()?;
    std::thread::sleep(Duration::from_millis(300));
    let again = scene.client.snmp("RetransSegs")?;
    let open = scene.agent.scrape()?;
    let (by_socket, _) = scene.client.info()?;
    same("by TCP_INFO", by_socket, again)?;
    scene
        .client
        .counts(&open, [4.0, 0.0, 0.0, 0.0, 0.0, again])?;
    scene.server.counts(&open, [0.0, 4.0, 0.0, 0.0, 0.0, 0.0])?;
    scene.client.worker.run("tcp reset")?;
    let closed =
        scene.scrape_when(|scene, metrics| Ok(scene.client.observed(metrics, RTT) >= 4.0))?;
    let again_closed = scene.client.snmp("RetransSegs")?;
    let counted = scene.client.get(&closed, RETRANSMITS, &[])?;
    same("closed", counted, again_closed)
}

/// Retransmissions that fail on this host are counted by the kernel too.
fn not_sent_again() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.open(1, "")?;
    scene.server.worker.run("tcp deaf")?;
    scene.client.worker.run("tcp write 100")?;
    scene.wait_sent_again(2.0)?;
    let blocked = Blocked::new(&scene.client.cgroup)?;
    let pid = scene.client.worker.pid();
    scene.scrape_when(|_, _| Ok(snmp(pid, "TcpExt", "TCPRetransFail")? >= 2.0))?;
    drop(blocked);
    scene.server.worker.run("tcp hear")?;
    scene.server.worker.run("tcp read 100")?;
    let again = scene.client.snmp("RetransSegs")?;
    let (by_socket, _) = scene.client.info()?;
    same("by TCP_INFO", by_socket, again)?;
    let metrics = scene.agent.scrape()?;
    scene
        .client
        .counts(&metrics, [2.0, 0.0, 0.0, 0.0, 0.0, again])?;
    // The last failures are counted when the socket closes.
    scene.server.worker.run("tcp deaf")?;
    scene.client.worker.run("tcp write 100")?;
    scene.wait_sent_again(again + 2.0)?;
    let _blocked = Blocked::new(&scene.client.cgroup)?;
    let failed = snmp(pid, "TcpExt", "TCPRetransFail")?;
    scene.scrape_when(|_, _| Ok(snmp(pid, "TcpExt", "TCPRetransFail")? >= failed + 2.0))?;
    scene.client.worker.run("tcp reset")?;
    let metrics = scene.agent.scrape()?;
    let again = scene.client.snmp("RetransSegs")?;
    same(
        "closed",
        scene.client.get(&metrics, RETRANSMITS, &[])?,
        again,
    )
}

fn nobody_answers() -> Result<()> {
    let mut scene = Scene::new()?;
    for (port, address) in (4000..).zip(RIGHT) {
        let listen = format!("tcp listen {address} {port} deaf");
        scene.server.worker.run(&listen)?;
        let ask = format!("tcp ask {address} {port} 5 impatient");
        scene.client.worker.run(&ask)?;
    }
    let outcome = scene.client.worker.ask("tcp outcome")?;
    ensure!(
        outcome == vec![f64::from(libc::ETIMEDOUT); 10],
        "outcomes are {outcome:?}"
    );
    let metrics = scene.agent.scrape()?;
    let again = scene.client.snmp("RetransSegs")?;
    ensure!(again >= 10.0, "{again} SYN retransmitted");
    same("failed", scene.client.snmp("AttemptFails")?, 10.0)?;
    scene
        .client
        .counts(&metrics, [0.0, 0.0, 10.0, 0.0, 0.0, again])?;
    scene.server.counts(&metrics, [0.0; 6])
}

/// The socket is closed during connect(2). This is a failure, although AttemptFails does not count
/// it.
fn given_up() -> Result<()> {
    let mut scene = Scene::new()?;
    let listen = format!("tcp listen {} 4000 deaf", RIGHT[0]);
    scene.server.worker.run(&listen)?;
    let ask = format!("tcp ask {} 4000 7", RIGHT[0]);
    scene.client.worker.run(&ask)?;
    scene.client.worker.run("tcp give-up")?;
    let metrics = scene.agent.scrape()?;
    let again = scene.client.snmp("RetransSegs")?;
    scene
        .client
        .counts(&metrics, [0.0, 0.0, 7.0, 0.0, 0.0, again])
}

/// The client does not receive the SYN-ACKs at first, so both sides retransmit. The server does so
/// before it has a socket for the connection. The socket later starts with the request's count of
/// retransmissions.
fn handshakes() -> Result<()> {
    let mut scene = Scene::new()?;
    for (port, address) in (4000..).zip(RIGHT) {
        let listen = format!("tcp listen {address} {port}");
        scene.server.worker.run(&listen)?;
        let ask = format!("tcp ask {address} {port} 3 deaf");
        scene.client.worker.run(&ask)?;
    }
    scene.scrape_when(|scene, _| Ok(scene.server.snmp("RetransSegs")? >= 12.0))?;
    scene.client.worker.run("tcp hear")?;
    let outcome = scene.client.worker.ask("tcp outcome")?;
    ensure!(outcome == [0.0; 6], "outcomes are {outcome:?}");
    let metrics = scene.scrape_when(|scene, metrics| {
        let passive = [("direction", "passive")];
        Ok(scene.server.get(metrics, OPENED, &passive)? >= 6.0)
    })?;
    for (side, opened) in [(&scene.client, [6.0, 0.0]), (&scene.server, [0.0, 6.0])] {
        let again = side.snmp("RetransSegs")?;
        ensure!(again >= 6.0, "{again} retransmitted");
        side.counts(&metrics, [opened[0], opened[1], 0.0, 0.0, 0.0, again])?;
    }
    scene.client.worker.run("tcp reset")?;
    let metrics =
        scene.scrape_when(|scene, metrics| Ok(scene.client.observed(metrics, DURATION) >= 6.0))?;
    for side in [&scene.client, &scene.server] {
        let again = side.snmp("RetransSegs")?;
        same("closed", side.get(&metrics, RETRANSMITS, &[])?, again)?;
    }
    Ok(())
}

/// A socket that connects to itself: a simultaneous open through SYN_RECV, without a listener.
fn both_ask() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.client.worker.run("tcp self 127.0.0.1 5000")?;
    scene.client.worker.run("tcp self ::1 5000")?;
    let metrics = scene.agent.scrape()?;
    scene
        .client
        .counts(&metrics, [2.0, 0.0, 0.0, 0.0, 0.0, 0.0])?;
    scene.client.worker.run("tcp reset")?;
    let metrics = scene.agent.scrape()?;
    same("durations", scene.client.observed(&metrics, DURATION), 2.0)
}

/// Events of a connection before the agent's start are not counted, later ones are.
fn older_than_the_agent() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.open(2, "")?;
    scene.server.worker.run("tcp deaf")?;
    scene.client.worker.run("tcp write 100")?;
    scene.wait_sent_again(8.0)?;
    scene.server.worker.run("tcp hear")?;
    scene.server.worker.run("tcp read 100")?;
    std::thread::sleep(Duration::from_millis(300));
    let before = scene.client.snmp("RetransSegs")?;
    scene.agent = Agent::start(&[])?;
    scene.server.worker.run("tcp deaf")?;
    scene.client.worker.order("tcp write 30000")?;
    scene.wait_sent_again(before + 8.0)?;
    scene.server.worker.run("tcp hear")?;
    scene.server.worker.run("tcp read 30000")?;
    scene.client.worker.wait_done()?;
    std::thread::sleep(Duration::from_millis(300));
    let metrics = scene.agent.scrape()?;
    let again = scene.client.snmp("RetransSegs")? - before;
    scene
        .client
        .counts(&metrics, [0.0, 0.0, 0.0, 0.0, 0.0, again])?;
    scene.client.worker.run("tcp reset")?;
    let metrics =
        scene.scrape_when(|scene, metrics| Ok(scene.server.observed(metrics, RTT) >= 4.0))?;
    for side in [&scene.client, &scene.server] {
        same("round-trip times", side.observed(&metrics, RTT), 4.0)?;
        same("durations", side.observed(&metrics, DURATION), 0.0)?;
    }
    Ok(())
}

/// Packets are processed in interrupts of whichever task is running.
fn interrupted() -> Result<()> {
    let mut scene = Scene::new()?;
    let bystander = Cgroup::new()?;
    let mut spinner = Worker::start(&bystander)?;
    for worker in [
        &mut spinner,
        &mut scene.client.worker,
        &mut scene.server.worker,
    ] {
        worker.run("pin 0")?;
    }
    spinner.order("forever")?;
    for _ in 0..3 {
        scene
            .client
            .worker
            .run(&format!("tcp refused {} 9 20", RIGHT[0]))?;
    }
    scene.open(25, "")?;
    scene.server.worker.run("tcp deaf")?;
    scene.client.worker.run("tcp write 100")?;
    // Retransmissions from a timer, while only the bystander is running.
    scene.wait_sent_again(100.0)?;
    scene.client.worker.run("tcp reset")?;
    let metrics = scene.agent.scrape()?;
    let again = scene.client.snmp("RetransSegs")?;
    scene
        .client
        .counts(&metrics, [50.0, 0.0, 60.0, 50.0, 60.0, again])?;
    let bystander = Side {
        cgroup: bystander,
        worker: spinner,
    };
    bystander.counts(&metrics, [0.0; 6])?;
    for name in [RTT, DURATION] {
        same(name, bystander.observed(&metrics, name), 0.0)?;
    }
    Ok(())
}

fn mptcp() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.open(5, "mptcp")?;
    let client = scene.client.worker.pid();
    let joined = snmp(client, "MPTcpExt", "MPCapableSYNTX")?;
    ensure!(joined >= 10.0, "{joined} MPTCP connections were asked for");
    scene.client.worker.run("tcp write 100")?;
    scene.server.worker.run("tcp read 100")?;
    let metrics = scene.agent.scrape()?;
    same("active", scene.client.snmp("ActiveOpens")?, 10.0)?;
    same("passive", scene.server.snmp("PassiveOpens")?, 10.0)?;
    scene
        .client
        .counts(&metrics, [10.0, 0.0, 0.0, 0.0, 0.0, 0.0])?;
    scene
        .server
        .counts(&metrics, [0.0, 10.0, 0.0, 0.0, 0.0, 0.0])?;
    scene.client.worker.run("tcp close")?;
    scene.server.worker.run("tcp close")?;
    let metrics = scene.scrape_when(|scene, metrics| {
        let closed = |side: &Side| side.observed(metrics, DURATION) >= 10.0;
        Ok(closed(&scene.client) && closed(&scene.server))
    })?;
    for side in [&scene.client, &scene.server] {
        same("round-trip times", side.observed(&metrics, RTT), 10.0)?;
    }
    Ok(())
}

/// Cgroups that are removed and reaped while their connections are still closing.
fn removed_while_closing() -> Result<()> {
    const LIVES: usize = 20;
    let mut scene = Scene::with(Agent::start(&["--cgroup.linger", "1s"])?)?;
    let parent = Cgroup::new()?;
    let listen = format!("tcp listen {} 4000", LEFT[0]);
    scene.client.worker.run(&listen)?;
    for n in 0..LIVES {
        let cgroup = parent.child(&format!("job-{n}"))?;
        let mut worker = Worker::start_in(&cgroup, Some(scene.namespaces.right()))?;
        worker.run(&format!("tcp connect {} 4000 3", LEFT[0]))?;
        worker.run(&format!("tcp refused {} 9 2", LEFT[0]))?;
        worker.finish()?;
        cgroup.remove()?;
        scene.client.worker.run("tcp accept 3")?;
        scene.client.worker.run("tcp close")?;
    }
    let lives = LIVES as f64;
    let id = [("id", parent.id.as_str())];
    let compare = |metrics: &Metrics| -> Result<()> {
        let active = [id[0], ("direction", "active")];
        same("opened", metrics.get(OPENED, &active)?, 3.0 * lives)?;
        same("failed", metrics.get(FAILURES, &id)?, 2.0 * lives)?;
        let closed = metrics.get(&format!("{RTT}_count"), &id)?;
        same("closed", closed, 3.0 * lives)
    };
    let count = format!("{RTT}_count");
    let metrics = scene.scrape_when(|_, metrics| Ok(metrics.sum(&count, &id) >= 3.0 * lives))?;
    compare(&metrics)?;
    let gone = format!("{}/", parent.id);
    let metrics = scene.scrape_when(|_, metrics| {
        Ok(!metrics.ids(FAILURES).iter().any(|id| id.starts_with(&gone)))
    })?;
    compare(&metrics)
}
