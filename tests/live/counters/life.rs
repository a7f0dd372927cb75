//! The life of a cgroup. It increases as many counters as this machine allows.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{
    block_device::{Disk, Loop, Mounted},
    cgroup::{self, Cgroup},
    needs::{self, Need},
    twin::Twin,
    wire::{self, End, V4},
    worker::Worker,
};

/// A workload in a cgroup.
pub struct Act {
    /// What it needs from the machine. It is skipped on other machines.
    pub needs: &'static [Need],
    /// Runs it.
    pub run: fn(&mut Life) -> Result<()>,
    /// Families with a series above 0 afterwards. They may be 0 on a machine that lacks something.
    pub families: &'static [&'static str],
}

/// All workloads of a life, in this order.
pub const ACTS: &[Act] = &[
    Act {
        needs: &[],
        run: run_and_wait,
        families: &[],
    },
    Act {
        needs: &[Need::TwoCpus],
        run: |life| life.worker.run("migrate 10"),
        families: &["container_sched_migrations_total"],
    },
    Act {
        needs: &[],
        run: |life| {
            life.worker.run("fork 5")?;
            life.worker.run("kill 3")?;
            life.worker.run("exec 1")
        },
        families: &[],
    },
    Act {
        needs: &[Need::Controller("cpu")],
        run: exceed_quota,
        families: &[
            "container_cpu_cfs_periods_total",
            "container_cpu_cfs_throttled_periods_total",
            "container_cpu_cfs_throttled_seconds_total",
            "container_cpu_cfs_burst_periods_total",
            "container_cpu_cfs_burst_seconds_total",
        ],
    },
    Act {
        needs: &[Need::Controller("memory")],
        run: exceed_memory,
        families: &[
            "container_memory_failcnt",
            "container_memory_failures_total",
            "container_memory_reclaim_seconds",
            "container_memory_pgscan_total",
            "container_memory_pgsteal_total",
            "container_memory_workingset_refault_file_total",
            "container_oom_events_total",
        ],
    },
    Act {
        needs: &[Need::Unified("memory")],
        run: |_| Ok(()),
        families: &[
            "container_memory_events_high_total",
            "container_memory_events_max_total",
        ],
    },
    Act {
        needs: &[Need::Controller("hugetlb")],
        run: exceed_huge_pages,
        families: &["container_hugetlb_failcnt"],
    },
    Act {
        needs: &[Need::Loop],
        run: |life| {
            let disk = &life.disk.disk.0;
            life.worker.run(&format!("io write {disk} 8192 20"))?;
            life.worker.run(&format!("io read {disk} 4096 30"))?;
            life.worker.run(&format!("io discard {disk} 65536"))?;
            life.worker.run(&format!("io fsync {disk}"))?;
            let full = &life.full.disk.0;
            life.worker.run(&format!("io fail {full} 131072 5"))
        },
        families: &[
            "container_fs_reads_bytes_total",
            "container_fs_writes_bytes_total",
            "container_fs_reads_total",
            "container_fs_writes_total",
            "container_fs_sector_reads_total",
            "container_fs_sector_writes_total",
            "container_fs_read_seconds_total",
            "container_fs_write_seconds_total",
            "container_block_io_latency_seconds",
            "container_block_io_device_seconds",
            "container_block_io_errors_total",
            "container_blkio_device_usage_total",
        ],
    },
    Act {
        needs: &[Need::Loop, Need::Unified("io")],
        run: |_| Ok(()),
        families: &[
            "container_io_charged_bytes_total",
            "container_io_charged_operations_total",
        ],
    },
    Act {
        needs: &[Need::Program("ip")],
        run: talk,
        families: &[
            "container_socket_receive_bytes_total",
            "container_socket_transmit_bytes_total",
            "container_socket_receive_packets_total",
            "container_socket_transmit_packets_total",
            "container_network_receive_bytes_total",
            "container_network_receive_packets_total",
            "container_network_receive_packets_dropped_total",
            "container_network_transmit_bytes_total",
            "container_network_transmit_packets_total",
            "container_tcp_retransmits_total",
            "container_tcp_connections_opened_total",
            "container_tcp_connect_failures_total",
            "container_tcp_resets_total",
            "container_tcp_rtt_seconds",
            "container_tcp_connection_duration_seconds",
            "container_network_drops_total",
        ],
    },
    Act {
        // The kernel updates pressure every 2 s.
        needs: &[Need::Pressure],
        run: |life| {
            life.worker.run("pin 0")?;
            life.worker.run("threads 2 300")?;
            std::thread::sleep(std::time::Duration::from_millis(2500));
            Ok(())
        },
        families: &[
            "container_pressure_cpu_waiting_seconds_total",
            "container_pressure_cpu_stalled_seconds_total",
        ],
    },
];

/// Controllers. A life has a twin in each one that exists.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "hugetlb", "io"];

/// A cgroup in the hierarchies of all controllers.
pub struct Group {
    twins: Vec<(&'static str, Twin)>,
    /// After the twins, so that it is removed last.
    pub cgroup: Cgroup,
    /// The folder for the files of lives.
    folder: PathBuf,
    /// The file system of that folder, if it has its own.
    _mounted: Option<Mounted>,
}

impl Group {
    /// Creates a cgroup below the root. In a guest, temporary files are in memory, so its spare
    /// disk is used.
    pub fn new() -> Result<Self> {
        let guest = needs::missing(&[Need::SpareDisk]).is_none();
        let mounted = guest
            .then(|| Mounted::ext4(&Disk(needs::SPARE_DISK.to_owned())))
            .transpose()?;
        let folder = mounted
            .as_ref()
            .map_or_else(std::env::temp_dir, |mounted| mounted.path().to_owned());
        Ok(Self {
            _mounted: mounted,
            ..Self::of(Cgroup::new()?, folder)?
        })
    }

    fn of(cgroup: Cgroup, folder: PathBuf) -> Result<Self> {
        let mut twins = Vec::new();
        for name in CONTROLLERS {
            if cgroup::controller(name).is_some() {
                twins.push((name, Twin::of(&cgroup, name)?));
            }
        }
        Ok(Self {
            twins,
            cgroup,
            folder,
            _mounted: None,
        })
    }

    /// Creates a child.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::of(self.cgroup.child(name)?, self.folder.clone())
    }

    /// Starts a worker in it.
    fn worker(&self) -> Result<Worker> {
        let worker = Worker::start(&self.cgroup)?;
        for (_, twin) in &self.twins {
            twin.admit(worker.pid())?;
        }
        Ok(worker)
    }

    /// Ends its tasks and removes it.
    pub fn remove(self) -> Result<()> {
        let Self { twins, cgroup, .. } = self;
        drop(twins);
        cgroup.remove_tasks()?;
        cgroup.remove()
    }
}

/// A cgroup with a worker, and the files and devices that it uses.
pub struct Life {
    worker: Worker,
    disk: Loop,
    full: Loop,
    file: PathBuf,
    _small: Mounted,
    /// The other end of its network. A veth pair is removed with either namespace.
    peer: Option<End>,
    group: Group,
}

impl Life {
    /// Starts a life in a new child of `parent`.
    pub fn below(parent: &Group, name: &str) -> Result<Self> {
        let group = parent.child(name)?;
        let worker = group.worker()?;
        let small = Mounted::tmpfs(64 << 10)?;
        let full = Loop::over(small.path().join("disk"), 8 << 20)?;
        ensure!(fs::write(small.path().join("filler"), vec![0; 128 << 10]).is_err());
        let file = group
            .folder
            .join(format!("cgmeter-test-life-{}", worker.pid()));
        Ok(Self {
            worker,
            disk: Loop::new(8 << 20)?,
            full,
            file,
            _small: small,
            peer: None,
            group,
        })
    }

    /// Its cgroup's path.
    pub fn id(&self) -> &str {
        &self.group.cgroup.id
    }

    /// Runs all workloads that this machine can run.
    pub fn act(&mut self) -> Result<()> {
        for act in ACTS {
            if needs::missing(act.needs).is_none() {
                (act.run)(self).with_context(|| format!("an act of {:?}", act.families))?;
            }
        }
        Ok(())
    }

    /// The kernel's own count of a family for the present cgroup. `None` if this machine lacks the
    /// controller.
    pub fn kernel_count(&self, family: &str) -> Result<Option<f64>> {
        let of = |controller: &'static str| {
            let there = needs::missing(&[Need::Controller(controller)]).is_none();
            there.then(|| self.twin(controller)).transpose()
        };
        match family {
            "container_cpu_user_seconds_total" => self.group.cgroup.cpu_stat("user_usec").map(Some),
            "container_cpu_cfs_periods_total" => {
                let twin = of("cpu")?;
                twin.map(|twin| twin.stat("cpu.stat", "nr_periods"))
                    .transpose()
            }
            "container_memory_failcnt" => {
                let hits = |twin: &Twin| match twin.v1 {
                    true => twin.number("memory.failcnt"),
                    false => twin.stat("memory.events", "max"),
                };
                of("memory")?.map(hits).transpose()
            }
            other => anyhow::bail!("{other}: not known here"),
        }
    }

    fn twin(&self, name: &str) -> Result<&Twin> {
        let twins = &self.group.twins;
        let twin = twins.iter().find(|(found, _)| *found == name);
        Ok(&twin.with_context(|| format!("no {name}"))?.1)
    }

    /// Ends the tasks and removes the twins and the cgroup.
    pub fn end(self) -> Result<()> {
        let Self {
            worker,
            group,
            file,
            ..
        } = self;
        let _ = fs::remove_file(file);
        drop(worker);
        group.remove()
    }
}

fn run_and_wait(life: &mut Life) -> Result<()> {
    life.worker.run("pingpong 50")?;
    life.worker.run("threads 3 20")?;
    life.worker.run("fork 50")?;
    life.worker.run("spin 30")
}

fn exceed_quota(life: &mut Life) -> Result<()> {
    let twin = life.twin("cpu")?;
    let [period, quota, burst] = [50_000, 10_000, 10_000];
    if twin.v1 {
        twin.write("cpu.cfs_period_us", &period.to_string())?;
        twin.write("cpu.cfs_quota_us", &quota.to_string())?;
        twin.write("cpu.cfs_burst_us", &burst.to_string())?;
    } else {
        twin.write("cpu.max", &format!("{quota} {period}"))?;
        twin.write("cpu.max.burst", &burst.to_string())?;
    }
    life.worker.run("spin 60")?;
    // Unused time is saved for a burst, so be idle first.
    std::thread::sleep(std::time::Duration::from_millis(200));
    life.worker.run("spin 60")?;
    // Leave a quota, so that the families exist. It is too large to affect later workloads.
    let (none, v1) = (1_000_000, life.twin("cpu")?.v1);
    if v1 {
        life.twin("cpu")?.write("cpu.cfs_burst_us", "0")?;
        life.twin("cpu")?
            .write("cpu.cfs_quota_us", &none.to_string())
    } else {
        life.twin("cpu")?.write("cpu.max.burst", "0")?;
        life.twin("cpu")?
            .write("cpu.max", &format!("{none} {period}"))
    }
}

/// Reaches the limit with pages of a file, then with memory that can't be reclaimed.
fn exceed_memory(life: &mut Life) -> Result<()> {
    // Clean pages alone: v1 does not hold back who writes, and kills a task where too many are dirty.
    let file = life.file.display().to_string();
    life.worker.run(&format!("write {file} 40"))?;
    life.worker.run(&format!("io fsync {file}"))?;
    let twin = life.twin("memory")?;
    let mib = |count: u64| (count << 20).to_string();
    if twin.v1 {
        twin.write("memory.limit_in_bytes", &mib(16))?;
        twin.write("memory.swappiness", "0")?;
    } else {
        twin.write("memory.high", &mib(14))?;
        twin.write("memory.max", &mib(16))?;
        twin.write("memory.swap.max", "0")?;
    }
    life.worker.run(&format!("cache {file}"))?;
    if !life.twin("memory")?.v1 {
        life.twin("memory")?.write("memory.high", "max")?;
    }
    life.worker.run(&format!("cache {file}"))?;
    life.worker.run(&format!("cache {file}"))?;
    let mut victim = life.group.worker()?;
    ensure!(victim.run("anon 64").is_err(), "64 MiB fit into 16 MiB");
    drop(victim);
    let twin = life.twin("memory")?;
    if twin.v1 {
        twin.write("memory.limit_in_bytes", "-1")
    } else {
        twin.write("memory.max", "max")
    }
}

fn exceed_huge_pages(life: &mut Life) -> Result<()> {
    const POOL: &str = "/proc/sys/vm/nr_hugepages";
    let before = fs::read_to_string(POOL)?;
    fs::write(POOL, "8")?;
    let twin = life.twin("hugetlb")?;
    let limit = if twin.v1 {
        "hugetlb.2MB.limit_in_bytes"
    } else {
        "hugetlb.2MB.max"
    };
    twin.write(limit, &(2u64 << 20).to_string())?;
    let mut victim = life.group.worker()?;
    let result = victim.run("huge 6");
    drop(victim);
    fs::write(POOL, before)?;
    ensure!(result.is_err(), "three huge pages with a limit of one");
    Ok(())
}

/// Exchanges packets with a cgroup in another namespace.
fn talk(life: &mut Life) -> Result<()> {
    let [own, theirs] = V4;
    let mut peer = End::new()?;
    life.worker.run("unshare-net")?;
    wire::join([&mut life.worker, &mut peer.worker])?;
    // Datagrams in both directions, frames of an unknown protocol, and more datagrams than fit into
    // a buffer.
    life.worker.run(&format!("udp-bind {own}:1001"))?;
    peer.worker.run(&format!("udp-bind {theirs}:1001"))?;
    let datagrams = |from: &mut Worker, to: &mut Worker, address: &str| -> Result<()> {
        to.order("udp-receive 20")?;
        from.run(&format!("udp-send {address}:1001 20 500"))?;
        to.wait_done()
    };
    datagrams(&mut life.worker, &mut peer.worker, theirs)?;
    datagrams(&mut peer.worker, &mut life.worker, own)?;
    peer.worker.run("frames eth0 5")?;
    life.worker.run(&format!("udp bind {own} 6000 4096"))?;
    peer.worker.ask(&format!("udp send {own} 6000 100 500"))?;
    // Connections: refused, opened, with retransmitted segments, closed, reset.
    life.worker.run(&format!("tcp refused {theirs} 3999 3"))?;
    peer.worker.run(&format!("tcp listen {theirs} 4000"))?;
    life.worker.run(&format!("tcp connect {theirs} 4000 2"))?;
    peer.worker.run("tcp accept 2")?;
    peer.worker.run("tcp deaf")?;
    life.worker.order("tcp write 3000")?;
    std::thread::sleep(std::time::Duration::from_millis(700));
    peer.worker.run("tcp hear")?;
    peer.worker.run("tcp read 3000")?;
    life.worker.wait_done()?;
    life.worker.run("tcp close")?;
    peer.worker.run("tcp close")?;
    life.worker.run(&format!("tcp connect {theirs} 4000 1"))?;
    peer.worker.run("tcp accept 1")?;
    life.worker.run("tcp reset")?;
    peer.worker.run("tcp close")?;
    life.peer = Some(peer);
    Ok(())
}
