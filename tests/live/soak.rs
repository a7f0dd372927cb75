//! `cargo xtask soak`: everything at once, for long. Births and removals, block I/O, datagrams, clients that never
//! read, a scraper; and every minute the agent is killed. Oracles: the work that was ordered, cpu.stat, the
//! host's own CPU time.

use std::{
    fs,
    net::TcpStream,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, ScopedJoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    agent::Agent,
    attack::never_reader,
    block_device::Loop,
    cgroup::Cgroup,
    conservation::{births, exact},
    counters::{reference, watch::Watch},
    metrics::{Metrics, agree, same},
    restart::{State, kill},
    worker::Worker,
};

/// How long to soak, minutes.
pub const MINUTES: &str = "CGMETER_SOAK_MINUTES";

const CPU: &str = "container_cpu_usage_seconds_total";
const SCRAPES: Duration = Duration::from_secs(15);
const LIFE: Duration = Duration::from_secs(60);
/// Births of cgroups a second, each with a process.
const BIRTHS: f64 = 100.0;
/// Clients that never read: fewer than the requests that are served at a time (`--web.max-requests`).
const SLOW: usize = 30;

/// Soaks, and says how it went.
pub fn main(minutes: &str) -> ExitCode {
    let result = minutes
        .parse()
        .with_context(|| format!("{MINUTES} is {minutes:?}, not a number"))
        .and_then(|minutes: u64| soak(Duration::from_secs(60 * minutes)));
    match result {
        Ok(()) => {
            println!("the soak has passed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the soak has failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What an agent takes, at the end of its life.
#[derive(Clone, Copy, Debug)]
struct Use {
    rss: f64,
    descriptors: f64,
    kernel: f64,
}

impl Use {
    fn of(agent: &Agent, metrics: &Metrics) -> Result<Self> {
        Ok(Self {
            rss: agent.memory("VmRSS")? as f64,
            descriptors: fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count() as f64,
            kernel: metrics.get("cgmeter_kernel_memory_bytes", &[])?,
        })
    }
}

/// Repeats some work until it is over. Returns how often.
fn repeat(over: &AtomicBool, mut work: impl FnMut() -> Result<()>) -> Result<u64> {
    let mut times = 0;
    while !over.load(Ordering::Relaxed) {
        work()?;
        times += 1;
    }
    Ok(times)
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    let result = thread.join();
    result.map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

fn soak(time: Duration) -> Result<()> {
    let state = State::new();
    let (parent, busy) = (Cgroup::new()?, Cgroup::new()?);
    let disk = Loop::new(8 << 20)?;
    let (mut writer, mut sender) = (Worker::start(&busy)?, Worker::start(&busy)?);
    sender.run("udp-bind 127.0.0.1:10771")?;
    let families = reference()?;
    let mut watches = [&parent, &busy].map(|cgroup| Watch::of_one(&cgroup.id, &families));
    let path = &disk.disk.0;
    let agent = state.agent()?;
    let begin = Instant::now();
    let before = (
        host_bounds()?,
        agent.scrape()?.get(CPU, &[("id", "/"), ("cpu", "total")])?,
    );
    let over = AtomicBool::new(false);
    let (agent, uses, born, wrote, sent) = thread::scope(|scope| -> Result<_> {
        let over = &over;
        let born = scope.spawn(|| -> Result<u64> {
            let mut number = 0;
            repeat(over, || {
                number += births(&parent, BIRTHS, Duration::from_millis(500))?;
                Ok(())
            })?;
            Ok(number)
        });
        let wrote = scope.spawn(|| {
            repeat(over, || {
                writer.run(&format!("io write {path} 4096 20"))?;
                sleep(Duration::from_millis(50));
                Ok(())
            })
        });
        let sent = scope.spawn(|| {
            repeat(over, || {
                sender.run("udp-send 127.0.0.1:10771 20 500")?;
                sleep(Duration::from_millis(50));
                Ok(())
            })
        });
        let lives = lives(&state, agent, &mut watches, begin + time);
        over.store(true, Ordering::Relaxed);
        let (born, wrote, sent) = (join(born)?, join(wrote)?, join(sent)?);
        let (agent, uses) = lives?;
        Ok((agent, uses, born, wrote, sent))
    })?;
    let metrics = agent.scrape()?;
    let after = (
        host_bounds()?,
        metrics.get(CPU, &[("id", "/"), ("cpu", "total")])?,
    );
    println!(
        "{:?}: {born} births, {} writes, {} datagrams, {} agents",
        begin.elapsed(),
        wrote * 20,
        sent * 20,
        uses.len()
    );
    exact(&metrics, &parent, born).context("births")?;
    let of_busy = [("id", busy.id.as_str())];
    let writes = metrics.sum("container_fs_writes_total", &of_busy);
    same("writes", writes, (wrote * 20) as f64)?;
    let packets = metrics.sum("container_socket_transmit_packets_total", &of_busy);
    same("datagrams", packets, (sent * 20) as f64)?;
    agree(
        "CPU time",
        metrics.of(&busy.id, CPU)?,
        busy.cpu_seconds()?,
        0.001,
        0.002,
    )?;
    let counted = after.1 - before.1;
    let [least, most] = [0, 1].map(|at| after.0[at] - before.0[at]);
    println!("the host: {counted:.2} s of CPU time, {least:.2} to {most:.2} by its own count");
    ensure!(
        counted >= least * 0.999 - 0.1 && counted <= most * 1.001 + 0.1,
        "the host's CPU time"
    );
    flat(&uses)
}

/// Bounds of the host's CPU time, s: what tasks got at ticks, which miss what runs in between, and the time in
/// which CPUs were not idle, which has the way into interrupts and out of idleness as well.
fn host_bounds() -> Result<[f64; 2]> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let numbers = line.split_whitespace().skip(1);
    let ticks: Vec<f64> = numbers.filter_map(|word| word.parse().ok()).collect();
    ensure!(ticks.len() >= 8, "{line:?} is no cpu line");
    let cpus = text
        .lines()
        .filter(|line| line.starts_with("cpu"))
        .count()
        .saturating_sub(1);
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime: f64 = uptime
        .split_whitespace()
        .next()
        .context("no uptime")?
        .parse()?;
    // user, nice, system, idle, iowait, irq, softirq, steal; in 1/100 s.
    let tasks = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6];
    let idle = ticks[3] + ticks[4];
    Ok([tasks / 100.0, uptime * cpus as f64 - idle / 100.0])
}

/// Agents that are killed every minute, scraped all the time, and asked by clients that never read.
fn lives(
    state: &State,
    mut agent: Agent,
    watches: &mut [Watch],
    end: Instant,
) -> Result<(Agent, Vec<Use>)> {
    let mut uses = Vec::new();
    loop {
        let born = Instant::now();
        let mut slow: Vec<TcpStream> = Vec::new();
        let mut longest = Duration::ZERO;
        while born.elapsed() < LIFE {
            slow.clear();
            for _ in 0..SLOW {
                slow.push(never_reader(agent.port)?);
            }
            let asked = Instant::now();
            for watch in &mut *watches {
                watch.scrape(&agent)?;
            }
            longest = longest.max(asked.elapsed());
            sleep(SCRAPES);
        }
        let metrics = agent.scrape()?;
        metrics.scrape_error(0.0)?;
        let used = Use::of(&agent, &metrics)?;
        println!(
            "{:.1} MB of RSS, {} descriptors, {:.1} MB in the kernel, two scrapes took {longest:?} at most",
            used.rss / 1e6,
            used.descriptors,
            used.kernel / 1e6
        );
        uses.push(used);
        if Instant::now() >= end {
            return Ok((agent, uses));
        }
        kill(agent)?;
        sleep(Duration::from_secs(1));
        agent = state.agent()?;
    }
}

/// Whether the later agents took no more than the earlier ones.
fn flat(uses: &[Use]) -> Result<()> {
    let half = uses.len() / 2;
    if half == 0 {
        return Ok(());
    }
    let mean = |uses: &[Use], read: fn(&Use) -> f64| {
        uses.iter().map(read).sum::<f64>() / uses.len() as f64
    };
    let means = |read| (mean(&uses[..half], read), mean(&uses[half..], read));
    for (what, (early, late)) in [
        ("RSS", means(|used| used.rss)),
        ("descriptors", means(|used| used.descriptors)),
        ("kernel memory", means(|used| used.kernel)),
    ] {
        println!("{what}: {early:.0} in the first half, {late:.0} in the second");
        ensure!(late <= early * 1.1, "{what} grows");
    }
    Ok(())
}
