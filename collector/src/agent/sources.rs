//! The sources that run, and the results of reading them.

use std::time::Duration;

use super::collector::Stages;
use crate::{
    cgroup::Tree,
    kernel::{cells::SlotMemory, programs::Availability},
    source::{CgroupStatistics, Change, Inputs, Lifecycle, Reading, Source, notify},
};

/// Every source that could be created.
pub(super) struct Sources {
    pub(super) list: List,
    /// The kernel statistics, where the cgroup iterator can run.
    pub(super) statistics: Option<CgroupStatistics>,
    pub(super) availability: Vec<Availability>,
    pub(super) outcome: Outcome,
}

/// The sources.
pub(super) struct List {
    pub(super) switchable: Vec<Box<dyn Source>>,
    /// What the tree itself reports; always on.
    lifecycle: Lifecycle,
}

/// Results of reading the sources.
pub(super) struct Outcome {
    /// Failed readings, by source.
    pub(super) errors: Vec<(&'static str, u64)>,
    /// Whether all sources could be read for the latest frame.
    pub(super) complete: bool,
}

impl List {
    /// Reads every source.
    ///
    /// # Errors
    ///
    /// A switchable source that fails is no error: the failure is counted, and its last values
    /// stay.
    pub(super) fn collect(
        &mut self,
        inputs: &Inputs<'_>,
        outcome: &mut Outcome,
        stages: &mut Stages,
    ) -> anyhow::Result<()> {
        self.lifecycle.collect(inputs)?;
        for source in &mut self.switchable {
            if let Err(error) = source.collect(inputs) {
                outcome.failed(source.name(), &error);
            }
            stages.end(source.name());
        }
        Ok(())
    }
}

impl Outcome {
    fn failed(&mut self, source: &'static str, error: &anyhow::Error) {
        self.complete = false;
        let Some((_, errors)) = self.errors.iter_mut().find(|(found, _)| *found == source) else {
            return;
        };
        // Logged once per change of state; the counter shows the rest.
        if *errors == 0 {
            tracing::error!(source, error = format!("{error:#}"), "reading failed");
        }
        *errors += 1;
    }
}

impl Sources {
    pub(super) fn new(
        switchable: Vec<Box<dyn Source>>,
        statistics: Option<CgroupStatistics>,
    ) -> Self {
        let errors = switchable.iter().map(|source| (source.name(), 0));
        Self {
            outcome: Outcome {
                errors: errors.collect(),
                complete: true,
            },
            list: List {
                switchable,
                lifecycle: Lifecycle::default(),
            },
            statistics,
            availability: Vec::new(),
        }
    }

    /// Names of the switchable sources.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.list.switchable.iter().map(|source| source.name())
    }

    /// Keeps only the sources whose name `keep` accepts.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.list.switchable.retain(|source| keep(source.name()));
    }

    /// After the first reading: logs what sources note about how they run.
    pub(super) fn take_notes(&mut self) {
        for source in &self.list.switchable {
            let name = source.name();
            let mut states = self.availability.iter_mut();
            let state = states.find(|state| state.source == name);
            if let (Some(note), Some(state)) = (source.report().note, state) {
                tracing::warn!(source = name, note, "source on, with a restriction");
                state.reason.get_or_insert_default().push_str(&note);
            }
        }
    }

    /// Notifies every source of a change.
    pub(super) fn notify(&mut self, change: &Change<'_>) {
        notify(&mut self.list.switchable, change);
    }

    /// Reads the kernel statistics, which several sources use.
    pub(super) fn refresh_statistics(&mut self, tree: &Tree) {
        self.outcome.complete = true;
        if let Some(statistics) = &mut self.statistics
            && let Err(error) = statistics.refresh(tree)
        {
            self.outcome.complete = false;
            tracing::error!(
                error = format!("{error:#}"),
                "the kernel statistics of cgroups could not be read"
            );
        }
    }

    /// Returns what every source serves now, in the order of the exposition.
    pub(super) fn readings(&self) -> Vec<Box<dyn Reading>> {
        let switchable = self.list.switchable.iter();
        switchable
            .map(|source| source.reading())
            .chain([self.list.lifecycle.reading()])
            .collect()
    }

    /// Runs of programs that sources count themselves.
    pub(super) fn runs(&self) -> Vec<(&'static str, u64)> {
        let reports = self.list.switchable.iter().map(|source| source.report());
        reports.filter_map(|report| report.runs).collect()
    }

    /// Cells of all sources. The slot pool creates and clears them.
    pub(super) fn cells(&mut self) -> Vec<&mut dyn SlotMemory> {
        self.list
            .switchable
            .iter_mut()
            .filter_map(|source| source.cells())
            .collect()
    }

    /// Kernel memory of the sources in bytes, without the fixed maps of the object file.
    pub(super) fn kernel_memory(&mut self) -> u64 {
        let sources = self.list.switchable.iter();
        let beside: u64 = sources.map(|source| source.report().kernel_memory).sum();
        let cells: u64 = self.cells().iter().map(|cells| cells.bytes()).sum();
        beside
            + cells
            + self
                .statistics
                .as_ref()
                .map_or(0, CgroupStatistics::kernel_memory)
    }

    /// Lets sources do work that must not wait for a scrape. Returns the time until the next round.
    pub(super) fn idle(&mut self, tree: &Tree) -> Duration {
        self.list
            .switchable
            .iter_mut()
            .filter_map(|source| source.idle(tree))
            .min()
            .map_or(Duration::MAX, |next| next.max(Duration::from_millis(100)))
    }
}
