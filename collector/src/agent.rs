//! The agent: loads the kernel side, follows cgroups, takes snapshots, encodes them.
//!
//! Nothing runs between scrapes but the housekeeping that lifecycle events ask for: a thread that
//! sleeps until one comes, or until a dead cgroup's time is over.

mod housekeeping;
mod identity;
mod inventory;
mod record;
mod start;
mod status;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use aya::maps::{MapData, RingBuf};
use collector_common::{cell::OVERFLOW_SLOT, stat::Stat};

pub use inventory::{Entry, Found, Inventory, SHORTEST_PREFIX};
pub use record::{CgroupKind, Life, Record, Subject, rfc3339};
pub use start::Options;
pub use status::{Cgroups, RuntimeStatus, Slots, SourceStatus, Status};

use crate::{
    cgroup::{Hierarchies, NodeId, OVERFLOW, Tree},
    exposition::{Body, Encoder, Format},
    kernel::{
        load::{Kernel, KernelStats},
        programs::Availability,
        slots::SlotPool,
    },
    source::{Books, Lifecycle, Report, SelfMetrics, Snapshot, Source},
};

/// The running agent.
pub struct Agent {
    core: Mutex<Core>,
    min_interval: Duration,
}

/// Everything behind the agent's lock.
struct Core {
    kernel: Kernel,
    hierarchies: Hierarchies,
    events: RingBuf<MapData>,
    kernel_log: Option<aya_log::EbpfLogger<&'static dyn ::log::Log>>,
    tree: Tree,
    identities: identity::Identities,
    slots: SlotPool,
    /// Slots to keep free beyond one for each live cgroup.
    reserve: usize,
    linger: Duration,
    lifecycle: Lifecycle,
    sources: Vec<Box<dyn Source>>,
    /// The kernel's own books, where the pass can run.
    books: Option<Books>,
    self_metrics: SelfMetrics,
    availability: Vec<Availability>,
    errors: Vec<(&'static str, u64)>,
    /// Dead cgroups whose slot is still theirs.
    departed: Vec<(u64, Instant)>,
    /// Slots taken from dead cgroups, not yet recycled.
    disowned: Vec<Disowned>,
    lost_events: u64,
    snapshot: Option<Instant>,
    /// When the snapshot's counters were read.
    read: Instant,
    /// The same by the wall clock.
    time: SystemTime,
    /// The snapshot's cgroups, while somebody asks for them.
    inventory: Option<Arc<Inventory>>,
    /// When somebody last asked.
    asked: Option<Instant>,
    /// When the agent was started.
    started: Instant,
    failed: bool,
    stats: KernelStats,
    stages: Vec<(&'static str, Duration)>,
}

/// A slot taken from a dead cgroup.
#[derive(Clone, Copy, Debug)]
struct Disowned {
    slot: u32,
    /// Where its numbers count; `None` for a cgroup outside the root that the agent was given.
    node: Option<NodeId>,
    since: Instant,
}

/// How long inventories are made after somebody asked for one.
const INTEREST: Duration = Duration::from_secs(600);

impl Agent {
    fn core(&self) -> MutexGuard<'_, Core> {
        // A panic in one scrape must not end all later ones.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One exposition, of a new snapshot unless the last one is younger than the minimum interval.
    ///
    /// # Errors
    ///
    /// When the slots can't be read; sources that fail keep their last values instead.
    pub fn scrape(&self, format: Format) -> anyhow::Result<Body> {
        Ok(self.fresh()?.encode_as(format))
    }

    /// Hands every family to an encoder, of a snapshot as for [`scrape`](Self::scrape).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn encode(&self, out: &mut dyn Encoder) -> anyhow::Result<()> {
        self.fresh()?.encode_all(out);
        Ok(())
    }

    /// The cgroups of a snapshot, which is a new one in the same case.
    ///
    /// # Errors
    ///
    /// As [`scrape`](Self::scrape).
    pub fn inventory(&self) -> anyhow::Result<Arc<Inventory>> {
        self.core().asked = Some(Instant::now());
        self.fresh()?
            .inventory()
            .context("there is no snapshot, although one was taken just now")
    }

    /// The agent with a snapshot that is young enough.
    fn fresh(&self) -> anyhow::Result<MutexGuard<'_, Core>> {
        let mut core = self.core();
        if core
            .snapshot
            .is_none_or(|taken| taken.elapsed() >= self.min_interval)
        {
            core.take_snapshot()?;
        }
        Ok(core)
    }
}

impl Core {
    fn take_snapshot(&mut self) -> anyhow::Result<()> {
        let mut clock = Instant::now();
        let mut stages = Vec::with_capacity(8);
        let mut lap = |stages: &mut Vec<_>, stage| {
            let now = Instant::now();
            stages.push((stage, now - clock));
            clock = now;
        };
        self.housekeeping();
        self.await_names();
        self.settle();
        lap(&mut stages, "lifecycle");
        self.kernel.take_in_flight()?;
        (self.read, self.time) = (Instant::now(), SystemTime::now());
        lap(&mut stages, "in_flight");
        self.slots.refresh().context("reading the slots")?;
        self.depart_left_behind();
        let mut slots: Vec<(NodeId, u32)> = self
            .slots
            .used()
            .filter_map(|(id, slot)| Some((self.tree.by_id(id)?, slot)))
            .chain(
                self.disowned
                    .iter()
                    .filter_map(|slot| Some((slot.node?, slot.slot))),
            )
            .collect();
        slots.push((OVERFLOW, OVERFLOW_SLOT));
        lap(&mut stages, "slots");
        self.failed = false;
        if let Some(books) = &mut self.books
            && let Err(error) = books.refresh(&self.tree)
        {
            self.failed = true;
            tracing::error!(
                error = format!("{error:#}"),
                "the kernel's books could not be read"
            );
        }
        lap(&mut stages, "pass");
        let snapshot = Snapshot {
            tree: &self.tree,
            slots: &slots,
            books: self.books.as_ref(),
            time: self.time,
        };
        self.lifecycle.collect(&snapshot)?;
        for source in &mut self.sources {
            let result = source.collect(&snapshot);
            if let Err(error) = result {
                self.failed = true;
                let name = source.name();
                if let Some((_, errors)) = self.errors.iter_mut().find(|(found, _)| *found == name)
                {
                    // Once on a change of state; the counter tells of the rest.
                    if *errors == 0 {
                        tracing::error!(
                            source = name,
                            error = format!("{error:#}"),
                            "reading failed"
                        );
                    }
                    *errors += 1;
                }
            }
            lap(&mut stages, source.name());
        }
        self.stats = self.kernel.stats()?;
        self.tree
            .set_exported(OVERFLOW, self.stats.get(Stat::Overflow) > 0);
        self.provide_slots();
        lap(&mut stages, "kernel");
        self.snapshot = Some(Instant::now());
        if self.asked.is_some_and(|asked| asked.elapsed() < INTEREST) {
            self.inventory();
            lap(&mut stages, "inventory");
        } else {
            self.inventory = None;
        }
        // The last encoding's is told until the next one.
        let encode = self.stages.iter().filter(|(stage, _)| *stage == "encode");
        stages.extend(encode);
        self.stages = stages;
        Ok(())
    }

    /// The inventory of the last snapshot, made if need be.
    fn inventory(&mut self) -> Option<Arc<Inventory>> {
        self.snapshot?;
        let taken = self.read;
        let before = self.inventory.take();
        if let Some(made) = before.as_ref().filter(|made| made.taken() == taken) {
            self.inventory = Some(Arc::clone(made));
            return before;
        }
        let subjects = status::subjects(&self.tree);
        let before = before.as_deref();
        let made = Inventory::new(self.time, taken, subjects, before, |out| {
            self.encode_cgroups(out);
        });
        self.inventory = Some(Arc::new(made));
        self.inventory.clone()
    }

    /// Writes the families of cgroups.
    fn encode_cgroups(&self, out: &mut dyn Encoder) {
        for source in &self.sources {
            source.encode(&self.tree, out);
        }
        self.lifecycle.encode(&self.tree, out);
    }

    fn encode_as(&mut self, format: Format) -> Body {
        let begin = Instant::now();
        let mut encoder = format.encoder();
        self.encode_all(&mut *encoder);
        let body = encoder.finish();
        self.stages.retain(|(stage, _)| *stage != "encode");
        self.stages.push(("encode", begin.elapsed()));
        body
    }

    /// Writes every family.
    fn encode_all(&mut self, out: &mut dyn Encoder) {
        self.encode_cgroups(out);
        let kernel_memory = self.kernel_memory();
        let report = Report {
            sources: &self.availability,
            errors: &self.errors,
            stats: self.stats,
            runs: self
                .sources
                .iter()
                .filter_map(|source| source.report().runs)
                .collect(),
            program_runs: self.kernel.runs(),
            cgroups: self.tree.counts(),
            folded: self.tree.folded(),
            runtimes: &self.identities.directory().runtimes(),
            containers_refused: self.identities.directory().refused(),
            slots: self.slots.states(),
            kernel_memory,
            stages: &self.stages,
        };
        self.self_metrics.encode(&report, self.failed, out);
    }

    fn kernel_memory(&mut self) -> u64 {
        let of = |source: &mut Box<dyn Source>| {
            source.report().kernel_memory + source.cells().map_or(0, |cells| cells.bytes())
        };
        self.kernel.map_memory()
            + self.books.as_ref().map_or(0, Books::kernel_memory)
            + self.sources.iter_mut().map(of).sum::<u64>()
    }
}
