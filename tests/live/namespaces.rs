//! Network namespaces: how long the agent holds them, whose they are, and how many it reads. Oracle:
//! what ends with a namespace, /proc/PID/net/dev, /proc/PID/ns.

use std::{
    fs,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::{Cgroup, root},
    metrics::{Metrics, same},
    needs::{self, Need},
    netdev::{NAMES, WIRE, counters, equals, interfaces, scrape_at_rest},
    state::{State, kill},
    traffic,
    wire::{self, End, V4},
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    ("namespaces::are_not_kept_alive", WIRE, let_go),
    (
        "namespaces::that_end_while_no_agent_runs",
        WIRE,
        ended_meanwhile,
    ),
    (
        "namespaces::a_namespace_is_removed_and_made_again",
        &[
            Need::Agent,
            Need::Program("ip"),
            Need::LongTier("sleeps for half a minute"),
        ],
        made_again,
    ),
    (
        "namespaces::many_new_interfaces_at_once",
        WIRE,
        many_interfaces,
    ),
    (
        "namespaces::two_namespaces_of_a_cgroup",
        WIRE,
        two_namespaces,
    ),
    ("namespaces::a_container_whose_init_moves", WIRE, init_moves),
    (
        "namespaces::who_enters_a_container_s_namespace",
        WIRE,
        entered,
    ),
    (
        "namespaces::a_tenant_with_many_namespaces",
        WIRE,
        many_namespaces,
    ),
    ("namespaces::the_agent_stays_in_its_namespace", WIRE, stays),
];

/// Whether the test's own namespace has an interface of that name.
fn there(name: &str) -> bool {
    fs::exists(format!("/sys/class/net/{name}")).unwrap_or(false)
}

/// An interface in the test's namespace, removed on drop.
struct Peer(String);

impl Drop for Peer {
    fn drop(&mut self) {
        if there(&self.0) {
            let _ = traffic::run(&["ip", "link", "del", &self.0]);
        }
    }
}

/// An end whose veth peer is in the test's namespace.
fn with_peer(name: &str) -> Result<(End, Peer)> {
    let end = End::new()?;
    let peer = Peer(format!("{name}{}", std::process::id()));
    let pid = end.worker.pid().to_string();
    let words = [
        "ip", "link", "add", "name", &peer.0, "type", "veth", "peer", "name", "eth0", "netns", &pid,
    ];
    traffic::run(&words)?;
    ensure!(there(&peer.0));
    Ok((end, peer))
}

/// The veth peer disappears with the namespace: the agent lets go within a second, and the kernel
/// cleans up in the background, for which it gets another one.
fn wait_until_gone(peer: &Peer) -> Result<()> {
    let patience = if needs::emulated() { 30 } else { 2 };
    let deadline = Instant::now() + Duration::from_secs(patience);
    while there(&peer.0) {
        ensure!(
            Instant::now() < deadline,
            "{} still exists: something keeps the namespace alive",
            peer.0
        );
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Checks that the packets of a removed namespace were all read: those of the kernel's last count, which
/// are at least those that the test sent.
fn read_a_last_time(agent: &Agent, cgroup: &Cgroup, last: f64, sent: f64) -> Result<()> {
    let found = counters(&agent.scrape()?, &cgroup.id, "eth0")?[5];
    ensure!(
        found >= last && last >= sent,
        "{found} packets instead of {last}"
    );
    Ok(())
}

fn let_go() -> Result<()> {
    let agent = Agent::start(&[])?;
    // First case: the cgroup is removed. No scrape is needed.
    let (mut end, peer) = with_peer("cgta")?;
    end.worker.run("ip link set eth0 up")?;
    traffic::run(&["ip", "link", "set", &peer.0, "up"])?;
    end.worker.run("wait-up eth0")?;
    end.worker.run("frames eth0 9")?;
    let metrics = agent.scrape()?;
    ensure!(counters(&metrics, &end.cgroup.id, "eth0")?[5] >= 9.0);
    end.worker.run("frames eth0 5")?;
    let last = end.interface("eth0")?;
    let End { worker, cgroup } = end;
    drop(worker);
    cgroup.remove()?;
    wait_until_gone(&peer)?;
    // The counters were read a last time and are reported as long as the removed cgroup.
    read_a_last_time(&agent, &cgroup, last[5], 14.0)?;

    // Second case: the processes end and the cgroup stays. No scrape is needed either.
    let (mut end, peer) = with_peer("cgtb")?;
    let metrics = agent.scrape()?;
    ensure!(metrics.has(NAMES[0], &[("id", &end.cgroup.id), ("interface", "eth0")]));
    traffic::run(&["ip", "link", "set", &peer.0, "up"])?;
    end.worker.run("ip link set eth0 up")?;
    end.worker.run("wait-up eth0")?;
    end.worker.run("frames eth0 7")?;
    let last = end.interface("eth0")?;
    let End { worker, cgroup } = end;
    drop(worker);
    wait_until_gone(&peer)?;
    read_a_last_time(&agent, &cgroup, last[5], 7.0)?;

    // Third case: the only process goes elsewhere.
    let (mut end, peer) = with_peer("cgtd")?;
    agent.scrape()?;
    end.worker
        .run(&format!("join-net {}", std::process::id()))?;
    wait_until_gone(&peer)?;
    drop(end);

    // Fourth case: the agent ends.
    let (end, peer) = with_peer("cgtc")?;
    agent.scrape()?;
    drop(agent);
    drop(end);
    wait_until_gone(&peer)
}

/// What the interfaces of such a namespace had counted last is not known, and that is counted. Of one that ended before, all
/// is known.
fn ended_meanwhile() -> Result<()> {
    let state = State::new();
    let agent = state.agent()?;
    let (mut end, peer) = with_peer("cgte")?;
    let (mut stays, other) = with_peer("cgtf")?;
    let (mut first, third) = with_peer("cgtg")?;
    for (end, peer) in [
        (&mut end, &peer),
        (&mut stays, &other),
        (&mut first, &third),
    ] {
        end.worker.run("ip link set eth0 up")?;
        traffic::run(&["ip", "link", "set", &peer.0, "up"])?;
        end.worker.run("wait-up eth0")?;
        end.worker.run("frames eth0 9")?;
    }
    let begun = agent.scrape()?;
    let lost = |metrics: &Metrics| metrics.get("cgmeter_lost_network_namespaces_total", &[]);
    same("lost before", lost(&begun)?, 0.0)?;
    let sent =
        |metrics: &Metrics, id: &str| -> Result<f64> { Ok(counters(metrics, id, "eth0")?[5]) };
    // Ends a cgroup's process, and removes it. Returns its path.
    let remove = |end: End, peer: &Peer| -> Result<String> {
        let End { worker, cgroup } = end;
        drop(worker);
        wait_until_gone(peer)?;
        let id = cgroup.id.clone();
        cgroup.remove()?;
        Ok(id)
    };
    first.worker.run("frames eth0 5")?;
    let first = remove(first, &third)?;
    let before = agent.scrape()?;
    let all = sent(&before, &first)?;
    ensure!(all >= 14.0, "{all} packets");
    kill(agent)?;
    for end in [&mut end, &mut stays] {
        end.worker.run("frames eth0 5")?;
    }
    let last = stays.interface("eth0")?[5];
    let ended = remove(end, &peer)?;
    let agent = state.agent()?;
    let metrics = agent.scrape()?;
    same("lost", lost(&metrics)?, 1.0)?;
    same("what ended before", sent(&metrics, &first)?, all)?;
    // What was known of it is still served, and the one that is left lacks nothing.
    same(
        "what ended",
        sent(&metrics, &ended)?,
        sent(&before, &ended)?,
    )?;
    let found = sent(&metrics, &stays.cgroup.id)?;
    ensure!(
        found >= last && last >= 14.0,
        "{found} packets instead of {last}"
    );
    // The next one has not lost it once more.
    kill(agent)?;
    let agent = state.agent()?;
    same("lost again", lost(&agent.scrape()?)?, 0.0)
}

/// A namespace with a name, and one end of a veth in it, as scripts make them.
struct Script {
    name: String,
    cgroup: Cgroup,
}

impl Script {
    fn new(name: &str) -> Result<Self> {
        Ok(Self {
            name: format!("{name}{}", std::process::id()),
            cgroup: Cgroup::new()?,
        })
    }

    /// Makes the namespace, lets a process sleep in it, and removes it. Calls `meanwhile` as long as
    /// that takes.
    fn round(&self, mut meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
        let pause = if needs::emulated() { 10 } else { 1 };
        let name = &self.name;
        // By its path: busybox's shell has an `ip` of its own, which knows nothing of `netns`.
        let ip = needs::program("ip").context("no ip")?;
        let ip = ip.display();
        let script = format!(
            "set -e; echo $$ > \"$0\"; {ip} netns add {name}
             {ip} link add {name} type veth peer name eth0 netns {name}
             {ip} netns exec {name} sleep 3; {ip} netns del {name}; sleep {pause}"
        );
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .arg(self.cgroup.procs())
            .stderr(Stdio::piped())
            .spawn()?;
        while child.try_wait()?.is_none() {
            meanwhile()?;
            sleep(Duration::from_millis(100));
        }
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        for kind in [&["netns"][..], &["link"]] {
            let _ = Command::new("ip")
                .args(kind)
                .args(["del", &self.name])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn made_again() -> Result<()> {
    // Not scraped at all.
    let agent = Agent::start(&[])?;
    let script = Script::new("cgs")?;
    for _ in 0..2 {
        script.round(|| Ok(()))?;
    }
    // Scraped every two seconds.
    let mut last = Instant::now();
    let mut scrape = || {
        if last.elapsed() > Duration::from_secs(2) {
            agent.scrape()?;
            last = Instant::now();
        }
        Ok(())
    };
    for _ in 0..2 {
        script.round(&mut scrape)?;
    }
    // Scraped once, while the process is there, and never again.
    let begin = Instant::now();
    let mut scraped = None;
    let mut once = || {
        if scraped.is_none() && begin.elapsed() > Duration::from_secs(2) {
            scraped = Some(agent.scrape()?);
        }
        Ok(())
    };
    for _ in 0..2 {
        script.round(&mut once)?;
    }
    let scraped = scraped.context("not scraped")?;
    let labels = [("id", script.cgroup.id.as_str()), ("interface", "eth0")];
    ensure!(scraped.has(NAMES[0], &labels), "the namespace was not read");
    Ok(())
}

fn many_interfaces() -> Result<()> {
    let agent = Agent::start(&[])?;
    let mut end = End::new()?;
    agent.scrape()?;
    let pairs = |end: &mut End, from: u32| -> Result<()> {
        for number in from..from + 10 {
            let pair = format!("ip link add a{number} type veth peer name b{number}");
            end.worker.run(&pair)?;
        }
        Ok(())
    };
    pairs(&mut end, 0)?;
    let metrics = agent.scrape()?;
    let found = interfaces(&metrics, &end.cgroup.id);
    ensure!(found == 20, "{found} interfaces instead of 20");
    metrics.scrape_error(0.0)?;
    // The last reading comes after many changes too.
    end.worker.run("ip link set a0 up")?;
    end.worker.run("ip link set b0 up")?;
    end.worker.run("wait-up a0")?;
    end.worker.run("frames a0 1000")?;
    pairs(&mut end, 10)?;
    let last = end.interface("a0")?;
    ensure!(last[5] >= 1000.0);
    let End { worker, cgroup } = end;
    drop(worker);
    cgroup.remove()?;
    let found = counters(&agent.scrape()?, &cgroup.id, "a0")?;
    ensure!(
        found[4] >= last[4] && found[5] >= last[5],
        "{} bytes and {} packets instead of {} and {}",
        found[4],
        found[5],
        last[4],
        last[5]
    );
    Ok(())
}

fn two_namespaces() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut workers = [Worker::start(&cgroup)?, Worker::start(&cgroup)?];
    for worker in &mut workers {
        worker.run("unshare-net")?;
    }
    let [one, other] = &mut workers;
    wire::join([&mut *one, &mut *other])?;
    other.run(&format!("udp-bind {}:1001", V4[1]))?;
    one.run(&format!("udp-bind {}:1001", V4[0]))?;
    other.order("udp-receive 30")?;
    one.run(&format!("udp-send {}:1001 30 500", V4[1]))?;
    other.wait_done()?;
    let [one, other] = &workers;
    let (metrics, [first, second]) = scrape_at_rest(&agent, [one, other])?;
    let mut expected = first;
    for (value, more) in expected.iter_mut().zip(second) {
        *value += more;
    }
    let found = counters(&metrics, &cgroup.id, "eth0")?;
    equals("both namespaces", found, expected)?;
    // One of them gives its interface another name, again and again. Which namespace the agent reads
    // first is left to chance.
    let mut least = found;
    workers[0].run("ip link set eth0 down")?;
    for round in 0..16 {
        let names = [("eth0", "net1"), ("net1", "eth0")];
        let (from, to) = names[round % 2];
        workers[0].run(&format!("ip link set {from} name {to}"))?;
        let metrics = agent.scrape()?;
        let found = counters(&metrics, &cgroup.id, "eth0")
            .with_context(|| format!("after {from} was named {to}, in round {round}"))?;
        let kept = found.iter().zip(least).all(|(now, before)| *now >= before);
        ensure!(kept, "{found:?} after {least:?}");
        least = found;
        let shown = interfaces(&metrics, &cgroup.id);
        ensure!(
            shown == 2 - round % 2,
            "{shown} interfaces in round {round}"
        );
    }
    Ok(())
}

/// A cgroup named as Docker names those of containers.
struct Container {
    cgroup: Cgroup,
    /// The directory of Docker's containers, if the test has made it. Removed after the container.
    _parent: Option<Cgroup>,
}

impl Container {
    fn new() -> Result<Self> {
        let directory = root()?.join("docker");
        let made = !directory.exists();
        let parent = if made {
            Cgroup::named("docker")?
        } else {
            let id = "/docker".to_owned();
            Cgroup { directory, id }
        };
        let id = format!("{:064x}", u128::from(std::process::id()) << 64);
        let cgroup = parent.child(&id)?;
        let parent = if made {
            Some(parent)
        } else {
            // It is not the test's.
            std::mem::forget(parent);
            None
        };
        Ok(Self {
            cgroup,
            _parent: parent,
        })
    }

    /// Its first process, in a namespace of its own with an interface `net7`.
    fn init(&self) -> Result<Worker> {
        let mut init = Worker::start(&self.cgroup)?;
        init.run("unshare-net")?;
        init.run("ip link add net7 type veth peer name veth7")?;
        Ok(init)
    }
}

/// Fails unless a scrape has the interface `net7` at exactly one of these cgroups, the first.
fn only_at(agent: &Agent, owner: &Cgroup, others: &[&Cgroup]) -> Result<()> {
    let metrics = agent.scrape()?;
    let found = interfaces(&metrics, &owner.id);
    ensure!(found == 1, "{found} interfaces at {}", owner.id);
    for other in others {
        let found = interfaces(&metrics, &other.id);
        ensure!(found == 0, "{found} interfaces at {}", other.id);
    }
    Ok(())
}

fn init_moves() -> Result<()> {
    let early = Agent::start(&[])?;
    let container = Container::new()?;
    let init = container.init()?;
    only_at(&early, &container.cgroup, &[])?;
    let scope = container.cgroup.child("init.scope")?;
    scope.admit(init.pid())?;
    let late = Agent::start(&[])?;
    for agent in [&early, &late] {
        only_at(agent, &container.cgroup, &[&scope])?;
    }
    // A namespace that is made inside is not the container's own.
    let inner = container.cgroup.child("inner")?;
    let mut worker = Worker::start(&inner)?;
    worker.run("unshare-net")?;
    worker.run("ip link add net8 type veth peer name veth8")?;
    let later = Agent::start(&[])?;
    for agent in [&early, &late, &later] {
        only_at(agent, &container.cgroup, &[&scope])?;
        let metrics = agent.scrape()?;
        ensure!(metrics.has(NAMES[0], &[("id", &inner.id), ("interface", "net8")]));
    }
    drop((worker, init));
    Ok(())
}

fn entered() -> Result<()> {
    let elsewhere = Cgroup::new()?;
    let mut older = Worker::start(&elsewhere)?;
    let container = Container::new()?;
    let init = container.init()?;
    let early = Agent::start(&[])?;
    only_at(&early, &container.cgroup, &[&elsewhere])?;
    older.run(&format!("join-net {}", init.pid()))?;
    let late = Agent::start(&[])?;
    for agent in [&early, &late] {
        only_at(agent, &container.cgroup, &[&elsewhere])?;
    }
    // The container's processes end. Who has entered is left.
    drop(init);
    for agent in [&early, &late] {
        for _ in 0..2 {
            let metrics = agent.scrape()?;
            let found = interfaces(&metrics, &elsewhere.id);
            ensure!(found == 0, "{found} interfaces at {}", elsewhere.id);
        }
    }
    Ok(())
}

/// Number of namespaces of a tenant, each with a process.
const MANY: usize = 200;

fn many_namespaces() -> Result<()> {
    let crowd = Cgroup::new()?;
    let mut tenant = Worker::start(&crowd)?;
    tenant.run(&format!("namespaces {MANY}"))?;
    let mut others = Vec::new();
    for _ in 0..3 {
        let mut end = End::new()?;
        end.worker
            .run("ip link add net7 type veth peer name veth7")?;
        others.push(end);
    }
    let states = |metrics: &Metrics| -> Result<[f64; 2]> {
        let of = |state| metrics.get("cgmeter_network_namespaces", &[("state", state)]);
        Ok([of("read")?, of("left_out")?])
    };
    let warnings = |agent: &Agent| {
        let log = agent.log();
        let lines = log.lines();
        lines
            .filter(|line| line.contains("more network namespaces than can be read"))
            .count()
    };
    let healthy = |agent: &Agent| -> Result<Metrics> {
        let metrics = agent.scrape()?;
        metrics.scrape_error(0.0)?;
        ensure!(metrics.has("machine_cpu_cores", &[]));
        Ok(metrics)
    };
    // Without a bound all are read.
    let agent = Agent::start(&[])?;
    let [read, left_out] = states(&healthy(&agent)?)?;
    ensure!(
        read >= (MANY + 4) as f64 && left_out == 0.0,
        "{read} are read, {left_out} left out"
    );
    let all = read;
    ensure!(warnings(&agent) == 0, "{}", agent.log());
    drop(agent);
    // With a bound, the tenant's share is what others don't need.
    let agent = Agent::start(&["--netdev.max-namespaces", "40"])?;
    for _ in 0..3 {
        let metrics = healthy(&agent)?;
        let [read, left_out] = states(&metrics)?;
        same("namespaces that are read", read, 40.0)?;
        same("namespaces that are left out", left_out, all - 40.0)?;
        for end in &others {
            let labels = [("id", end.cgroup.id.as_str()), ("interface", "net7")];
            ensure!(
                metrics.has(NAMES[0], &labels),
                "{} is left out",
                end.cgroup.id
            );
        }
    }
    ensure!(warnings(&agent) == 1, "{}", agent.log());
    drop(agent);
    // With few descriptors scrapes go on.
    let agent = Agent::with_files(160, &[])?;
    for _ in 0..3 {
        let [read, left_out] = states(&healthy(&agent)?)?;
        same("namespaces", read + left_out, all)?;
        ensure!(read >= 1.0 && left_out >= 100.0, "{left_out} are left out");
        let open = fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count();
        println!("{open} descriptors, {read} namespaces");
        ensure!(open <= 150, "{open} descriptors of 160");
    }
    ensure!(warnings(&agent) == 1, "{}", agent.log());
    ensure!(agent.get("/-/ready", "")?.status == 200);
    // Once the tenant is gone, the others are read.
    drop(agent);
    let agent = Agent::start(&["--netdev.max-namespaces", "40"])?;
    healthy(&agent)?;
    crowd.remove_tasks()?;
    let [_, left_out] = states(&healthy(&agent)?)?;
    same("namespaces that are left out", left_out, 0.0)?;
    ensure!(
        agent
            .log()
            .contains("every network namespace is read again"),
        "{}",
        agent.log()
    );
    Ok(())
}

/// The network namespaces of a process's threads, except the test's own.
fn strays(pid: u32) -> Result<Vec<String>> {
    let home = fs::read_link("/proc/self/ns/net")?;
    let mut strays = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?.path();
        // Threads may end during the reading.
        if let Ok(namespace) = fs::read_link(thread.join("ns/net"))
            && namespace != home
        {
            strays.push(format!("{} in {}", thread.display(), namespace.display()));
        }
    }
    Ok(strays)
}

fn stays() -> Result<()> {
    let agent = Agent::start(&[])?;
    let ends = wire::pair()?;
    for _ in 0..3 {
        let metrics = agent.scrape()?;
        ensure!(interfaces(&metrics, &ends[0].cgroup.id) == 1);
        // A thread that is exiting may still be listed.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !strays(agent.pid())?.is_empty() {
            ensure!(
                Instant::now() < deadline,
                "{:?}",
                strays(agent.pid())?.first().context("none any more")?
            );
            sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}
