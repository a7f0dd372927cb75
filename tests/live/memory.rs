//! Memory: usage, limits, statistics, events, huge pages, reclaim, OOM kills. Oracle: the memory and
//! hugetlb controllers' files.

use std::{fs, path::PathBuf};

use anyhow::{Result, ensure};

use crate::{
    Test,
    agent::Agent,
    block_device::{Disk, Mounted},
    cgroup::Cgroup,
    metrics::{Metrics, agree, same},
    needs::{self, Need},
    trace::Trace,
    twin::Twin,
    worker::Worker,
};

const NEEDS: &[Need] = &[Need::Agent, Need::Controller("memory")];

pub const TESTS: &[Test] = &[
    ("memory::usage_and_statistics", NEEDS, usage),
    ("memory::the_host", NEEDS, host),
    ("memory::limits", NEEDS, limits),
    (
        "memory::reclaim_at_the_limit",
        &[Need::Agent, Need::Controller("memory"), Need::Tracing],
        reclaim,
    ),
    ("memory::an_oom_kill", NEEDS, oom),
    ("memory::final_record_of_a_removed_cgroup", NEEDS, last),
    (
        "memory::own_page_faults_of_a_removed_cgroup",
        NEEDS,
        own_faults_of_removed,
    ),
    (
        "memory::huge_pages",
        &[Need::Agent, Need::Controller("hugetlb")],
        huge,
    ),
];

const MIB: f64 = 1048576.0;
const OOM: &str = "container_oom_events_total";
const FAULTS: &str = "container_memory_failures_total";

/// A cgroup with a worker, which is also in the memory controller's cgroup.
struct Place {
    worker: Worker,
    twin: Twin,
    cgroup: Cgroup,
}

impl Place {
    fn new() -> Result<Self> {
        Self::within(Cgroup::new()?)
    }

    fn within(cgroup: Cgroup) -> Result<Self> {
        let twin = Twin::of(&cgroup, "memory")?;
        let worker = Worker::start(&cgroup)?;
        twin.admit(worker.pid())?;
        Ok(Self {
            worker,
            twin,
            cgroup,
        })
    }

    fn limit(&self, mib: u64) -> Result<()> {
        let bytes = (mib << 20).to_string();
        if self.twin.v1 {
            return self.twin.write("memory.limit_in_bytes", &bytes);
        }
        self.twin.write("memory.max", &bytes)
    }

    /// Reads a file of 48 MiB under a limit of 16 MiB.
    ///
    /// The file is written before, without the limit, so that its pages are clean. A task that dirties
    /// pages faster than the disk takes them can be killed at its limit instead of reclaiming.
    fn exceed_limit(&mut self, file: &Scratch) -> Result<()> {
        let path = file.file.display();
        self.worker.run(&format!("write {path} 48"))?;
        self.worker.run(&format!("io fsync {path}"))?;
        self.limit(16)?;
        self.worker.run(&format!("cache {path}"))
    }
}

/// A file on a disk, removed at the end. In a guest, temporary files are in memory, so its spare
/// disk is used.
struct Scratch {
    file: PathBuf,
    _mounted: Option<Mounted>,
}

impl Scratch {
    fn new() -> Result<Self> {
        let guest = needs::missing(&[Need::SpareDisk]).is_none();
        let mounted = guest
            .then(|| Mounted::ext4(&Disk(needs::SPARE_DISK.to_owned())))
            .transpose()?;
        let folder = mounted
            .as_ref()
            .map_or_else(std::env::temp_dir, |mounted| mounted.path().to_owned());
        Ok(Self {
            file: folder.join(format!("cgmeter-test-memory-{}", std::process::id())),
            _mounted: mounted,
        })
    }

    fn order(&self, mib: u64) -> String {
        format!("write {} {mib}", self.file.display())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// Scrapes until the controller's files have the same values before and after the scrape.
fn still<T: PartialEq>(agent: &Agent, read: impl Fn() -> Result<T>) -> Result<(Metrics, T)> {
    for _ in 0..20 {
        let before = read()?;
        let metrics = agent.scrape()?;
        let after = read()?;
        if before == after {
            return Ok((metrics, after));
        }
    }
    anyhow::bail!("the controller's files don't stop changing")
}

fn usage() -> Result<()> {
    let agent = Agent::start(&[])?;
    let mut place = Place::new()?;
    let file = Scratch::new()?;
    place.worker.run("anon 24")?;
    place.worker.run(&file.order(12))?;
    let twin = &place.twin;
    let keys: &[(&str, &str, &str)] = &[
        ("container_memory_rss", "anon", "total_rss"),
        ("container_memory_cache", "file", "total_cache"),
        (
            "container_memory_mapped_file",
            "file_mapped",
            "total_mapped_file",
        ),
        (
            "container_memory_total_inactive_file_bytes",
            "inactive_file",
            "total_inactive_file",
        ),
        (
            "container_memory_total_active_file_bytes",
            "active_file",
            "total_active_file",
        ),
        (
            "container_memory_file_dirty_bytes",
            "file_dirty",
            "total_dirty",
        ),
        (
            "container_memory_file_writeback_bytes",
            "file_writeback",
            "total_writeback",
        ),
    ];
    let read = || {
        let mut values = vec![
            twin.either("memory.current", "memory.usage_in_bytes")?,
            twin.either("memory.peak", "memory.max_usage_in_bytes")?,
        ];
        for &(_, v2, v1) in keys {
            values.push(twin.stat("memory.stat", if twin.v1 { v1 } else { v2 })?);
        }
        for (v2, v1) in [
            ("pgfault", "total_pgfault"),
            ("pgmajfault", "total_pgmajfault"),
        ] {
            values.push(twin.stat("memory.stat", if twin.v1 { v1 } else { v2 })?);
        }
        Ok(values)
    };
    let (metrics, expected) = still(&agent, read)?;
    let id = &place.cgroup.id;
    let found = |name: &str| metrics.of(id, name);
    same("usage", found("container_memory_usage_bytes")?, expected[0])?;
    same(
        "highest usage",
        found("container_memory_max_usage_bytes")?,
        expected[1],
    )?;
    for (at, &(name, ..)) in keys.iter().enumerate() {
        same(name, found(name)?, expected[at + 2])?;
    }
    ensure!(
        found("container_memory_rss")? >= 24.0 * MIB,
        "24 MiB were written"
    );
    ensure!(
        found("container_memory_cache")? >= 12.0 * MIB,
        "12 MiB were cached"
    );
    let inactive = found("container_memory_total_inactive_file_bytes")?;
    same(
        "working set",
        found("container_memory_working_set_bytes")?,
        expected[0] - inactive,
    )?;
    let faults = |kind: &str, scope: &str| {
        metrics.get(
            FAULTS,
            &[("id", id), ("failure_type", kind), ("scope", scope)],
        )
    };
    let at = keys.len() + 2;
    same("faults", faults("pgfault", "hierarchy")?, expected[at])?;
    same(
        "major faults",
        faults("pgmajfault", "hierarchy")?,
        expected[at + 1],
    )?;
    ensure!(expected[at] >= 24.0 * 256.0, "each page is a fault");
    if metrics.has(FAULTS, &[("id", id), ("scope", "container")]) {
        // It has no children.
        same("own faults", faults("pgfault", "container")?, expected[at])?;
    }
    if twin.v1 {
        same(
            "kernel",
            found("container_memory_kernel_usage")?,
            twin.number("memory.kmem.usage_in_bytes")?,
        )?;
    } else {
        same(
            "kernel",
            found("container_memory_kernel_usage")?,
            twin.stat("memory.stat", "kernel")?,
        )?;
        same(
            "swap",
            found("container_memory_swap")?,
            twin.number("memory.swap.current")?,
        )?;
    }
    // Gauges are removed with the cgroup, counters are retained.
    place.worker.finish()?;
    drop(place.twin);
    place.cgroup.remove()?;
    let metrics = agent.scrape()?;
    ensure!(
        !metrics.has("container_memory_usage_bytes", &[("id", id)]),
        "a gauge of the removed cgroup"
    );
    ensure!(
        metrics.get(
            FAULTS,
            &[
                ("id", id),
                ("failure_type", "pgfault"),
                ("scope", "hierarchy")
            ]
        )? >= expected[at],
        "a counter has fallen"
    );
    Ok(())
}

/// A value of /proc/meminfo, bytes.
fn meminfo(key: &str) -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib: Option<f64> = text.lines().find_map(|line| {
        let value = line.strip_prefix(key)?.strip_prefix(':')?;
        value.trim().strip_suffix(" kB")?.parse().ok()
    });
    Ok(kib.ok_or_else(|| anyhow::anyhow!("no {key}"))? * 1024.0)
}

fn host() -> Result<()> {
    let agent = Agent::start(&[])?;
    let metrics = agent.scrape()?;
    let used = meminfo("MemTotal")? - meminfo("MemFree")?;
    let found = |name: &str| metrics.of("/", name);
    agree(
        "usage",
        found("container_memory_usage_bytes")?,
        used,
        0.02,
        32.0 * MIB,
    )?;
    // Memory that is charged only to the root is included.
    let cache = meminfo("Cached")? + meminfo("Buffers")?;
    agree(
        "cache",
        found("container_memory_cache")?,
        cache,
        0.05,
        32.0 * MIB,
    )
}

fn limits() -> Result<()> {
    let agent = Agent::start(&[])?;
    let place = Place::new()?;
    let id = &place.cgroup.id;
    let limit = "container_spec_memory_limit_bytes";
    let reservation = "container_spec_memory_reservation_limit_bytes";
    let metrics = agent.scrape()?;
    same("no limit", metrics.of(id, limit)?, 0.0)?;
    same("no reservation", metrics.of(id, reservation)?, 0.0)?;
    same(
        "no swap limit",
        metrics.of(id, "container_spec_memory_swap_limit_bytes")?,
        0.0,
    )?;
    place.limit(64)?;
    let file = if place.twin.v1 {
        "memory.soft_limit_in_bytes"
    } else {
        "memory.min"
    };
    place.twin.write(file, &(8 << 20).to_string())?;
    let metrics = agent.scrape()?;
    let expected = place.twin.either("memory.max", "memory.limit_in_bytes")?;
    same("limit", metrics.of(id, limit)?, expected)?;
    same("64 MiB", expected, 64.0 * MIB)?;
    same(
        "reservation",
        metrics.of(id, reservation)?,
        place.twin.number(file)?,
    )?;
    if !place.twin.v1 {
        // Docker's reservation.
        place.twin.write("memory.low", &(16 << 20).to_string())?;
        let found = agent.scrape()?.of(id, reservation)?;
        same("reservation by memory.low", found, 16.0 * MIB)?;
        place.twin.write("memory.low", "max")?;
        let found = agent.scrape()?.of(id, reservation)?;
        same("reservation without an end", found, 8.0 * MIB)?;
        place
            .twin
            .write("memory.swap.max", &(16 << 20).to_string())?;
        let found = agent
            .scrape()?
            .of(id, "container_spec_memory_swap_limit_bytes")?;
        same("swap limit", found, place.twin.number("memory.swap.max")?)?;
    }
    Ok(())
}

fn reclaim() -> Result<()> {
    let agent = Agent::start(&[])?;
    let mut place = Place::new()?;
    let file = Scratch::new()?;
    let reclaim = "container_memory_reclaim_seconds";
    ensure!(
        !agent
            .scrape()?
            .has(&format!("{reclaim}_count"), &[("id", &place.cgroup.id)]),
        "a stall before the first"
    );
    let events = [
        "vmscan/mm_vmscan_memcg_reclaim_end",
        "vmscan/mm_vmscan_direct_reclaim_end",
    ];
    let trace = Trace::of(place.worker.pid(), &events)?;
    place.exceed_limit(&file)?;
    let twin = &place.twin;
    let read = || {
        Ok(if twin.v1 {
            vec![twin.number("memory.failcnt")?]
        } else {
            vec![
                twin.stat("memory.events", "max")?,
                twin.stat("memory.events", "high")?,
                twin.stat("memory.stat", "pgscan")?,
                twin.stat("memory.stat", "pgsteal")?,
                twin.stat("memory.stat", "workingset_refault_file")?,
            ]
        })
    };
    let (metrics, expected) = still(&agent, read)?;
    let id = &place.cgroup.id;
    same(
        "hits",
        metrics.of(id, "container_memory_failcnt")?,
        expected[0],
    )?;
    ensure!(expected[0] > 0.0, "48 MiB don't fit into 16 MiB");
    for (name, value) in [
        ("container_memory_events_max_total", 0),
        ("container_memory_events_high_total", 1),
        ("container_memory_pgscan_total", 2),
        ("container_memory_pgsteal_total", 3),
        ("container_memory_workingset_refault_file_total", 4),
    ] {
        if let Some(&value) = expected.get(value).filter(|_| !twin.v1) {
            same(name, metrics.of(id, name)?, value)?;
        }
    }
    let mut traced = 0.0;
    for event in [
        "mm_vmscan_memcg_reclaim_end",
        "mm_vmscan_direct_reclaim_end",
    ] {
        traced += trace.count(event)? as f64;
    }
    ensure!(traced > 0.0, "no reclaim");
    same(
        "stalls",
        metrics.of(id, &format!("{reclaim}_count"))?,
        traced,
    )?;
    ensure!(
        metrics.of(id, &format!("{reclaim}_sum"))? > 0.0,
        "stalls that took no time"
    );
    Ok(())
}

fn oom() -> Result<()> {
    let agent = Agent::start(&[])?;
    let parent = Cgroup::new()?;
    let above = Twin::of(&parent, "memory")?;
    let place = Place::within(parent.child("victim")?)?;
    same("no kill", agent.scrape()?.of(&place.cgroup.id, OOM)?, 0.0)?;
    place.limit(16)?;
    // With swap the process would only become slow.
    let swap = if place.twin.v1 {
        "memory.swappiness"
    } else {
        "memory.swap.max"
    };
    place.twin.write(swap, "0")?;
    let Place {
        mut worker,
        twin,
        cgroup,
    } = place;
    ensure!(worker.run("anon 64").is_err(), "64 MiB fit into 16 MiB");
    let killed = twin.stat(
        if twin.v1 {
            "memory.oom_control"
        } else {
            "memory.events"
        },
        "oom_kill",
    )?;
    same("kernel's count", killed, 1.0)?;
    let metrics = agent.scrape()?;
    same("kills", metrics.of(&cgroup.id, OOM)?, killed)?;
    let by_signal = [("id", cgroup.id.as_str()), ("reason", "signaled")];
    same(
        "signals",
        metrics.get("container_processes_exited_total", &by_signal)?,
        1.0,
    )?;
    // The counter is retained after the removal, and the parent includes it.
    drop(worker);
    drop(twin);
    cgroup.remove()?;
    let metrics = agent.scrape()?;
    same(
        "kills of the removed cgroup",
        metrics.of(&cgroup.id, OOM)?,
        1.0,
    )?;
    same("kills below the parent", metrics.of(&parent.id, OOM)?, 1.0)?;
    // A SIGKILL from a user is not an OOM kill.
    let other = parent.child("other")?;
    drop(Worker::start(&other)?);
    same("a kill by hand", agent.scrape()?.of(&parent.id, OOM)?, 1.0)?;
    drop(above);
    Ok(())
}

fn last() -> Result<()> {
    let agent = Agent::start(&[])?;
    let mut place = Place::new()?;
    let file = Scratch::new()?;
    // The cgroup is never scraped while it exists.
    let entered = faults(place.worker.pid())?;
    place.exceed_limit(&file)?;
    place.worker.run("anon 8")?;
    let faults = faults(place.worker.pid())? - entered;
    let hits = |twin: &Twin| {
        if twin.v1 {
            twin.number("memory.failcnt")
        } else {
            twin.stat("memory.events", "max")
        }
    };
    place.worker.finish()?;
    let expected = hits(&place.twin)?;
    ensure!(expected > 0.0, "48 MiB don't fit into 16 MiB");
    drop(place.twin);
    place.cgroup.remove()?;
    let metrics = agent.scrape()?;
    let id = &place.cgroup.id;
    same(
        "hits",
        metrics.of(id, "container_memory_failcnt")?,
        expected,
    )?;
    // Its exit caused a few more page faults. The kernel was never asked to sum up its per-CPU
    // counts.
    let kind = [
        ("id", id.as_str()),
        ("failure_type", "pgfault"),
        ("scope", "hierarchy"),
    ];
    let found = metrics.get(FAULTS, &kind)?;
    ensure!(
        (faults..faults + 300.0).contains(&found),
        "{found} page faults, its task had {faults}"
    );
    Ok(())
}

/// A removed cgroup reported `scope="container"` page faults on kernels before 6.7, which do not
/// count a cgroup's own page faults. A series that is absent while a cgroup exists must not appear
/// when it is removed.
fn own_faults_of_removed() -> Result<()> {
    let agent = Agent::start(&[])?;
    let mut place = Place::new()?;
    place.worker.run("anon 8")?;
    let kind = |id: &str, metrics: &Metrics| -> Result<Option<f64>> {
        let labels = [
            ("id", id),
            ("failure_type", "pgfault"),
            ("scope", "container"),
        ];
        metrics
            .has(FAULTS, &labels)
            .then(|| metrics.get(FAULTS, &labels))
            .transpose()
    };
    let id = place.cgroup.id.clone();
    let alive = kind(&id, &agent.scrape()?)?;
    // The kernel sums up the pending per-CPU counts when the cgroup is removed.
    place.worker.run("anon 8")?;
    place.worker.finish()?;
    drop(place.twin);
    place.cgroup.remove()?;
    let removed = kind(&id, &agent.scrape()?)?;
    match (alive, removed) {
        (None, None) => Ok(()),
        (Some(alive), Some(removed)) => {
            ensure!(alive >= 8.0 * 256.0, "each page is a fault: {alive}");
            ensure!(
                removed >= alive + 8.0 * 256.0,
                "{removed} own faults after the removal, {alive} before another 8 MiB"
            );
            Ok(())
        }
        other => anyhow::bail!("own faults before and after the removal: {other:?}"),
    }
}

/// Page faults of a process since its start, from /proc/PID/stat (fields 10 and 12).
fn faults(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = text
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split(' ').collect())
        .unwrap_or_default();
    let number = |field: usize| {
        fields
            .get(field - 3)
            .and_then(|text| text.parse::<f64>().ok())
    };
    number(10)
        .zip(number(12))
        .map(|(minor, major)| minor + major)
        .ok_or_else(|| anyhow::anyhow!("no page faults in {text:?}"))
}

fn huge() -> Result<()> {
    const POOL: &str = "/proc/sys/vm/nr_hugepages";
    /// Restores the pool on drop.
    struct Pool(String);
    impl Drop for Pool {
        fn drop(&mut self) {
            let _ = fs::write(POOL, &self.0);
        }
    }
    let _pool = Pool(fs::read_to_string(POOL)?);
    fs::write(POOL, "8")?;
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let twin = Twin::of(&cgroup, "hugetlb")?;
    let mut worker = Worker::start(&cgroup)?;
    twin.admit(worker.pid())?;
    worker.run("huge 6")?;
    let metrics = agent.scrape()?;
    let of = |name: &str, size: &str| metrics.get(name, &[("id", &cgroup.id), ("pagesize", size)]);
    let expected = twin.either("hugetlb.2MB.current", "hugetlb.2MB.usage_in_bytes")?;
    same("6 MiB", expected, 6.0 * MIB)?;
    same(
        "usage",
        of("container_hugetlb_usage_bytes", "2MB")?,
        expected,
    )?;
    worker.finish()?;
    let metrics = agent.scrape()?;
    let of = |name: &str, size: &str| metrics.get(name, &[("id", &cgroup.id), ("pagesize", size)]);
    same(
        "usage at the end",
        of("container_hugetlb_usage_bytes", "2MB")?,
        0.0,
    )?;
    same(
        "highest",
        of("container_hugetlb_max_usage_bytes", "2MB")?,
        expected,
    )
}
