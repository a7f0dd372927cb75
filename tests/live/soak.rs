//! `cargo xtask soak`: everything at once, for long. Births and removals, block I/O, datagrams, clients that never
//! read, a scraper; and every minute the agent is killed. Beside it another one lives all the time. Oracles: the work
//! that was ordered, cpu.stat, the host's own CPU time and forks, the disk's own counts.

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
    conservation::{births_until, exact},
    counters::{reference, watch::Watch},
    metrics::{Metrics, agree, same},
    state::{State, kill},
    worker::Worker,
};

/// How long to soak, minutes.
pub const MINUTES: &str = "CGMETER_SOAK_MINUTES";

const CPU: &str = "container_cpu_usage_seconds_total";
const SCRAPES: Duration = Duration::from_secs(15);
const LIFE: Duration = Duration::from_secs(60);
/// Births of cgroups a second, each with a process.
const BIRTHS: f64 = 100.0;
/// By how much totals may differ from the host's.
const FRACTION: f64 = 0.001;
/// By how much more the agent may take in the last third than in the first: memory and descriptors.
const GROWTH: f64 = 0.05;
/// The agent that is not killed is looked at from then on: until then it grows into its memory.
const GROWN_UP: Duration = Duration::from_secs(60);
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

/// What an agent takes.
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
pub fn repeat(over: &AtomicBool, mut work: impl FnMut() -> Result<()>) -> Result<u64> {
    let mut times = 0;
    while !over.load(Ordering::Relaxed) {
        work()?;
        times += 1;
    }
    Ok(times)
}

/// What a thread has returned.
pub fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
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
    let first = agent.scrape()?;
    let before = (host_bounds()?, host_forks()?, disk_writes(path)?);
    let over = AtomicBool::new(false);
    let (agent, uses, resident, born, wrote, sent) = thread::scope(|scope| -> Result<_> {
        let over = &over;
        let born = scope.spawn(|| births_until(over, &parent, BIRTHS));
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
        let resident = scope.spawn(|| resident(over));
        let lives = lives(&state, agent, &mut watches, begin + time);
        over.store(true, Ordering::Relaxed);
        let (born, wrote, sent) = (join(born)?, join(wrote)?, join(sent)?);
        let resident = join(resident)?;
        let (agent, uses) = lives?;
        Ok((agent, uses, resident, born, wrote, sent))
    })?;
    let metrics = agent.scrape()?;
    let after = (host_bounds()?, host_forks()?, disk_writes(path)?);
    let grown = |name: &str, labels: &[(&str, &str)]| -> Result<f64> {
        Ok(metrics.get(name, labels)? - first.get(name, labels)?)
    };
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
    // A completion may interrupt a task over which the kernel runs no program, see docs/limits.md.
    agree("writes", writes, (wrote * 20) as f64, FRACTION, 0.0)?;
    let bytes = metrics.sum("container_fs_writes_bytes_total", &of_busy);
    for (what, counted, at) in [("writes", writes, 0), ("bytes written", bytes, 1)] {
        let of_disk = after.2[at] - before.2[at];
        println!("{what}: {counted}, {of_disk} by the disk's own count");
        agree(what, counted, of_disk, FRACTION, 0.0)?;
    }
    let packets = metrics.sum("container_socket_transmit_packets_total", &of_busy);
    same("datagrams", packets, (sent * 20) as f64)?;
    let forks = grown("cgmeter_events_total", &[("program", "sched_process_fork")])?;
    let of_host = after.1 - before.1;
    println!("the host: {forks} forks, {of_host} by its own count");
    // Between the two readings on either side others may fork.
    agree("forks", forks, of_host, FRACTION, 10.0)?;
    agree(
        "CPU time",
        metrics.of(&busy.id, CPU)?,
        busy.cpu_seconds()?,
        FRACTION,
        0.002,
    )?;
    let counted = grown(CPU, &[("id", "/"), ("cpu", "total")])?;
    let [least, most] = [0, 1].map(|at| after.0[at] - before.0[at]);
    println!("the host: {counted:.2} s of CPU time, {least:.2} to {most:.2} by its own count");
    ensure!(
        counted >= least * (1.0 - FRACTION) - 0.1 && counted <= most * (1.0 + FRACTION) + 0.1,
        "the host's CPU time"
    );
    flat("agents one after the other", &uses)?;
    flat("the agent that lived on", &resident)
}

/// Forks since the host was booted, those of threads too.
fn host_forks() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let forks = text
        .lines()
        .find_map(|line| line.strip_prefix("processes "));
    Ok(forks.context("no processes")?.parse()?)
}

/// Writes and bytes written, by a disk's own count (Documentation/block/stat.rst).
fn disk_writes(path: &str) -> Result<[f64; 2]> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let text = fs::read_to_string(format!("/sys/block/{name}/stat"))?;
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    ensure!(numbers.len() > 6, "{text:?}");
    Ok([numbers[4], numbers[6] * 512.0])
}

/// What an agent takes that lives all the time and keeps nothing pinned.
fn resident(over: &AtomicBool) -> Result<Vec<Use>> {
    let agent = Agent::start(&[])?;
    let begin = Instant::now();
    let mut uses = Vec::new();
    repeat(over, || {
        let metrics = agent.scrape()?;
        metrics.scrape_error(0.0)?;
        if begin.elapsed() >= GROWN_UP {
            uses.push(Use::of(&agent, &metrics)?);
        }
        sleep(Duration::from_secs(5));
        Ok(())
    })?;
    Ok(uses)
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

/// Whether no more was taken in the last third than in the first, by the median of each.
fn flat(who: &str, uses: &[Use]) -> Result<()> {
    let third = uses.len() / 3;
    ensure!(third > 0, "{who}: {} readings are too few", uses.len());
    let median = |uses: &[Use], read: fn(&Use) -> f64| {
        let mut values: Vec<f64> = uses.iter().map(read).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let medians = |read| {
        let [early, late] = [&uses[..third], &uses[uses.len() - third..]];
        (median(early, read), median(late, read))
    };
    for (what, (early, late)) in [
        ("RSS", medians(|used| used.rss)),
        ("descriptors", medians(|used| used.descriptors)),
        ("kernel memory", medians(|used| used.kernel)),
    ] {
        println!("{who}, {what}: {early:.0} in the first third, {late:.0} in the last");
        ensure!(late <= early * (1.0 + GROWTH), "{who}: {what} grows");
    }
    Ok(())
}
