//! A runtime that is dead, hangs or is hostile while the agent is scraped. The agent continues with
//! the records that it has. Every scrape is answered, and none waits long for the runtime.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    docker::{Docker, FOREVER, NEEDS, path},
    metrics::{Metrics, same},
    needs::Need,
    runtimes::{Folder, IMAGE, all_labelled, eventually},
};

pub const TESTS: &[Test] = &[
    ("docker_faults::killed_and_started_again", NEEDS, killed),
    ("docker_faults::hangs", NEEDS, hangs),
    ("docker_faults::hostile", &[Need::Agent], hostile),
];

fn up(metrics: &Metrics) -> f64 {
    metrics.sum("cgmeter_runtime_up", &[("runtime", "docker")])
}

/// Waits until the agent reports the runtime as up (1) or down (0).
fn wait_up(agent: &Agent, expected: f64) -> Result<()> {
    eventually(|| same("cgmeter_runtime_up", up(&agent.scrape()?), expected))
        .with_context(|| agent.log())
}

fn killed() -> Result<()> {
    let mut docker = Docker::start()?;
    let id = path(&docker.container(&["--name=web"], FOREVER)?);
    let agent = docker.agent(&[])?;
    let named =
        |metrics: &Metrics| all_labelled(metrics, &id, &[("name", "web"), ("image", IMAGE)]);
    named(&agent.scrape()?)?;
    wait_up(&agent, 1.0)?;
    docker.daemon.crash()?;
    // The containers are still running and still have their names.
    for _ in 0..20 {
        named(&agent.scrape()?)?;
    }
    wait_up(&agent, 0.0)?;
    named(&agent.scrape()?)?;
    let lines = agent.log();
    let reported = lines.lines().filter(|line| line.contains("docker")).count();
    for _ in 0..50 {
        agent.scrape()?;
    }
    let later = agent.log();
    let reported_later = later.lines().filter(|line| line.contains("docker")).count();
    ensure!(
        reported_later <= reported + 1,
        "it logs at each scrape: {later}"
    );
    // The new daemon ends the containers left by the crash and starts others.
    docker.again()?;
    wait_up(&agent, 1.0)?;
    let id = path(&docker.container(&["--name=after"], FOREVER)?);
    let metrics = agent.scrape()?;
    metrics.no_doubles()?;
    all_labelled(&metrics, &id, &[("name", "after"), ("image", IMAGE)])
}

/// Durations of scrapes: the median and the longest.
fn timed(agent: &Agent, scrapes: usize) -> Result<[Duration; 2]> {
    let mut times = Vec::new();
    for _ in 0..scrapes {
        let start = Instant::now();
        agent.scrape()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied();
    Ok([median, times.last().copied()].map(Option::unwrap_or_default))
}

/// A cgroup named like a container's that no runtime knows.
fn unknown(parent: &Cgroup, number: u64) -> Result<Cgroup> {
    let process = std::process::id();
    parent.child(&format!("{process:032x}{number:032x}"))
}

fn hangs() -> Result<()> {
    const SCRAPES: usize = 60;
    let docker = Docker::start()?;
    let id = path(&docker.container(&["--name=web"], FOREVER)?);
    let agent = docker.agent(&[])?;
    timed(&agent, 10)?;
    let [alive, _] = timed(&agent, SCRAPES)?;
    docker.daemon.signal(libc::SIGSTOP);
    // New containers, which make the agent query the runtime. The stopped daemon accepts
    // connections and does not answer.
    let parent = Cgroup::new()?;
    let mut unknowns = Vec::new();
    let mut medians = Vec::new();
    let mut longest = Duration::ZERO;
    for round in 0..5 {
        for number in 0..4 {
            unknowns.push(unknown(&parent, round * 4 + number)?);
        }
        let [median, most] = timed(&agent, SCRAPES / 5)?;
        medians.push(median);
        longest = longest.max(most);
        all_labelled(&agent.scrape()?, &id, &[("name", "web"), ("image", IMAGE)])?;
        sleep(Duration::from_millis(400));
    }
    wait_up(&agent, 0.0)?;
    let [down, most] = timed(&agent, SCRAPES)?;
    medians.push(down);
    longest = longest.max(most);
    println!(
        "a scrape with a runtime: {alive:?}; with a hanging one: {medians:?}, at most {longest:?}"
    );
    // The wait for a new name ends after 250 ms. A wait for an answer would take seconds.
    ensure!(
        longest < Duration::from_secs(1),
        "a scrape took {longest:?}"
    );
    for median in medians {
        ensure!(
            median < alive * 3 + Duration::from_millis(10),
            "a scrape took {median:?}, with a runtime that answers {alive:?}"
        );
    }
    docker.daemon.signal(libc::SIGCONT);
    wait_up(&agent, 1.0)?;
    let late = path(&docker.container(&["--name=late"], FOREVER)?);
    all_labelled(
        &agent.scrape()?,
        &late,
        &[("name", "late"), ("image", IMAGE)],
    )
}

/// Faulty and hostile answers: what each is, its beginning, and what is then sent again and again.
const FAULTS: &[(&str, &[u8], &[u8])] = &[
    ("closes", b"", b""),
    ("garbage", b"\x00\xff\x13garbage\r\n\r\n", b""),
    (
        "an endless head",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"xxxxxxxxxxxxxxxx",
    ),
    (
        "an endless body",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"10\r\n[[[[[[[[[[[[[[[[\r\n",
    ),
    (
        "an endless string",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[{\"Id\":\"",
        b"aaaaaaaaaaaaaaaa",
    ),
    (
        "an endless list",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[{}",
        b",{\"Id\":\"a\",\"Names\":[\"/a\"]}",
    ),
    (
        "no JSON",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n}{}{",
        b"",
    ),
    (
        "a server error",
        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        b"",
    ),
    (
        "half a body",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[",
        b"",
    ),
];

/// A server that gives the same hostile answer to every request.
struct Hostile {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
}

impl Hostile {
    fn start(socket: &std::path::Path, head: &'static [u8], rest: &'static [u8]) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let (stop, requests) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (ending, counted) = (Arc::clone(&stop), Arc::clone(&requests));
        std::thread::spawn(move || {
            while !ending.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        counted.fetch_add(1, Ordering::Relaxed);
                        let ending = Arc::clone(&ending);
                        std::thread::spawn(move || answer(stream, head, rest, &ending));
                    }
                    Err(_) => sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Self { stop, requests })
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn answer(mut stream: UnixStream, head: &[u8], rest: &[u8], ending: &AtomicBool) {
    let mut request = [0; 4096];
    let _ = stream.set_nonblocking(false);
    if !matches!(stream.read(&mut request), Ok(1..)) || stream.write_all(head).is_err() {
        return;
    }
    if rest.is_empty() {
        return;
    }
    let block: Vec<u8> = rest
        .iter()
        .copied()
        .cycle()
        .take(rest.len() * 4096)
        .collect();
    while !ending.load(Ordering::Relaxed) && stream.write_all(&block).is_ok() {}
}

fn hostile() -> Result<()> {
    /// Limit on the memory for a hostile runtime's answers.
    const MOST: u64 = 96 << 20;
    let quiet = Agent::start(&["--container.runtime=none"])?;
    quiet.scrape()?;
    let floor = quiet.memory("VmHWM")?;
    for &(what, head, rest) in FAULTS {
        let folder = Folder::new("hostile")?;
        let server = Hostile::start(&folder.path("socket"), head, rest)?;
        let flag = format!("docker=unix://{}", folder.text("socket"));
        let agent = Agent::start(&["--container.runtime", &flag])?;
        // The agent has queried it again after the first failure.
        eventually(|| {
            let metrics = agent.scrape()?;
            let asked = server.requests.load(Ordering::Relaxed);
            ensure!(asked >= 2, "{asked} requests");
            same("cgmeter_runtime_up", up(&metrics), 0.0)
        })
        .with_context(|| format!("{what}: {}", agent.log()))?;
        let [_, longest] = timed(&agent, 20)?;
        ensure!(
            longest < Duration::from_secs(1),
            "{what}: a scrape took {longest:?}"
        );
        let most = agent.memory("VmHWM")?;
        println!(
            "{what}: {} KiB more than without a runtime",
            most.saturating_sub(floor) / 1024
        );
        ensure!(most < floor + MOST, "{what}: {most} bytes, without {floor}");
    }
    Ok(())
}
