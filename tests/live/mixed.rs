//! A mixed load in one container: CPU beyond its quota and against a neighbour, memory at its
//! limit, direct, cached and failing block I/O, TCP, lost datagrams, processes, and the example
//! shop with customers.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use http_client::Request;

use crate::{
    agent::{binary, free_port},
    block_device::{Loop, Mounted},
    cgroup::Cgroup,
    twin::Twin,
    worker::Worker,
};

/// The load, ready to start. Fields are in the order in which they have to be dropped.
pub struct Load {
    shop: Shop,
    burners: Vec<Worker>,
    disks: Worker,
    network: Worker,
    disk: Loop,
    broken: Loop,
    file: Scratch,
    _small: Mounted,
    _twins: [Twin; 3],
    _neighbour: Cgroup,
}

impl Load {
    /// Starts everything in `container`. The neighbour has its own cgroup.
    pub fn start(container: &Cgroup) -> Result<Self> {
        let cpu = Twin::of(container, "cpu")?;
        let memory = Twin::of(container, "memory")?;
        if memory.v1 {
            memory.write("memory.limit_in_bytes", "50331648")?;
        } else {
            memory.write("memory.max", "50331648")?;
        }
        if cpu.v1 {
            cpu.write("cpu.cfs_quota_us", "120000")?;
        } else {
            cpu.write("cpu.max", "120000 100000")?;
        }
        let pids = Twin::of(container, "pids")?;
        pids.write("pids.max", "500")?;
        let neighbour = Cgroup::new()?;
        let mut burners = Vec::new();
        for cgroup in [container, container, &neighbour] {
            let mut worker = Worker::start(cgroup)?;
            if cgroup.id == container.id {
                cpu.admit(worker.pid())?;
            }
            worker.order("forever")?;
            burners.push(worker);
        }
        let disks = Worker::start(container)?;
        memory.admit(disks.pid())?;
        let mut network = Worker::start(container)?;
        network.run("unshare-net")?;
        network.run("ip link add eth0 type veth peer name eth1")?;
        network.run("ip link set eth0 up")?;
        network.run("ip link set eth1 up")?;
        network.run("tcp listen 127.0.0.1 4000")?;
        network.run("udp bind 127.0.0.1 4001 2048")?;
        // The file behind this disk is too small for the data written.
        let small = Mounted::tmpfs(64 << 10)?;
        let broken = Loop::over(small.path().join("disk"), 8 << 20)?;
        ensure!(fs::write(small.path().join("filler"), vec![0; 128 << 10]).is_err());
        Ok(Self {
            shop: Shop::start(container)?,
            burners,
            disks,
            network,
            disk: Loop::new(64 << 20)?,
            broken,
            file: Scratch::new(),
            _small: small,
            _twins: [cpu, memory, pids],
            _neighbour: neighbour,
        })
    }

    /// The port of the shop.
    pub fn port(&self) -> u16 {
        self.shop.port
    }

    /// Works until `over` is set.
    pub fn work(&mut self, over: &AtomicBool) -> Result<()> {
        let (disk, broken) = (&self.disk.disk.0, &self.broken.disk.0);
        let file = self.file.0.display();
        self.disks.run(&format!("write {file} 64"))?;
        while !over.load(Ordering::Relaxed) {
            for order in [
                format!("io write {disk} 65536 32"),
                format!("io read {disk} 65536 32"),
                format!("io mix {disk} 20 1"),
                format!("io fsync {disk}"),
                format!("io fail {broken} 131072 2"),
                format!("cache {file}"),
                "fork 5".to_owned(),
                "kill 1".to_owned(),
                "migrate 4".to_owned(),
            ] {
                self.disks.run(&order)?;
            }
            for order in [
                "tcp connect 127.0.0.1 4000 3",
                "tcp accept 3",
                "tcp write 20000",
                "tcp read 20000",
                "tcp close",
                "tcp refused 127.0.0.1 4002 2",
                "frames eth0 5",
            ] {
                self.network.run(order)?;
            }
            self.network.ask("udp send 127.0.0.1 4001 20 1000")?;
            self.shop.visit()?;
            // The load only has to be active in each scrape interval, not as fast as possible.
            std::thread::sleep(Duration::from_millis(200));
        }
        ensure!(
            self.burners
                .iter()
                .all(|burner| PathBuf::from(format!("/proc/{}", burner.pid())).exists())
        );
        Ok(())
    }
}

/// The example shop.
struct Shop {
    child: Child,
    port: u16,
}

impl Shop {
    fn start(container: &Cgroup) -> Result<Self> {
        let port = free_port()?;
        let child = Command::new(PathBuf::from(binary()).with_file_name("shop"))
            .args([
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--error-rate",
                "0.2",
            ])
            .stdout(Stdio::null())
            .spawn()
            .context("starting the shop")?;
        let shop = Self { child, port };
        container.admit(shop.child.id())?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while shop.ask("GET /healthz").is_err() {
            ensure!(Instant::now() < deadline, "the shop does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(shop)
    }

    /// Sends `METHOD PATH`. For POST, the body follows on the next line.
    fn ask(&self, request: &str) -> Result<()> {
        let (line, body) = request.split_once('\n').unwrap_or((request, ""));
        let request = match line.split_once(' ') {
            Some(("GET", path)) => Request::get(path),
            Some(("POST", path)) => Request::post(path, body),
            _ => bail!("{line}: no such request"),
        };
        // Some requests are meant to be answered with an error.
        request.send(("127.0.0.1", self.port))?;
        Ok(())
    }

    fn visit(&self) -> Result<()> {
        for request in [
            "GET /products",
            "GET /products/tea",
            "GET /products/gold",
            "POST /orders\n{\"product\":\"tea\"}",
            "POST /orders\n{\"product\":\"mug\"}",
            "GET /products",
        ] {
            self.ask(request)?;
        }
        Ok(())
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("cgmeter-test-mixed-{}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
