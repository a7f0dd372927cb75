//! Interfaces: counters of the network devices in a cgroup's namespace, with cAdvisor's names.
//!
//! Program: `namespaces` (collector-ebpf/src/netdev.rs), which finds the namespaces. The counters
//! are the kernel's own, read from one rtnetlink socket per namespace (RTM_GETSTATS). Oracle:
//! /proc/PID/net/dev (tests).
//!
//! A namespace is read once, however many cgroups share it, and belongs to one of them: that of its
//! oldest process when it was first seen (in a pod: the sandbox), as long as that cgroup or a
//! descendant has processes in it. The host's namespace belongs to `/` alone. Values are not summed
//! for ancestors: the same bytes pass a container's interface and the host's.
//!
//! An open socket keeps a namespace alive. Therefore the socket is closed, after a last reading,
//! when the owner is removed, and when no process is left in the namespace. The latter is noticed
//! at a scrape, or within [`IDLE`] if there are no scrapes.

mod devices;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use collector_common::netdev::{NAMESPACES, Namespace};
use devices::{InterfaceRows, Interfaces};

use super::{
    Change, Inputs, Reading, Registration, Source,
    values::{Column, PerNode},
};
use crate::{
    cgroup::{NodeId, Nodes, ROOT, Tree},
    exposition::{Encoder, Family, Labels, MetricKind, Unit, Value},
    kernel::{
        netlink::{Buffer, Counter, Dump, InterfaceCounters, Rtnetlink},
        netns::{self, Namespaces},
        programs::Requirement,
    },
};

/// The kernel thread that starts all other kernel threads. Its namespace is the host's.
const KTHREADD: u64 = 2;
/// How long a namespace without processes may stay open if there are no scrapes.
const IDLE: Duration = Duration::from_secs(60);
/// Number of closed namespaces whose interfaces are remembered. A namespace that a mount or another
/// cgroup keeps alive may be opened again, and then continues where it was.
const REMEMBERED: usize = 1024;

const fn family(
    name: &'static str,
    unit: Unit,
    help: &'static str,
    origin: &'static str,
) -> Family {
    Family {
        name,
        help,
        kind: MetricKind::Counter,
        unit,
        labels: &["interface"],
        origin,
        oracle: "/proc/PID/net/dev",
    }
}

/// The source's families, and the counter that each one serves.
const FAMILIES: &[(Family, Counter)] = &[
    (
        family(
            "container_network_receive_bytes_total",
            Unit::Bytes,
            "Bytes received by an interface of the cgroup's network namespace, including link headers; \
             for / of the host's. Not summed for ancestors; lo, veth*, docker* and nerdctl* are left out.",
            "RTM_GETSTATS: rtnl_link_stats64.rx_bytes",
        ),
        Counter::ReceiveBytes,
    ),
    (
        family(
            "container_network_receive_packets_total",
            Unit::None,
            "Packets received by an interface.",
            "RTM_GETSTATS: rtnl_link_stats64.rx_packets",
        ),
        Counter::ReceivePackets,
    ),
    (
        family(
            "container_network_receive_errors_total",
            Unit::None,
            "Receive errors of an interface.",
            "RTM_GETSTATS: rtnl_link_stats64.rx_errors",
        ),
        Counter::ReceiveErrors,
    ),
    (
        family(
            "container_network_receive_packets_dropped_total",
            Unit::None,
            "Received packets that an interface dropped, including missed ones.",
            "RTM_GETSTATS: rtnl_link_stats64.rx_dropped, rx_missed_errors",
        ),
        Counter::ReceiveDropped,
    ),
    (
        family(
            "container_network_transmit_bytes_total",
            Unit::Bytes,
            "Bytes transmitted by an interface of the cgroup's network namespace, including link headers.",
            "RTM_GETSTATS: rtnl_link_stats64.tx_bytes",
        ),
        Counter::TransmitBytes,
    ),
    (
        family(
            "container_network_transmit_packets_total",
            Unit::None,
            "Packets transmitted by an interface.",
            "RTM_GETSTATS: rtnl_link_stats64.tx_packets",
        ),
        Counter::TransmitPackets,
    ),
    (
        family(
            "container_network_transmit_errors_total",
            Unit::None,
            "Transmit errors of an interface.",
            "RTM_GETSTATS: rtnl_link_stats64.tx_errors",
        ),
        Counter::TransmitErrors,
    ),
    (
        family(
            "container_network_transmit_packets_dropped_total",
            Unit::None,
            "Packets that an interface dropped instead of transmitting them.",
            "RTM_GETSTATS: rtnl_link_stats64.tx_dropped",
        ),
        Counter::TransmitDropped,
    ),
];

fn families() -> Vec<&'static Family> {
    FAMILIES.iter().map(|(family, _)| family).collect()
}

/// Registers the source `netdev` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "netdev",
        required: &["namespaces"],
        optional: &[],
    },
    families,
    build: |builder| {
        Ok(Box::new(Netdev {
            namespaces: Namespaces::new(builder.kernel)?,
            searched: Instant::now(),
            open: HashMap::new(),
            closed: VecDeque::new(),
            rows: Column::default(),
            room: Room::default(),
        }))
    },
};

/// A namespace that is being read.
#[derive(Debug)]
struct Open {
    socket: Rtnetlink,
    /// Cgroup id of its owner.
    owner: u64,
    node: NodeId,
    devices: Interfaces,
}

/// A namespace that is to be read.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    task: u64,
    owner: u64,
    node: NodeId,
}

/// Buffers that all readings share.
#[derive(Debug, Default)]
struct Room {
    buffer: Buffer,
    names: Vec<(u32, String)>,
    readings: Vec<(u32, InterfaceCounters)>,
}

#[derive(Debug)]
struct Netdev {
    namespaces: Namespaces,
    /// When the namespaces were last searched.
    searched: Instant,
    /// Open namespaces, by cookie.
    open: HashMap<u64, Open>,
    /// Interfaces of the namespaces closed last, by cookie.
    closed: VecDeque<(u64, Interfaces)>,
    /// Rows by node.
    rows: Column<InterfaceRows>,
    room: Room,
}

/// Returns the owner of a namespace, if the namespace is served.
fn owner(tree: &Tree, namespace: &Namespace, generation: u64) -> Option<(u64, NodeId)> {
    let holder = tree
        .living(namespace.owner)
        .filter(|&holder| {
            let within = |node| tree.is_within(node, holder);
            namespace.owner_seen == generation || tree.living(namespace.cgroup).is_some_and(within)
        })
        .map(|holder| (namespace.owner, holder));
    let (owner, node) =
        holder.or_else(|| Some((namespace.cgroup, tree.living(namespace.cgroup)?)))?;
    // The root serves the host's interfaces; those of another namespace must not be mixed in.
    (node != ROOT && tree.node(node)?.exported).then_some((owner, node))
}

impl Open {
    /// Adds what the interfaces have counted since the last reading.
    fn read(&mut self, rows: &mut InterfaceRows, room: &mut Room) -> io::Result<()> {
        let Room {
            buffer,
            names,
            readings,
        } = room;
        let dump = self.socket.counters(buffer, readings)?;
        if self.socket.changed() || self.devices.lack_names(readings) {
            self.socket.names(buffer, names)?;
            self.devices.set_names(names, rows);
        }
        let whole = dump == Dump::Consistent;
        self.devices.take(readings, whole, rows);
        Ok(())
    }
}

impl Netdev {
    /// Returns the rows of a node. Creates them if necessary.
    fn rows(rows: &mut Column<InterfaceRows>, node: NodeId) -> &mut InterfaceRows {
        let rows = rows.at(node);
        rows.unlimited = node == ROOT;
        rows
    }

    /// Reads a namespace a last time and closes it.
    fn close(&mut self, cookie: u64) {
        let Some(mut open) = self.open.remove(&cookie) else {
            return;
        };
        let rows = Self::rows(&mut self.rows, open.node);
        if let Err(error) = open.read(rows, &mut self.room) {
            tracing::warn!(%error, "a network namespace could not be read a last time");
        }
        rows.forget();
        if self.closed.len() >= REMEMBERED {
            self.closed.pop_front();
        }
        self.closed.push_back((cookie, open.devices));
    }

    /// Finds the namespaces, and closes those that no process is in any more. Returns those to
    /// read.
    fn find(&mut self, tree: &Tree) -> anyhow::Result<HashMap<u64, Wanted>> {
        let found = self
            .namespaces
            .find()
            .context("searching for network namespaces")?;
        self.searched = Instant::now();
        let mut wanted = HashMap::with_capacity(found.len() + 1);
        for (cookie, namespace) in &found {
            let Some((owner, node)) = owner(tree, namespace, self.namespaces.generation()) else {
                continue;
            };
            if owner != namespace.owner {
                self.namespaces
                    .set_owner(*cookie, namespace, owner)
                    .context("storing the owner of a network namespace")?;
            }
            let task = namespace.pid;
            wanted.insert(*cookie, Wanted { task, owner, node });
        }
        if let Some(host) = self.namespaces.host()
            && let Some(root) = tree.node(ROOT)
            && tree.is_whole()
        {
            let (task, owner, node) = (KTHREADD, root.id, ROOT);
            wanted.insert(host, Wanted { task, owner, node });
        }
        let gone: HashSet<u64> = self
            .open
            .keys()
            .copied()
            .filter(|cookie| !wanted.contains_key(cookie))
            .collect();
        for cookie in gone {
            self.close(cookie);
        }
        Ok(wanted)
    }

    /// Opens new namespaces. Returns the errors.
    fn open(&mut self, wanted: &HashMap<u64, Wanted>) -> anyhow::Result<Vec<anyhow::Error>> {
        let new: Vec<(u64, Wanted)> = wanted
            .iter()
            .filter(|(cookie, _)| !self.open.contains_key(cookie))
            .map(|(&cookie, &wanted)| (cookie, wanted))
            .collect();
        let mut problems = Vec::new();
        if new.is_empty() {
            return Ok(problems);
        }
        let tasks = new.iter().map(|(_, wanted)| wanted.task).collect();
        let sockets = netns::open_in(tasks).context("entering network namespaces")?;
        for ((cookie, Wanted { owner, node, .. }), socket) in new.into_iter().zip(sockets) {
            let checked = socket.and_then(|socket| Ok((socket.cookie()?, socket)));
            match checked {
                Ok((found, socket)) if found == cookie => {
                    let remembered = self.closed.iter().position(|(known, _)| *known == cookie);
                    let devices = remembered
                        .and_then(|at| self.closed.remove(at))
                        .map(|(_, devices)| devices)
                        .unwrap_or_default();
                    let open = Open {
                        socket,
                        owner,
                        node,
                        devices,
                    };
                    self.open.insert(cookie, open);
                }
                // The task has moved to another namespace, or its pid was reused.
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
                Err(error) => {
                    problems.push(anyhow!(error).context("entering a network namespace"));
                }
            }
        }
        Ok(problems)
    }
}

impl Source for Netdev {
    fn name(&self) -> &'static str {
        "netdev"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        vec![&mut self.rows]
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> anyhow::Result<()> {
        let wanted = self.find(inputs.tree)?;
        let mut problems = self.open(&wanted)?;
        let mut broken = Vec::new();
        for (&cookie, open) in &mut self.open {
            if let Some(wanted) = wanted.get(&cookie) {
                (open.owner, open.node) = (wanted.owner, wanted.node);
            }
            let rows = Self::rows(&mut self.rows, open.node);
            if let Err(error) = open.read(rows, &mut self.room) {
                problems.push(anyhow!(error).context("reading interfaces"));
                broken.push(cookie);
            }
        }
        for open in self.open.values() {
            let rows = Self::rows(&mut self.rows, open.node);
            open.devices.show(rows);
        }
        for open in self.open.values() {
            Self::rows(&mut self.rows, open.node).forget();
        }
        // They are opened again at the next scrape.
        for cookie in broken {
            self.close(cookie);
        }
        if self.namespaces.host().is_none() {
            problems.push(anyhow!(
                "no kernel thread is visible: the agent needs the host's pid namespace"
            ));
        }
        let missed = self.namespaces.missed();
        if missed > 0 {
            problems.push(anyhow!("more than {NAMESPACES} network namespaces"));
        }
        let all = problems.len();
        match problems.into_iter().next() {
            None => Ok(()),
            Some(first) => Err(first.context(format!("{all} network namespaces are not counted"))),
        }
    }

    fn change(&mut self, change: &Change<'_>) {
        let Change::Removed { id, .. } = *change else {
            return;
        };
        let owned: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, open)| open.owner == id)
            .map(|(&cookie, _)| cookie)
            .collect();
        for cookie in owned {
            self.close(cookie);
        }
    }

    fn idle(&mut self, tree: &Tree) -> Option<Duration> {
        if self.searched.elapsed() >= IDLE
            && let Err(error) = self.find(tree)
        {
            tracing::warn!(
                source = "netdev",
                error = format!("{error:#}"),
                "reading failed"
            );
            self.searched = Instant::now();
        }
        Some(IDLE.saturating_sub(self.searched.elapsed()))
    }

    fn reading(&self) -> Box<dyn Reading> {
        Box::new(NetdevReading {
            rows: self.rows.clone(),
        })
    }
}

/// What the source serves in one frame.
struct NetdevReading {
    rows: Column<InterfaceRows>,
}

impl Reading for NetdevReading {
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
        for (family, counter) in FAMILIES {
            out.family(family);
            for (number, node) in nodes.exported() {
                for row in self
                    .rows
                    .get(number)
                    .into_iter()
                    .flat_map(InterfaceRows::shown)
                {
                    let value = Value::Count(row.total[*counter as usize]);
                    out.sample(
                        Labels::new(&node.labels, &[("interface", &row.name)]),
                        value,
                    );
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::cgroup::{Event, Filter, found};

    /// Makes a tree of /pod with /pod/sandbox and /pod/app, and /other.
    fn tree() -> Tree {
        let found = [
            found(1, 0, ""),
            found(2, 1, "pod"),
            found(3, 2, "sandbox"),
            found(4, 2, "app"),
            found(5, 1, "other"),
        ];
        Tree::new(&found, Filter::default())
    }

    fn namespace(cgroup: u64, owner: u64, owner_seen: u64) -> Namespace {
        Namespace {
            generation: 7,
            cgroup,
            owner,
            owner_seen,
            ..Namespace::default()
        }
    }

    fn owner_of(tree: &Tree, namespace: Namespace) -> Option<u64> {
        owner(tree, &namespace, 7).map(|(owner, _)| owner)
    }

    #[test]
    fn a_namespace_belongs_to_the_oldest_task_s_cgroup_and_stays_there() {
        let tree = tree();
        assert_eq!(owner_of(&tree, namespace(3, 0, 0)), Some(3));
        // An older process has moved in from elsewhere.
        assert_eq!(owner_of(&tree, namespace(5, 3, 7)), Some(3));
        // The owner's processes have left.
        assert_eq!(owner_of(&tree, namespace(4, 3, 6)), Some(4));
        // They have moved into a descendant.
        assert_eq!(owner_of(&tree, namespace(4, 2, 6)), Some(2));
    }

    #[test]
    fn a_removed_owner_is_replaced_by_the_oldest_task_s_cgroup() {
        let mut tree = tree();
        let at = SystemTime::now();
        tree.apply(&Event::Removed { id: 3, at });
        assert_eq!(owner_of(&tree, namespace(4, 3, 7)), Some(4));
    }

    #[test]
    fn namespaces_of_the_root_and_of_unknown_cgroups_have_no_owner() {
        let tree = tree();
        assert_eq!(owner_of(&tree, namespace(1, 0, 0)), None);
        assert_eq!(owner_of(&tree, namespace(99, 0, 0)), None);
        assert_eq!(owner_of(&tree, namespace(99, 98, 7)), None);
    }
}
