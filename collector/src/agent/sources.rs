//! The sources that run, and the results of reading them.

use std::{collections::HashSet, time::Duration};

use super::stages::Stages;
use crate::{
    cgroup::Tree,
    kernel::{cells::SlotMemory, programs::Availability, trial::Fault},
    source::{
        CgroupStatistics, Change, Comparison, Inputs, LifecycleSource, Partly, Reading, Source,
        SourceReport, notify,
    },
    threads,
};

/// Minimum and maximum time between two calls of [`Source::idle`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Every source that could be created.
pub(super) struct Sources {
    pub(super) list: List,
    /// The kernel statistics, where the cgroup iterator can run.
    pub(super) statistics: Option<CgroupStatistics>,
    pub(super) availability: Vec<Availability>,
    pub(super) outcome: Outcome,
}

/// The sources that are read for each frame.
pub(super) struct List {
    /// Those that a setting can switch off.
    pub(super) switchable: Vec<Box<dyn Source>>,
    /// What the tree itself reports; always on.
    lifecycle: LifecycleSource,
    /// For tests.
    pub(super) fault: Fault,
}

/// The name of the kernel statistics, which several sources use, in the log.
const STATISTICS: &str = "kernel statistics";

/// Results of reading the sources.
pub(super) struct Outcome {
    /// Failed readings, by source.
    pub(super) errors: Vec<(&'static str, u64)>,
    /// Whether all sources could be read for the latest frame.
    pub(super) complete: bool,
    /// Sources whose last reading failed, at least in part.
    failing: HashSet<&'static str>,
    /// Those of them that serve nothing until they can be read: nobody could tell old values from new
    /// ones.
    absent: HashSet<&'static str>,
    /// Sources that panicked since the last frame. Their values may be half changed, so they are
    /// switched off, and their families are absent.
    torn: Vec<&'static str>,
}

/// How a reading differs from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transition {
    /// It failed, and the one before did not.
    Failed,
    /// It succeeded, and the one before failed.
    Recovered,
}

impl List {
    /// Reads the sources that count by slot.
    ///
    /// A switchable source that fails is no error: the failure is counted, and it serves nothing.
    pub(super) fn collect_by_slot(
        &mut self,
        inputs: &Inputs<'_>,
        outcome: &mut Outcome,
        stages: &mut Stages,
    ) {
        self.collect_those(|source| source.reads_slots(), inputs, outcome, stages);
    }

    /// Reads all others.
    ///
    /// # Errors
    ///
    /// See [`collect_by_slot`](Self::collect_by_slot).
    pub(super) fn collect_others(
        &mut self,
        inputs: &Inputs<'_>,
        outcome: &mut Outcome,
        stages: &mut Stages,
    ) -> anyhow::Result<()> {
        self.lifecycle.collect(inputs)?;
        self.collect_those(|source| !source.reads_slots(), inputs, outcome, stages);
        Ok(())
    }

    fn collect_those(
        &mut self,
        wanted: impl Fn(&dyn Source) -> bool,
        inputs: &Inputs<'_>,
        outcome: &mut Outcome,
        stages: &mut Stages,
    ) {
        self.switchable.retain_mut(|source| {
            if !wanted(source.as_ref()) {
                return true;
            }
            let name = source.name();
            let fault = &mut self.fault;
            let result = outcome.attempt(name, || {
                fault.meet(name);
                source.collect(inputs)
            });
            let kept = result.is_some();
            if let Some(result) = result {
                outcome.note(name, result);
            }
            stages.end(name);
            kept
        });
    }
}

impl List {
    /// Compares what is counted with what the kernel counts of the same. `None` if that is not possible now.
    /// Both were read within a time.
    pub(super) fn compare(
        &self,
        inputs: &Inputs<'_>,
        cpus: u32,
        within: Duration,
    ) -> Option<Comparison> {
        let pairs = self
            .switchable
            .iter()
            .find_map(|source| source.pairs(inputs))?;
        Some(Comparison::new(pairs.into_iter(), cpus, within))
    }
}

impl Outcome {
    fn new(sources: impl Iterator<Item = &'static str>) -> Self {
        Self {
            errors: sources.map(|source| (source, 0)).collect(),
            complete: true,
            failing: HashSet::new(),
            absent: HashSet::new(),
            torn: Vec::new(),
        }
    }

    /// Notes the result of reading a source. It is logged if the state has changed: when readings
    /// begin to fail, and when they work again. The counter shows the rest.
    fn note(&mut self, source: &'static str, result: anyhow::Result<()>) -> Option<Transition> {
        let Err(error) = result else {
            self.absent.remove(source);
            let recovered = self.failing.remove(source);
            return recovered.then(|| {
                tracing::info!(source, "reading works again");
                Transition::Recovered
            });
        };
        self.complete = false;
        if let Some((_, errors)) = self.errors.iter_mut().find(|(found, _)| *found == source) {
            *errors += 1;
        }
        if error.is::<Partly>() {
            self.absent.remove(source);
        } else {
            self.absent.insert(source);
        }
        self.failing.insert(source).then(|| {
            tracing::error!(source, error = format!("{error:#}"), "reading failed");
            Transition::Failed
        })
    }

    /// Lets a source work. Returns `None` if it panics; it has to be removed then.
    fn attempt<T>(&mut self, source: &'static str, work: impl FnOnce() -> T) -> Option<T> {
        let done = threads::caught(work).ok();
        if done.is_none() {
            self.note(source, Err(anyhow::anyhow!("{FAULT}")));
            self.torn.push(source);
        }
        done
    }
}

/// Why a source that panicked is off.
const FAULT: &str = "switched off after a fault of the agent, which the log describes; a restart \
                     of the agent switches it on again";

impl Sources {
    pub(super) fn new(
        switchable: Vec<Box<dyn Source>>,
        statistics: Option<CgroupStatistics>,
        fault: Fault,
    ) -> Self {
        Self {
            outcome: Outcome::new(switchable.iter().map(|source| source.name())),
            list: List {
                switchable,
                lifecycle: LifecycleSource::default(),
                fault,
            },
            statistics,
            availability: Vec::new(),
        }
    }

    /// Notes how a reading went that is no source's: like that of a source, it fails no scrape.
    pub(super) fn note(&mut self, what: &'static str, result: anyhow::Result<()>) {
        self.outcome.note(what, result);
    }

    /// Names of the switchable sources.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.list.switchable.iter().map(|source| source.name())
    }

    /// The switchable sources.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Box<dyn Source>> {
        self.list.switchable.iter_mut()
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
        let outcome = &mut self.outcome;
        self.list.switchable.retain_mut(|source| {
            let name = source.name();
            let work = || notify([&mut *source], change);
            outcome.attempt(name, work).is_some()
        });
    }

    /// Records why sources that panicked are off.
    pub(super) fn settle_torn(&mut self) {
        for name in std::mem::take(&mut self.outcome.torn) {
            self.outcome.complete = false;
            let mut states = self.availability.iter_mut();
            if let Some(state) = states.find(|state| state.source == name) {
                state.up = false;
                state.reason = Some(FAULT.to_owned());
            }
        }
    }

    /// Reads the kernel statistics, which several sources use.
    pub(super) fn refresh_statistics(&mut self, tree: &Tree) {
        self.outcome.complete = true;
        if let Some(statistics) = &mut self.statistics {
            let result = statistics.refresh(tree);
            self.outcome.note(STATISTICS, result);
        }
    }

    /// Returns what every source serves now, in the order of the exposition. Those that could not be read
    /// serve nothing.
    pub(super) fn readings(&self) -> Vec<Box<dyn Reading>> {
        let switchable = self.list.switchable.iter();
        let absent = &self.outcome.absent;
        switchable
            .filter(|source| !absent.contains(source.name()))
            .map(|source| source.reading())
            .chain([self.list.lifecycle.reading()])
            .collect()
    }

    /// What the sources report about themselves.
    pub(super) fn reports(&self) -> Vec<SourceReport> {
        let switchable = self.list.switchable.iter();
        switchable.map(|source| source.report()).collect()
    }

    /// Cells of all sources. The slot pool creates and clears them.
    pub(super) fn cells(&mut self) -> Vec<&mut dyn SlotMemory> {
        self.list
            .switchable
            .iter_mut()
            .filter_map(|source| source.cells())
            .collect()
    }

    /// Kernel memory of cells and kernel statistics in bytes, without the fixed maps of the object
    /// file and what sources report.
    pub(super) fn kernel_memory(&mut self) -> u64 {
        let cells: u64 = self.cells().iter().map(|cells| cells.bytes()).sum();
        let statistics = self.statistics.as_ref();
        cells + statistics.map_or(0, CgroupStatistics::kernel_memory)
    }

    /// Lets sources do work that must not wait for a scrape. Returns the time until the next round.
    pub(super) fn idle(&mut self, tree: &Tree) -> Duration {
        let (outcome, mut next) = (&mut self.outcome, None);
        self.list.switchable.retain_mut(|source| {
            let name = source.name();
            let Some(wanted) = outcome.attempt(name, || source.idle(tree)) else {
                return false;
            };
            next = next.into_iter().chain(wanted).min();
            true
        });
        next.map_or(LONGEST_PAUSE, |next: Duration| next.max(SHORTEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use anyhow::anyhow;

    use super::*;
    use crate::{
        cgroup::{Filter, ROOT, found},
        source::values::PerNode,
    };

    /// A source that panics when it is asked for one thing.
    struct Faulty(&'static str, &'static str);

    impl Faulty {
        fn is_asked(&self, what: &str) {
            assert_ne!(self.1, what, "a test");
        }
    }

    struct Nothing;

    impl Reading for Nothing {
        fn encode(&self, _: &crate::cgroup::Nodes, _: &mut dyn crate::exposition::Encoder) {}
    }

    impl Source for Faulty {
        fn name(&self) -> &'static str {
            self.0
        }

        fn values(&mut self) -> Vec<&mut dyn PerNode> {
            Vec::new()
        }

        fn collect(&mut self, _: &Inputs<'_>) -> anyhow::Result<()> {
            self.is_asked("collect");
            Ok(())
        }

        fn change(&mut self, _: &Change<'_>) {
            self.is_asked("change");
        }

        fn reading(&self) -> Box<dyn Reading> {
            Box::new(Nothing)
        }

        fn idle(&mut self, _: &Tree) -> Option<Duration> {
            self.is_asked("idle");
            Some(Duration::from_secs(7))
        }
    }

    #[test]
    fn a_source_that_panics_is_switched_off_and_the_others_go_on() {
        let all = [("a", "collect"), ("b", "change"), ("c", "idle"), ("d", "")];
        let built = all.map(|(name, at)| Box::new(Faulty(name, at)) as Box<dyn Source>);
        let mut sources = Sources::new(built.into(), None, Fault::default());
        sources.availability = all
            .map(|(source, _)| Availability {
                source,
                up: true,
                reason: None,
                absent: false,
            })
            .into();
        let tree = Tree::new(&[found(1, 0, "")], Filter::default());
        let frame = |sources: &mut Sources| {
            let snapshot = Inputs {
                tree: &tree,
                slots: &[],
                without_slot: &std::sync::Arc::default(),
                statistics: None,
                time: SystemTime::now(),
            };
            sources.refresh_statistics(&tree);
            let mut stages = Stages::start();
            let Sources { list, outcome, .. } = sources;
            list.collect_by_slot(&snapshot, outcome, &mut stages);
            list.collect_others(&snapshot, outcome, &mut stages)
                .unwrap();
            sources.settle_torn();
            let up = sources.availability.iter().filter(|state| state.up);
            let up: Vec<_> = up.map(|state| state.source).collect();
            let names: Vec<_> = sources.names().collect();
            assert_eq!(up, names);
            (names, sources.outcome.complete)
        };
        assert_eq!(frame(&mut sources), (vec!["b", "c", "d"], false));
        let made = Change::Made {
            node: ROOT,
            again: false,
        };
        sources.notify(&made);
        assert_eq!(frame(&mut sources), (vec!["c", "d"], false));
        assert_eq!(sources.idle(&tree), Duration::from_secs(7));
        assert_eq!(frame(&mut sources), (vec!["d"], false));
        sources.notify(&made);
        assert_eq!(frame(&mut sources), (vec!["d"], true));
        assert_eq!(
            sources.outcome.errors,
            [("a", 1), ("b", 1), ("c", 1), ("d", 0)]
        );
        let reason = sources.availability[0].reason.as_deref().unwrap();
        assert!(reason.contains("switched off after a fault"));
        // What the tree itself reports, and the source that is left.
        assert_eq!(sources.readings().len(), 2);
    }

    #[test]
    fn a_source_that_fails_serves_nothing_until_it_is_read_again() {
        let built = ["a", "b"].map(|name| Box::new(Faulty(name, "")) as Box<dyn Source>);
        let mut sources = Sources::new(built.into(), None, Fault::default());
        let whole = || Err(anyhow!("ENOMEM"));
        let partly = || Err(Partly("one of many".to_owned()).into());
        // With what the tree itself reports.
        for (result, served) in [
            (Ok(()), 3),
            (whole(), 2),
            (partly(), 3),
            (whole(), 2),
            (Ok(()), 3),
        ] {
            sources.note("a", result);
            assert_eq!(sources.readings().len(), served);
        }
        assert_eq!(sources.outcome.errors, [("a", 3), ("b", 0)]);
    }

    #[test]
    fn readings_are_logged_when_they_begin_to_fail_and_when_they_work_again() {
        let mut outcome = Outcome::new(["sched", "block"].into_iter());
        let mut read = |source, works: bool| {
            let result = works.then_some(()).ok_or_else(|| anyhow!("ENOMEM"));
            outcome.note(source, result)
        };
        for source in ["sched", STATISTICS] {
            let readings = [true, false, false, true, true, false];
            let transitions = readings.map(|works| read(source, works));
            let expected = [
                None,
                Some(Transition::Failed),
                None,
                Some(Transition::Recovered),
                None,
                Some(Transition::Failed),
            ];
            assert_eq!(transitions, expected, "{source}");
        }
        assert_eq!(outcome.errors, [("sched", 3), ("block", 0)]);
        assert!(!outcome.complete);
    }
}
