//! The server under attack: clients that never read, connections that are never used, and too few
//! descriptors. What they cost is measured in the kernel's own figures; beside them a scraper and
//! a slow reader are served.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::{Agent, FileLimit, memory},
    cgroup::Cgroup,
    needs::Need,
};

pub const TESTS: &[Test] = &[
    (
        "attack::clients_that_never_read",
        &[
            Need::Agent,
            Need::RealCpus,
            Need::LongTier("makes 1,000 cgroups and attacks for 40 s"),
        ],
        never_reading,
    ),
    (
        "attack::half_open_connections_renewed",
        &[
            Need::Agent,
            Need::RealCpus,
            Need::LongTier("opens 2,000 connections a second for 20 s"),
        ],
        half_open,
    ),
    (
        "attack::more_connections_than_descriptors",
        &[Need::Agent],
        few_descriptors,
    ),
];

/// Most memory that 1,000 clients that never read may cost the agent beside what one scraper costs,
/// bytes.
const MOST_RSS: u64 = 20_000_000;
/// Most memory of the kernel's sockets for them, bytes, those of the clients included.
const MOST_SOCKETS: u64 = 130_000_000;
/// Time after which a client that doesn't read has to be cut off. The agent's is 10 s, and it looks
/// once a second.
const CUT_OFF: Duration = Duration::from_secs(14);
/// What a scraper may wait for its answer.
const SOON: Duration = Duration::from_secs(1);

/// Raises the test's own limit of open files.
fn raise_limit() {
    // SAFETY: the limits are writable, then readable.
    unsafe {
        let mut limits: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limits);
        limits.rlim_cur = limits.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limits);
    }
}

/// Connects with a receive buffer of this size.
fn connect(port: u16, receive_buffer: libc::c_int) -> Result<TcpStream> {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes([127, 0, 0, 1]),
        },
        sin_zero: [0; 8],
    };
    let error = || std::io::Error::last_os_error();
    // SAFETY: pointers and lengths fit, and the descriptor is owned by this function.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        ensure!(fd >= 0, "socket: {}", error());
        let socket = OwnedFd::from_raw_fd(fd);
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const receive_buffer).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
        let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        let connected = libc::connect(fd, (&raw const address).cast(), length);
        ensure!(connected == 0, "connect: {}", error());
        Ok(TcpStream::from(socket))
    }
}

/// A client that asks for the metrics and never reads.
pub fn never_reader(port: u16) -> Result<TcpStream> {
    let mut stream = connect(port, 4096)?;
    // It may have been cut off already.
    let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    Ok(stream)
}

/// Whether the other side has ended a connection. Nothing is read.
fn is_ended(stream: &TcpStream) -> bool {
    let mut polled = libc::pollfd {
        fd: stream.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: the array has one entry; a timeout of 0 does not wait.
    unsafe { libc::poll(&raw mut polled, 1, 0) };
    polled.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}

/// Memory of all TCP sockets, bytes (net/ipv4/proc.c, sockstat_seq_show).
fn socket_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/sockstat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("TCP:"));
    let mut words = line.context("no TCP")?.split_whitespace();
    words.find(|word| *word == "mem").context("no mem")?;
    Ok(words.next().context("no number")?.parse::<u64>()? * 4096)
}

/// Cgroups in each of which a process has run.
fn populated(count: usize) -> Result<Vec<Cgroup>> {
    let parent = Cgroup::new()?;
    let mut cgroups = Vec::with_capacity(count + 1);
    for number in 0..count {
        let cgroup = parent.child(&format!("attack-{number:04}"))?;
        let script = "echo $$ > \"$0\"; true & wait";
        let status = Command::new("sh")
            .args(["-c", script])
            .arg(cgroup.procs())
            .status()?;
        ensure!(status.success(), "{status}");
        cgroups.push(cgroup);
    }
    // Removed after its children.
    cgroups.push(parent);
    Ok(cgroups)
}

/// Reads an answer at some 500 kB/s, and returns the length of its body and what was announced.
fn read_slowly(port: u16) -> Result<(usize, usize)> {
    let mut stream = connect(port, 64 << 10)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut part = [0; 10 << 10];
    loop {
        let count = stream.read(&mut part).context("cut off while it read")?;
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&part[..count]);
        thread::sleep(Duration::from_millis(20));
    }
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    let length = head
        .lines()
        .find_map(|l| l.strip_prefix("content-length: "));
    Ok((body.len(), length.context(head.to_owned())?.parse()?))
}

/// Keeps 1,000 clients that never read until it is `over`, and returns how many there were. Whoever
/// is cut off is renewed, also while somebody else waits for an answer.
fn attack(port: u16, over: &AtomicBool) -> Result<usize> {
    let mut clients: Vec<(Instant, TcpStream)> = Vec::new();
    let mut renewed = 0;
    while !over.load(SeqCst) {
        clients.retain(|(_, stream)| !is_ended(stream));
        let late = clients.iter().find(|(since, _)| since.elapsed() > CUT_OFF);
        ensure!(late.is_none(), "a client was not cut off");
        for _ in clients.len()..1000 {
            clients.push((Instant::now(), never_reader(port)?));
            renewed += 1;
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(renewed)
}

/// The most memory that an agent has while one scraper scrapes it, bytes.
fn peak_with_a_scraper(agent: &Agent) -> Result<u64> {
    // The peak begins anew (fs/proc/task_mmu.c, CLEAR_REFS_MM_HIWATER_RSS).
    fs::write(format!("/proc/{}/clear_refs", agent.pid()), "5")?;
    for _ in 0..5 {
        agent.body("/metrics", "")?;
        thread::sleep(Duration::from_millis(200));
    }
    memory(agent.pid(), "VmHWM")
}

fn never_reading() -> Result<()> {
    raise_limit();
    let agent = Agent::start(&[])?;
    let cgroups = populated(1000)?;
    for _ in 0..20 {
        agent.scrape()?;
    }
    let length = agent.body("/metrics", "")?.len();
    ensure!(length > 5_000_000, "only {length} bytes");
    let header = "X-Prometheus-Scrape-Timeout-Seconds: ";
    let answer = agent.get("/metrics", &format!("{header}0.001"))?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(answer.status == 503, "{}: {text}", answer.status);
    ensure!(text.contains("scrape_timeout"), "{text}");
    agent.body("/metrics", &format!("{header}30"))?;

    thread::sleep(Duration::from_secs(1));
    let (pid, port) = (agent.pid(), agent.port);
    let idle = memory(pid, "VmRSS")?;
    let before = (peak_with_a_scraper(&agent)?, socket_memory()?);
    let over = Arc::new(AtomicBool::new(false));
    let attacker = {
        let over = Arc::clone(&over);
        thread::spawn(move || attack(port, &over))
    };
    let sampler = {
        let over = Arc::clone(&over);
        thread::spawn(move || -> Result<(u64, u64)> {
            let mut most = (0, 0);
            while !over.load(SeqCst) {
                let now = (memory(pid, "VmRSS")?, socket_memory()?);
                most = (most.0.max(now.0), most.1.max(now.1));
                thread::sleep(Duration::from_millis(20));
            }
            Ok(most)
        })
    };
    let slow = thread::spawn(move || {
        thread::sleep(Duration::from_secs(2));
        read_slowly(port)
    });
    let begin = Instant::now();
    let mut waits = Vec::new();
    while begin.elapsed() < Duration::from_secs(40) {
        thread::sleep(Duration::from_millis(731));
        let asked = Instant::now();
        let body = agent.body("/metrics", "").context("a scrape in between")?;
        waits.push(asked.elapsed());
        ensure!(body.len() > 5_000_000, "{}", body.len());
    }
    let cut = agent.scrape()?;
    over.store(true, SeqCst);
    let panicked = |_| anyhow::anyhow!("panicked");
    let renewed = attacker.join().map_err(panicked)??;
    let most = sampler.join().map_err(panicked)??;
    for reason in ["place", "superseded", "stalled"] {
        let count = cut.get("cgmeter_http_connections_cut_total", &[("reason", reason)])?;
        println!("cut off, {reason}: {count}");
    }
    let (got, announced) = slow.join().map_err(panicked)??;
    ensure!(got == announced && got > 5_000_000, "{got} of {announced}");
    let cost = (
        most.0.saturating_sub(before.0),
        most.1.saturating_sub(before.1),
    );
    waits.sort_unstable();
    let slowest = *waits.last().context("no scrape")?;
    println!(
        "body {length} bytes; {renewed} clients; RSS {} kB, with a scraper {} kB, and {} kB more; sockets {} kB more; {} scrapes, \
         half of them within {:?}, the slowest in {slowest:?}",
        idle / 1000,
        before.0 / 1000,
        cost.0 / 1000,
        cost.1 / 1000,
        waits.len(),
        waits[waits.len() / 2],
    );
    ensure!(
        cost.0 <= MOST_RSS,
        "{} bytes of RSS, at most {MOST_RSS} are allowed",
        cost.0
    );
    ensure!(cost.1 <= MOST_SOCKETS, "{} bytes of sockets", cost.1);
    ensure!(slowest <= SOON, "an answer came after {slowest:?}");
    drop(cgroups);
    Ok(())
}

fn half_open() -> Result<()> {
    raise_limit();
    let agent = Agent::start(&[])?;
    let address = SocketAddr::from(([127, 0, 0, 1], agent.port));
    let over = Arc::new(AtomicBool::new(false));
    let attacker = {
        let over = Arc::clone(&over);
        thread::spawn(move || -> Result<usize> {
            let mut rounds = 0;
            let mut held = Vec::new();
            while !over.load(SeqCst) {
                let begin = Instant::now();
                let mut renewed = Vec::new();
                for number in 0..2000 {
                    let mut stream = TcpStream::connect(address)?;
                    // Half of them send the beginning of a head.
                    if number % 2 == 0 {
                        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost:");
                    }
                    renewed.push(stream);
                }
                held = renewed;
                rounds += 1;
                thread::sleep(Duration::from_secs(1).saturating_sub(begin.elapsed()));
            }
            drop(held);
            Ok(rounds)
        })
    };
    thread::sleep(Duration::from_secs(1));
    let mut slowest = Duration::ZERO;
    let mut late = 0;
    let begin = Instant::now();
    let mut scrapes = 0;
    while begin.elapsed() < Duration::from_secs(20) {
        let asked = Instant::now();
        agent.scrape().context("a scrape during the attack")?;
        let took = asked.elapsed();
        slowest = slowest.max(took);
        late += usize::from(took > SOON);
        scrapes += 1;
        // Not in step with the attack.
        thread::sleep(Duration::from_millis(137));
    }
    over.store(true, SeqCst);
    let rounds = attacker.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    println!("{rounds} times 2,000 connections; {scrapes} scrapes, the slowest in {slowest:?}");
    ensure!(rounds >= 18, "only {rounds} rounds in 20 s");
    ensure!(
        late == 0,
        "{late} of {scrapes} answers came late, after {slowest:?}"
    );
    Ok(())
}

fn few_descriptors() -> Result<()> {
    let agent = Agent::start(&[])?;
    let open = fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count() as u64;
    let _limit = FileLimit::set(agent.pid(), open + 20)?;
    let idle: Result<Vec<TcpStream>> = (0..100).map(|_| connect(agent.port, 4096)).collect();
    let idle = idle?;
    for _ in 0..3 {
        agent.scrape().context("without free descriptors")?;
    }
    let lines = agent.log();
    let lines = lines
        .lines()
        .filter(|line| line.contains("could not be accepted"));
    let lines = lines.count();
    ensure!(lines == 1, "{lines} lines: {}", agent.log());
    drop(idle);
    Ok(())
}
