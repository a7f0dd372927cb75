//! The sources that run, and what came of reading them.

use std::time::Duration;

use super::collector::Stages;
use crate::{
    cgroup::Tree,
    kernel::{cells::SlotMemory, programs::Availability},
    source::{Books, Change, Lifecycle, Reading, Snapshot, Source, notify},
};

/// Every source that could be made.
pub(super) struct Sources {
    pub(super) list: List,
    /// The kernel's own statistics, where the cgroup iterator can run.
    pub(super) statistics: Option<Books>,
    pub(super) availability: Vec<Availability>,
    pub(super) outcome: Outcome,
}

/// The sources.
pub(super) struct List {
    pub(super) switchable: Vec<Box<dyn Source>>,
    /// What the tree itself tells; always on.
    lifecycle: Lifecycle,
}

/// What came of reading sources.
pub(super) struct Outcome {
    /// Failed readings by source.
    pub(super) errors: Vec<(&'static str, u64)>,
    /// Whether all could be read for the last frame.
    pub(super) complete: bool,
}

impl List {
    /// Reads every source.
    ///
    /// # Errors
    ///
    /// None of a switchable source: those are counted, and keep their last values.
    pub(super) fn collect(
        &mut self,
        snapshot: &Snapshot<'_>,
        outcome: &mut Outcome,
        stages: &mut Stages,
    ) -> anyhow::Result<()> {
        self.lifecycle.collect(snapshot)?;
        for source in &mut self.switchable {
            if let Err(error) = source.collect(snapshot) {
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
        // Once on a change of state; the counter says the rest.
        if *errors == 0 {
            tracing::error!(source, error = format!("{error:#}"), "reading failed");
        }
        *errors += 1;
    }
}

impl Sources {
    pub(super) fn new(switchable: Vec<Box<dyn Source>>, statistics: Option<Books>) -> Self {
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

    /// Names of the switchable ones.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.list.switchable.iter().map(|source| source.name())
    }

    /// Leaves only those of which `keep` says so, by name.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.list.switchable.retain(|source| keep(source.name()));
    }

    /// After the first reading: what sources note of how they run.
    pub(super) fn take_notes(&mut self) {
        for source in &self.list.switchable {
            let name = source.name();
            let mut states = self.availability.iter_mut();
            let state = states.find(|state| state.source == name);
            if let (Some(note), Some(state)) = (source.report().note, state) {
                tracing::warn!(source = name, note, "source on, but not as it should be");
                state.reason.get_or_insert_default().push_str(&note);
            }
        }
    }

    /// Tells every source of a change.
    pub(super) fn notify(&mut self, change: &Change<'_>) {
        notify(&mut self.list.switchable, change);
    }

    /// Reads the kernel's own statistics, which several sources are made from.
    pub(super) fn refresh_statistics(&mut self, tree: &Tree) {
        self.outcome.complete = true;
        if let Some(statistics) = &mut self.statistics
            && let Err(error) = statistics.refresh(tree)
        {
            self.outcome.complete = false;
            tracing::error!(
                error = format!("{error:#}"),
                "the kernel's statistics of cgroups could not be read"
            );
        }
    }

    /// What every source serves now, in the order of the exposition.
    pub(super) fn readings(&self) -> Vec<Box<dyn Reading>> {
        let switchable = self.list.switchable.iter();
        switchable
            .map(|source| source.reading())
            .chain([self.list.lifecycle.reading()])
            .collect()
    }

    /// Runs of programs that a source counts by its numbers.
    pub(super) fn runs(&self) -> Vec<(&'static str, u64)> {
        let reports = self.list.switchable.iter().map(|source| source.report());
        reports.filter_map(|report| report.runs).collect()
    }

    /// Cells of all sources, which the slot pool makes and clears.
    pub(super) fn cells(&mut self) -> Vec<&mut dyn SlotMemory> {
        self.list
            .switchable
            .iter_mut()
            .filter_map(|source| source.cells())
            .collect()
    }

    /// Kernel memory of the sources, beside the object's fixed maps, bytes.
    pub(super) fn kernel_memory(&mut self) -> u64 {
        let sources = self.list.switchable.iter();
        let beside: u64 = sources.map(|source| source.report().kernel_memory).sum();
        let cells: u64 = self.cells().iter().map(|cells| cells.bytes()).sum();
        beside + cells + self.statistics.as_ref().map_or(0, Books::kernel_memory)
    }

    /// Has sources do what must not wait for a scrape; returns how long there is nothing to do.
    pub(super) fn idle(&mut self, tree: &Tree) -> Duration {
        self.list
            .switchable
            .iter_mut()
            .filter_map(|source| source.idle(tree))
            .min()
            .map_or(Duration::MAX, |next| next.max(Duration::from_millis(100)))
    }
}
