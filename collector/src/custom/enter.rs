//! Into a container's network namespace: whose it is, and a connection from within.
//!
//! Invariants: the process by which a namespace is found was in the cgroup after the namespace had
//! been opened, so that a pid that is another's by now is never followed; the host's own namespace
//! and the agent's are not entered unless that is allowed.

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

use super::{Failure, Reason};
use crate::kernel::netns;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(1);
/// How many cgroups below one are searched for a process.
const SEARCH: usize = 256;

/// The first process of a cgroup, or of those below it.
fn process(directory: &Path, preferred: Option<u32>) -> io::Result<Option<u32>> {
    let mut left = vec![directory.to_owned()];
    let mut looked = 0;
    while let Some(directory) = left.pop() {
        let text = fs::read_to_string(directory.join("cgroup.procs"))?;
        // 0 is a process that this PID namespace doesn't show.
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

/// Whether two files are the same namespace.
fn same(left: &fs::Metadata, right: &fs::Metadata) -> bool {
    (left.dev(), left.ino()) == (right.dev(), right.ino())
}

/// The network namespace of a cgroup's processes.
fn namespace(directory: &Path, preferred: Option<u32>, host: bool) -> Result<File, Failure> {
    let failed = |error: io::Error| {
        Failure::new(
            Reason::Namespace,
            format!("its network namespace can't be found: {error}"),
        )
    };
    let none = || {
        Failure::new(
            Reason::Namespace,
            "it has no process that the agent can see",
        )
    };
    let pid = process(directory, preferred)
        .map_err(failed)?
        .ok_or_else(none)?;
    let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(failed)?;
    // The pid may be another process's by now, unless it is still in there.
    if process(directory, Some(pid)).map_err(failed)? != Some(pid) {
        return Err(none());
    }
    if !host && is_host(&namespace.metadata().map_err(failed)?).map_err(failed)? {
        return Err(Failure::new(
            Reason::HostNetwork,
            "it shares the host's network namespace, where any port could be meant; \
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
    // pid 1 is the host's where the agent can see the host's processes at all.
    match fs::metadata("/proc/1/ns/net") {
        Ok(first) => Ok(same(&first, found)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                tracing::warn!(
                    "custom metrics: the network namespace of process 1 can't be read, which takes \
                     CAP_SYS_PTRACE; the agent's own is taken for the host's"
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
/// Why not.
pub async fn connect(
    directory: &Path,
    preferred: Option<u32>,
    host: bool,
    port: u16,
) -> Result<TcpStream, Failure> {
    let namespace = namespace(directory, preferred, host)?;
    let (done, connected) = oneshot::channel();
    netns::connect_in(namespace, port, CONNECT, move |result| {
        // Whoever asked may have given up.
        let _ = done.send(result);
    })
    .map_err(|error| Failure::new(Reason::Namespace, format!("no thread: {error}")))?;
    let result = connected
        .await
        .map_err(|_| Failure::new(Reason::Namespace, "the thread that enters namespaces ended"))?;
    result.map_err(|error| {
        let reason = match error.kind() {
            io::ErrorKind::TimedOut => Reason::Timeout,
            io::ErrorKind::PermissionDenied => Reason::Namespace,
            _ => Reason::Connect,
        };
        Failure::new(reason, format!("connecting to port {port}: {error}"))
    })
}
