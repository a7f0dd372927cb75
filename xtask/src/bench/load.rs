//! Loads: context switches, processes, cgroups.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result};

/// A flag of clone3 (include/uapi/linux/sched.h), a C int in the libc crate.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Two threads on one CPU that hand a byte to and fro through pipes: two context switches a round
/// trip. Returns ns a round trip.
pub fn ping_pong(round_trips: u32) -> Result<f64> {
    let (their_end, mut there) = std::io::pipe()?;
    let (mut ours, back) = std::io::pipe()?;
    let other = std::thread::spawn(move || {
        pin_to_last_cpu();
        let (mut theirs, mut back) = (their_end, back);
        let mut byte = [0];
        // Ends when the other side closes its pipe.
        while theirs.read_exact(&mut byte).is_ok() && back.write_all(&byte).is_ok() {}
    });
    let this = std::thread::spawn(move || -> std::io::Result<f64> {
        pin_to_last_cpu();
        let mut byte = [0];
        let begin = Instant::now();
        for _ in 0..round_trips {
            there.write_all(&byte)?;
            ours.read_exact(&mut byte)?;
        }
        Ok(begin.elapsed().as_nanos() as f64 / f64::from(round_trips))
    });
    let time = this
        .join()
        .map_err(|_| anyhow::anyhow!("the ping-pong panicked"))??;
    let _ = other.join();
    Ok(time)
}

fn pin_to_last_cpu() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    // SAFETY: an all-zero set is empty; the CPU is within it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpus - 1, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// Datagrams from one socket to another over loopback: a packet sent and one received each.
pub fn datagrams(count: usize) -> Result<()> {
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    sender.connect(receiver.local_addr()?)?;
    let mut buffer = [0; 64];
    for _ in 0..count {
        sender.send(&buffer)?;
        receiver.recv(&mut buffer)?;
    }
    Ok(())
}

/// Starts and waits for processes.
pub fn processes(count: usize) -> Result<()> {
    for _ in 0..count {
        Command::new("/bin/true").stdout(Stdio::null()).status()?;
    }
    Ok(())
}

/// Opens and closes TCP connections over loopback: six changes of state each. The client closes
/// with a byte unread, which resets the connection, so that no port is left in TIME_WAIT.
pub fn connections(count: usize) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    for _ in 0..count {
        let client = TcpStream::connect(address)?;
        let (mut server, _) = listener.accept()?;
        server.write_all(b"x")?;
        drop(client);
    }
    Ok(())
}

/// Makes the kernel retransmit on `count` connections, some three times each: a filter of the receiver
/// drops everything.
pub fn retransmits(count: usize) -> Result<()> {
    // BPF_RET | BPF_K, 0: keeps 0 bytes of each packet.
    let mut nothing = libc::sock_filter {
        code: 6,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let filter = libc::sock_fprog {
        len: 1,
        filter: &raw mut nothing,
    };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut connections = Vec::new();
    for _ in 0..count {
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        // SAFETY: the program and its only instruction outlive the call, which copies them.
        let result = unsafe {
            libc::setsockopt(
                server.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const filter).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(std::io::Error::last_os_error()).context("attaching a filter");
        }
        client.write_all(b"x")?;
        connections.push((client, server));
    }
    // Retransmissions come after 0.2, 0.6 and 1.4 s.
    std::thread::sleep(std::time::Duration::from_millis(1600));
    Ok(())
}

/// Sends datagrams over loopback to a socket that nobody reads. Once its buffer is full, the kernel
/// drops them.
pub fn drops(count: usize) -> Result<()> {
    let deaf = UdpSocket::bind("127.0.0.1:0")?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(deaf.local_addr()?)?;
    for _ in 0..count {
        socket.send(&[7; 1000])?;
    }
    Ok(())
}

/// Cgroups in a tree of their own. A process has run in each.
pub struct Cgroups(PathBuf);

impl Cgroups {
    /// Makes the cgroups.
    pub fn make(count: usize) -> Result<Self> {
        let top = root()?.join(format!("cgmeter-bench-{}", std::process::id()));
        fs::create_dir(&top).with_context(|| format!("making {}", top.display()))?;
        let cgroups = Self(top);
        // Ten to a folder: as deep as containers in pods.
        for n in 0..count {
            let folder = cgroups.0.join(format!("slice-{:04}", n / 10));
            fs::create_dir_all(&folder)?;
            let cgroup = folder.join(format!("container-{n:05}"));
            fs::create_dir(&cgroup)?;
            enter(&cgroup)?;
        }
        Ok(cgroups)
    }
}

/// Runs a process in a cgroup, which sleeps twice and ends.
pub fn enter(cgroup: &Path) -> Result<()> {
    let file = std::ffi::CString::new(
        cgroup
            .join("cgroup.procs")
            .into_os_string()
            .into_encoded_bytes(),
    )?;
    // SAFETY: the child calls nothing but system calls.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let fd = libc::open(file.as_ptr(), libc::O_WRONLY);
            libc::write(fd, c"0".as_ptr().cast(), 1);
            libc::usleep(1);
            libc::usleep(1);
            libc::_exit(0);
        }
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    Ok(())
}

/// Runs a process that is born in a cgroup and ends at once.
pub fn be_born(cgroup: &Path) -> Result<()> {
    let directory = fs::File::open(cgroup)?;
    // SAFETY: `clone_args` consists of integers.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = directory.as_raw_fd() as u64;
    // SAFETY: the child has memory of its own, and calls nothing but `_exit`.
    let child = unsafe {
        let size = size_of::<libc::clone_args>();
        let child = libc::syscall(libc::SYS_clone3, &raw mut arguments, size);
        if child == 0 {
            libc::_exit(0);
        }
        child
    };
    if child < 0 {
        return Err(std::io::Error::last_os_error()).context("clone3");
    }
    // SAFETY: the status is not wanted.
    unsafe { libc::waitpid(child as libc::pid_t, std::ptr::null_mut(), 0) };
    Ok(())
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

/// The root of cgroup2.
pub fn root() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let line = text
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .context("no cgroup2")?;
    Ok(PathBuf::from(line.split(' ').nth(4).unwrap_or_default()))
}
