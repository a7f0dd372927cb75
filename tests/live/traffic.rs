//! Network orders of a worker: its own namespace, datagrams, connections, echo requests.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// Maximum wait for a packet. A lost packet fails the test.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

/// Sockets that network orders have left open.
#[derive(Default)]
pub struct Traffic {
    udp: Option<UdpSocket>,
    listener: Option<TcpListener>,
}

impl Traffic {
    /// Carries out an order. Returns `None` if it is not one of these.
    pub fn obey(&mut self, words: &[&str]) -> Option<Result<()>> {
        Some(match *words {
            ["unshare-net"] => unshare(),
            ["join-net", pid] => join(pid),
            ["namespaces", count] => namespaces(count),
            ["ip", ..] => run(words),
            ["wait-up", interface] => wait_up(interface),
            ["udp-bind", address] => self.bind(address),
            ["udp-send", address, count, size] => self.send(address, count, size),
            ["udp-receive", count] => self.receive(count),
            ["tcp-listen", address] => self.listen(address),
            ["tcp-serve"] => self.serve(),
            ["tcp-send", address, bytes] => connect_and_send(address, bytes),
            ["ping", address, count, size] => ping(address, count, size),
            ["frames", interface, count] => frames(interface, count),
            _ => return None,
        })
    }

    fn bind(&mut self, address: &str) -> Result<()> {
        // The port may be the same as before.
        self.udp = None;
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(PATIENCE)?;
        self.udp = Some(socket);
        Ok(())
    }

    fn send(&mut self, address: &str, count: &str, size: &str) -> Result<()> {
        let socket = self.udp.as_ref().context("not bound")?;
        let address: SocketAddr = address.parse()?;
        let payload = vec![b'x'; size.parse()?];
        for _ in 0..count.parse::<u32>()? {
            ensure!(socket.send_to(&payload, address)? == payload.len());
        }
        Ok(())
    }

    fn receive(&mut self, count: &str) -> Result<()> {
        let socket = self.udp.as_ref().context("not bound")?;
        let mut buffer = [0; 65_536];
        for n in 0..count.parse::<u32>()? {
            socket
                .recv(&mut buffer)
                .with_context(|| format!("after {n} datagrams"))?;
        }
        Ok(())
    }

    fn listen(&mut self, address: &str) -> Result<()> {
        self.listener = Some(TcpListener::bind(address)?);
        Ok(())
    }

    /// Accepts one connection, reads it to its end and closes it.
    fn serve(&mut self) -> Result<()> {
        let listener = self.listener.as_ref().context("not listening")?;
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(PATIENCE)?;
        let mut buffer = vec![0; 1 << 16];
        while stream.read(&mut buffer)? > 0 {}
        Ok(())
    }
}

fn last() -> anyhow::Error {
    std::io::Error::last_os_error().into()
}

/// Starts processes that each sleep in a namespace of their own until this process ends.
fn namespaces(count: &str) -> Result<()> {
    for _ in 0..count.parse::<u32>()? {
        let (mut inside, child) = std::io::pipe()?;
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            // SAFETY: the child makes system calls only, until it is killed.
            0 => unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::unshare(libc::CLONE_NEWNET) != 0 {
                    libc::_exit(1);
                }
                libc::write(child.as_raw_fd(), c"x".as_ptr().cast(), 1);
                loop {
                    libc::pause();
                }
            },
            -1 => return Err(std::io::Error::last_os_error().into()),
            _ => {
                drop(child);
                inside.read_exact(&mut [0]).context("in a new namespace")?;
            }
        }
    }
    Ok(())
}

fn unshare() -> Result<()> {
    // SAFETY: no memory is passed.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(last().context("unshare"));
    }
    run(&["ip", "link", "set", "lo", "up"])
}

fn join(pid: &str) -> Result<()> {
    let file = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    // SAFETY: the descriptor is open.
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    if result != 0 {
        return Err(last().context("setns"));
    }
    Ok(())
}

/// Runs a program and waits for its end.
pub fn run(words: &[&str]) -> Result<()> {
    let (program, arguments) = words.split_first().context("no program")?;
    let output = Command::new(program).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Waits until an interface can send. Until shortly after its veth peer is up, the kernel drops
/// packets.
fn wait_up(interface: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let output = Command::new("ip")
            .args(["-o", "link", "show", "dev", interface])
            .output()?;
        if String::from_utf8_lossy(&output.stdout).contains("state UP") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{interface} does not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends all data, reports it, and closes only after the other side has. So no packet arrives for a
/// connection that no longer exists.
fn connect_and_send(address: &str, bytes: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(PATIENCE)?;
    let block = vec![b'x'; 1 << 16];
    let mut left: usize = bytes.parse()?;
    while left > 0 {
        let part = left.min(block.len());
        stream.write_all(&block[..part])?;
        left -= part;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    ensure!(
        stream.read(&mut [0])? == 0,
        "unexpected data from the other side"
    );
    Ok(())
}

fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    ensure!(fd >= 0, "socket: {}", last());
    // SAFETY: the kernel has just created this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends IPv4 echo requests over a raw socket. Each is answered before the next is sent.
fn ping(address: &str, count: &str, size: &str) -> Result<()> {
    let address: Ipv4Addr = address.parse()?;
    // UdpSocket's calls also work on a raw socket.
    let socket = UdpSocket::from(socket(
        libc::AF_INET,
        libc::SOCK_RAW | libc::SOCK_CLOEXEC,
        libc::IPPROTO_ICMP,
    )?);
    socket.set_read_timeout(PATIENCE)?;
    let mut request = vec![0u8; 8 + size.parse::<usize>()?];
    // Type: echo request. Everything else is 0, so the checksum is the complement of the type.
    request[0] = 8;
    request[2..4].copy_from_slice(&(!0x0800u16).to_be_bytes());
    let mut answer = [0; 65_536];
    for n in 0..count.parse::<u32>()? {
        socket.send_to(&request, (address, 0))?;
        let got = socket
            .recv(&mut answer)
            .with_context(|| format!("after {n} answers"))?;
        ensure!(
            got == 20 + request.len() && answer[20] == 0,
            "not an answer"
        );
    }
    Ok(())
}

/// Sends frames of an unknown protocol, which the interface at the other end drops.
fn frames(interface: &str, count: &str) -> Result<()> {
    /// IEEE Std 802: local experimental Ethertype.
    const EXPERIMENTAL: u16 = 0x88b5;
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0)?;
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: the string is NUL-terminated, and an all-zero address is valid.
    let (index, mut to): (_, libc::sockaddr_ll) =
        unsafe { (libc::if_nametoindex(name.as_ptr()), std::mem::zeroed()) };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index as i32;
    to.sll_protocol = EXPERIMENTAL.to_be();
    let mut frame = [0xff; 60];
    frame[12..14].copy_from_slice(&EXPERIMENTAL.to_be_bytes());
    for _ in 0..count.parse::<u32>()? {
        // SAFETY: frame and address have the lengths that are passed.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        ensure!(sent == frame.len() as isize, "sendto: {}", last());
    }
    Ok(())
}
