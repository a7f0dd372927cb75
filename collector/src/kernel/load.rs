//! Loads and attaches the kernel programs.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Btf, Ebpf,
    maps::{Map, MapData, RingBuf},
    programs::{CgroupAttachMode, Program as AyaProgram, links::FdLink},
};
use collector_common::{
    cell::CELLS_PER_CHUNK,
    cgroup_iterator::{CgroupRecord, FinalRecordKey, IO_RECORDS_PER_CHUNK, RECORDS_PER_CHUNK},
    kept::{Earlier, KeptKey, KeptPart},
    keyed::VALUES_PER_CHUNK,
    slot::{BORROWERS, SlotControl},
    stat::{STATS, Stat},
};

use super::{
    OBJECT, bpf,
    btf::{self, Wanted},
    cells::{CELL_MAPS, Cells, MappedCell, Shards},
    cgroup_iterator::{CgroupIterator, Maps},
    chunks::{MappedChunks, Outer},
    fields,
    kept::{self, Kept, Replacement},
    keyed::{KEYED_MAPS, KeyedCells, KeyedValue, max_values},
    loader,
    map::{Map as TypedMap, OpenError},
    mapping::Mapping,
    per_cpu::PerCpuCounters,
    pins::Pins,
    programs::{Availability, Hook, LIFECYCLE, PROGRAMS, Program, Requirement},
    slots::{SlotMaps, SlotPool},
    system::monotonic_ns,
    trial::Trial,
};

/// Most programs that are verified at the same time. Each takes some MiB of kernel memory meanwhile.
const VERIFIERS: usize = 4;

/// Log records of the kernel programs.
pub type EbpfLogger = aya_log::EbpfLogger<&'static dyn log::Log>;

/// Most cgroups whose children have precedence: slices, pods, folders of runtimes.
const FAVOURED: u32 = 4096;

/// Path of the running kernel's BTF.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Options of the loader.
#[derive(Debug)]
pub struct LoadOptions<'a> {
    /// Names of the programs to load.
    pub programs: Vec<&'static str>,
    /// Maximum number of slots (`--cgroup.max`).
    pub max_slots: u32,
    /// Maximum number of removed cgroups that are served (`--cgroup.dead-max`).
    pub max_removed: usize,
    /// Number of possible CPUs.
    pub cpus: u32,
    /// Log level of the kernel programs, as a number of aya-log; 0 is off.
    pub log_level: u8,
    /// Changes for a test or a benchmark.
    pub trial: Trial,
    /// A directory of cgroup2: programs for packets attach there.
    pub root: &'a File,
}

/// The kernel side: the loaded programs and maps.
pub struct Kernel {
    /// The loader's object, while the agent starts. `None` if the programs are an earlier agent's.
    ebpf: Option<Ebpf>,
    /// Maps of the object by name, while the agent starts.
    maps: HashMap<String, MapData>,
    /// Loaded programs. As long as the loader's object is there, it has its own.
    programs: HashMap<&'static str, OwnedFd>,
    /// Log records of an earlier agent's programs.
    log: Option<EbpfLogger>,
    /// What keeps programs attached that are not pinned.
    links: Vec<FdLink>,
    /// With `--state.pin`.
    pinned: Option<Replacement>,
    /// The running kernel's types. Present while sources are being created.
    types: Option<btf::Btf>,
    cpus: u32,
    /// Scheduler cells of each slot.
    lanes: u32,
    stats: PerCpuCounters,
    max_slots: u32,
    /// Why a program is not loaded. A program without an entry is loaded.
    failures: HashMap<&'static str, String>,
    /// The first failure that may be over at the next start.
    passing: Option<String>,
    wanted: Vec<&'static str>,
    attached: HashSet<&'static str>,
    /// Kernel memory used by the object's own maps, which have a fixed size, bytes.
    map_memory: u64,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("attached", &self.attached)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads the programs asked for. A program that this kernel can't load is left out, and the
    /// reason is recorded. With pins, goes on with the maps that an earlier agent has left, and with its
    /// programs if they are the same.
    ///
    /// # Errors
    ///
    /// If privileges or BTF are missing, or maps can't be created or pinned.
    pub fn load(options: &LoadOptions<'_>, pins: Option<Pins>) -> Result<Self> {
        let types =
            btf::Btf::parse(read_btf()?).with_context(|| format!("cannot parse {BTF_PATH}"))?;
        let patched = fields::patch(OBJECT, &types)?;
        let mut failures = HashMap::new();
        let mut chosen = Vec::new();
        let mut wanted_programs = options.programs.clone();
        for program in PROGRAMS
            .iter()
            .filter(|program| options.programs.contains(&program.name))
        {
            let superseded = match program.hook {
                Hook::Newer(name) => !fields::has_tracepoint(&types, name),
                Hook::Substitute(_, newer) => fields::has_tracepoint(&types, newer),
                _ => false,
            };
            if superseded {
                wanted_programs.retain(|name| *name != program.name);
            } else if let Some(missing) = patched.missing.get(program.name) {
                let why = format!("this kernel has no {}", missing.join(", "));
                failures.insert(program.name, why);
            } else {
                chosen.push(program);
            }
        }
        let names: Vec<&str> = chosen.iter().map(|program| program.name).collect();
        let mut kept = match &pins {
            Some(pins) => Kept::open(pins, &names).context("preparing --state.pin")?,
            None => None,
        };
        let max_slots = kept
            .as_ref()
            .map_or(options.max_slots, |kept| kept.max_slots(options.max_slots));
        let lanes = options.trial.lanes(options.cpus);
        let constants = Constants {
            cpus: lanes,
            shards: Shards::Few.count(lanes),
            max_slots,
            keep_final_records: options.programs.contains(&"cgroup_iterator").into(),
            loaded_at: kept
                .as_ref()
                .map_or_else(monotonic_ns, |kept| kept.loaded_at),
            flush_sequence: fields::flush_sequence_flag(&types),
            log_level: options.log_level,
            slow_us: options.trial.slow_us,
            no_grace: options.trial.no_grace.into(),
        };
        let id = {
            let mut hasher = DefaultHasher::new();
            let root = options.root.metadata()?;
            (&patched.bytes, &constants, &names).hash(&mut hasher);
            (root.dev(), root.ino()).hash(&mut hasher);
            hasher.finish()
        };
        let same = match &mut kept {
            Some(earlier) => earlier.programs(id, &names)?,
            None => None,
        };
        let btf = types.view(&wanted())?;
        let generation = kept.as_ref().map_or(0, |kept| kept.generation);
        let own_generation = generation + u32::from(kept.is_some());
        // Programs that are there already need the loader for their log alone: it finds the map by its pin.
        // By the program it would be found by number, which takes CAP_SYS_ADMIN.
        let object = (same.is_none() || options.log_level > 0).then(|| {
            let generations = [generation, own_generation];
            let (pins, kept) = (pins.as_ref(), kept.as_ref());
            let parts = kept_parts(max_slots, options.max_removed);
            let parts = if pins.is_some() { parts } else { 1 };
            loaded(
                &constants,
                generations,
                pins,
                kept,
                parts,
                &btf,
                &patched.bytes,
            )
        });
        let mut object = object.transpose()?;
        if let Some(programs) = same
            && let Some(earlier) = &mut kept
        {
            let maps = std::mem::take(&mut earlier.maps);
            let mut kernel = Self::new(options, wanted_programs, failures, maps)?;
            (kernel.types, kernel.max_slots, kernel.programs) = (Some(types), max_slots, programs);
            kernel.log = object.as_mut().map(EbpfLogger::init).transpose()?;
            kernel.pinned = pins
                .zip(kept)
                .map(|(pins, kept)| Replacement::none(pins, kept));
            return Ok(kernel);
        }
        let mut ebpf = object.context("there is no object")?;
        // Before that they are the loader's.
        let errors = verify(&mut ebpf, &chosen, &btf);
        let maps = take_maps(&mut ebpf)?;
        let mut kernel = Self::new(options, wanted_programs, failures, maps)?;
        (kernel.types, kernel.max_slots) = (Some(types), max_slots);
        for (name, error) in errors {
            kernel.set_failed(name, &error);
        }
        kernel.ebpf = Some(ebpf);
        if let Some(pins) = pins {
            kept::pin_maps(&pins, &kernel.maps)?;
            if kept.is_none() {
                let control: Mapping<SlotControl> = Mapping::open(kernel.map("SLOT_CONTROL")?)?;
                control.store(0, kept::LOADED_AT, constants.loaded_at);
            }
            let programs = kernel.loaded()?;
            let replacement = Replacement::begin(pins, kept, own_generation, id, &programs);
            kernel.pinned = Some(replacement.context("pinning programs")?);
        }
        Ok(kernel)
    }

    fn new(
        options: &LoadOptions<'_>,
        wanted: Vec<&'static str>,
        failures: HashMap<&'static str, String>,
        maps: HashMap<String, MapData>,
    ) -> Result<Self> {
        let stats = maps
            .get("STATS_MAP")
            .context("the object has no map STATS_MAP")?;
        let memory = maps.values();
        Ok(Self {
            ebpf: None,
            types: None,
            cpus: options.cpus,
            lanes: options.trial.lanes(options.cpus),
            stats: PerCpuCounters::open(stats.fd().as_fd(), options.cpus)?,
            max_slots: options.max_slots,
            failures,
            passing: None,
            wanted,
            attached: HashSet::new(),
            map_memory: memory
                .filter_map(|map| bpf::map_memory(map.fd().as_fd()).ok())
                .sum(),
            maps,
            programs: HashMap::new(),
            log: None,
            links: Vec::new(),
            pinned: None,
        })
    }

    /// Whether the maps contain what was counted under an earlier agent.
    pub fn continues(&self) -> bool {
        self.pinned.as_ref().is_some_and(Replacement::continues)
    }

    fn program(&self, name: &str) -> Result<BorrowedFd<'_>> {
        if let Some(program) = self.programs.get(name) {
            return Ok(program.as_fd());
        }
        let program = self.ebpf.as_ref().and_then(|ebpf| ebpf.program(name));
        let program = program.with_context(|| format!("the program {name} is not loaded"))?;
        Ok(program.fd()?.as_fd())
    }

    /// The loaded programs.
    fn loaded(&self) -> Result<HashMap<&'static str, BorrowedFd<'_>>> {
        let names = self.wanted.iter().filter(|name| self.is_loaded(name));
        names.map(|&name| Ok((name, self.program(name)?))).collect()
    }

    /// Attaches those of `names` that are loaded and not yet attached, in the order of
    /// [`PROGRAMS`]. The baseline is run instead of attached. Programs for packets attach to
    /// `root`, a directory of cgroup2.
    pub fn attach(&mut self, names: &[&'static str], root: &File) {
        for program in PROGRAMS
            .iter()
            .filter(|program| names.contains(&program.name))
        {
            // A second link would count everything twice; older kernels refuse it (EEXIST).
            if !self.is_loaded(program.name) || !self.attached.insert(program.name) {
                continue;
            }
            if let Err(error) = self.attach_program(program, root) {
                self.set_failed(program.name, &error);
            }
        }
    }

    fn attach_program(&mut self, program: &Program, root: &File) -> Result<()> {
        // An earlier agent has attached it.
        let Some(ebpf) = &mut self.ebpf else {
            return Ok(());
        };
        let loaded = ebpf
            .program_mut(program.name)
            .with_context(|| format!("the object has no program {}", program.name))?;
        let link: FdLink = match (program.hook, loaded) {
            (
                Hook::Tracepoint(_) | Hook::Newer(_) | Hook::Substitute(..),
                AyaProgram::BtfTracePoint(loaded),
            ) => {
                let link = loaded.attach()?;
                loaded.take_link(link)?.into()
            }
            // `Single` sets no flags. The kernel creates a link, which always allows several
            // programs, and refuses flags (kernel/bpf/cgroup.c, cgroup_bpf_link_attach).
            (Hook::Packets(direction), AyaProgram::CgroupSkb(loaded)) => {
                if self
                    .pinned
                    .as_ref()
                    .is_some_and(|pinned| pinned.takes_over(program.name))
                {
                    return Ok(());
                }
                let link = loaded.attach(root, direction, CgroupAttachMode::Single)?;
                loaded.take_link(link)?.try_into()?
            }
            (Hook::Baseline, _) => {
                let link = bpf::link_task_iterator(self.program(program.name)?)?;
                bpf::run_iterator(link.as_fd())?;
                return Ok(());
            }
            _ => return Ok(()),
        };
        match &self.pinned {
            Some(pinned) => drop(link.pin(pinned.link(program.name))?),
            None => self.links.push(link),
        }
        Ok(())
    }

    /// Called once everything is attached: from now on these programs count, and an earlier agent's end.
    ///
    /// # Errors
    ///
    /// If something can't be pinned or removed. If something failed that may succeed at another start: what
    /// is pinned lasts, and would lack it.
    pub fn take_over(&mut self) -> Result<()> {
        let Some(pinned) = &mut self.pinned else {
            return Ok(());
        };
        if let Some(why) = &self.passing {
            bail!("{why}; nothing is pinned or replaced by this start, another one may succeed");
        }
        pinned
            .finish(&self.maps)
            .context("taking over from the earlier agent's programs")
    }

    /// Whether a source can run, given the programs that it needs.
    pub fn availability(&self, requirement: &Requirement) -> Availability {
        let failed = |name: &&str| self.failures.get(*name).map(|why| format!("{name}: {why}"));
        let fatal: Vec<String> = requirement.required.iter().filter_map(failed).collect();
        let lesser: Vec<String> = requirement
            .optional
            .iter()
            .filter_map(|(name, effect)| Some(format!("{} ({effect})", failed(name)?)))
            .collect();
        let up = fatal.is_empty();
        let reasons = if up { lesser } else { fatal };
        Availability {
            source: requirement.source,
            up,
            reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
            absent: false,
        }
    }

    /// The programs for lifecycle tracking, without which the agent can't run.
    ///
    /// # Errors
    ///
    /// If one of them is missing.
    pub fn require_lifecycle(&self) -> Result<()> {
        let availability = self.availability(&LIFECYCLE);
        match availability.reason {
            Some(reason) if !availability.up => bail!("cannot track cgroups: {reason}"),
            _ => Ok(()),
        }
    }

    /// A map as aya's type.
    fn aya_map(&self, name: &str) -> Result<Map> {
        let descriptor = self.map(name)?.try_clone_to_owned()?;
        Ok(Map::from_map_data(MapData::from_fd(descriptor)?)?)
    }

    /// An array of maps, with the place of its chunks' pins.
    fn outer(&self, name: &'static str) -> Result<Outer<'_>> {
        Ok(Outer {
            name,
            map: self.map(name)?,
            pins: self
                .pinned
                .as_ref()
                .map(|pinned| pinned.pins().chunks(name)),
        })
    }

    /// The slot pool, which keeps so many slots free.
    ///
    /// # Errors
    ///
    /// If called a second time.
    pub fn slots(&self, reserve: u32) -> Result<SlotPool> {
        let maps = SlotMaps {
            free: self.aya_map("FREE_SLOTS")?.try_into()?,
            slots: TypedMap::hash(self.map("SLOTS")?)?,
            meta: MappedChunks::new(&self.outer("SLOT_META")?, CELLS_PER_CHUNK)?,
            ring: Mapping::open(self.map("RETIRED_SLOTS")?)?,
            control: Mapping::open(self.map("SLOT_CONTROL")?)?,
            favoured: TypedMap::hash(self.map("FAVOURED_PARENTS")?)?,
        };
        Ok(SlotPool::new(maps, self.max_slots, reserve))
    }

    /// The cells of a source.
    ///
    /// # Errors
    ///
    /// If the object lacks the map, or the map has another type or size.
    pub fn cells<T: MappedCell>(&self) -> Result<Cells<T>> {
        Ok(Cells::new(
            &self.outer(T::MAP)?,
            T::SHARDS.count(self.lanes),
        )?)
    }

    /// Values keyed by cgroup and a second key.
    ///
    /// # Errors
    ///
    /// If called a second time, or the object lacks a map, or a map has another type or size.
    pub fn keyed<T: KeyedValue>(&self) -> Result<KeyedCells<T>> {
        let free = self.aya_map(T::MAPS.free)?.try_into()?;
        let control = Mapping::open(self.map("SLOT_CONTROL")?)?;
        let (tables, values) = (self.outer(T::MAPS.tables)?, self.outer(T::MAPS.values)?);
        let slots = self.max_slots + 1;
        Ok(KeyedCells::new(&tables, &values, free, control, slots)?)
    }

    /// CPU time before the first agent, by cgroup id. `None` if nothing outlives this one.
    ///
    /// # Errors
    ///
    /// If the object lacks the map, or the map has another type or size.
    pub fn earlier(&self) -> Result<Option<TypedMap<u64, Earlier>>> {
        let open = || Ok(TypedMap::hash(self.map("EARLIER")?)?);
        self.pinned.as_ref().map(|_| open()).transpose()
    }

    /// What sources keep for the next agent. `None` if nothing outlives this one.
    ///
    /// # Errors
    ///
    /// If the object lacks the map, or the map has another type or size.
    pub fn kept(&self) -> Result<Option<TypedMap<KeptKey, KeptPart>>> {
        let open = || Ok(TypedMap::hash(self.map("KEPT")?)?);
        self.pinned.as_ref().map(|_| open()).transpose()
    }

    /// The same of an earlier agent whose maps have another layout, if there is one.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn kept_of_another_layout(&self) -> Result<Option<TypedMap<KeptKey, KeptPart>>> {
        let Some(pinned) = &self.pinned else {
            return Ok(None);
        };
        let map = kept::of_another_layout(pinned.pins()).context("opening what it has kept")?;
        // Of another shape: it can't be read.
        Ok(map.and_then(|map| TypedMap::hash(map.as_fd()).ok()))
    }

    /// Final records of removed cgroups.
    ///
    /// # Errors
    ///
    /// If the object lacks the map, or the map has another type or size.
    pub fn final_records(&self) -> Result<TypedMap<FinalRecordKey, CgroupRecord>> {
        Ok(TypedMap::hash(self.map("FINAL_RECORDS")?)?)
    }

    /// An iterator over tasks, to be run by [`bpf::run_iterator`].
    ///
    /// # Errors
    ///
    /// If there is no such iterator, or it can't be attached.
    pub fn task_iterator(&self, name: &str) -> Result<OwnedFd> {
        Ok(bpf::link_task_iterator(self.program(name)?)?)
    }

    /// A program that is not attached, to be run by [`bpf::run_program`].
    ///
    /// # Errors
    ///
    /// If there is no such program, or its descriptor can't be duplicated.
    pub fn on_demand(&self, name: &str) -> Result<OwnedFd> {
        Ok(self.program(name)?.try_clone_to_owned()?)
    }

    /// The kernel's types, until [`forget_types`](Self::forget_types).
    ///
    /// # Errors
    ///
    /// If the types have been freed.
    pub fn types(&self) -> Result<&btf::Btf> {
        self.types
            .as_ref()
            .context("the kernel's types have been freed")
    }

    /// Frees the kernel's types.
    pub fn forget_types(&mut self) {
        self.types = None;
    }

    /// Closes the object's maps. Whoever reads one has a descriptor of its own, and the programs keep
    /// them all.
    ///
    /// # Errors
    ///
    /// If a program's descriptor can't be duplicated.
    pub fn close_maps(&mut self) -> Result<()> {
        // First, so that there is room for the programs' descriptors.
        self.maps.clear();
        let mut programs = HashMap::new();
        for (name, program) in self.loaded()? {
            programs.insert(name, program.try_clone_to_owned()?);
        }
        self.programs = programs;
        self.ebpf = None;
        Ok(())
    }

    /// A map of the object, for a source with its own layout. There is none after
    /// [`close_maps`](Self::close_maps).
    ///
    /// # Errors
    ///
    /// If the object lacks it.
    pub fn map(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let map = self.maps.get(name);
        Ok(map
            .with_context(|| format!("the object has no map {name}"))?
            .fd()
            .as_fd())
    }

    /// The cgroup iterator.
    ///
    /// # Errors
    ///
    /// If its maps can't be mapped.
    pub fn cgroup_iterator(&self) -> Result<CgroupIterator> {
        let maps = Maps {
            control: self.map("CGROUP_ITERATOR")?,
            records: self.outer("RECORDS")?,
            devices: self.outer("IO_RECORDS")?,
        };
        CgroupIterator::new(self.program("cgroup_iterator")?, &maps)
    }

    /// Lifecycle events.
    ///
    /// # Errors
    ///
    /// If called a second time.
    pub fn events(&self) -> Result<RingBuf<MapData>> {
        Ok(self.aya_map("CGROUP_EVENTS")?.try_into()?)
    }

    /// Log records of the kernel programs, to be written to the agent's log.
    ///
    /// # Errors
    ///
    /// If the object was built without logging.
    pub fn logger(&mut self) -> Result<EbpfLogger> {
        match (self.log.take(), &mut self.ebpf) {
            (Some(log), _) => Ok(log),
            (None, Some(ebpf)) => Ok(EbpfLogger::init(ebpf)?),
            (None, None) => bail!("the programs don't log"),
        }
    }

    /// Records why a program can't be used.
    pub fn set_failed(&mut self, name: &'static str, error: &anyhow::Error) {
        self.failures.insert(name, shortened(&format!("{error:#}")));
        self.note(name, error);
    }

    /// Notes why a program or a source can't be used, if that may pass.
    pub fn note(&mut self, name: &str, error: &anyhow::Error) {
        if self.passing.is_none() && may_pass(error) {
            self.passing = Some(format!("{name}: {error:#}"));
        }
    }

    /// Whether a program was requested and has been loaded.
    pub fn is_loaded(&self, name: &str) -> bool {
        self.wanted.contains(&name) && !self.failures.contains_key(name)
    }

    /// Makes every CPU account the time of its running task up to now, if the program for that is
    /// loaded.
    ///
    /// # Errors
    ///
    /// If the object lacks the program.
    pub fn take_in_flight(&self) -> Result<()> {
        if !self.is_loaded("in_flight") {
            return Ok(());
        }
        let program = self.program("in_flight")?;
        // A CPU that is offline has no running task; the call fails there.
        for cpu in 0..self.cpus {
            if let Err(error) = bpf::run_program(program, Some(cpu)) {
                tracing::debug!(cpu, %error, "running task not accounted");
            }
        }
        Ok(())
    }

    /// Number of CPUs that there may be.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// One of the statistics that the kernel programs keep about themselves.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn stat(&self, stat: Stat) -> Result<u64> {
        Ok(self.stats.sum(stat as u32)?)
    }

    /// All statistics that the kernel programs keep about themselves.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn stats(&self) -> Result<KernelStats> {
        let mut values = [0; STATS as usize];
        for (index, value) in (0..).zip(&mut values) {
            *value = self.stats.sum(index)?;
        }
        Ok(KernelStats(values))
    }

    /// Run statistics of each loaded program.
    pub fn runs(&self) -> Vec<(&str, bpf::Runs)> {
        self.programs
            .iter()
            .filter_map(|(name, program)| Some((*name, bpf::program_runs(program.as_fd()).ok()?)))
            .collect()
    }

    /// Kernel memory used by the object's own maps, bytes. Chunks and task storage are not
    /// included.
    pub fn map_memory(&self) -> u64 {
        self.map_memory
    }
}

/// Room for what agents keep for the next one, in parts: of a living cgroup what the kernel side has not, of a removed one all
/// values of all sources.
fn kept_parts(max_slots: u32, max_removed: usize) -> u32 {
    let removed = u32::try_from(max_removed.saturating_mul(12)).unwrap_or(u32::MAX);
    max_slots
        .saturating_mul(4)
        .saturating_add(removed)
        .min(MOST_KEPT)
}

/// 4 million parts are a gigabyte.
const MOST_KEPT: u32 = 1 << 22;

/// The loader's object: makes the maps, and opens those that are pinned. Of the generations, the first one counts, and
/// the other one is the object's own.
fn loaded(
    constants: &Constants,
    generations: [u32; 2],
    pins: Option<&Pins>,
    kept: Option<&Kept>,
    kept_parts: u32,
    btf: &Btf,
    bytes: &[u8],
) -> Result<Ebpf> {
    let mut loader = loader::without_btf();
    if let (Some(pins), Some(kept)) = (pins, kept) {
        for name in kept.maps.keys() {
            loader.map_pin_path(name.as_str(), pins.map(name));
        }
    }
    let slots = constants.max_slots.saturating_add(1);
    let ring = (slots + 1).next_power_of_two();
    for &(map, shards) in CELL_MAPS {
        let cells = u64::from(slots) * u64::from(shards.count(constants.cpus));
        let chunks = u32::try_from(cells / u64::from(CELLS_PER_CHUNK) + 1)?;
        loader.map_max_entries(map, chunks);
    }
    for maps in KEYED_MAPS {
        loader
            .map_max_entries(maps.tables, slots / CELLS_PER_CHUNK + 1)
            .map_max_entries(maps.values, max_values(slots) / VALUES_PER_CHUNK + 1)
            .map_max_entries(maps.free, max_values(slots));
    }
    loader
        .btf(Some(btf))
        .allow_unsupported_maps()
        .override_global("CPUS", &constants.cpus, true)
        .override_global("SHARDS", &constants.shards, false)
        .override_global("KEEP_FINAL_RECORDS", &constants.keep_final_records, false)
        .override_global("LOADED_AT", &constants.loaded_at, true)
        .override_global("RQF_FLUSH_SEQ", &constants.flush_sequence, true)
        .override_global("SLOW_US", &constants.slow_us, false)
        .override_global("NO_GRACE", &constants.no_grace, false)
        .override_global(aya_log::LEVEL, &constants.log_level, false)
        // The loader writes this one into the earlier programs' map, too.
        .override_global("GENERATION", &generations[0], true)
        .override_global("OWN_GENERATION", &generations[1], true)
        // Cgroups without a slot of their own have an entry as well.
        .map_max_entries("SLOTS", slots.saturating_add(BORROWERS))
        .map_max_entries("SLOT_META", slots / CELLS_PER_CHUNK + 1)
        .map_max_entries("FAVOURED_PARENTS", FAVOURED)
        .map_max_entries("RETIRED_SLOTS", ring)
        .override_global("RING_MASK", &(ring - 1), false)
        .map_max_entries("FREE_SLOTS", slots)
        .map_max_entries("FINAL_RECORDS", constants.max_slots)
        // Requests in flight. Each CPU reserves a part of the entries.
        .map_max_entries("SUBMITTERS", 4096 + 256 * constants.cpus)
        // There can be more cgroups than slots. No host has 4 million.
        .map_max_entries("RECORDS", 4_194_304 / RECORDS_PER_CHUNK)
        .map_max_entries("IO_RECORDS", 16_777_216 / IO_RECORDS_PER_CHUNK)
        // A hash has a bucket for each entry that it may have.
        .map_max_entries("EARLIER", if pins.is_some() { 2 * slots } else { 1 })
        .map_max_entries("KEPT", kept_parts)
        .load(bytes)
        .map_err(|error| not_loaded(&error))
}

/// Loads programs, and returns the errors by name. The verifier takes most of a start's time; it works on
/// several programs at once.
fn verify(
    ebpf: &mut Ebpf,
    chosen: &[&'static Program],
    btf: &Btf,
) -> Vec<(&'static str, anyhow::Error)> {
    let mut loaded: HashMap<&str, &mut AyaProgram> = ebpf.programs_mut().collect();
    let jobs: Vec<_> = chosen
        .iter()
        .map(|program| (*program, loaded.remove(program.name)))
        .collect();
    let threads = thread::available_parallelism().map_or(1, |cpus| cpus.get().min(VERIFIERS));
    let jobs = Mutex::new(jobs.into_iter());
    let failures = Mutex::new(Vec::new());
    let next = || jobs.lock().ok()?.next();
    let work = || {
        while let Some((program, loaded)) = next() {
            if let Err(error) = load_program(program, loaded, btf)
                && let Ok(mut failures) = failures.lock()
            {
                failures.push((program.name, error));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Without another thread this one does it all.
            drop(thread::Builder::new().spawn_scoped(scope, work));
        }
        work();
    });
    failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
}

fn load_program(program: &Program, loaded: Option<&mut AyaProgram>, btf: &Btf) -> Result<()> {
    let loaded = loaded.with_context(|| format!("the object has no program {}", program.name))?;
    match (program.hook, loaded) {
        (
            Hook::Tracepoint(name) | Hook::Newer(name) | Hook::Substitute(name, _),
            AyaProgram::BtfTracePoint(loaded),
        ) => loaded.load(name, btf)?,
        (Hook::Packets(_), AyaProgram::CgroupSkb(loaded)) => loaded.load()?,
        (Hook::Baseline | Hook::TaskIterator, AyaProgram::Iter(loaded)) => {
            loaded.load("task", btf)?;
        }
        (Hook::CgroupIterator, AyaProgram::Iter(loaded)) => loaded.load("cgroup", btf)?,
        (Hook::OnDemand, AyaProgram::RawTracePoint(loaded)) => loaded.load()?,
        (hook, _) => bail!("{} is not a {hook:?} program", program.name),
    }
    Ok(())
}

/// What programs have as constants.
#[derive(Debug, Hash)]
struct Constants {
    cpus: u32,
    shards: u32,
    max_slots: u32,
    keep_final_records: u32,
    loaded_at: u64,
    flush_sequence: u32,
    log_level: u8,
    slow_us: u32,
    no_grace: u32,
}

/// Statistics that the kernel programs keep about themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelStats([u64; STATS as usize]);

impl KernelStats {
    /// Returns a counter's sum over the CPUs.
    pub fn get(&self, stat: Stat) -> u64 {
        self.0[stat as usize]
    }
}

/// Takes the maps from the loader's object. It keeps the one that its log's reader wants.
fn take_maps(ebpf: &mut Ebpf) -> Result<HashMap<String, MapData>> {
    const LOG: &str = "AYA_LOGS";
    let names: Vec<String> = ebpf.maps().map(|(name, _)| name.to_owned()).collect();
    let mut maps = HashMap::new();
    for name in names {
        let map = match ebpf.map(LOG) {
            Some(Map::RingBuf(log)) if name == LOG => {
                MapData::from_fd(log.fd().as_fd().try_clone_to_owned()?)?
            }
            _ => map_data(ebpf.take_map(&name).context("a map has gone")?)?,
        };
        maps.insert(name, map);
    }
    Ok(maps)
}

fn map_data(map: Map) -> Result<MapData> {
    match map {
        Map::Array(map)
        | Map::ArrayOfMaps(map)
        | Map::HashMap(map)
        | Map::LruHashMap(map)
        | Map::PerCpuArray(map)
        | Map::Queue(map)
        | Map::RingBuf(map)
        | Map::SkStorage(map)
        | Map::Stack(map)
        | Map::Unsupported(map) => Ok(map),
        other => bail!("unexpected kind of map: {other:?}"),
    }
}

/// Whether another start may have no such error.
fn may_pass(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let cause = match cause.downcast_ref() {
            Some(OpenError::Kernel(error)) => Some(error),
            _ => cause.downcast_ref::<io::Error>(),
        };
        matches!(
            cause.and_then(io::Error::raw_os_error),
            Some(libc::ENOMEM | libc::EAGAIN | libc::EINTR | libc::EMFILE | libc::ENFILE)
        )
    })
}

/// All types that are looked up to attach the programs.
fn wanted() -> Vec<Wanted> {
    let of = |program: &Program| match program.hook {
        Hook::Tracepoint(name) | Hook::Newer(name) | Hook::Substitute(name, _) => {
            Some(Wanted::Tracepoint(name))
        }
        Hook::Baseline | Hook::TaskIterator => Some(Wanted::Iterator("task")),
        Hook::CgroupIterator => Some(Wanted::Iterator("cgroup")),
        Hook::Packets(_) | Hook::OnDemand => None,
    };
    let wanted: HashSet<Wanted> = PROGRAMS.iter().filter_map(of).collect();
    wanted.into_iter().collect()
}

fn read_btf() -> Result<Vec<u8>> {
    std::fs::read(Path::new(BTF_PATH)).map_err(|error| {
        anyhow!(
            "this kernel provides no BTF: cannot read {BTF_PATH}: {error}; cgmeter \
             needs a kernel built with CONFIG_DEBUG_INFO_BTF=y (every current distribution's is)"
        )
    })
}

/// The loader's error on one line, with a remedy.
fn not_loaded(error: &aya::EbpfError) -> anyhow::Error {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    if text.contains("Operation not permitted") || text.contains("os error 1)") {
        return anyhow!(
            "not privileged: loading BPF maps and programs was refused ({text}); run cgmeter as \
             root, or with the capabilities CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN"
        );
    }
    anyhow!(
        "the kernel programs could not be loaded: {}",
        shortened(&text)
    )
}

/// The start and the end of a long message. The first line of the verifier's log names the error,
/// the last lines give the reason.
fn shortened(text: &str) -> String {
    let text: Vec<char> = text.chars().collect();
    if text.len() <= 800 {
        return text.into_iter().collect();
    }
    text[..200]
        .iter()
        .chain(&[' ', '…', ' '])
        .chain(&text[text.len() - 400..])
        .collect()
}
