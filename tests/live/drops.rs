//! Dropped packets, in two network namespaces of the test. Oracles: /proc/net/snmp and snmp6 of the
//! receiver's namespace, known numbers of datagrams.

use anyhow::{Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    egress::Blocked,
    metrics::{Metrics, same},
    needs::Need,
    netns::{Namespaces, RIGHT, snmp, snmp6},
    worker::Worker,
};

/// Since this version the kernel reports the receiving socket of a dropped packet.
const RECEIVER_TOLD: Need = Need::Kernel(6, 11);

pub const TESTS: &[Test] = &[
    (
        "drops::no_room_in_the_receive_buffer",
        &[Need::Agent, Need::Program("ip")],
        || no_room(RIGHT[0]),
    ),
    (
        "drops::no_room_in_the_receive_buffer_of_ipv6",
        &[Need::Agent, Need::Program("ip"), RECEIVER_TOLD],
        || no_room(RIGHT[1]),
    ),
    (
        "drops::filtered_by_the_socket",
        &[Need::Agent, Need::Program("ip"), RECEIVER_TOLD],
        filtered,
    ),
    (
        "drops::blocked_at_egress",
        &[Need::Agent, Need::Program("ip")],
        not_let_out,
    ),
    (
        "drops::of_removed_cgroups",
        &[Need::Agent, Need::Program("ip")],
        removed,
    ),
    (
        "drops::closing_does_not_count_as_drop",
        &[Need::Agent, Need::Program("ip")],
        closing,
    ),
];

const DROPS: &str = "container_network_drops_total";

struct Scene {
    agent: Agent,
    cgroups: [Cgroup; 2],
    sender: Worker,
    receiver: Worker,
    _namespaces: Namespaces,
}

impl Scene {
    fn new() -> Result<Self> {
        let agent = Agent::start(&[])?;
        let namespaces = Namespaces::new()?;
        let cgroups = [Cgroup::new()?, Cgroup::new()?];
        Ok(Self {
            sender: Worker::start_in(&cgroups[0], Some(namespaces.left()))?,
            receiver: Worker::start_in(&cgroups[1], Some(namespaces.right()))?,
            agent,
            cgroups,
            _namespaces: namespaces,
        })
    }

    /// Sends datagrams and returns how many were refused.
    fn send(&mut self, address: &str, count: usize, size: usize) -> Result<f64> {
        let order = format!("udp send {address} 6000 {count} {size}");
        Ok(self.sender.ask(&order)?[0])
    }

    /// Checks that one side has drops of only this reason, and the other side has none.
    fn only(&self, at: usize, reason: &str, count: f64) -> Result<()> {
        let metrics = self.agent.scrape()?;
        let of = |metrics: &Metrics, at: usize| metrics.sum(DROPS, &[("id", &self.cgroups[at].id)]);
        let labels = [("id", self.cgroups[at].id.as_str()), ("reason", reason)];
        same(reason, metrics.get(DROPS, &labels)?, count)?;
        same("of all reasons", of(&metrics, at), count)?;
        same("of the other side", of(&metrics, 1 - at), 0.0)
    }
}

fn no_room(address: &str) -> Result<()> {
    let mut scene = Scene::new()?;
    let bind = format!("udp bind {address} 6000 4096");
    scene.receiver.run(&bind)?;
    scene.send(address, 200, 500)?;
    let pid = scene.receiver.pid();
    let lost = if address.contains(':') {
        snmp6(pid, "Udp6RcvbufErrors")?
    } else {
        snmp(pid, "Udp", "RcvbufErrors")?
    };
    ensure!(lost > 100.0, "{lost} datagrams did not fit into the buffer");
    scene.only(1, "socket_rcvbuff", lost)
}

fn filtered() -> Result<()> {
    let mut scene = Scene::new()?;
    for address in RIGHT {
        let bind = format!("udp bind {address} 6000 100000 deaf");
        scene.receiver.run(&bind)?;
        scene.send(address, 130, 100)?;
    }
    scene.only(1, "socket_filter", 260.0)
}

fn not_let_out() -> Result<()> {
    let mut scene = Scene::new()?;
    let _blocked = Blocked::new(&scene.cgroups[0])?;
    for address in RIGHT {
        same("refused", scene.send(address, 70, 100)?, 70.0)?;
    }
    scene.only(0, "bpf_cgroup_egress", 140.0)
}

/// Drops of a removed cgroup count in its parent, which had none of its own before.
fn removed() -> Result<()> {
    let agent = Agent::start(&[])?;
    let namespaces = Namespaces::new()?;
    let parent = Cgroup::new()?;
    let _blocked = Blocked::new(&parent)?;
    for n in 0..5 {
        let child = parent.child(&format!("c{n}"))?;
        let mut sender = Worker::start_in(&child, Some(namespaces.left()))?;
        let order = format!("udp send {} 6000 10 100", RIGHT[0]);
        same("refused", sender.ask(&order)?[0], 10.0)?;
        sender.finish()?;
        child.remove()?;
    }
    let of = |id: &str| -> Result<f64> {
        let labels = [("id", id), ("reason", "bpf_cgroup_egress")];
        agent.scrape()?.get(DROPS, &labels)
    };
    same("of the parent", of(&parent.id)?, 50.0)?;
    same(
        "of a removed cgroup",
        of(&format!("{}/c2", parent.id))?,
        10.0,
    )
}

/// Connections that open, transfer data and close. Data left in their queues does not count as
/// dropped.
fn closing() -> Result<()> {
    let mut scene = Scene::new()?;
    for (port, address) in (4000..).zip(RIGHT) {
        let listen = format!("tcp listen {address} {port}");
        scene.receiver.run(&listen)?;
        let connect = format!("tcp connect {address} {port} 10");
        scene.sender.run(&connect)?;
        scene.receiver.run("tcp accept 10")?;
        scene.sender.run("tcp write 100")?;
        scene.receiver.run("tcp read 100")?;
        scene.sender.run("tcp close")?;
        scene.receiver.run("tcp close")?;
    }
    let metrics = scene.agent.scrape()?;
    for cgroup in &scene.cgroups {
        same("dropped", metrics.sum(DROPS, &[("id", &cgroup.id)]), 0.0)?;
    }
    Ok(())
}
