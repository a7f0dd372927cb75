//! Block I/O. Oracle: I/O of known size, /proc/diskstats, io.stat where cgroup2 has the io controller.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    block_device::{Disk, Loop, Mapped, Mounted, Stats, Zram},
    cgroup::{self, Cgroup, Hierarchy},
    conservation::run_in,
    held_disk::HeldDisk,
    metrics::{Metrics, same},
    mounted::{Folder, isolated},
    needs::Need,
    runtimes::eventually,
    worker::Worker,
};

pub const TESTS: &[Test] = &[
    (
        "block::direct_io_of_known_size",
        &[Need::Agent, Need::Loop],
        direct,
    ),
    ("block::a_mixed_load", &[Need::Agent, Need::Loop], mixed),
    (
        "block::a_separate_disk",
        &[Need::Agent, Need::SpareDisk, Need::Program("mkfs.ext4")],
        spare_disk,
    ),
    (
        "block::pages_written_back",
        &[Need::Agent, Need::Loop, Need::Program("mkfs.ext4")],
        written_back,
    ),
    (
        "block::below_a_cgroup_with_the_io_controller",
        &[Need::Agent, Need::Loop, Need::Unified("io")],
        without_controller,
    ),
    ("block::failed_requests", &[Need::Agent, Need::Loop], failed),
    (
        "block::a_driver_without_requests",
        &[Need::Agent, Need::Zram],
        zram,
    ),
    (
        "block::mapped_disks",
        &[Need::Agent, Need::Loop, Need::DeviceMapper],
        mapped,
    ),
    (
        "block::counters_of_a_removed_cgroup",
        &[Need::Agent, Need::Loop],
        ended,
    ),
    (
        "block::removed_cgroups_while_the_agent_is_stopped",
        &[Need::Agent, Need::Loop],
        while_stopped,
    ),
    (
        "block::more_disks_than_entries",
        &[Need::Agent, Need::Loop],
        many_disks,
    ),
    (
        "block::pages_written_back_after_the_removal",
        &[
            Need::Agent,
            Need::Loop,
            Need::Program("mkfs.ext4"),
            Need::Unified("io"),
            Need::Unified("memory"),
        ],
        written_back_late,
    ),
    (
        "block::requests_that_complete_after_the_removal",
        &[Need::Agent, Need::Loop, Need::File("/dev/fuse")],
        || isolated(completed_late),
    ),
    (
        "block::requests_that_complete_after_the_removal_charged_to_leaves",
        &[
            Need::Agent,
            Need::Loop,
            Need::File("/dev/fuse"),
            Need::Unified("io"),
            Need::Unified("memory"),
        ],
        || isolated(charged_late),
    ),
    (
        "block::more_cgroups_than_entries",
        &[Need::Agent, Need::Loop],
        overflow,
    ),
];

const READS: &str = "container_fs_reads_total";
const READ_BYTES: &str = "container_fs_reads_bytes_total";
const WRITES: &str = "container_fs_writes_total";
const WRITE_BYTES: &str = "container_fs_writes_bytes_total";
const LATENCY: &str = "container_block_io_latency_seconds";
const ERRORS: &str = "container_block_io_errors_total";
const USAGE: &str = "container_blkio_device_usage_total";
const KIB: f64 = 1024.0;
const SECTOR: f64 = 512.0;

/// A cgroup's values for a disk, in the units of /proc/diskstats. 0 if there is no series yet.
fn of(metrics: &Metrics, id: &str, disk: &Disk) -> Stats {
    let device = [("id", id), ("device", disk.0.as_str())];
    let sum = |name: &str| metrics.sum(name, &device);
    let with = |name: &str, operation: &str| {
        metrics.sum(name, &[device[0], device[1], ("operation", operation)])
    };
    let count = |operation: &str| with(&format!("{LATENCY}_count"), operation);
    Stats {
        reads: sum(READS),
        read_sectors: sum(READ_BYTES) / SECTOR,
        read_ms: with(&format!("{LATENCY}_sum"), "read") * 1e3,
        writes: sum(WRITES),
        write_sectors: sum(WRITE_BYTES) / SECTOR,
        write_ms: with(&format!("{LATENCY}_sum"), "write") * 1e3,
        discards: count("discard"),
        discard_sectors: with(USAGE, "Discard") / SECTOR,
        flushes: count("flush"),
    }
}

/// The increase of a disk's and the agent's counters since a moment.
struct Since<'a> {
    agent: &'a Agent,
    disk: &'a Disk,
    theirs: Stats,
    ours: Stats,
}

impl<'a> Since<'a> {
    fn now(agent: &'a Agent, disk: &'a Disk) -> Result<Self> {
        let ours = of(&agent.scrape()?, "/", disk);
        let theirs = disk.stats()?;
        Ok(Self {
            agent,
            disk,
            theirs,
            ours,
        })
    }

    /// Fails unless the sum over all cgroups equals the kernel's statistics of the disk. Requests
    /// that are only a flush are excepted, because the kernel counts them as writes. Returns the
    /// scrape and the increase of the disk's statistics.
    fn check(&self, empty_flushes: Option<f64>) -> Result<(Metrics, Stats)> {
        let (metrics, theirs) = self.at_rest()?;
        let ours = of(&metrics, "/", self.disk) - self.ours;
        same("reads", ours.reads, theirs.reads)?;
        same("sectors read", ours.read_sectors, theirs.read_sectors)?;
        same("sectors written", ours.write_sectors, theirs.write_sectors)?;
        same("discards", ours.discards, theirs.discards)?;
        same(
            "sectors discarded",
            ours.discard_sectors,
            theirs.discard_sectors,
        )?;
        same("flushes", ours.flushes, theirs.flushes)?;
        match empty_flushes {
            Some(empty) => same("writes", ours.writes + empty, theirs.writes)?,
            // Each of these writes waits for a flush, and some share one.
            None => ensure!(
                ours.writes <= theirs.writes,
                "{} writes instead of at most {}",
                ours.writes,
                theirs.writes
            ),
        }
        Ok((metrics, theirs))
    }
}

impl Since<'_> {
    /// Returns a scrape during which the kernel's statistics of the disk did not change, and their
    /// increase.
    fn at_rest(&self) -> Result<(Metrics, Stats)> {
        for _ in 0..100 {
            let before = self.disk.stats()?;
            let metrics = self.agent.scrape()?;
            if self.disk.stats()? == before {
                return Ok((metrics, before - self.theirs));
            }
        }
        anyhow::bail!("{} does not become idle", self.disk.0)
    }
}

fn worker_in(cgroup: &Cgroup, order: &str) -> Result<()> {
    Worker::once(cgroup, &format!("io {order}"))
}

fn direct() -> Result<()> {
    let agent = Agent::start(&[])?;
    let disk = Loop::new(64 << 20)?;
    direct_on(&agent, &disk.disk, true)
}

/// Two cgroups, one that writes and one that reads.
fn direct_on(agent: &Agent, disk: &Disk, discards: bool) -> Result<()> {
    let (writer, reader) = (Cgroup::new()?, Cgroup::new()?);
    let since = Since::now(agent, disk)?;
    worker_in(&writer, &format!("write {} 16384 200", disk.0))?;
    worker_in(&reader, &format!("read {} 4096 300", disk.0))?;
    worker_in(&reader, &format!("read {} 65536 7", disk.0))?;
    worker_in(&writer, &format!("fsync {}", disk.0))?;
    if discards {
        worker_in(&writer, &format!("discard {} 1048576", disk.0))?;
    }
    let (metrics, theirs) = since.check(Some(1.0))?;
    let own = of(&metrics, &writer.id, disk);
    same("own writes", own.writes, 200.0)?;
    same("own bytes", own.write_sectors * SECTOR, 200.0 * 16.0 * KIB)?;
    same("own reads", own.reads, 0.0)?;
    let known = has_io() || tells_of_flushes()?;
    same("own flushes", own.flushes, f64::from(u8::from(known)))?;
    if discards {
        same("own discards", own.discard_sectors * SECTOR, 1024.0 * KIB)?;
    }
    let own = of(&metrics, &reader.id, disk);
    same("own reads", own.reads, 307.0)?;
    let read = (300.0 * 4.0 + 7.0 * 64.0) * KIB;
    same("own bytes read", own.read_sectors * SECTOR, read)?;
    same("own writes", own.writes, 0.0)?;
    same("own flushes", own.flushes, 0.0)?;
    check_labels(&metrics, &reader, disk, read)?;
    let host = of(&metrics, "/", disk) - since.ours;
    same_time("read", host.read_ms, theirs.read_ms)?;
    // The kernel counts an empty flush as a write, and its time too.
    ensure!(
        host.write_ms <= theirs.write_ms * 1.001 + 1.0 && host.write_ms > 0.0,
        "write: {} ms instead of at most {} ms",
        host.write_ms,
        theirs.write_ms
    );
    let buckets = metrics.get(
        &format!("{LATENCY}_bucket"),
        &[
            ("id", &reader.id),
            ("device", &disk.0),
            ("operation", "read"),
            ("le", "+Inf"),
        ],
    )?;
    same("requests in the histogram", buckets, 307.0)
}

/// Whether the kernel charges I/O to cgroup2's cgroups.
fn has_io() -> bool {
    matches!(cgroup::controller("io"), Some(Hierarchy::V2(_)))
}

/// Whether the kernel reports the submission of a request that is only a flush. It does so since
/// 6.5, with the tracepoint block_io_start.
fn tells_of_flushes() -> Result<bool> {
    Ok(fs::read_to_string("/proc/kallsyms")?.contains("__traceiter_block_io_start"))
}

/// The kernel's statistics take the end of a request later than the agent, after the request's bios
/// were completed. The difference is nanoseconds, or longer if that was interrupted. The kernel
/// also drops fractions of a millisecond.
fn same_time(what: &str, found: f64, statistics: f64) -> Result<()> {
    ensure!(
        found <= statistics * 1.001 + 1.0 && found * 2.0 >= statistics,
        "{what}: {found} ms instead of {statistics} ms"
    );
    Ok(())
}

/// The same values in cAdvisor's other families.
fn check_labels(metrics: &Metrics, reader: &Cgroup, disk: &Disk, read: f64) -> Result<()> {
    let number = disk.number()?;
    let (major, minor) = number.split_once(':').context("no device number")?;
    for (operation, expected) in [("Read", read), ("Write", 0.0), ("Total", read)] {
        let labels = [
            ("id", reader.id.as_str()),
            ("device", &disk.0),
            ("major", major),
            ("minor", minor),
            ("operation", operation),
        ];
        same(operation, metrics.get(USAGE, &labels)?, expected)?;
    }
    let labels = [("id", reader.id.as_str()), ("device", &disk.0)];
    let sectors = metrics.get("container_fs_sector_reads_total", &labels)?;
    same("sectors", sectors, read / SECTOR)?;
    let seconds = metrics.get("container_fs_read_seconds_total", &labels)?;
    let sum = metrics.get(
        &format!("{LATENCY}_sum"),
        &[labels[0], labels[1], ("operation", "read")],
    )?;
    same("seconds", seconds, sum)?;
    let failed = metrics.get(ERRORS, &[labels[0], labels[1], ("operation", "read")])?;
    same("errors", failed, 0.0)?;
    ensure!(
        !metrics.has(ERRORS, &[labels[0], labels[1], ("operation", "write")]),
        "an operation that never occurred has series"
    );
    Ok(())
}

fn mixed() -> Result<()> {
    let agent = Agent::start(&[])?;
    let disk = Loop::new(64 << 20)?;
    let cgroups = [Cgroup::new()?, Cgroup::new()?, Cgroup::new()?];
    let since = Since::now(&agent, &disk.disk)?;
    let mut workers = Vec::new();
    for (n, cgroup) in cgroups.iter().enumerate() {
        let mut worker = Worker::start(cgroup)?;
        worker.order(&format!("io mix {} 60 {}", disk.disk.0, n + 1))?;
        workers.push(worker);
    }
    for worker in &mut workers {
        worker.wait_done()?;
    }
    let (metrics, theirs) = since.check(None)?;
    ensure!(
        theirs.reads > 100.0 && theirs.writes > 100.0,
        "no load: {theirs:?}"
    );
    for cgroup in &cgroups {
        let own = of(&metrics, &cgroup.id, &disk.disk);
        ensure!(
            own.reads > 20.0 && own.writes > 10.0,
            "{}: {own:?}",
            cgroup.id
        );
    }
    Ok(())
}

fn spare_disk() -> Result<()> {
    let agent = Agent::start(&[])?;
    let disk = Disk(crate::needs::SPARE_DISK.to_owned());
    direct_on(&agent, &disk, false)?;
    write_back_on(&agent, &disk)
}

fn written_back() -> Result<()> {
    let agent = Agent::start(&[])?;
    let disk = Loop::new(64 << 20)?;
    write_back_on(&agent, &disk.disk)
}

/// A cgroup dirties pages, and the kernel writes them back when another cgroup requests it.
fn write_back_on(agent: &Agent, disk: &Disk) -> Result<()> {
    const BYTES: f64 = 8.0 * KIB * KIB;
    let charged = cgroup::enable(&["io", "memory"])?;
    let cgroup = Cgroup::new()?;
    let since = Since::now(agent, disk)?;
    let mounted = Mounted::ext4(disk)?;
    let file = mounted.path().join("file");
    worker_in(&cgroup, &format!("dirty {} 65536 128", file.display()))?;
    let before = of(&agent.scrape()?, &cgroup.id, disk);
    ensure!(
        before.write_sectors * SECTOR < BYTES,
        "the pages were written before the request"
    );
    mounted.sync()?;
    let (metrics, _) = since.check(None)?;
    let own = of(&metrics, &cgroup.id, disk);
    if charged {
        let written = own.write_sectors * SECTOR;
        ensure!(
            written >= BYTES,
            "{written} bytes are charged to the cgroup that dirtied {BYTES}"
        );
        let number = disk.number()?;
        same(
            "bytes written",
            written,
            io_stat(&cgroup, &number, "wbytes")?,
        )?;
        let read = own.read_sectors * SECTOR;
        same("bytes read", read, io_stat(&cgroup, &number, "rbytes")?)?;
    } else {
        // The kernel does not know the owner of the pages, so the root is charged.
        same("own", own.write_sectors, before.write_sectors)?;
        let host = of(&metrics, "/", disk) - since.ours;
        ensure!(host.write_sectors * SECTOR >= BYTES, "{host:?}");
    }
    Ok(())
}

/// A value for a disk in a cgroup's io.stat. 0 if the disk is not listed.
fn io_stat(cgroup: &Cgroup, number: &str, key: &str) -> Result<f64> {
    let text = fs::read_to_string(cgroup.directory.join("io.stat"))?;
    let line = text
        .lines()
        .find(|line| line.split(' ').next().is_some_and(|found| found == number));
    let Some(line) = line else {
        return Ok(0.0);
    };
    let value = line
        .split(' ')
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok());
    value.with_context(|| format!("no {key} in io.stat"))
}

/// The kernel charges the nearest ancestor that has the controller. The agent knows the submitter.
fn without_controller() -> Result<()> {
    ensure!(
        cgroup::enable(&["io"])?,
        "the io controller can't be enabled"
    );
    let agent = Agent::start(&[])?;
    let disk = Loop::new(16 << 20)?;
    let parent = Cgroup::new()?;
    let children = [parent.child("one")?, parent.child("two")?];
    ensure!(
        !children[0].directory.join("io.stat").exists(),
        "the children have the io controller"
    );
    let since = Since::now(&agent, &disk.disk)?;
    for (n, child) in children.iter().enumerate() {
        let count = 50 + n;
        worker_in(child, &format!("read {} 8192 {count}", disk.disk.0))?;
        worker_in(child, &format!("write {} 4096 {count}", disk.disk.0))?;
        worker_in(child, &format!("fsync {}", disk.disk.0))?;
    }
    let (metrics, _) = since.check(Some(2.0))?;
    for (n, child) in children.iter().enumerate() {
        let own = of(&metrics, &child.id, &disk.disk);
        same("reads", own.reads, 50.0 + n as f64)?;
        same("writes", own.writes, 50.0 + n as f64)?;
        if tells_of_flushes()? {
            same("flushes", own.flushes, 1.0)?;
        }
    }
    let all = of(&metrics, &parent.id, &disk.disk);
    let number = disk.disk.number()?;
    let read = all.read_sectors * SECTOR;
    same("bytes read", read, io_stat(&parent, &number, "rbytes")?)?;
    let written = all.write_sectors * SECTOR;
    same(
        "bytes written",
        written,
        io_stat(&parent, &number, "wbytes")?,
    )?;
    same("flushes", all.flushes, 2.0)
}

fn failed() -> Result<()> {
    let agent = Agent::start(&[])?;
    // The file behind the disk is too small for the data written.
    let small = Mounted::tmpfs(64 << 10)?;
    let disk = Loop::over(small.path().join("disk"), 8 << 20)?;
    ensure!(fs::write(small.path().join("filler"), vec![0; 128 << 10]).is_err());
    let cgroup = Cgroup::new()?;
    let since = Since::now(&agent, &disk.disk)?;
    worker_in(&cgroup, &format!("fail {} 131072 23", disk.disk.0))?;
    let (metrics, theirs) = since.check(Some(0.0))?;
    same(
        "failed writes in the kernel's statistics",
        theirs.writes,
        23.0,
    )?;
    let labels = |operation| {
        [
            ("id", cgroup.id.as_str()),
            ("device", disk.disk.0.as_str()),
            ("operation", operation),
        ]
    };
    same("errors", metrics.get(ERRORS, &labels("write"))?, 23.0)?;
    ensure!(!metrics.has(ERRORS, &labels("read")));
    Ok(())
}

fn zram() -> Result<()> {
    let agent = Agent::start(&[])?;
    let disk = Zram::new(16 << 20)?;
    without_requests(&agent, &disk.disk)
}

/// A disk whose driver does not use requests has bytes and operations, but no latency.
fn without_requests(agent: &Agent, disk: &Disk) -> Result<()> {
    let cgroup = Cgroup::new()?;
    let since = Since::now(agent, disk)?;
    worker_in(&cgroup, &format!("write {} 16384 40", disk.0))?;
    worker_in(&cgroup, &format!("read {} 4096 30", disk.0))?;
    let (metrics, _) = since.check(Some(0.0))?;
    let own = of(&metrics, &cgroup.id, disk);
    same("writes", own.writes, 40.0)?;
    same("bytes", own.write_sectors * SECTOR, 40.0 * 16.0 * KIB)?;
    same("reads", own.reads, 30.0)?;
    same("bytes read", own.read_sectors * SECTOR, 30.0 * 4.0 * KIB)?;
    let labels = [("id", cgroup.id.as_str()), ("device", disk.0.as_str())];
    ensure!(!metrics.has(&format!("{LATENCY}_count"), &labels));
    ensure!(!metrics.has("container_fs_read_seconds_total", &labels));
    Ok(())
}

fn mapped() -> Result<()> {
    let agent = Agent::start(&[])?;
    let below = Loop::new(16 << 20)?;
    let linear = Mapped::new(&format!("0 32768 linear {} 0", below.disk.0))?;
    let lower = Since::now(&agent, &below.disk)?;
    without_requests(&agent, &linear.disk)?;
    // The I/O on the mapped disk was also done on the disk below it, once each.
    let (_, theirs) = lower.check(Some(0.0))?;
    same("writes below", theirs.writes, 40.0)?;
    let broken = Mapped::new("0 32768 error")?;
    let cgroup = Cgroup::new()?;
    worker_in(&cgroup, &format!("fail-read {} 4096 9", broken.disk.0))?;
    let errors = agent.scrape()?.get(
        ERRORS,
        &[
            ("id", "/"),
            ("device", &broken.disk.0),
            ("operation", "read"),
        ],
    )?;
    same("errors", errors, 9.0)
}

fn ended() -> Result<()> {
    let agent = Agent::start(&["--cgroup.linger", "1s"])?;
    let disk = Loop::new(16 << 20)?;
    let parent = Cgroup::new()?;
    let since = Since::now(&agent, &disk.disk)?;
    for n in 0..3 {
        let child = parent.child(&format!("c{n}"))?;
        worker_in(&child, &format!("read {} 4096 100", disk.disk.0))?;
        child.remove()?;
        std::thread::sleep(Duration::from_millis(700));
    }
    let before = of(&agent.scrape()?, &parent.id, &disk.disk);
    same("reads", before.reads, 300.0)?;
    // Longer than the linger.
    std::thread::sleep(Duration::from_secs(4));
    let (metrics, _) = since.check(Some(0.0))?;
    let child = format!("{}/c0", parent.id);
    ensure!(
        !metrics.has(READS, &[("id", &child)]),
        "the cgroup is still reported"
    );
    same("kept", of(&metrics, &parent.id, &disk.disk).reads, 300.0)
}

/// More cgroups than there are slots and values: each has all of its reads or no series.
fn overflow() -> Result<()> {
    let agent = Agent::start(&["--cgroup.max", "4"])?;
    let disk = Loop::new(16 << 20)?;
    let parent = Cgroup::new()?;
    let since = Since::now(&agent, &disk.disk)?;
    let mut children = Vec::new();
    for n in 0..12 {
        let child = parent.child(&format!("c{n}"))?;
        worker_in(&child, &format!("read {} 4096 20", disk.disk.0))?;
        children.push(child);
    }
    let (metrics, _) = since.check(Some(0.0))?;
    let all_or_nothing = |cgroup: &Cgroup, reads: f64| {
        let has = metrics.has(READS, &[("id", &cgroup.id)]);
        let found = of(&metrics, &cgroup.id, &disk.disk).reads;
        ensure!(!has || found == reads, "{found} reads of {}", cgroup.id);
        Ok(has)
    };
    let mut without = 0;
    for child in &children {
        without += usize::from(!all_or_nothing(child, 20.0)?);
    }
    ensure!(without >= 8, "only {without} cgroups have no slot");
    all_or_nothing(&parent, 240.0)?;
    Ok(())
}

/// What removed cgroups have read is their parent's, while the agent is stopped. There are more of them
/// than values are kept free.
fn while_stopped() -> Result<()> {
    const CHILDREN: u32 = 250;
    let agent = Agent::start(&[])?;
    let disk = Loop::new(16 << 20)?;
    let parent = Cgroup::new()?;
    let since = Since::now(&agent, &disk.disk)?;
    let own = parent.child("own")?;
    let read = |cgroup: &Cgroup| worker_in(cgroup, &format!("read {} 4096 3", disk.disk.0));
    read(&own)?;
    agent.signal(libc::SIGSTOP);
    let churn = || -> Result<()> {
        for n in 0..CHILDREN {
            let child = parent.child(&format!("c{n}"))?;
            read(&child)?;
            child.remove()?;
        }
        Ok(())
    };
    let result = churn();
    agent.signal(libc::SIGCONT);
    result?;
    let (metrics, _) = since.check(Some(0.0))?;
    let reads = |cgroup: &Cgroup| of(&metrics, &cgroup.id, &disk.disk).reads;
    same("of one that lives", reads(&own), 3.0)?;
    let expected = 3.0 * f64::from(CHILDREN + 1);
    same("of the parent", reads(&parent), expected)?;
    let (metrics, _) = since.check(Some(0.0))?;
    let again = of(&metrics, &parent.id, &disk.disk).reads;
    same("of the parent, again", again, expected)
}

/// A cgroup uses more disks than it has room for.
fn many_disks() -> Result<()> {
    const DISKS: usize = 20;
    let agent = Agent::start(&[])?;
    let disks: Vec<Loop> = (0..DISKS)
        .map(|_| Loop::new(1 << 20))
        .collect::<Result<_>>()?;
    let top = Cgroup::new()?;
    let child = top.child("child")?;
    let mut since = Vec::new();
    for disk in &disks {
        since.push(Since::now(&agent, &disk.disk)?);
    }
    for disk in &disks {
        worker_in(&child, &format!("read {} 4096 7", disk.disk.0))?;
    }
    let complete = |metrics: &Metrics, cgroup: &str| -> Result<usize> {
        let mut complete = 0;
        for disk in &disks {
            let device = [("id", cgroup), ("device", disk.disk.0.as_str())];
            if metrics.has(READS, &device) {
                same(&disk.disk.0, of(metrics, cgroup, &disk.disk).reads, 7.0)?;
                complete += 1;
            }
        }
        Ok(complete)
    };
    let metrics = agent.scrape()?;
    same(
        "disks of the cgroup",
        complete(&metrics, &child.id)? as f64,
        16.0,
    )?;
    same(
        "of its parent",
        complete(&metrics, &top.id)? as f64,
        DISKS as f64,
    )?;
    child.remove()?;
    // The parent takes over what it has room for.
    let metrics = agent.scrape()?;
    ensure!(complete(&metrics, &top.id)? >= 16);
    for since in since {
        since.check(Some(0.0))?;
    }
    Ok(())
}

/// Pages that a cgroup has dirtied are written when it is gone.
fn written_back_late() -> Result<()> {
    const BYTES: f64 = 8.0 * KIB * KIB;
    ensure!(
        cgroup::enable(&["io", "memory"])?,
        "the controllers can't be enabled"
    );
    let agent = Agent::start(&[])?;
    let disk = Loop::new(64 << 20)?;
    let parent = Cgroup::new()?;
    let child = parent.child("child")?;
    let since = Since::now(&agent, &disk.disk)?;
    let mounted = Mounted::ext4(&disk.disk)?;
    let file = mounted.path().join("file");
    worker_in(&child, &format!("dirty {} 65536 128", file.display()))?;
    child.remove()?;
    std::thread::sleep(Duration::from_secs(5));
    mounted.sync()?;
    let (metrics, _) = since.check(None)?;
    let written = of(&metrics, &parent.id, &disk.disk).write_sectors * SECTOR;
    ensure!(
        written >= BYTES,
        "{written} bytes count for the parent of the cgroup that dirtied {BYTES}"
    );
    Ok(())
}

/// Requests are under way when the process that made them has ended and its cgroup is removed, and complete later.
/// The io controller is not enabled below the cgroups at the root.
fn completed_late() -> Result<()> {
    late_rounds(false)
}

/// The same, where the kernel charges the removed cgroup itself.
fn charged_late() -> Result<()> {
    ensure!(
        cgroup::enable(&["io", "memory"])?,
        "the controllers can't be enabled"
    );
    late_rounds(true)
}

/// What happens between the issue of requests and their completion.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meanwhile {
    /// The cgroup is removed.
    Removed,
    /// Its parent is removed, too.
    WithParent,
    /// Its slot is free again, and other cgroups have taken it.
    SlotTaken,
}

fn late_rounds(has_controllers: bool) -> Result<()> {
    let agent = Agent::start(&[])?;
    for order in ["read-ahead", "write-out"] {
        for meanwhile in [
            Meanwhile::Removed,
            Meanwhile::WithParent,
            Meanwhile::SlotTaken,
        ] {
            late(&agent, order, has_controllers, meanwhile)
                .with_context(|| format!("{order}, {meanwhile:?}"))?;
        }
    }
    Ok(())
}

/// The kernel's count of the ancestor, io.stat, is no oracle: Linux 6.1 may forget what completes after the removal.
fn late(agent: &Agent, order: &str, has_controllers: bool, meanwhile: Meanwhile) -> Result<()> {
    const BYTES: u64 = 1 << 20;
    let folder = Folder::new("held")?;
    let point = folder.0.join("file");
    fs::write(&point, "")?;
    let held = HeldDisk::new(&point, 16 << 20)?;
    let disk = &held.disk;
    let top = Cgroup::new()?;
    let middle = top.child("middle")?;
    if has_controllers {
        for cgroup in [&top, &middle] {
            let file = cgroup.directory.join("cgroup.subtree_control");
            fs::write(file, "+io +memory")?;
        }
    }
    let leaf = middle.child("leaf")?;
    ensure!(leaf.directory.join("io.stat").exists() == has_controllers);
    let since = Since::now(agent, disk)?;

    held.hold();
    worker_in(&leaf, &format!("{order} {} {BYTES}", disk.0))?;
    held.wait_until_held()?;
    let issued = held.under_way()?;
    ensure!(issued > 0.0, "no request is under way");
    leaf.remove()?;
    let begin = Instant::now();
    if meanwhile == Meanwhile::WithParent {
        middle.remove()?;
    }
    let mut others = Vec::new();
    if meanwhile == Meanwhile::SlotTaken {
        others = take_free_slots(agent)?;
    }
    same(
        "completed before",
        (disk.stats()? - since.theirs).reads,
        0.0,
    )?;
    same(
        "completed before",
        (disk.stats()? - since.theirs).writes,
        0.0,
    )?;
    let ancestor = match meanwhile {
        Meanwhile::WithParent => &top,
        _ => &middle,
    };
    let before = of(&agent.scrape()?, &ancestor.id, disk);
    ensure!(before == Stats::default(), "counted before: {before:?}");
    same("under way", held.under_way()?, issued)?;
    let waited = begin.elapsed();
    held.let_go()?;

    for round in 0..2 {
        let (metrics, theirs) = since.check(Some(0.0))?;
        let bytes = (theirs.read_sectors + theirs.write_sectors) * SECTOR;
        same("bytes", bytes, BYTES as f64)?;
        same("requests", theirs.reads + theirs.writes, issued)?;
        for cgroup in [&top, ancestor] {
            let own = of(&metrics, &cgroup.id, disk);
            let context = || {
                format!(
                    "{}, scrape {round}: {own:?} instead of {theirs:?}",
                    cgroup.id
                )
            };
            let counts = |stats: Stats| Stats {
                read_ms: 0.0,
                write_ms: 0.0,
                ..stats
            };
            ensure!(counts(own) == counts(theirs), "{}", context());
            let (own, theirs) = (own.read_ms + own.write_ms, theirs.read_ms + theirs.write_ms);
            same_time("all requests", own, theirs).with_context(context)?;
            // Each of them was under way all that time.
            let least = waited.as_secs_f64() * 1e3 * issued;
            ensure!(own >= least, "at least {least} ms: {}", context());
        }
        let device = [("device", disk.0.as_str())];
        let gone = [("id", leaf.id.as_str()), device[0]];
        ensure!(!metrics.has(READS, &gone) && !metrics.has(WRITES, &gone));
        for other in &others {
            let own = of(&metrics, &other.id, disk);
            ensure!(own == Stats::default(), "{}: {own:?}", other.id);
        }
    }
    Ok(())
}

/// Makes cgroups, each with a process that has ended, once the slots of those that were removed before are free
/// again. Slots that became free last are taken first.
fn take_free_slots(agent: &Agent) -> Result<Vec<Cgroup>> {
    let other = Cgroup::new()?;
    let mut removed = 0.0;
    // Slots become free in the order of the removals. So those before are free once fewer wait than have been
    // removed here.
    eventually(|| {
        let child = other.child("removed")?;
        run_in(&child, Duration::ZERO)?;
        child.remove()?;
        removed += 1.0;
        let waiting = [("state", "quarantined")];
        let waiting = agent.scrape()?.get("cgmeter_slots", &waiting)?;
        ensure!(waiting < removed, "{waiting} of {removed} slots wait");
        Ok(())
    })?;
    let mut others = vec![other];
    for n in 0..32 {
        let child = others[0].child(&format!("o{n}"))?;
        run_in(&child, Duration::ZERO)?;
        others.push(child);
    }
    // Children are removed before their parent.
    others.reverse();
    Ok(others)
}
