//! Enters a container's network namespace and connects from within.
//!
//! Invariants: the process that leads to a namespace is still in the cgroup after the namespace was
//! opened, so a reused pid is never followed. The host's network namespace and the agent's own are
//! entered only if that is allowed.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Once,
    time::Duration,
};

use tokio::{
    net::{TcpSocket, TcpStream},
    sync::oneshot,
};

use super::store::{Failure, Reason};
use crate::kernel::netns;

/// Time limit for a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// Maximum number of cgroups that are searched for a process.
const SEARCH: usize = 256;
/// The network namespace of the thread that reads it.
const OWN: &str = "/proc/thread-self/ns/net";

/// Returns a process of a cgroup, or of its descendants if it has none itself. It is `preferred` if
/// that one is in the same cgroup.
fn process(directory: &Path, preferred: Option<u32>) -> io::Result<Option<u32>> {
    let mut left = vec![directory.to_owned()];
    let mut looked = 0;
    while let Some(directory) = left.pop() {
        let mut first = None;
        for line in BufReader::new(File::open(directory.join("cgroup.procs"))?).lines() {
            // 0 stands for a process outside this PID namespace.
            let Some(pid) = line?.parse().ok().filter(|&pid| pid != 0) else {
                continue;
            };
            if preferred.is_none_or(|preferred| preferred == pid) {
                return Ok(Some(pid));
            }
            first = first.or(Some(pid));
        }
        if first.is_some() {
            return Ok(first);
        }
        looked += 1;
        if looked == SEARCH {
            break;
        }
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && left.len() < SEARCH {
                left.push(entry.path());
            }
        }
    }
    Ok(None)
}

/// Whether two files refer to the same namespace.
fn same(left: &fs::Metadata, right: &fs::Metadata) -> bool {
    (left.dev(), left.ino()) == (right.dev(), right.ino())
}

/// Opens the network namespace of a cgroup's processes.
fn namespace(directory: &Path, preferred: Option<u32>, host: bool) -> Result<File, Failure> {
    let failed = |error: io::Error| {
        Failure::new(
            Reason::Namespace,
            format!("the network namespace of the cgroup can't be opened: {error}"),
        )
    };
    let none = || Failure::new(Reason::Namespace, "the agent sees no process in the cgroup");
    let pid = process(directory, preferred)
        .map_err(failed)?
        .ok_or_else(none)?;
    let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(failed)?;
    // The pid may have been reused, unless it is still in the cgroup.
    if process(directory, Some(pid)).map_err(failed)? != Some(pid) {
        return Err(none());
    }
    if !host && is_host(&namespace.metadata().map_err(failed)?).map_err(failed)? {
        return Err(Failure::new(
            Reason::HostNetwork,
            "the container shares the host's network namespace, where a port may belong to any program; \
             --custom.host-network allows that",
        ));
    }
    Ok(namespace)
}

/// Whether a namespace is the host's or the agent's own.
fn is_host(found: &fs::Metadata) -> io::Result<bool> {
    if same(&fs::metadata(OWN)?, found) {
        return Ok(true);
    }
    // If the agent can see the host's processes, pid 1 is the host's.
    match fs::metadata("/proc/1/ns/net") {
        Ok(first) => Ok(same(&first, found)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            static LOGGED: Once = Once::new();
            LOGGED.call_once(|| {
                tracing::warn!(
                    "custom metrics: the network namespace of process 1 can't be read without \
                     CAP_SYS_PTRACE; the agent assumes that the host's is its own"
                );
            });
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Makes a socket for each loopback address that the kernel supports, IPv4 first.
fn sockets() -> io::Result<Vec<(IpAddr, TcpSocket)>> {
    let v4 = TcpSocket::new_v4().map(|socket| (Ipv4Addr::LOCALHOST.into(), socket));
    let v6 = TcpSocket::new_v6().map(|socket| (Ipv6Addr::LOCALHOST.into(), socket));
    match (v4, v6) {
        (Ok(v4), v6) => Ok([v4].into_iter().chain(v6.ok()).collect()),
        (Err(_), Ok(v6)) => Ok(vec![v6]),
        (Err(error), Err(_)) => Err(error),
    }
}

/// Makes sockets in a network namespace. They stay in it.
async fn sockets_in(namespace: File) -> Result<Vec<(IpAddr, TcpSocket)>, Failure> {
    let failed =
        |what: &str, error: io::Error| Failure::new(Reason::Namespace, format!("{what}: {error}"));
    let own = fs::metadata(OWN)
        .and_then(|own| Ok(same(&own, &namespace.metadata()?)))
        .map_err(|error| failed("the agent's own network namespace", error))?;
    let opened = if own {
        sockets()
    } else {
        let (done, opened) = oneshot::channel();
        netns::run_in(namespace, sockets, move |result| {
            // The caller may have given up.
            let _ = done.send(result);
        })
        .map_err(|error| failed("no thread could be started", error))?;
        opened.await.map_err(|_| {
            let text = "the thread that enters namespaces has ended";
            Failure::new(Reason::Namespace, text)
        })?
    };
    opened.map_err(|error| failed("a socket in the cgroup's network namespace", error))
}

/// Connects to a port of the loopback addresses, inside the network namespace of a cgroup.
///
/// # Errors
///
/// Why the connection failed. If no address answers, the error is IPv4's.
pub async fn connect(
    directory: &Path,
    preferred: Option<u32>,
    host: bool,
    port: u16,
) -> Result<TcpStream, Failure> {
    let namespace = namespace(directory, preferred, host)?;
    let mut first = None;
    for (address, socket) in sockets_in(namespace).await? {
        let connected = tokio::time::timeout(CONNECT, socket.connect((address, port).into()));
        let connected = connected.await.unwrap_or_else(|_| {
            let text = format!("no connection within {} s", CONNECT.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        });
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => first = first.or(Some(error)),
        }
    }
    let error = first.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
    let reason = match error.kind() {
        io::ErrorKind::TimedOut => Reason::Timeout,
        _ => Reason::Connect,
    };
    Err(Failure::new(
        reason,
        format!("connecting to port {port}: {error}"),
    ))
}
