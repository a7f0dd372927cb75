//! Two workers in their own network namespaces, joined by a veth pair, and the kernel's statistics
//! of these namespaces.

use std::fs;

use anyhow::{Context, Result};

use crate::{cgroup::Cgroup, traffic, worker::Worker};

/// One end: a worker, its cgroup, and `eth0` in its own namespace.
pub struct End {
    pub worker: Worker,
    pub cgroup: Cgroup,
}

/// IPv4 addresses of the two ends.
pub const V4: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
/// IPv6 addresses of the two ends.
pub const V6: [&str; 2] = ["fd77::1", "fd77::2"];

impl End {
    /// Starts a worker in its own namespace, with no interface but lo.
    pub fn new() -> Result<Self> {
        let cgroup = Cgroup::new()?;
        let mut worker = Worker::start(&cgroup)?;
        worker.run("unshare-net")?;
        Ok(Self { worker, cgroup })
    }

    /// A value of /proc/net/snmp or netstat of its namespace, such as `Tcp` `OutSegs`.
    pub fn kernel_counter(&self, file: &str, protocol: &str, key: &str) -> Result<f64> {
        let path = format!("/proc/{}/net/{file}", self.worker.pid());
        let text = fs::read_to_string(path)?;
        let prefix = format!("{protocol}: ");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        let names = lines.next().with_context(|| format!("no {protocol}"))?;
        let values = lines.next().with_context(|| format!("no {protocol}"))?;
        names
            .split(' ')
            .zip(values.split(' '))
            .find(|(name, _)| *name == key)
            .and_then(|(_, value)| value.parse().ok())
            .with_context(|| format!("no {protocol} {key}"))
    }

    /// Counters of an interface in /proc/net/dev: bytes, packets, errors and drops received, then
    /// the same transmitted.
    pub fn interface(&self, name: &str) -> Result<[f64; 8]> {
        interface_of(self.worker.pid(), name)
    }
}

/// Like [`End::interface`], for the namespace of a process.
pub fn interface_of(pid: u32, name: &str) -> Result<[f64; 8]> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    let numbers: Vec<f64> = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| format!("no interface {name}"))?
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let at = |n: usize| numbers.get(n).copied().context("a short line");
    Ok([
        at(0)?,
        at(1)?,
        at(2)?,
        at(3)?,
        at(8)?,
        at(9)?,
        at(10)?,
        at(11)?,
    ])
}

/// Creates two ends with addresses, and brings them up.
pub fn pair() -> Result<[End; 2]> {
    let mut ends = [End::new()?, End::new()?];
    let [one, other] = &mut ends;
    join([&mut one.worker, &mut other.worker])?;
    Ok(ends)
}

/// Joins two workers, each in its own namespace, and gives them addresses.
pub fn join(mut ends: [&mut Worker; 2]) -> Result<()> {
    let [one, other] = [&ends[0], &ends[1]].map(|worker| worker.pid().to_string());
    let words = [
        "ip", "link", "add", "name", "eth0", "netns", &one, "type", "veth", "peer", "name", "eth0",
        "netns", &other,
    ];
    traffic::run(&words)?;
    for (worker, (v4, v6)) in ends.iter_mut().zip(V4.iter().zip(V6)) {
        worker.run(&format!("ip addr add {v4}/24 dev eth0"))?;
        worker.run(&format!("ip addr add {v6}/64 dev eth0 nodad"))?;
        worker.run("ip link set eth0 up")?;
    }
    for worker in &mut ends {
        worker.run("wait-up eth0")?;
    }
    Ok(())
}
