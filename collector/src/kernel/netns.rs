//! Finds network namespaces with an iterator, and opens sockets inside them.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result};
use collector_common::netdev::{Namespace, NamespaceIterator};

use super::{
    bpf,
    load::Kernel,
    map::Map,
    mapping::{Mapping, Word, word},
    netlink::Rtnetlink,
};

/// The task iterator that finds the namespaces (collector-ebpf/src/netdev.rs).
#[derive(Debug)]
pub struct Namespaces {
    link: OwnedFd,
    control: Mapping<NamespaceIterator>,
    map: Map<u64, Namespace>,
    generation: u64,
    keys: Vec<u64>,
    values: Vec<Namespace>,
}

const GENERATION: Word<NamespaceIterator> = word!(NamespaceIterator, generation);
const HOST: Word<NamespaceIterator> = word!(NamespaceIterator, host);
const MISSED: Word<NamespaceIterator> = word!(NamespaceIterator, missed);

impl Namespaces {
    /// Attaches the iterator of a loaded object.
    ///
    /// # Errors
    ///
    /// If it can't be attached, or its maps can't be opened.
    pub fn new(kernel: &mut Kernel) -> Result<Self> {
        let link = kernel
            .task_iterator("namespaces")
            .context("attaching the namespaces' iterator")?;
        Ok(Self {
            link,
            control: Mapping::open(kernel.map("NETNS_ITERATOR")?)
                .context("opening the control block of the namespaces' iterator")?,
            map: Map::hash(kernel.map("NETNS")?)?,
            generation: 0,
            keys: Vec::new(),
            values: Vec::new(),
        })
    }

    /// Finds the namespaces of all processes, except the host's. Returns their cookies and owners.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
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
                // No process is in it any more.
                self.map.remove(&cookie)?;
            }
        }
        Ok(found)
    }

    /// Number of the iterator's last run.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Cookie of the host's namespace, once the iterator has seen a kernel thread.
    pub fn host(&self) -> Option<u64> {
        let cookie = self.control.load(0, HOST);
        (cookie != 0).then_some(cookie)
    }

    /// How often there was no room for a namespace.
    pub fn missed(&self) -> u64 {
        self.control.load(0, MISSED)
    }

    /// Records the cgroup that a namespace is attributed to.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn set_owner(&self, cookie: u64, namespace: &Namespace, owner: u64) -> io::Result<()> {
        let namespace = Namespace {
            owner,
            owner_seen: self.generation,
            ..*namespace
        };
        self.map.insert(&cookie, &namespace)
    }
}

/// Opens a socket in the network namespace of each task.
///
/// A separate thread enters the namespaces one after the other and ends. All other threads of the
/// agent stay in their namespace.
///
/// # Errors
///
/// If the thread can't be created. For each task: if it no longer exists (ENOENT, ESRCH), or its
/// namespace can't be entered (EPERM, EACCES; CAP_SYS_ADMIN and CAP_SYS_PTRACE are needed).
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

/// Connects to a port of the loopback addresses inside a network namespace, IPv4 first, and passes
/// the result to `done`.
///
/// As in [`open_in`], a separate thread enters the namespace and ends afterwards.
///
/// # Errors
///
/// If the thread can't be created. All other errors are passed to `done`.
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
            // If both fail, the error of IPv4 is returned.
            TcpStream::connect_timeout(&v6, limit).map_err(|_| error)
        })
    };
    std::thread::Builder::new()
        .name("cgmeter-netns".to_owned())
        .spawn(move || done(connect()))
        .map(drop)
}

/// Moves this thread into a network namespace.
fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open. setns(2) with CLONE_NEWNET passes no memory and affects only
    // the calling thread.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
