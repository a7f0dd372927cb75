//! Starts the agent, in an order that loses no cgroup and no CPU time.
//!
//! Lifecycle programs are attached before the hierarchy is walked: a cgroup made in between is
//! found twice, not missed. Slots exist before the first program that takes one. Creations of tasks
//! are seen before the baseline is taken, and the baseline is taken before `sched_switch` is
//! attached. Last, the kernel statistics give the CPU time that each cgroup had used before all
//! that.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use collector_common::LAYOUT;
use prometheus::Registry;

use super::{
    Agent, collector::Collector, frame::Encodings, health::Health, identity::Identities,
    inventory::Inventories, keep::Keeper, lifecycle::Lifecycle, lock, slots::Slots,
    sources::Sources,
};
use crate::{
    cgroup::{DeadMax, Export, Hierarchies, Tree, walk},
    kernel::{
        self,
        events::Alarm,
        load::{self, Kernel},
        pins::{PinError, Pins},
        programs::{Availability, LIFECYCLE, NotOnThisHost, PROGRAMS},
        trial::Trial,
    },
    runtime::{self, Directory},
    source::{Builder, CgroupStatistics, SOURCES, SelfMetrics, Source, custom::CustomOptions},
};

/// Settings of the agent.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// Sources that are switched on.
    pub sources: Vec<&'static str>,
    /// `--cgroup.root`
    pub root: Option<PathBuf>,
    /// What is exported, and with which labels.
    pub export: Export,
    /// `--cgroup.max`
    pub max_slots: u32,
    /// `--cgroup.linger`
    pub linger: Duration,
    /// `--cgroup.dead-max`
    pub dead_max: DeadMax,
    /// `--web.min-interval`
    pub min_interval: Duration,
    /// `--custom.*`
    pub custom: CustomOptions,
    /// `--netdev.max-namespaces`
    pub max_namespaces: usize,
    /// Log level of the kernel programs; 0 is off.
    pub kernel_log_level: u8,
    /// `--state.pin`: where what is counted outlives the agent.
    pub state: Option<PathBuf>,
}

impl AgentOptions {
    /// The same, for an agent that leaves alone what a running one has pinned.
    #[must_use]
    pub fn on_its_own(mut self) -> Self {
        self.state = None;
        self
    }
}

/// Slots kept free for cgroups that are created between two rounds: many where they are cheap, few
/// on a host with many CPUs.
fn reserve(cpus: u32) -> u32 {
    (65_536 / cpus.max(1)).clamp(64, 512)
}

/// Programs of the tree, and those that the enabled sources need.
fn programs_for(sources: &[&str]) -> Vec<&'static str> {
    let needed: Vec<&str> = SOURCES
        .iter()
        .map(|source| &source.requirement)
        .filter(|requirement| sources.contains(&requirement.source))
        .chain([&LIFECYCLE])
        .flat_map(|requirement| {
            let optional = requirement.optional.iter().map(|(name, _)| name);
            requirement.required.iter().chain(optional).copied()
        })
        .collect();
    PROGRAMS
        .iter()
        .map(|program| program.name)
        .filter(|name| needed.contains(name))
        .collect()
}

fn availability(kernel: &Kernel, sources: &[&str]) -> Vec<Availability> {
    let mut states = vec![kernel.availability(&LIFECYCLE)];
    for source in SOURCES {
        let requirement = &source.requirement;
        states.push(if sources.contains(&requirement.source) {
            kernel.availability(requirement)
        } else {
            let reason = Some("switched off".to_owned());
            Availability {
                source: requirement.source,
                up: false,
                reason,
                absent: false,
            }
        });
    }
    states
}

/// Opens the directory of `--state.pin`. Where there can be none, the agent does without.
fn pins(state: Option<&Path>, trial: &Trial) -> Result<Option<Pins>, PinError> {
    let Some(state) = state else {
        return Ok(None);
    };
    match Pins::open(state, trial.layout.unwrap_or(LAYOUT)) {
        Ok(pins) => Ok(Some(pins)),
        Err(error @ PinError::Unusable { .. }) => {
            tracing::warn!(%error, "counters will begin at 0 after a restart");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Agent {
    /// Starts metering. Names of containers come from `directory`; parts of the agent register
    /// their own metrics in `registry`.
    ///
    /// # Errors
    ///
    /// Without privileges, BTF, or a cgroup2 hierarchy. A source that can't run is no error.
    pub fn start(
        options: AgentOptions,
        registry: Registry,
        directory: Arc<Directory>,
    ) -> Result<Arc<Self>> {
        let hierarchies = Hierarchies::find(options.root.as_deref())?;
        let root = hierarchies.unified.path.clone();
        let cpus = kernel::possible_cpus()?;
        let root_directory =
            File::open(&root).with_context(|| format!("cannot open {}", root.display()))?;
        let load = load::LoadOptions {
            programs: programs_for(&options.sources),
            max_slots: options.max_slots,
            max_removed: options
                .dead_max
                .containers
                .saturating_add(options.dead_max.others),
            cpus,
            log_level: options.kernel_log_level,
            trial: Trial::from_environment()?,
            root: &root_directory,
        };
        let mut kernel = Kernel::load(&load, pins(options.state.as_deref(), &load.trial)?)?;
        let lifecycle_programs: Vec<&str> = programs_for(&[]);
        kernel.attach(&lifecycle_programs, &root_directory);
        kernel.require_lifecycle()?;

        let found = walk(&root).with_context(|| format!("cannot read {}", root.display()))?;
        let mut v1 = Vec::new();
        for mount in &hierarchies.v1 {
            let path = &mount.mount.path;
            let found = walk(path).with_context(|| format!("cannot read {}", path.display()))?;
            v1.push((mount.clone(), found));
        }
        let mut statistics = None;
        if kernel.is_loaded("cgroup_iterator") {
            match CgroupStatistics::new(&mut kernel, &hierarchies, v1) {
                Ok(made) => statistics = Some(made),
                Err(error) => kernel.set_failed("cgroup_iterator", &error),
            }
        }
        let mut availability = availability(&kernel, &options.sources);
        let mut builder = Builder {
            kernel: &mut kernel,
            hierarchies: &hierarchies,
            custom: &options.custom,
            max_namespaces: options.max_namespaces,
        };
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for source in SOURCES {
            let state = availability
                .iter_mut()
                .find(|state| state.source == source.requirement.source && state.up);
            let Some(state) = state else {
                continue;
            };
            match (source.build)(&mut builder) {
                Ok(built) => sources.push(built),
                Err(error) => {
                    builder.kernel.note(state.source, &error);
                    state.up = false;
                    state.absent = error.downcast_ref::<NotOnThisHost>().is_some();
                    state.reason = Some(format!("{error:#}"));
                }
            }
        }
        let kernel_log = (options.kernel_log_level > 0)
            .then(|| kernel.logger())
            .transpose()?;
        let mut tree = Tree::with_runtimes(runtime::runtimes(), &found, options.export);
        tree.set_dead_max(options.dead_max);
        let mut collector = Collector {
            lifecycle: Lifecycle {
                hierarchies,
                events: kernel.events()?,
                tree,
                identities: Identities::new(directory),
                linger: options.linger,
                lost_events: 0,
                suppressed: 0,
            },
            slots: Slots::new(kernel.slots(reserve(cpus))?, reserve(cpus) as usize),
            kernel_log,
            keeper: Keeper::new(&kernel)?,
            kernel,
            sources: Sources::new(sources, statistics, load.trial.fault),
            own: SelfMetrics::new(registry)?,
            alarm: Alarm::new().context("making an eventfd")?,
            work_done: 0,
            next_round: Instant::now(),
            compare: false,
            comparison: None,
        };
        let Collector {
            lifecycle,
            slots,
            sources,
            keeper,
            ..
        } = &mut collector;
        if let Some(keeper) = keeper {
            let departed = keeper
                .restore(&mut lifecycle.tree, sources)
                .context("reading what an earlier agent has kept")?;
            departed
                .expected
                .into_iter()
                .for_each(|id| slots.expect(id));
            departed.known.into_iter().for_each(|id| slots.depart(id));
        }
        lifecycle
            .identities
            .ask_all(&lifecycle.tree, Instant::now());
        slots.favour_all(&lifecycle.tree);
        slots.provide_root(sources)?;
        slots.provide(&lifecycle.tree, sources);
        let names: Vec<&str> = sources.names().collect();
        collector
            .kernel
            .attach(&programs_for(&names), &root_directory);
        collector.kernel.take_over()?;
        collector.settle_availability(availability);
        let encodings = Arc::new(Encodings::default());
        collector.first_frame(&encodings)?;
        // The parsed BTF takes most of the memory up to here. It is not needed any more, and the
        // allocator would keep the memory.
        collector.kernel.forget_types();
        collector.kernel.close_maps()?;
        kernel::bound_free_memory();
        kernel::release_free_memory();
        Ok(Arc::new(Self {
            collector: Mutex::new(collector),
            latest: Mutex::new(None),
            encodings,
            inventories: Inventories::default(),
            health: Health::new(),
            min_interval: AtomicU64::new(super::nanos(options.min_interval)),
        }))
    }
}

impl Agent {
    /// Returns every source with its state.
    pub fn availability(&self) -> Vec<Availability> {
        lock(&self.collector).sources.availability.clone()
    }
}

impl Collector {
    /// Removes the sources whose programs could not be attached, and logs what runs.
    fn settle_availability(&mut self, mut availability: Vec<Availability>) {
        for state in availability.iter_mut().filter(|state| state.up) {
            let requirement = SOURCES
                .iter()
                .map(|source| &source.requirement)
                .find(|requirement| requirement.source == state.source)
                .unwrap_or(&LIFECYCLE);
            *state = self.kernel.availability(requirement);
        }
        self.sources.retain(|name| {
            availability
                .iter()
                .any(|state| state.source == name && state.up)
        });
        for state in &availability {
            match (&state.reason, state.up) {
                (None, _) => tracing::info!(source = state.source, "source on"),
                (Some(reason), true) => {
                    tracing::warn!(source = state.source, reason, "source on, but less exact");
                }
                (Some(reason), false) if state.absent => {
                    tracing::info!(source = state.source, reason, "source not on this host");
                }
                (Some(reason), false) => {
                    tracing::warn!(source = state.source, reason, "source off");
                }
            }
        }
        self.sources.availability = availability;
    }

    /// Takes the first frame. It joins what is counted from now on to the kernel statistics of the
    /// time before. It is not served.
    fn first_frame(&mut self, encodings: &Arc<Encodings>) -> Result<()> {
        self.frame(encodings)?;
        self.sources.take_notes();
        if let Some(statistics) = &mut self.sources.statistics {
            for (_, paths) in statistics.v1_paths() {
                paths.forget_earlier();
            }
        }
        let (live, _) = self.lifecycle.tree.counts();
        tracing::info!(
            cgroups = live,
            root = %self.lifecycle.hierarchies.unified.path.display(),
            "metering"
        );
        Ok(())
    }
}
