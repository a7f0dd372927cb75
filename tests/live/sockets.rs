//! A worker's orders for sockets. They begin with `tcp` or `udp`. A `PLACE` is an address and a
//! port, as two words.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// IPPROTO_MPTCP
const MPTCP: libc::c_int = 262;
/// Maximum wait for any event.
const PATIENCE: Duration = Duration::from_secs(30);

/// A worker's sockets.
#[derive(Default)]
pub struct Sockets {
    listeners: Vec<OwnedFd>,
    connections: Vec<TcpStream>,
    /// Connections that are not established yet.
    pending: Vec<OwnedFd>,
    datagrams: Vec<UdpSocket>,
}

impl Sockets {
    /// Carries out an order and returns the answer, if there is one.
    pub fn obey(&mut self, words: &[&str]) -> Result<String> {
        let number = |at: usize| -> Result<usize> {
            let word = words.get(at).context("a number is missing")?;
            Ok(word.parse()?)
        };
        let place = || -> Result<SocketAddr> {
            let address: IpAddr = words.get(2).context("no address")?.parse()?;
            Ok(SocketAddr::new(address, number(3)? as u16))
        };
        let has = |word: &str| words.contains(&word);
        let protocol = if has("mptcp") { MPTCP } else { 0 };
        match words[..2.min(words.len())] {
            // PLACE [mptcp] [deaf]
            ["tcp", "listen"] => {
                let socket = listener(place()?, protocol)?;
                if has("deaf") {
                    filter(socket.as_raw_fd(), true)?;
                }
                self.listeners.push(socket);
            }
            // PLACE N [mptcp]
            ["tcp", "connect"] => {
                for _ in 0..number(4)? {
                    let socket = socket(place()?, libc::SOCK_STREAM, protocol)?;
                    connect(&socket, place()?)?;
                    self.connections.push(TcpStream::from(socket));
                }
            }
            // PLACE: a socket bound to it and connected to itself
            ["tcp", "self"] => {
                let socket = socket(place()?, libc::SOCK_STREAM, 0)?;
                bind(&socket, place()?)?;
                connect(&socket, place()?)?;
                self.connections.push(TcpStream::from(socket));
            }
            // N: accepts from the last listener
            ["tcp", "accept"] => {
                let listener = self.listeners.last().context("no listener")?;
                for _ in 0..number(2)? {
                    ensure!(poll(listener, libc::POLLIN)?, "nobody calls");
                    // SAFETY: accept(2) without an address writes no memory.
                    let socket = owned(unsafe {
                        libc::accept4(
                            listener.as_raw_fd(),
                            std::ptr::null_mut(),
                            std::ptr::null_mut(),
                            libc::SOCK_CLOEXEC,
                        )
                    })?;
                    self.connections.push(TcpStream::from(socket));
                }
            }
            // PLACE N: no socket listens there
            ["tcp", "refused"] => {
                for _ in 0..number(4)? {
                    let socket = socket(place()?, libc::SOCK_STREAM, 0)?;
                    let error = connect(&socket, place()?).err().context("connected")?;
                    ensure!(error.kind() == io::ErrorKind::ConnectionRefused, "{error}");
                }
            }
            // PLACE N [deaf] [impatient]
            ["tcp", "ask"] => {
                for _ in 0..number(4)? {
                    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
                    let socket = socket(place()?, kind, 0)?;
                    if has("impatient") {
                        set(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_SYNCNT, &1)?;
                    }
                    if has("deaf") {
                        filter(socket.as_raw_fd(), true)?;
                    }
                    let error = connect(&socket, place()?).err().context("connected")?;
                    ensure!(error.raw_os_error() == Some(libc::EINPROGRESS), "{error}");
                    self.pending.push(socket);
                }
            }
            // Returns the errors of the pending connections, in their order. Those that succeed
            // become connections.
            ["tcp", "outcome"] => {
                let mut answer = String::new();
                for socket in std::mem::take(&mut self.pending) {
                    ensure!(poll(&socket, libc::POLLOUT)?, "no outcome");
                    let error = get::<libc::c_int>(&socket, libc::SOL_SOCKET, libc::SO_ERROR)?;
                    answer += &format!("{error} ");
                    if error == 0 {
                        let stream = TcpStream::from(socket);
                        stream.set_nonblocking(false)?;
                        self.connections.push(stream);
                    }
                }
                return Ok(answer + "\n");
            }
            ["tcp", "give-up"] => self.pending.clear(),
            // BYTES on each connection. It waits for room in the buffer.
            ["tcp", "write"] => {
                let bytes = vec![7; number(2)?];
                for stream in &mut self.connections {
                    stream.write_all(&bytes)?;
                }
            }
            ["tcp", "read"] => {
                let mut bytes = vec![0; number(2)?];
                for stream in &mut self.connections {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    stream.read_exact(&mut bytes)?;
                }
            }
            // Drops every packet that arrives, as if it were lost on the way.
            ["tcp", "deaf"] | ["tcp", "hear"] => {
                let deaf = words[1] == "deaf";
                let pending = self.pending.iter().map(AsRawFd::as_raw_fd);
                let all = self.connections.iter().map(AsRawFd::as_raw_fd);
                for socket in all.chain(pending) {
                    filter(socket, deaf)?;
                }
            }
            // Sums over the connections: number, retransmitted segments, smoothed round-trip time
            // in µs.
            ["tcp", "info"] => {
                let (mut again, mut rtt) = (0, 0);
                for stream in &self.connections {
                    let info = get::<libc::tcp_info>(stream, libc::IPPROTO_TCP, libc::TCP_INFO)?;
                    again += u64::from(info.tcpi_total_retrans);
                    rtt += u64::from(info.tcpi_rtt);
                }
                return Ok(format!("{} {again} {rtt}\n", self.connections.len()));
            }
            ["tcp", "close"] => self.connections.clear(),
            ["tcp", "reset"] => {
                let linger = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                for stream in self.connections.drain(..) {
                    let socket = stream.as_raw_fd();
                    set(socket, libc::SOL_SOCKET, libc::SO_LINGER, &linger)?;
                }
            }
            // PLACE RECEIVE-BUFFER [deaf]
            ["udp", "bind"] => {
                let socket = UdpSocket::bind(place()?)?;
                let size = number(4)? as libc::c_int;
                set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &size)?;
                if has("deaf") {
                    filter(socket.as_raw_fd(), true)?;
                }
                self.datagrams.push(socket);
            }
            // PLACE N SIZE: returns how many were refused with EPERM.
            ["udp", "send"] => {
                let to = place()?;
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                let bytes = vec![7; number(5)?];
                let mut refused = 0;
                for _ in 0..number(4)? {
                    match socket.send_to(&bytes, to) {
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                            refused += 1;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                return Ok(format!("{refused}\n"));
            }
            _ => bail!("unknown order"),
        }
        Ok(String::new())
    }
}

fn owned(socket: RawFd) -> io::Result<OwnedFd> {
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn socket(place: SocketAddr, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    let family = match place {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    // SAFETY: no memory is passed.
    owned(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })
}

/// A socket address in the kernel's form, and its length.
fn raw(place: SocketAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    // SAFETY: all zeros are valid for both structures.
    let mut to: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    match place {
        SocketAddr::V6(place) => {
            to.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            to.sin6_port = place.port().to_be();
            to.sin6_addr.s6_addr = Ipv6Addr::octets(place.ip());
            (to, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
        SocketAddr::V4(place) => {
            // struct sockaddr_in: family, port, then the address in the place of flowinfo.
            to.sin6_family = libc::AF_INET as libc::sa_family_t;
            to.sin6_port = place.port().to_be();
            to.sin6_flowinfo = u32::from_ne_bytes(place.ip().octets());
            (to, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
    }
}

fn connect(socket: &OwnedFd, place: SocketAddr) -> io::Result<()> {
    let (to, length) = raw(place);
    // SAFETY: `to` is a socket address of that length.
    match unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bind(socket: &OwnedFd, place: SocketAddr) -> io::Result<()> {
    let (at, length) = raw(place);
    // SAFETY: `at` is a socket address of that length.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const at).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn listener(place: SocketAddr, protocol: libc::c_int) -> Result<OwnedFd> {
    let listener = socket(place, libc::SOCK_STREAM, protocol)?;
    bind(&listener, place)?;
    // SAFETY: the descriptor is a socket, and no memory is passed.
    if unsafe { libc::listen(listener.as_raw_fd(), 128) } != 0 {
        return Err(io::Error::last_os_error()).context("listening");
    }
    Ok(listener)
}

fn set<T>(socket: RawFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value has the length that is passed.
    match unsafe { libc::setsockopt(socket, level, name, (&raw const *value).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The value of an option. `T` is a structure of integers.
fn get<T>(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut length = size_of::<T>() as libc::socklen_t;
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let to = value.as_mut_ptr().cast();
    // SAFETY: `value` has room for the length that is passed.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, to, &raw mut length) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the memory is zeroed, and integers may have any bits.
    Ok(unsafe { value.assume_init() })
}

/// Makes a socket drop everything that it receives, or ends this. The filter is one instruction
/// that passes no byte.
fn filter(socket: RawFd, on: bool) -> io::Result<()> {
    static DROP: libc::sock_filter = libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: 0,
    };
    if !on {
        return set(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0);
    }
    let program = libc::sock_fprog {
        len: 1,
        filter: (&raw const DROP).cast_mut(),
    };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Waits for an event of a socket.
fn poll(socket: &impl AsRawFd, events: libc::c_short) -> io::Result<bool> {
    let end = Instant::now() + PATIENCE;
    let mut wanted = libc::pollfd {
        fd: socket.as_raw_fd(),
        events,
        revents: 0,
    };
    while Instant::now() < end {
        // SAFETY: the array has one entry.
        match unsafe { libc::poll(&raw mut wanted, 1, 1000) } {
            0 => {}
            1 => return Ok(true),
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(false)
}
