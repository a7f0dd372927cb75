//! Two network namespaces for a test, joined by a veth pair, with addresses of both families.
//!
//! Only descriptors hold them, so they end with the test in any case.

use std::{
    fs::{self, File},
    io,
    net::UdpSocket,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// IPv4 and IPv6 addresses of the left end.
pub const LEFT: [&str; 2] = ["10.203.0.1", "fd00:203::1"];
/// IPv4 and IPv6 addresses of the right end.
pub const RIGHT: [&str; 2] = ["10.203.0.2", "fd00:203::2"];

/// The network namespaces of a test.
#[derive(Debug)]
pub struct Namespaces {
    left: OwnedFd,
    right: OwnedFd,
}

impl Namespaces {
    /// Creates two namespaces with their devices up.
    pub fn new() -> Result<Self> {
        let pair = Self {
            left: unshared()?,
            right: unshared()?,
        };
        let right = format!("/proc/{}/fd/{}", std::process::id(), pair.right.as_raw_fd());
        let veth = format!("link add veth0 type veth peer name veth0 netns {right}");
        ip(pair.left(), &veth)?;
        for (namespace, [v4, v6]) in [(pair.left(), LEFT), (pair.right(), RIGHT)] {
            ip(namespace, &format!("address add {v4}/24 dev veth0"))?;
            ip(namespace, &format!("address add {v6}/64 dev veth0 nodad"))?;
            ip(namespace, "link set lo up")?;
            ip(namespace, "link set veth0 up")?;
        }
        pair.introduce()?;
        Ok(pair)
    }

    /// Makes both ends resolve each other's link addresses, so that the first packets of a test
    /// don't wait for that. It sends a datagram to a closed port, which is refused once it has
    /// arrived.
    fn introduce(&self) -> Result<()> {
        let left = self.left.try_clone()?;
        let thread = std::thread::spawn(move || -> io::Result<()> {
            // SAFETY: this changes only the namespace of this thread.
            if unsafe { libc::setns(left.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            for (from, to) in LEFT.into_iter().zip(RIGHT) {
                let socket = UdpSocket::bind((from, 0))?;
                socket.connect((to, 9))?;
                socket.set_read_timeout(Some(Duration::from_secs(10)))?;
                socket.send(b"hello")?;
                match socket.recv(&mut [0]) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    other => return Err(io::Error::other(format!("{to}: {other:?}"))),
                }
            }
            Ok(())
        });
        let done = thread
            .join()
            .map_err(|_| anyhow::anyhow!("the thread panicked"))?;
        done.context("the ends of the veth don't reach each other")
    }

    /// The namespace with the addresses [`LEFT`].
    pub fn left(&self) -> BorrowedFd<'_> {
        self.left.as_fd()
    }

    /// The namespace with the addresses [`RIGHT`].
    pub fn right(&self) -> BorrowedFd<'_> {
        self.right.as_fd()
    }
}

/// Creates a network namespace, in a thread that enters it and ends.
fn unshared() -> Result<OwnedFd> {
    let thread = std::thread::spawn(|| -> io::Result<OwnedFd> {
        // SAFETY: this changes only the namespace of this thread.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    });
    let namespace = thread
        .join()
        .map_err(|_| anyhow::anyhow!("the thread panicked"))?;
    namespace.context("making a network namespace")
}

/// Runs ip(8) in a namespace.
pub fn ip(namespace: BorrowedFd<'_>, arguments: &str) -> Result<()> {
    let namespace = namespace.as_raw_fd();
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    // SAFETY: only setns is called between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::setns(namespace, libc::CLONE_NEWNET) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let output = command.output().context("running ip")?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A counter of a process's namespace, from /proc/PID/net/snmp or netstat. These files have pairs
/// of lines with the same prefix: names, then numbers.
pub fn snmp(pid: u32, prefix: &str, name: &str) -> Result<f64> {
    for file in ["snmp", "netstat"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{file}"))?;
        let mut lines = text
            .lines()
            .filter_map(|line| line.strip_prefix(prefix)?.strip_prefix(':'));
        if let (Some(names), Some(numbers)) = (lines.next(), lines.next())
            && let Some((_, number)) = names
                .split_whitespace()
                .zip(numbers.split_whitespace())
                .find(|&(found, _)| found == name)
        {
            return Ok(number.parse()?);
        }
    }
    anyhow::bail!("no {prefix} {name} in /proc/{pid}/net")
}

/// A counter of /proc/PID/net/snmp6.
pub fn snmp6(pid: u32, name: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/snmp6"))?;
    let number = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    number.with_context(|| format!("no {name} in snmp6"))
}
