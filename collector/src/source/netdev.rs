//! Interfaces: counters of the network devices in a cgroup's namespace, with cAdvisor's names.
//!
//! Programs: `namespaces`, `namespaces_left` (collector-ebpf/src/netdev.rs), which find the namespaces.
//! The counters are the kernel's own, read from one rtnetlink socket per namespace (RTM_GETSTATS).
//! Oracle: /proc/PID/net/dev (tests).
//!
//! A namespace is read once, however many cgroups share it, and belongs to one of them (see
//! [`owners`]). The host's namespace belongs to `/` alone. Values are not summed for ancestors: the
//! same bytes pass a container's interface and the host's.
//!
//! An open socket keeps a namespace alive. Therefore the socket is closed, after a last reading,
//! when the owner is removed, and when no process is left in the namespace. The latter is looked for
//! every [`LOOK`]. How many are open at a time is bounded (see [`shares`]).

mod devices;
mod open;
mod owners;
mod shares;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use collector_common::netdev::{Inhabitant, Witness};
use devices::{InterfaceRows, Interfaces};
use open::{Open, Remembered, Room};
use owners::{Owner, Owners, Search};

use super::{
    Change, Inputs, NamespaceCounts, Partly, Reading, Registration, Source, SourceReport,
    values::{Column, PerNode, Words, digest},
};
use crate::{
    cgroup::{NodeId, Nodes, ROOT, Tree},
    exposition::{Encoder, Family, Labels, MetricKind, Unit, Value},
    kernel::{
        netlink::Counter,
        netns::{self, Namespaces},
        open_files,
        programs::Requirement,
    },
};

/// The kernel thread that starts all other kernel threads. Its namespace is the host's.
const KTHREADD: u64 = 2;
/// The agent's descriptors without namespaces and connections, where they can't be counted.
const USUAL_FILES: u64 = 256;
/// How often to look whether the namespaces that are open still have processes.
const LOOK: Duration = Duration::from_millis(400);

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
        required: &["namespaces", "namespaces_left"],
        optional: &[],
    },
    families,
    build: |builder| {
        Ok(Box::new(Netdev {
            namespaces: Namespaces::new(builder.kernel)?,
            owners: Owners::default(),
            looked: Instant::now(),
            open: HashMap::new(),
            closed: Remembered::default(),
            before: HashSet::new(),
            lost: 0,
            by_node: HashMap::new(),
            rows: Column::default(),
            room: Room::default(),
            most: builder.max_namespaces,
            own_files: None,
            left_out: 0,
        }))
    },
};

/// A namespace that is to be read.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    task: u64,
    owner: u64,
    node: NodeId,
    witness: Option<Witness>,
}

impl Wanted {
    fn new(owner: &Owner, oldest: &Inhabitant) -> Self {
        Self {
            task: oldest.pid,
            owner: owner.id,
            node: owner.node,
            witness: Some(Witness {
                task: oldest.task,
                address: oldest.address,
            }),
        }
    }
}

#[derive(Debug)]
struct Netdev {
    namespaces: Namespaces,
    owners: Owners,
    /// When the processes in the open namespaces were last looked at.
    looked: Instant,
    /// Open namespaces, by cookie.
    open: HashMap<u64, Open>,
    closed: Remembered,
    /// Cookies of the namespaces that an earlier agent had open, until this one has looked for them.
    before: HashSet<u64>,
    /// Number of those that ended while no agent ran.
    lost: u64,
    /// Cookies of the namespaces that were read for each node.
    by_node: HashMap<NodeId, Vec<u64>>,
    /// Rows by node.
    rows: Column<InterfaceRows>,
    room: Room,
    /// Maximum number of open namespaces: `--netdev.max-namespaces`.
    most: usize,
    /// Number of the agent's descriptors when it had not opened any namespace yet.
    own_files: Option<u64>,
    /// Number of namespaces that are not read, because there are too many.
    left_out: u64,
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
        self.closed.put(cookie, open.devices);
    }

    /// Closes a namespace that is not to be read any more although it is in use.
    fn leave_out(&mut self, cookie: u64) {
        let Some(node) = self.open.get(&cookie).map(|open| open.node) else {
            return;
        };
        self.close(cookie);
        let devices = self.closed.take(cookie);
        devices.hide(Self::rows(&mut self.rows, node));
        self.closed.put(cookie, devices);
    }

    /// Finds the namespaces, and closes those that no process is in any more. Returns those to
    /// read, and the number of those for which there is no room.
    fn find(&mut self, tree: &Tree) -> anyhow::Result<(HashMap<u64, Wanted>, u64)> {
        let mut search = Search::default();
        self.namespaces
            .find(|inhabitant| search.add(inhabitant))
            .context("searching for network namespaces")?;
        self.looked = Instant::now();
        let host = self.namespaces.host();
        let mut wanted = HashMap::new();
        let mut owned = Vec::new();
        let mut there = HashSet::from_iter(host);
        for namespace in self.owners.settle(&search, tree) {
            there.insert(namespace.cookie);
            if let Some(owner) = &namespace.owner
                && Some(namespace.cookie) != host
            {
                owned.push((namespace.cookie, owner.node));
                wanted.insert(namespace.cookie, Wanted::new(owner, &namespace.oldest));
            }
        }
        let gone: Vec<u64> = self
            .open
            .keys()
            .copied()
            .filter(|cookie| !wanted.contains_key(cookie) && Some(*cookie) != host)
            .collect();
        for cookie in gone {
            self.close(cookie);
        }
        if let Some(host) = host
            && let Some(root) = tree.node(ROOT)
            && tree.is_whole()
        {
            let of_host = Wanted {
                task: KTHREADD,
                owner: root.id,
                node: ROOT,
                witness: None,
            };
            wanted.insert(host, of_host);
        }
        let room = self.most_open();
        let mut left_out = search.missed();
        if left_out == 0 {
            let before = std::mem::take(&mut self.before);
            self.lost += before.difference(&there).count() as u64;
        }
        if wanted.len() > room {
            let order = shares::in_turn(&owned, tree);
            let chosen = room - (wanted.len() - owned.len()).min(room);
            for cookie in order.into_iter().skip(chosen) {
                wanted.remove(&cookie);
                self.leave_out(cookie);
                left_out += 1;
            }
        }
        for (cookie, open) in &mut self.open {
            let Some(wanted) = wanted.get(cookie) else {
                continue;
            };
            // Who lives on without the namespace has its interfaces no more.
            if open.node != wanted.node && tree.living(open.owner).is_some() {
                open.devices.hide(Self::rows(&mut self.rows, open.node));
            }
            (open.owner, open.node) = (wanted.owner, wanted.node);
            open.witness = wanted.witness;
        }
        Ok((wanted, left_out))
    }

    /// Maximum number of open namespaces, as far as settings and the limit of open files allow.
    fn most_open(&mut self) -> usize {
        let limit = open_files::limit();
        let count = || open_files::count().unwrap_or(USUAL_FILES);
        let own = *self.own_files.get_or_insert_with(count);
        let others = open_files::connections(limit) + open_files::statistics(limit);
        shares::room(limit, own.saturating_add(others), self.most)
    }

    /// Notes how many namespaces are not read. Logs when that begins and when it ends.
    fn leave(&mut self, left_out: u64) {
        match (self.left_out, left_out) {
            (0, 1..) => {
                let (setting, limit) = (self.most, open_files::limit());
                tracing::warn!(
                    left_out,
                    setting,
                    limit,
                    "more network namespaces than can be read: the interfaces of some have no \
                     series; raise the limit of open files (ulimit -n) or --netdev.max-namespaces"
                );
            }
            (1.., 0) => tracing::info!("every network namespace is read again"),
            _ => {}
        }
        self.left_out = left_out;
    }

    /// Opens new namespaces. Returns the errors, and the number of namespaces for which there was no
    /// descriptor.
    fn open(&mut self, wanted: &HashMap<u64, Wanted>) -> anyhow::Result<(Vec<anyhow::Error>, u64)> {
        let new: Vec<(u64, Wanted)> = wanted
            .iter()
            .filter(|(cookie, _)| !self.open.contains_key(cookie))
            .map(|(&cookie, &wanted)| (cookie, wanted))
            .collect();
        let mut problems = Vec::new();
        if new.is_empty() {
            return Ok((problems, 0));
        }
        let tasks = new.iter().map(|(_, wanted)| wanted.task).collect();
        let sockets = netns::open_in(tasks).context("entering network namespaces")?;
        let mut without_room = 0;
        for ((cookie, wanted), socket) in new.into_iter().zip(sockets) {
            let Wanted {
                owner,
                node,
                witness,
                ..
            } = wanted;
            let checked = socket.and_then(|socket| Ok((socket.cookie()?, socket)));
            match checked {
                Ok((found, socket)) if found == cookie => {
                    let open = Open {
                        socket,
                        owner,
                        node,
                        witness,
                        devices: self.closed.take(cookie),
                    };
                    self.open.insert(cookie, open);
                }
                // The task has moved to another namespace, or its pid was reused.
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT | libc::ESRCH) => {}
                    Some(libc::EMFILE | libc::ENFILE) => without_room += 1,
                    _ => problems.push(anyhow!(error).context("entering a network namespace")),
                },
            }
        }
        Ok((problems, without_room))
    }

    /// Sets the processes by which the open namespaces are watched.
    fn watch(&self) {
        let witnesses = self.open.values().filter_map(|open| open.witness);
        self.namespaces.watch(witnesses);
    }

    /// Closes the namespaces that no process is in any more, if there may be some.
    fn look(&mut self, tree: &Tree) -> anyhow::Result<()> {
        self.looked = Instant::now();
        let left = self
            .namespaces
            .left()
            .context("looking for processes in network namespaces")?;
        if left > 0 {
            self.find(tree)?;
            self.watch();
        }
        Ok(())
    }
}

impl Source for Netdev {
    fn name(&self) -> &'static str {
        "netdev"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        vec![&mut self.rows]
    }

    /// Rows with their totals, and what was added to them of interfaces that are still there.
    fn save(&mut self, nodes: &[NodeId], each: &mut dyn FnMut(NodeId, &[u64])) {
        let mut words = Vec::new();
        for &node in nodes {
            let Some(rows) = self.rows.get(node) else {
                continue;
            };
            words.clear();
            rows.put(&mut words);
            let namespaces = self.by_node.get(&node).into_iter().flatten();
            let open: Vec<_> = namespaces
                .filter_map(|cookie| Some((cookie, self.open.get(cookie)?)))
                .collect();
            (open.len() as u64).put(&mut words);
            for (cookie, open) in open {
                cookie.put(&mut words);
                open.devices.put(&mut words);
            }
            each(node, &words);
        }
    }

    /// Rows alone: the last counts of a removed cgroup's namespaces were read.
    fn save_end(&mut self, node: NodeId, each: &mut dyn FnMut(&[u64])) {
        let Some(rows) = self.rows.get(node) else {
            return;
        };
        let mut words = Vec::new();
        rows.put(&mut words);
        0_u64.put(&mut words);
        each(&words);
    }

    /// All totals are the agent's own, so an agent with other maps takes the same.
    fn save_totals(&mut self, nodes: &[NodeId], each: &mut dyn FnMut(NodeId, &[u64])) {
        self.save(nodes, each);
    }

    fn shape(&mut self) -> u64 {
        digest(InterfaceRows::SHAPE, Vec::<(u64, Interfaces)>::SHAPE)
    }

    /// A namespace that is still there goes on when it is opened. Of others the totals stay.
    fn restore(&mut self, node: NodeId, words: &mut &[u64]) -> Option<()> {
        *Self::rows(&mut self.rows, node) = Words::take(words)?;
        for (cookie, devices) in Vec::<(u64, Interfaces)>::take(words)? {
            self.before.insert(cookie);
            self.closed.put(cookie, devices);
        }
        Some(())
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> anyhow::Result<()> {
        let (wanted, left_out) = self.find(inputs.tree)?;
        let (mut problems, without_room) = self.open(&wanted)?;
        self.leave(left_out + without_room);
        self.watch();
        let mut broken = Vec::new();
        for (&cookie, open) in &mut self.open {
            let rows = Self::rows(&mut self.rows, open.node);
            if let Err(error) = open.read(rows, &mut self.room) {
                problems.push(anyhow!(error).context("reading interfaces"));
                broken.push(cookie);
            }
        }
        for (cookie, open) in &self.open {
            if broken.contains(cookie) {
                open.devices.hide(Self::rows(&mut self.rows, open.node));
            }
        }
        for (cookie, open) in &self.open {
            if !broken.contains(cookie) {
                open.devices.show(Self::rows(&mut self.rows, open.node));
            }
        }
        self.by_node.clear();
        for (&cookie, open) in &self.open {
            Self::rows(&mut self.rows, open.node).forget();
            self.by_node.entry(open.node).or_default().push(cookie);
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
        let all = problems.len();
        match problems.into_iter().next() {
            None => Ok(()),
            Some(first) => {
                let why = format!("{all} network namespaces are not counted: {first:#}");
                Err(Partly(why).into())
            }
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
        // The host's namespace does not end.
        if self.open.values().all(|open| open.witness.is_none()) {
            return None;
        }
        if self.looked.elapsed() >= LOOK
            && let Err(error) = self.look(tree)
        {
            tracing::warn!(
                source = "netdev",
                error = format!("{error:#}"),
                "reading failed"
            );
        }
        Some(LOOK.saturating_sub(self.looked.elapsed()))
    }

    fn report(&self) -> SourceReport {
        SourceReport {
            namespaces: Some(NamespaceCounts {
                read: self.open.len() as u64,
                left_out: self.left_out,
                lost: self.lost,
            }),
            ..SourceReport::default()
        }
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
