//! The collector: it owns the kernel side, the tree, the slots and the sources, and takes frames.

mod upkeep;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;

use super::{
    frame::{Encodings, Frame},
    keep::Keeper,
    lifecycle::Lifecycle,
    slots::Slots,
    sources::Sources,
    stages::Stages,
};
use crate::{
    cgroup::{NodeId, Tree, printable},
    kernel::{
        events::Alarm,
        load::{EbpfLogger, Kernel},
        slots::READING,
        trial::Fault,
    },
    log,
    source::{Change, Comparison, Inputs, Report, RuntimesReport, SelfMetrics},
    threads,
};

/// Everything behind the agent's lock.
pub(super) struct Collector {
    pub(super) kernel: Kernel,
    /// With `--state.pin`.
    pub(super) keeper: Option<Keeper>,
    pub(super) kernel_log: Option<EbpfLogger>,
    pub(super) lifecycle: Lifecycle,
    pub(super) slots: Slots,
    pub(super) sources: Sources,
    pub(super) own: SelfMetrics,
    /// Wakes the thread that does the rounds between scrapes.
    pub(super) alarm: Alarm,
    /// Grows with each frame and each removed node: there may be freed memory.
    pub(super) work_done: u64,
    /// When that thread will wake up by itself.
    pub(super) next_round: Instant,
    /// Whether events were lost since what is counted was compared with what the kernel counts.
    pub(super) compare: bool,
    /// The last such comparison.
    pub(super) comparison: Option<Comparison>,
}

impl Collector {
    /// Takes a frame.
    ///
    /// # Errors
    ///
    /// When the kernel side can't be read at all. A source that fails is absent.
    pub(super) fn frame(&mut self, encodings: &Arc<Encodings>) -> anyhow::Result<Frame> {
        let mut stages = Stages::start();
        self.sources.list.fault.meet(Fault::SNAPSHOT);
        self.work_done += 1;
        self.housekeeping();
        self.await_names();
        self.lifecycle.settle();
        for node in self.lifecycle.tree.take_relabelled() {
            self.sources.notify(&Change::Relabelled { node });
        }
        stages.end("lifecycle");
        let begin = Instant::now();
        self.kernel.take_in_flight()?;
        let (read, time) = (Instant::now(), SystemTime::now());
        stages.end("in_flight");
        self.sources.refresh_statistics(&self.lifecycle.tree);
        stages.end("cgroup_iterator");
        let (slots, without_slot) = self.collect_by_slot(time, &mut stages)?;
        let within = begin.elapsed();
        let tree = &mut self.lifecycle.tree;
        let inputs = Inputs {
            tree,
            slots: &slots,
            without_slot: &without_slot,
            statistics: self.sources.statistics.as_ref(),
            time,
        };
        if self.compare && !self.slots.has_strangers(tree) {
            let compared = self
                .sources
                .list
                .compare(&inputs, self.kernel.cpus(), within);
            if let Some(comparison) = compared {
                tell(tree, &comparison);
                self.comparison = Some(comparison);
                self.compare = false;
            }
        }
        self.sources
            .list
            .collect_others(&inputs, &mut self.sources.outcome, &mut stages)?;
        self.sources.settle_torn();
        let mut stats = None;
        let read_stats = self.kernel.stats().map(|read| stats = Some(read));
        self.sources.note("stats", read_stats);
        self.slots.provide(tree, &mut self.sources);
        stages.end("kernel");
        // A source may want a round sooner than the one before this frame thought.
        let round = Instant::now() + self.sources.idle(tree);
        if round < self.next_round {
            self.alarm.ring();
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.save_or_say(tree, &mut self.sources, &self.slots.unread());
            stages.end("keep");
        }
        let nodes = tree.nodes();
        let readings = self.sources.readings();
        let reports = self.sources.reports();
        let reported: u64 = reports.iter().map(|report| report.kernel_memory).sum();
        let directory = self.lifecycle.identities.directory();
        let report = Report {
            sources: self.sources.availability.clone(),
            errors: self.sources.outcome.errors.clone(),
            complete: self.sources.outcome.complete,
            stats,
            runs: reports.iter().filter_map(|report| report.runs).collect(),
            program_runs: self
                .kernel
                .runs()
                .into_iter()
                .map(|(name, runs)| (name.to_owned(), runs))
                .collect(),
            cgroups: tree.counts(),
            suppressed: tree.suppressed(),
            unreported: tree.unreported() + self.slots.missed(),
            unequal: self.comparison.map(|comparison| comparison.unequal),
            namespaces: reports.iter().find_map(|report| report.namespaces),
            runtimes: RuntimesReport::new(&directory.runtimes(), directory.refused()),
            slots: self.slots.states(),
            without_slot: self.slots.without_slot_by_parent(tree),
            kernel_memory: self.kernel.map_memory() + reported + self.sources.kernel_memory(),
            stages: stages.done,
            panics: threads::panics().to_vec(),
            log_lines_lost: log::lost(),
            encodings: encodings.report(),
            registry: self.own.gather(),
        };
        let encodings = Arc::clone(encodings);
        Ok(Frame::new((time, read), nodes, readings, report, encodings))
    }

    /// Notes what is served now, for an agent whose maps have another layout.
    ///
    /// # Errors
    ///
    /// When a snapshot can't be taken, or the map can't be written.
    pub(super) fn keep_totals(&mut self, encodings: &Arc<Encodings>) -> anyhow::Result<()> {
        if self.keeper.is_none() {
            return Ok(());
        }
        self.frame(encodings)?;
        let tree = &self.lifecycle.tree;
        let without = self.slots.without_slot(tree);
        if let Some(keeper) = &mut self.keeper {
            keeper.save_totals(tree, &mut self.sources, &without)?;
        }
        Ok(())
    }

    /// Reads the sources that count by slot, while no program moves values from one slot to another.
    /// Returns the slots by node, and the nodes without one.
    ///
    /// # Errors
    ///
    /// When the counters could not be read in time, several times in a row.
    fn collect_by_slot(&mut self, time: SystemTime, stages: &mut Stages) -> anyhow::Result<BySlot> {
        let mut patience = READING;
        for _ in 0..ATTEMPTS {
            let before = stages.done.len();
            let lock = self.slots.lock(patience);
            self.refresh_slots();
            let found = self.find_borrowers().context("reading who has no slot");
            self.sources.note("slots", found);
            let tree = &self.lifecycle.tree;
            let slots = self.slots.by_node(tree);
            let without_slot = self.slots.without_slot(tree);
            stages.end("slots");
            let inputs = Inputs {
                tree,
                slots: &slots,
                without_slot: &without_slot,
                statistics: self.sources.statistics.as_ref(),
                time,
            };
            self.sources
                .list
                .collect_by_slot(&inputs, &mut self.sources.outcome, stages);
            if self.slots.unlock(lock) {
                return Ok((slots, without_slot));
            }
            self.sources.notify(&Change::ReadAgain);
            stages.done.truncate(before);
            patience *= 2;
        }
        anyhow::bail!(
            "the counters could not be read in time, {ATTEMPTS} times in a row: the agent gets too \
             little CPU time"
        )
    }
}

/// Says in the log how a comparison went.
fn tell(tree: &Tree, comparison: &Comparison) {
    let &Comparison {
        compared,
        unequal,
        worst,
    } = comparison;
    let Some(worst) = worst else {
        tracing::info!(
            cgroups = compared,
            "after the loss of events, the CPU time of every cgroup agrees with the kernel's"
        );
        return;
    };
    let seconds = |ns| Duration::from_nanos(ns).as_secs_f64();
    let path = tree.node(worst.node).map(|node| printable(&node.path));
    tracing::warn!(
        cgroups = compared,
        unequal,
        worst = path,
        counted_seconds = seconds(worst.counted),
        kernel_seconds = seconds(worst.kernel),
        "after the loss of events, the CPU time of some cgroups is not the kernel's; tasks that were moved \
         between cgroups while they ran can be why, else it is a fault of the agent"
    );
}

/// Nodes with slots that count for them, and nodes that have none.
type BySlot = (Vec<(NodeId, u32)>, Arc<HashSet<NodeId>>);

/// How often the counters of slots are read if this agent was not given a CPU for so long that the
/// kernel side did not wait for it. Each time it waits twice as long.
const ATTEMPTS: u32 = 5;
