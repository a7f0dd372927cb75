//! rtnetlink: names and counters of the interfaces in one network namespace.
//!
//! A socket belongs to the namespace in which it was opened and can be used from outside.
//! Invariant: messages that are not from the kernel are ignored, malformed messages are errors, and
//! no call waits for longer than `PATIENCE`.

mod message;

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use message::MessageKind;

/// Counters of an interface, by [`Counter`].
pub type InterfaceCounters = [u64; COUNTERS];

/// Number of [`Counter`]s.
pub const COUNTERS: usize = 8;

/// A counter of an interface. The values are indexes into [`InterfaceCounters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Bytes received.
    ReceiveBytes,
    /// Packets received.
    ReceivePackets,
    /// Errors on receive.
    ReceiveErrors,
    /// Packets dropped on receive. As in /proc/net/dev, packets that the device missed are
    /// included.
    ReceiveDropped,
    /// Bytes transmitted.
    TransmitBytes,
    /// Packets transmitted.
    TransmitPackets,
    /// Errors on transmit.
    TransmitErrors,
    /// Packets dropped on transmit.
    TransmitDropped,
}

/// Maximum wait for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Size of the buffer for a datagram. A part of a dump has at most 32 KiB
/// (net/netlink/af_netlink.c, `netlink_recvmsg`).
const BUFFER: usize = 64 << 10;
/// Receive queue of the socket. It holds a part of a dump and notices of changes.
const QUEUE: libc::c_int = 32 << 10;
/// How often a dump is restarted because something changed meanwhile.
const ATTEMPTS: usize = 4;

const RTNLGRP_LINK: libc::c_int = 1;
/// `SO_NETNS_COOKIE` (5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A receive buffer, shared by sockets that are read one after the other.
pub struct Buffer(Box<[u8]>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; BUFFER].into_boxed_slice())
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Buffer")
    }
}

/// A socket in some network namespace.
#[derive(Debug)]
pub struct Rtnetlink {
    socket: OwnedFd,
    sequence: u32,
    /// Whether interfaces may have been added, removed or renamed since their names were read.
    changed: bool,
}

impl Rtnetlink {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// Errors of the socket calls.
    pub fn open() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::NETLINK_ROUTE,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just created this descriptor, and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let rtnetlink = Self {
            socket,
            sequence: 0,
            changed: true,
        };
        let patience = libc::timeval {
            tv_sec: PATIENCE.as_secs() as libc::time_t,
            tv_usec: 0,
        };
        rtnetlink.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience)?;
        rtnetlink.set(libc::SOL_SOCKET, libc::SO_RCVBUF, &QUEUE)?;
        let group = RTNLGRP_LINK;
        rtnetlink.set(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, &group)?;
        Ok(rtnetlink)
    }

    fn set<T>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the kernel reads `size_of::<T>()` bytes at `value`.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                name,
                (&raw const *value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// The namespace's cookie (`net.net_cookie`).
    ///
    /// # Errors
    ///
    /// Errors of the socket calls.
    pub fn cookie(&self) -> io::Result<u64> {
        let mut cookie = 0u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        // SAFETY: `cookie` is as long as `length` says.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        if result == 0 {
            Ok(cookie)
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Whether names may have changed since they were last read, as of the last answer. Notices of
    /// changes are in the same queue, before the answer.
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// Index and name of each interface.
    ///
    /// # Errors
    ///
    /// Errors of the socket calls, and malformed answers.
    pub fn names(&mut self, buffer: &mut Buffer, names: &mut Vec<(u32, String)>) -> io::Result<()> {
        let request = message::link_request();
        self.changed = false;
        let result = self.dump(MessageKind::GetLink, &request, buffer, names, |payload| {
            message::link(payload).map(Some)
        });
        self.changed |= result.is_err();
        result
    }

    /// Index and counters of each interface.
    ///
    /// # Errors
    ///
    /// See [`names`](Self::names).
    pub fn counters(
        &mut self,
        buffer: &mut Buffer,
        counters: &mut Vec<(u32, InterfaceCounters)>,
    ) -> io::Result<()> {
        let request = message::statistics_request();
        self.dump(
            MessageKind::GetStatistics,
            &request,
            buffer,
            counters,
            message::statistics,
        )
    }

    /// Requests a dump and collects what `read` returns for each answer.
    fn dump<T>(
        &mut self,
        kind: MessageKind,
        request: &[u8],
        buffer: &mut Buffer,
        found: &mut Vec<T>,
        read: impl Fn(&[u8]) -> io::Result<Option<T>>,
    ) -> io::Result<()> {
        for _ in 0..ATTEMPTS {
            found.clear();
            if self.dump_once(kind, request, buffer, found, &read)? {
                return Ok(());
            }
        }
        Err(io::Error::other(
            "the namespace's interfaces change faster than they can be read",
        ))
    }

    /// Requests a dump once. Returns whether it is consistent, that is, nothing changed meanwhile.
    fn dump_once<T>(
        &mut self,
        kind: MessageKind,
        request: &[u8],
        buffer: &mut Buffer,
        found: &mut Vec<T>,
        read: &impl Fn(&[u8]) -> io::Result<Option<T>>,
    ) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&message::dump(kind, self.sequence, request))?;
        let deadline = Instant::now() + PATIENCE;
        let mut undisturbed = true;
        while Instant::now() < deadline {
            let length = self.receive(buffer)?;
            for message in message::messages(buffer.0.get(..length).unwrap_or_default()) {
                let (header, payload) = message?;
                if !header.answers(self.sequence) {
                    // A notice, or an answer to an abandoned request.
                    self.changed = true;
                    continue;
                }
                undisturbed &= !header.interrupted;
                match header.kind {
                    message::DONE => return Ok(undisturbed),
                    message::ERROR => return Err(message::error(payload)),
                    answer if answer == kind.answer() => found.extend(read(payload)?),
                    _ => {}
                }
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the kernel reads `bytes.len()` bytes.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
            )
        };
        if sent == bytes.len() as isize {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Receives a datagram and returns its length. 0 if there is none to read: it was not from the
    /// kernel, was lost, or a signal interrupted the call.
    fn receive(&mut self, buffer: &mut Buffer) -> io::Result<usize> {
        // SAFETY: `sockaddr_nl` consists of integers, so all zeros are valid.
        let mut from: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: buffer and address have the lengths that are passed.
        let received = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.0.as_mut_ptr().cast(),
                buffer.0.len(),
                libc::MSG_TRUNC,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // Notices were lost. Dumps are never lost this way.
                Some(libc::ENOBUFS) => {
                    self.changed = true;
                    Ok(0)
                }
                Some(libc::EINTR) => Ok(0),
                _ => Err(error),
            };
        };
        // Privileged processes in the namespace can send to this socket too. The kernel's port is
        // 0.
        if from.nl_pid != 0 {
            return Ok(0);
        }
        if received > buffer.0.len() {
            return Err(io::Error::other("a netlink datagram of more than 64 KiB"));
        }
        Ok(received)
    }
}
