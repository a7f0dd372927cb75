//! The collector: it owns the kernel side, the tree, the slots and the sources, and takes frames.

mod upkeep;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Instant, SystemTime},
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
    cgroup::NodeId,
    kernel::{
        events::Alarm,
        load::{EbpfLogger, Kernel},
        slots::READING,
    },
    log,
    source::{Change, Inputs, Report, RuntimesReport, SelfMetrics},
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
    /// When that thread will wake up by itself.
    pub(super) next_round: Instant,
}

impl Collector {
    /// Takes a frame.
    ///
    /// # Errors
    ///
    /// When the kernel side can't be read at all. A source that fails keeps its last values.
    pub(super) fn frame(&mut self, encodings: &Arc<Encodings>) -> anyhow::Result<Frame> {
        let mut stages = Stages::start();
        self.housekeeping();
        self.await_names();
        self.lifecycle.settle();
        stages.end("lifecycle");
        self.kernel.take_in_flight()?;
        let (read, time) = (Instant::now(), SystemTime::now());
        stages.end("in_flight");
        self.sources.refresh_statistics(&self.lifecycle.tree);
        stages.end("cgroup_iterator");
        let (slots, without_slot) = self.collect_by_slot(time, &mut stages)?;
        let tree = &mut self.lifecycle.tree;
        let inputs = Inputs {
            tree,
            slots: &slots,
            without_slot: &without_slot,
            statistics: self.sources.statistics.as_ref(),
            time,
        };
        self.sources
            .list
            .collect_others(&inputs, &mut self.sources.outcome, &mut stages)?;
        self.sources.settle_torn();
        let stats = self.kernel.stats()?;
        self.slots.provide(tree, &mut self.sources);
        stages.end("kernel");
        // A source may want a round sooner than the one before this frame thought.
        let round = Instant::now() + self.sources.idle(tree);
        if round < self.next_round {
            self.alarm.ring();
        }
        if let Some(keeper) = &mut self.keeper {
            if let Err(error) = keeper.save(tree, &mut self.sources) {
                tracing::warn!(%error, "some counters will be smaller after a restart");
            }
            stages.end("keep");
        }
        let nodes = tree.nodes();
        tree.served(read);
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
            namespaces: reports.iter().find_map(|report| report.namespaces),
            runtimes: RuntimesReport::new(&directory.runtimes(), directory.refused()),
            slots: self.slots.states(),
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

    /// Reads the sources that count by slot, while no program moves values from one slot to another.
    /// Returns the slots by node, and the nodes without one.
    ///
    /// # Errors
    ///
    /// When the kernel's map of slots can't be read.
    fn collect_by_slot(&mut self, time: SystemTime, stages: &mut Stages) -> anyhow::Result<BySlot> {
        let mut patience = READING;
        for _ in 0..ATTEMPTS {
            let before = stages.done.len();
            let lock = self.slots.lock(patience);
            self.refresh_slots().context("reading the slots")?;
            self.find_borrowers().context("reading who has no slot")?;
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

/// Nodes with slots that count for them, and nodes that have none.
type BySlot = (Vec<(NodeId, u32)>, Arc<HashSet<NodeId>>);

/// How often the counters of slots are read if this agent was not given a CPU for so long that the
/// kernel side did not wait for it. Each time it waits twice as long.
const ATTEMPTS: u32 = 5;
