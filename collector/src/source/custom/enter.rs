//! Enters a container's network namespace and connects from within.
//!
//! Invariants: the process that leads to a namespace is still in the cgroup after the namespace was
//! opened, so a reused pid is never followed. The host's network namespace and the agent's own are
//! entered only if that is allowed.

use std::{
    fs::{self, File},
    io,
    net::TcpStream,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Once,
    time::Duration,
};

use tokio::sync::oneshot;

use super::store::{Failure, Reason};
use crate::kernel::netns;

/// Time limit for a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// Maximum number of cgroups that are searched for a process.
const SEARCH: usize = 256;

/// Returns a process of a cgroup, or of its descendants if it has none itself. It is `preferred` if
/// that one is in the same cgroup.
fn process(directory: &Path, preferred: Option<u32>) -> io::Result<Option<u32>> {
    let mut left = vec![directory.to_owned()];
    let mut looked = 0;
    while let Some(directory) = left.pop() {
        let text = fs::read_to_string(directory.join("cgroup.procs"))?;
        // 0 stands for a process outside this PID namespace.
        let mut pids = text.lines().filter_map(|pid| pid.parse().ok());
        let first = pids.clone().find(|&pid| pid != 0);
        if let Some(pid) = preferred
            .filter(|&pid| pids.any(|found| found == pid))
            .or(first)
        {
            return Ok(Some(pid));
        }
        looked += 1;
        if looked == SEARCH {
            break;
        }
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
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
    if same(&fs::metadata("/proc/thread-self/ns/net")?, found) {
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

/// Connects to a port of the loopback address, inside the network namespace of a cgroup.
///
/// # Errors
///
/// Why the connection failed.
pub async fn connect(
    directory: &Path,
    preferred: Option<u32>,
    host: bool,
    port: u16,
) -> Result<TcpStream, Failure> {
    let namespace = namespace(directory, preferred, host)?;
    let (done, connected) = oneshot::channel();
    netns::connect_in(namespace, port, CONNECT, move |result| {
        // The caller may have given up.
        let _ = done.send(result);
    })
    .map_err(|error| {
        Failure::new(
            Reason::Namespace,
            format!("no thread could be started: {error}"),
        )
    })?;
    let result = connected.await.map_err(|_| {
        Failure::new(
            Reason::Namespace,
            "the thread that enters namespaces has ended",
        )
    })?;
    result.map_err(|error| {
        let reason = match error.kind() {
            io::ErrorKind::TimedOut => Reason::Timeout,
            io::ErrorKind::PermissionDenied => Reason::Namespace,
            _ => Reason::Connect,
        };
        Failure::new(reason, format!("connecting to port {port}: {error}"))
    })
}
