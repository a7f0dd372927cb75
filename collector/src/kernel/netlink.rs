//! rtnetlink: names and counters of the interfaces in one network namespace.
//!
//! A socket belongs to the namespace in which it was opened and can be used from outside.
//!
//! The kernel answers while it is asked: the first part of an answer is in the socket's queue when
//! send(2) returns, and each further part once the one before has been received
//! (net/netlink/af_netlink.c, `netlink_dump_start`, `netlink_recvmsg`). An answer that is not there
//! will not come, because notices of changes had filled the queue. It is asked for again, after the
//! queue has been emptied and, if need be, without notices.
//!
//! Invariant: messages that are not from the kernel are ignored, malformed messages are errors, and
//! no call waits for an answer. Checked by tests/live/netdev.rs.

mod message;

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
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

/// Size of the buffer for a datagram. A part of a dump has at most 32 KiB
/// (net/netlink/af_netlink.c, `netlink_recvmsg`).
const BUFFER: usize = 64 << 10;
/// Receive queue of the socket, which the kernel doubles. It holds notices of changes; the part of an
/// answer that comes on top may be larger. More notices than fit cost a second request.
const QUEUE: libc::c_int = 8 << 10;
/// How often a dump is requested, because the answer was lost or something changed meanwhile.
const ATTEMPTS: usize = 5;
/// From this attempt on there are no notices that could fill the queue.
const UNDISTURBED: usize = 2;
/// Maximum number of datagrams that are received for one request. Whoever changes interfaces all the
/// time can't hold a reader for longer.
const MOST_DATAGRAMS: usize = 4096;

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

/// Whether a list of interfaces is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dump {
    /// Nothing changed while it was made.
    Consistent,
    /// Interfaces came or went meanwhile, each time that it was asked for. Some may be missing or
    /// occur twice.
    Disturbed,
}

/// What there was to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    /// A datagram of the kernel, with its length.
    Datagram(usize),
    /// Something that is left out: it was not from the kernel, or was lost, or a signal interrupted
    /// the call.
    Ignored,
    /// The queue is empty.
    Nothing,
}

/// The error of an answer for which there was no room.
fn lost() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOBUFS)
}

/// Whether an answer was lost, or the one before it is not at its end. Both pass.
fn is_lost(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOBUFS | libc::EBUSY | libc::ENOMEM)
    )
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
        rtnetlink.set(libc::SOL_SOCKET, libc::SO_RCVBUF, &QUEUE)?;
        rtnetlink.set_notices(true)?;
        Ok(rtnetlink)
    }

    /// Switches notices of changed links on or off.
    fn set_notices(&self, on: bool) -> io::Result<()> {
        let option = if on {
            libc::NETLINK_ADD_MEMBERSHIP
        } else {
            libc::NETLINK_DROP_MEMBERSHIP
        };
        let group = RTNLGRP_LINK;
        self.set(libc::SOL_NETLINK, option, &group)
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
        self.changed |= !matches!(result, Ok(Dump::Consistent));
        result.map(drop)
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
    ) -> io::Result<Dump> {
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
    ) -> io::Result<Dump> {
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                self.empty(buffer)?;
            }
            found.clear();
            let result = self.dump_once(kind, request, buffer, found, &read);
            let again = match &result {
                Ok(dump) => *dump == Dump::Disturbed,
                Err(error) => is_lost(error),
            };
            let last = !again || attempt + 1 == ATTEMPTS;
            if last && attempt >= UNDISTURBED {
                // What changed meanwhile was not noticed.
                self.changed = true;
                self.set_notices(true)?;
            }
            if last {
                return result;
            }
            if attempt + 1 == UNDISTURBED {
                self.set_notices(false)?;
            }
        }
        Err(lost())
    }

    /// Requests a dump once.
    fn dump_once<T>(
        &mut self,
        kind: MessageKind,
        request: &[u8],
        buffer: &mut Buffer,
        found: &mut Vec<T>,
        read: &impl Fn(&[u8]) -> io::Result<Option<T>>,
    ) -> io::Result<Dump> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&message::dump(kind, self.sequence, request))?;
        let mut dump = Dump::Consistent;
        for _ in 0..MOST_DATAGRAMS {
            let length = match self.receive(buffer)? {
                Received::Datagram(length) => length,
                Received::Ignored => continue,
                // There was no room for the answer.
                Received::Nothing => return Err(lost()),
            };
            for message in message::messages(buffer.0.get(..length).unwrap_or_default()) {
                let (header, payload) = message?;
                if !header.answers(self.sequence) {
                    // A notice, or an answer to an abandoned request.
                    self.changed = true;
                    continue;
                }
                if header.interrupted {
                    dump = Dump::Disturbed;
                }
                match header.kind {
                    message::DONE => return message::done(payload).map(|()| dump),
                    message::ERROR => return Err(message::error(payload)),
                    answer if answer == kind.answer() => found.extend(read(payload)?),
                    _ => {}
                }
            }
        }
        Err(lost())
    }

    /// Empties the queue. An answer that was abandoned comes to its end with that, so that the
    /// kernel accepts a further request.
    fn empty(&mut self, buffer: &mut Buffer) -> io::Result<()> {
        for _ in 0..MOST_DATAGRAMS {
            if self.receive(buffer)? == Received::Nothing {
                break;
            }
            self.changed = true;
        }
        Ok(())
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

    /// Receives a datagram, if there is one.
    fn receive(&mut self, buffer: &mut Buffer) -> io::Result<Received> {
        // SAFETY: `sockaddr_nl` consists of integers, so all zeros are valid.
        let mut from: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: buffer and address have the lengths that are passed.
        let received = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.0.as_mut_ptr().cast(),
                buffer.0.len(),
                libc::MSG_TRUNC | libc::MSG_DONTWAIT,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // Something was lost: a notice, or the answer.
                Some(libc::ENOBUFS) => {
                    self.changed = true;
                    Ok(Received::Ignored)
                }
                Some(libc::EINTR) => Ok(Received::Ignored),
                Some(libc::EAGAIN) => Ok(Received::Nothing),
                _ => Err(error),
            };
        };
        // Privileged processes in the namespace can send to this socket too. The kernel's port is
        // 0.
        if from.nl_pid != 0 {
            return Ok(Received::Ignored);
        }
        if received > buffer.0.len() {
            return Err(io::Error::other("a netlink datagram of more than 64 KiB"));
        }
        Ok(Received::Datagram(received))
    }
}
