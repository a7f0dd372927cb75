//! Network namespaces: the iterator that finds them, and sockets opened inside.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result};
use collector_common::netns::{Namespace, NamespacePass};

use super::{
    bpf,
    load::Kernel,
    map::Map,
    mapping::{Mapping, Word, word},
    netlink::Rtnetlink,
};

/// The iterator over tasks that finds the namespaces (collector-ebpf/src/netns.rs).
#[derive(Debug)]
pub struct Namespaces {
    link: OwnedFd,
    control: Mapping<NamespacePass>,
    map: Map<u64, Namespace>,
    generation: u64,
    keys: Vec<u64>,
    values: Vec<Namespace>,
}

const GENERATION: Word<NamespacePass> = word!(NamespacePass, generation);
const HOST: Word<NamespacePass> = word!(NamespacePass, host);
const MISSED: Word<NamespacePass> = word!(NamespacePass, missed);

impl Namespaces {
    /// The iterator of a loaded object.
    ///
    /// # Errors
    ///
    /// When it can't be attached, or its maps can't be opened.
    pub fn new(kernel: &mut Kernel) -> Result<Self> {
        let link = kernel
            .task_iterator("namespaces")
            .context("attaching the iterator over tasks")?;
        Ok(Self {
            link,
            control: Mapping::open(kernel.map("NETNS_PASS")?)
                .context("the control block of the namespaces' iterator")?,
            map: Map::hash(kernel.map("NETNS")?)?,
            generation: 0,
            keys: Vec::new(),
            values: Vec::new(),
        })
    }

    /// Finds the namespaces that processes are in, the host's excepted: cookies, and whose.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn find(&mut self) -> io::Result<Vec<(u64, Namespace)>> {
        self.generation += 1;
        self.control.store(0, GENERATION, self.generation);
        bpf::run_iterator(self.link.as_fd())?;
        self.map.read_all(&mut self.keys, &mut self.values)?;
        let mut found = Vec::with_capacity(self.keys.len());
        for (&cookie, &namespace) in self.keys.iter().zip(&self.values) {
            if namespace.generation == self.generation {
                found.push((cookie, namespace));
            } else {
                // Nobody is in it any more.
                self.map.remove(&cookie)?;
            }
        }
        Ok(found)
    }

    /// Number of the iterator's last run.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Cookie of the host's namespace, once the iterator has met a kernel thread.
    pub fn host(&self) -> Option<u64> {
        let cookie = self.control.load(0, HOST);
        (cookie != 0).then_some(cookie)
    }

    /// Times that there was no room for a namespace.
    pub fn missed(&self) -> u64 {
        self.control.load(0, MISSED)
    }

    /// Notes to which cgroup a namespace has been given.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_owner(&self, cookie: u64, namespace: &Namespace, owner: u64) -> io::Result<()> {
        let namespace = Namespace {
            owner,
            owner_seen: self.generation,
            ..*namespace
        };
        self.map.insert(&cookie, &namespace)
    }
}

/// Opens a socket in the network namespace of each of some tasks.
///
/// A thread of its own enters the namespaces, one after the other, and ends: no other thread of
/// the agent is ever elsewhere.
///
/// # Errors
///
/// When there can't be a thread; of each task: when it has gone (ENOENT, ESRCH), or its namespace
/// must not be entered (EPERM, EACCES: CAP_SYS_ADMIN and CAP_SYS_PTRACE are needed).
pub fn open_in(tasks: Vec<u64>) -> io::Result<Vec<io::Result<Rtnetlink>>> {
    let thread = std::thread::Builder::new()
        .name("cgmeter-netns".to_owned())
        .spawn(move || tasks.into_iter().map(open).collect())?;
    thread
        .join()
        .map_err(|_| io::Error::other("the thread that enters namespaces panicked"))
}

fn open(task: u64) -> io::Result<Rtnetlink> {
    enter(&File::open(format!("/proc/{task}/ns/net"))?)?;
    Rtnetlink::open()
}

/// Connects to a port of the loopback addresses, IPv4's first, inside a network namespace, and
/// hands over what came of it.
///
/// As in [`open_in`], a thread of its own enters the namespace and ends there.
///
/// # Errors
///
/// When there can't be a thread; else `done` is told.
pub fn connect_in(
    namespace: File,
    port: u16,
    limit: Duration,
    done: impl FnOnce(io::Result<TcpStream>) + Send + 'static,
) -> io::Result<()> {
    let connect = move || {
        enter(&namespace)?;
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        TcpStream::connect_timeout(&v4, limit).or_else(|error| {
            // What IPv6 says is of interest only if it works.
            TcpStream::connect_timeout(&v6, limit).map_err(|_| error)
        })
    };
    std::thread::Builder::new()
        .name("cgmeter-netns".to_owned())
        .spawn(move || done(connect()))
        .map(drop)
}

/// Has this thread enter a network namespace.
fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: a descriptor that is open. The thread shares no file system or user state that the
    // kernel would refuse this for, and whoever else is in the process is not affected.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
