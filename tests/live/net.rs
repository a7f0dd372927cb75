//! Packets of sockets. Oracle: known datagrams, and the kernel's TCP and IP statistics in a
//! namespace without other traffic.

use std::net::UdpSocket;

use anyhow::{Result, bail, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    metrics::{Metrics, same},
    needs::Need,
    wire::{self, End, V4, V6},
    worker::Worker,
};

const WIRE: &[Need] = &[Need::Agent, Need::Program("ip")];

pub const TESTS: &[Test] = &[
    (
        "net::datagrams_over_loopback",
        &[Need::Agent],
        over_loopback,
    ),
    ("net::datagrams_between_namespaces", WIRE, between),
    ("net::segments_of_a_connection", WIRE, segments),
    ("net::segments_one_by_one", WIRE, one_by_one),
    ("net::echo_requests", WIRE, echo),
    ("net::parents_include_children", &[Need::Agent], nested),
    (
        "net::a_socket_counts_where_it_was_created",
        &[Need::Agent],
        moved,
    ),
    (
        "net::a_socket_that_outlives_its_cgroup",
        &[Need::Agent],
        outlived,
    ),
];

/// Bytes and packets received, bytes and packets transmitted. 0 before the first packet.
fn traffic(metrics: &Metrics, id: &str, family: &str, protocol: &str) -> Result<[f64; 4]> {
    let labels = [("id", id), ("family", family), ("protocol", protocol)];
    let names = [
        "container_socket_receive_bytes_total",
        "container_socket_receive_packets_total",
        "container_socket_transmit_bytes_total",
        "container_socket_transmit_packets_total",
    ];
    let mut found = [0.0; 4];
    if metrics.has(names[0], &labels) {
        for (value, name) in found.iter_mut().zip(names) {
            *value = metrics.get(name, &labels)?;
        }
    }
    Ok(found)
}

/// Compares a cgroup's packets with what is expected: bytes and packets received, bytes and packets transmitted.
pub fn check(
    metrics: &Metrics,
    cgroup: &Cgroup,
    family: &str,
    protocol: &str,
    expected: [f64; 4],
) -> Result<()> {
    let found = traffic(metrics, &cgroup.id, family, protocol)?;
    ensure!(
        found == expected,
        "{}, {family} {protocol}: {found:?} instead of {expected:?} (bytes, packets received; sent)",
        cgroup.id
    );
    Ok(())
}

/// An unused UDP port on loopback.
pub fn free_port() -> Result<u16> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Size of a UDP packet with this payload, bytes.
pub fn packet(payload: usize, v6: bool) -> f64 {
    (payload + 8 + if v6 { 40 } else { 20 }) as f64
}

fn over_loopback() -> Result<()> {
    const COUNT: usize = 50;
    let agent = Agent::start(&[])?;
    // A datagram with an empty payload is a packet too.
    for (v6, any, to, payload) in [
        (false, "127.0.0.1", "127.0.0.1", 300),
        (false, "127.0.0.1", "127.0.0.1", 0),
        (true, "[::1]", "[::1]", 700),
        // An IPv6 socket that sends IPv4 packets.
        (false, "[::]", "[::ffff:127.0.0.1]", 51),
    ] {
        // Like all cgroups in this file, these are created after the agent's start.
        let (sender, receiver) = (Cgroup::new()?, Cgroup::new()?);
        let (mut from, mut at) = (Worker::start(&sender)?, Worker::start(&receiver)?);
        let port = free_port()?;
        at.run(&format!("udp-bind {any}:{port}"))?;
        from.run(&format!("udp-bind {any}:0"))?;
        at.order(&format!("udp-receive {COUNT}"))?;
        from.run(&format!("udp-send {to}:{port} {COUNT} {payload}"))?;
        at.wait_done()?;
        let metrics = agent.scrape()?;
        let (packets, family) = (COUNT as f64, if v6 { "ipv6" } else { "ipv4" });
        let bytes = packets * packet(payload, v6);
        check(&metrics, &sender, family, "udp", [0.0, 0.0, bytes, packets])?;
        check(
            &metrics,
            &receiver,
            family,
            "udp",
            [bytes, packets, 0.0, 0.0],
        )?;
        // Nothing else was counted for either cgroup.
        for cgroup in [&sender, &receiver] {
            let families = metrics.count(
                "container_socket_receive_packets_total",
                &[("id", &cgroup.id)],
            );
            same(
                "kinds of packets counted for a cgroup",
                families as f64,
                1.0,
            )?;
        }
    }
    Ok(())
}

fn between() -> Result<()> {
    const COUNT: usize = 50;
    let agent = Agent::start(&[])?;
    let mut ends = wire::pair()?;
    for (v6, [here, there]) in [(false, V4), (true, V6)] {
        let address = |host: &str, port: u16| {
            if v6 {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            }
        };
        let family = if v6 { "ipv6" } else { "ipv4" };
        let [one, other] = &mut ends;
        one.worker
            .run(&format!("udp-bind {}", address(here, 1001)))?;
        other
            .worker
            .run(&format!("udp-bind {}", address(there, 1002)))?;
        // 400 bytes in one direction, 40 in the other.
        other.worker.order(&format!("udp-receive {COUNT}"))?;
        one.worker
            .run(&format!("udp-send {} {COUNT} 400", address(there, 1002)))?;
        other.worker.wait_done()?;
        one.worker.order(&format!("udp-receive {COUNT}"))?;
        other
            .worker
            .run(&format!("udp-send {} {COUNT} 40", address(here, 1001)))?;
        one.worker.wait_done()?;
        let metrics = agent.scrape()?;
        let packets = COUNT as f64;
        let (out, back) = (packets * packet(400, v6), packets * packet(40, v6));
        let [one, other] = &ends;
        check(
            &metrics,
            &one.cgroup,
            family,
            "udp",
            [back, packets, out, packets],
        )?;
        check(
            &metrics,
            &other.cgroup,
            family,
            "udp",
            [out, packets, back, packets],
        )?;
    }
    // The kernel's statistics agree: there was no other datagram.
    let [one, other] = &ends;
    same(
        "Udp OutDatagrams",
        one.kernel_counter("snmp", "Udp", "OutDatagrams")?,
        COUNT as f64,
    )?;
    same(
        "Udp InDatagrams",
        other.kernel_counter("snmp", "Udp", "InDatagrams")?,
        COUNT as f64,
    )
}

/// One connection over which the first end sends so many bytes. Returns the kernel's counts of the
/// first end: packets sent, and requests to send one.
fn connection(ends: &mut [End; 2], bytes: usize) -> Result<[f64; 2]> {
    let [one, other] = ends;
    other.worker.run(&format!("tcp-listen {}:1003", V4[1]))?;
    other.worker.order("tcp-serve")?;
    one.worker
        .run(&format!("tcp-send {}:1003 {bytes}", V4[1]))?;
    other.worker.wait_done()?;
    let sent = |end: &End| -> Result<f64> {
        Ok(end.kernel_counter("snmp", "Tcp", "OutSegs")?
            + end.kernel_counter("snmp", "Tcp", "RetransSegs")?)
    };
    Ok([sent(one)?, one.kernel_counter("snmp", "Ip", "OutRequests")?])
}

/// Compares both ends with the kernel's TCP and IP statistics. Each end receives what the other
/// sends: nothing is lost, merged or segmented on the way.
fn check_connection(agent: &Agent, ends: &[End; 2]) -> Result<()> {
    let metrics = agent.scrape()?;
    let [one, other] = ends;
    for (from, to) in [(one, other), (other, one)] {
        let segments = from.kernel_counter("snmp", "Tcp", "OutSegs")?
            + from.kernel_counter("snmp", "Tcp", "RetransSegs")?;
        let octets = from.kernel_counter("netstat", "IpExt", "OutOctets")?;
        same(
            "octets sent and received",
            to.kernel_counter("netstat", "IpExt", "InOctets")?,
            octets,
        )?;
        let [_, _, bytes, packets] = traffic(&metrics, &from.cgroup.id, "ipv4", "tcp")?;
        same("segments sent", packets, segments)?;
        same("bytes sent", bytes, octets)?;
        let [bytes, packets, ..] = traffic(&metrics, &to.cgroup.id, "ipv4", "tcp")?;
        same("segments received", packets, segments)?;
        same("bytes received", bytes, octets)?;
    }
    Ok(())
}

fn segments() -> Result<()> {
    let agent = Agent::start(&[])?;
    let mut ends = wire::pair()?;
    let [segments, requests] = connection(&mut ends, 3_000_000)?;
    ensure!(
        segments > 2.0 * requests,
        "{requests} packets were not segmented: nothing was tested"
    );
    check_connection(&agent, &ends)
}

fn one_by_one() -> Result<()> {
    for _ in 0..5 {
        if all_once()? {
            return Ok(());
        }
        println!("segments were retransmitted; trying again");
    }
    bail!("segments were retransmitted each time, so the payload was never known")
}

/// Returns whether every segment was sent once. On a busy machine the kernel retransmits some, and
/// then the payload on the wire is unknown.
fn all_once() -> Result<bool> {
    let agent = Agent::start(&[])?;
    let mut ends = wire::pair()?;
    for end in &mut ends {
        end.worker
            .run("ip link set dev eth0 gso_max_segs 1 gro_max_size 1")?;
    }
    let [segments, requests] = connection(&mut ends, 300_000)?;
    same("packets, each a segment", requests, segments)?;
    check_connection(&agent, &ends)?;
    if ends[0].kernel_counter("snmp", "Tcp", "RetransSegs")? > 0.0 {
        return Ok(false);
    }
    // Each segment then has its own header, so the sizes are known. SYN and FIN have no payload.
    // The headers of the others are 20 bytes for IP, 20 for TCP and 12 for the timestamp.
    let metrics = agent.scrape()?;
    let [_, _, bytes, packets] = traffic(&metrics, &ends[0].cgroup.id, "ipv4", "tcp")?;
    same(
        "payload and headers, with 8 bytes more on the first",
        bytes,
        300_000.0 + 52.0 * packets + 8.0,
    )?;
    Ok(true)
}

fn echo() -> Result<()> {
    const COUNT: f64 = 25.0;
    let agent = Agent::start(&[])?;
    let mut ends = wire::pair()?;
    ends[0].worker.run(&format!("ping {} {COUNT} 56", V4[1]))?;
    let metrics = agent.scrape()?;
    let bytes = COUNT * (20.0 + 8.0 + 56.0);
    check(
        &metrics,
        &ends[0].cgroup,
        "ipv4",
        "icmp",
        [bytes, COUNT, bytes, COUNT],
    )?;
    // The kernel answers with its own socket, not with one of this cgroup.
    check(&metrics, &ends[1].cgroup, "ipv4", "icmp", [0.0; 4])?;
    same(
        "Icmp InEchos",
        ends[1].kernel_counter("snmp", "Icmp", "InEchos")?,
        COUNT,
    )
}

/// A worker with a socket, and the address of a socket that receives from it.
fn sender(cgroup: &Cgroup) -> Result<(Worker, UdpSocket, String)> {
    let sink = UdpSocket::bind("127.0.0.1:0")?;
    let address = sink.local_addr()?.to_string();
    let mut worker = Worker::start(cgroup)?;
    worker.run("udp-bind 127.0.0.1:0")?;
    Ok((worker, sink, address))
}

fn sent(metrics: &Metrics, id: &str) -> Result<f64> {
    Ok(traffic(metrics, id, "ipv4", "udp")?[3])
}

fn nested() -> Result<()> {
    let agent = Agent::start(&[])?;
    let parent = Cgroup::new()?;
    let children = [parent.child("a")?, parent.child("b")?];
    let before = sent(&agent.scrape()?, "/")?;
    for (cgroup, count) in [(&parent, 3), (&children[0], 20), (&children[1], 100)] {
        let (mut worker, _sink, address) = sender(cgroup)?;
        worker.run(&format!("udp-send {address} {count} 10"))?;
    }
    let metrics = agent.scrape()?;
    same("a", sent(&metrics, &children[0].id)?, 20.0)?;
    same("b", sent(&metrics, &children[1].id)?, 100.0)?;
    same("parent", sent(&metrics, &parent.id)?, 123.0)?;
    let host = sent(&metrics, "/")?;
    ensure!(host >= before + 123.0, "/: {before}, then {host}");
    // The same after their removal.
    children[0].remove()?;
    children[1].remove()?;
    same("parent", sent(&agent.scrape()?, &parent.id)?, 123.0)
}

fn moved() -> Result<()> {
    let agent = Agent::start(&[])?;
    let (first, second) = (Cgroup::new()?, Cgroup::new()?);
    let (mut worker, _sink, address) = sender(&first)?;
    worker.run(&format!("udp-send {address} 5 10"))?;
    second.admit(worker.pid())?;
    worker.run(&format!("udp-send {address} 7 10"))?;
    let metrics = agent.scrape()?;
    same("the cgroup left", sent(&metrics, &first.id)?, 12.0)?;
    same("the cgroup entered", sent(&metrics, &second.id)?, 0.0)?;
    // A socket that is created there is counted there.
    worker.run("udp-bind 127.0.0.1:0")?;
    worker.run(&format!("udp-send {address} 9 10"))?;
    let metrics = agent.scrape()?;
    same("the cgroup left", sent(&metrics, &first.id)?, 12.0)?;
    same("the cgroup entered", sent(&metrics, &second.id)?, 9.0)
}

fn outlived() -> Result<()> {
    use std::{thread::sleep, time::Duration};
    let agent = Agent::start(&["--cgroup.linger", "7s"])?;
    let (parent, elsewhere) = (Cgroup::new()?, Cgroup::new()?);
    let child = parent.child("child")?;
    let (mut worker, _sink, address) = sender(&child)?;
    worker.run(&format!("udp-send {address} 10 10"))?;
    elsewhere.admit(worker.pid())?;
    child.remove()?;
    // First at once, then after its slot was swept. What comes late is its parent's.
    for n in 1..=2 {
        worker.run(&format!("udp-send {address} 10 10"))?;
        let metrics = agent.scrape()?;
        same("the removed cgroup", sent(&metrics, &child.id)?, 10.0)?;
        let expected = f64::from(10 + 10 * n);
        same("its parent", sent(&metrics, &parent.id)?, expected)?;
        same("elsewhere", sent(&metrics, &elsewhere.id)?, 0.0)?;
        sleep(Duration::from_secs(3));
    }
    // Then it is no longer served.
    for _ in 0..100 {
        let metrics = agent.scrape()?;
        same("its parent", sent(&metrics, &parent.id)?, 30.0)?;
        if sent(&metrics, &child.id)? == 0.0 {
            break;
        }
        sleep(Duration::from_millis(100));
    }
    let metrics = agent.scrape()?;
    same("the reaped cgroup", sent(&metrics, &child.id)?, 0.0)?;
    // Later packets are the parent's as well.
    let before = sent(&metrics, "/")?;
    for n in 1..=3 {
        worker.run(&format!("udp-send {address} 10 10"))?;
        let metrics = agent.scrape()?;
        let expected = f64::from(30 + 10 * n);
        same("its parent", sent(&metrics, &parent.id)?, expected)?;
        let host = sent(&metrics, "/")?;
        ensure!(
            host >= before + 10.0 * f64::from(n),
            "/: {before}, then {host}"
        );
    }
    let metrics = agent.scrape()?;
    same(
        "overflow",
        metrics.get("cgmeter_overflow_events_total", &[])?,
        0.0,
    )
}
