//! The agent is killed twenty times in ten minutes of mixed load, and nothing is missing: CPU time, block I/O,
//! datagrams, connections, cgroups, processes and OOM kills. Oracles: the work that was ordered, cpu.stat,
//! /proc/diskstats, the statistics of network namespaces, the memory controller, /proc/vmstat.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    block_device::Loop,
    cgroup::Cgroup,
    conservation::{EXITED, STARTED, births_until, exact},
    counters::{reference, watch::Watch},
    metrics::{Metrics, agree, same},
    needs::Need,
    net,
    netns::{Namespaces, RIGHT, snmp},
    runtimes::eventually,
    soak::{join, repeat},
    state::{State, kill},
    twin::Twin,
    worker::Worker,
};

pub const TESTS: &[Test] = &[(
    "kills::twenty_in_ten_minutes_of_mixed_load",
    &[
        Need::Agent,
        Need::Loop,
        Need::Program("ip"),
        Need::Controller("memory"),
        Need::RealCpus,
        Need::LongTier("20 kills in 10 minutes of load"),
    ],
    mixed,
)];

const KILLS: u32 = 20;
const LIFE: Duration = Duration::from_secs(29);
const BIRTHS: f64 = 100.0;
/// Pause after each piece of work, so that two CPUs are not all taken.
const PAUSE: Duration = Duration::from_millis(50);
const PAYLOAD: usize = 300;

const CPU: &str = "container_cpu_usage_seconds_total";
const OOM: &str = "container_oom_events_total";
const OPENED: &str = "container_tcp_connections_opened_total";
const DURATIONS: &str = "container_tcp_connection_duration_seconds_count";

/// A cgroup with a worker.
struct Place {
    worker: Worker,
    cgroup: Cgroup,
}

impl Place {
    fn new() -> Result<Self> {
        let cgroup = Cgroup::new()?;
        let worker = Worker::start(&cgroup)?;
        Ok(Self { worker, cgroup })
    }
}

/// How often each piece of work was done.
#[derive(Clone, Copy, Debug)]
struct Done {
    births: u64,
    writes: u64,
    datagrams: u64,
    connections: u64,
    forks: u64,
    ooms: u64,
}

/// OOM kills of the host.
fn host_ooms() -> Result<f64> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let found = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    Ok(found.context("no oom_kill in /proc/vmstat")?.parse()?)
}

fn mixed() -> Result<()> {
    let state = State::new();
    let agent = state.agent()?;
    let (parent, victims) = (Cgroup::new()?, Cgroup::new()?);
    let (mut spinner, mut writer, mut forker) = (Place::new()?, Place::new()?, Place::new()?);
    let (mut sender, mut receiver) = (Place::new()?, Place::new()?);
    let port = net::free_port()?;
    receiver.worker.run(&format!("udp-bind 127.0.0.1:{port}"))?;
    sender.worker.run("udp-bind 127.0.0.1:0")?;
    let disk = Loop::new(8 << 20)?;
    let path = &disk.disk.0;
    let namespaces = Namespaces::new()?;
    let [client, server] = [Cgroup::new()?, Cgroup::new()?];
    let mut calling = Worker::start_in(&client, Some(namespaces.left()))?;
    let mut called = Worker::start_in(&server, Some(namespaces.right()))?;
    let address = RIGHT[0];
    called.run(&format!("tcp listen {address} 4000"))?;
    let limited = Twin::of(&victims, "memory")?;
    let (limit, swap, events) = if limited.v1 {
        (
            "memory.limit_in_bytes",
            "memory.swappiness",
            "memory.oom_control",
        )
    } else {
        ("memory.max", "memory.swap.max", "memory.events")
    };
    limited.write(limit, &(16 << 20).to_string())?;
    limited.write(swap, "0")?;

    let host = |metrics: &Metrics| Ok::<_, anyhow::Error>((metrics.of("/", OOM)?, host_ooms()?));
    let before = (disk.disk.stats()?, host(&agent.scrape()?)?);
    let over = AtomicBool::new(false);
    let begin = Instant::now();
    let families = reference()?;
    let all = [
        &parent,
        &victims,
        &spinner.cgroup,
        &writer.cgroup,
        &forker.cgroup,
        &sender.cgroup,
        &receiver.cgroup,
        &client,
        &server,
    ];
    let mut watches = all.map(|cgroup| Watch::of_one(&cgroup.id, &families));
    let (agent, done) = thread::scope(|scope| -> Result<(Agent, Done)> {
        let over = &over;
        let born = scope.spawn(|| births_until(over, &parent, BIRTHS));
        let spins = work(&mut spinner.worker, over, "spin 20".to_owned());
        let spins = scope.spawn(spins);
        let write = format!("io write {path} 4096 20");
        let writes = scope.spawn(work(&mut writer.worker, over, write));
        let send = format!("udp-send 127.0.0.1:{port} 500 {PAYLOAD}");
        let datagrams = scope.spawn(work(&mut sender.worker, over, send));
        let forks = scope.spawn(|| {
            repeat(over, || {
                forker.worker.run("fork 10")?;
                forker.worker.run("kill 5")?;
                sleep(PAUSE);
                Ok(())
            })
        });
        let connections = scope.spawn(|| {
            repeat(over, || {
                calling.run(&format!("tcp connect {address} 4000 5"))?;
                called.run("tcp accept 5")?;
                calling.run("tcp close")?;
                called.run("tcp close")?;
                sleep(PAUSE);
                Ok(())
            })
        });
        let ooms = scope.spawn(|| {
            repeat(over, || {
                let mut victim = Worker::start(&victims)?;
                limited.admit(victim.pid())?;
                ensure!(victim.run("anon 64").is_err(), "64 MiB fit into 16 MiB");
                sleep(Duration::from_secs(1));
                Ok(())
            })
        });
        let last = lives(&state, agent, &mut watches);
        over.store(true, Ordering::Relaxed);
        join(spins)?;
        let done = Done {
            births: join(born)?,
            writes: join(writes)?,
            datagrams: join(datagrams)?,
            connections: join(connections)?,
            forks: join(forks)?,
            ooms: join(ooms)?,
        };
        Ok((last?, done))
    })?;
    println!("{:?} and {KILLS} kills: {done:?}", begin.elapsed());

    let counted = |done: u64, each: u64| (done * each) as f64;
    let connections = counted(done.connections, 5);
    for (worker, name) in [(&calling, "ActiveOpens"), (&called, "PassiveOpens")] {
        same(name, snmp(worker.pid(), "Tcp", name)?, connections)?;
    }
    // The kernel closes connections in its own time.
    let metrics = eventually(|| {
        let metrics = agent.scrape()?;
        for cgroup in [&client, &server] {
            same("closed", metrics.of(&cgroup.id, DURATIONS)?, connections)?;
        }
        Ok(metrics)
    })?;
    for (cgroup, direction) in [(&client, "active"), (&server, "passive")] {
        let labels = [("id", cgroup.id.as_str()), ("direction", direction)];
        same(direction, metrics.get(OPENED, &labels)?, connections)?;
    }
    exact(&metrics, &parent, done.births).context("births")?;
    for cgroup in all {
        let usage = cgroup.final_cpu_seconds()?;
        agree(
            "CPU time",
            metrics.of(&cgroup.id, CPU)?,
            usage,
            0.001,
            0.002,
        )?;
    }

    let of_writer = [("id", writer.cgroup.id.as_str())];
    let (writes, on_disk) = (counted(done.writes, 20), disk.disk.stats()? - before.0);
    same("the disk's writes", on_disk.writes, writes)?;
    for (name, expected) in [
        ("container_fs_writes_total", writes),
        (
            "container_fs_writes_bytes_total",
            on_disk.write_sectors * 512.0,
        ),
    ] {
        same(name, metrics.sum(name, &of_writer), expected)?;
    }

    let datagrams = counted(done.datagrams, 500);
    let bytes = datagrams * net::packet(PAYLOAD, false);
    let (sent, received) = ([0.0, 0.0, bytes, datagrams], [bytes, datagrams, 0.0, 0.0]);
    net::check(&metrics, &sender.cgroup, "ipv4", "udp", sent)?;
    net::check(&metrics, &receiver.cgroup, "ipv4", "udp", received)?;

    let exited =
        |cgroup: &Cgroup, reason| metrics.get(EXITED, &[("id", &cgroup.id), ("reason", reason)]);
    let forker = &forker.cgroup;
    same(
        "started",
        metrics.of(&forker.id, STARTED)?,
        counted(done.forks, 15),
    )?;
    same("exited", exited(forker, "exited")?, counted(done.forks, 10))?;
    same(
        "signaled",
        exited(forker, "signaled")?,
        counted(done.forks, 5),
    )?;

    let ooms = counted(done.ooms, 1);
    same(
        "the kernel's OOM kills",
        limited.stat(events, "oom_kill")?,
        ooms,
    )?;
    same("OOM kills", metrics.of(&victims.id, OOM)?, ooms)?;
    same("killed", exited(&victims, "signaled")?, ooms)?;
    let after = host(&metrics)?;
    let [counted, by_host] = [after.0 - before.1.0, after.1 - before.1.1];
    same("OOM kills of the host", counted, by_host)
}

/// Gives a worker the same order again and again. Returns how often.
fn work<'a>(
    worker: &'a mut Worker,
    over: &'a AtomicBool,
    order: String,
) -> impl FnOnce() -> Result<u64> + 'a {
    move || {
        repeat(over, || {
            worker.run(&order)?;
            sleep(PAUSE);
            Ok(())
        })
    }
}

/// Agents that are killed one after the other. No counter falls. Returns the last one.
fn lives(state: &State, mut agent: Agent, watches: &mut [Watch]) -> Result<Agent> {
    for _ in 0..KILLS {
        let born = Instant::now();
        for watch in &mut *watches {
            watch.scrape(&agent)?;
        }
        sleep(LIFE.saturating_sub(born.elapsed()));
        agent.scrape()?.scrape_error(0.0)?;
        kill(agent)?;
        sleep(Duration::from_secs(1));
        agent = state.agent()?;
    }
    for watch in watches {
        watch.scrape(&agent)?;
    }
    Ok(agent)
}
