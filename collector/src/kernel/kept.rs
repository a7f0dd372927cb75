//! What an earlier agent has left pinned, and how this one takes over from it.
//!
//! Without a moment in which nobody counts, and with one store at which the counting goes over:
//!
//! 1. The new programs are attached beside the old ones, to the same maps. They do nothing yet: the map that
//!    says which generation counts still names the old one.
//! 2. Everything of theirs is pinned, and marked as whole.
//! 3. The new generation is stored.
//! 4. Links for packets get the new programs, each in one step, and the old programs are detached.
//!
//! An agent that is killed at any point leaves programs that count, and the next one finds which.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use aya::maps::MapData;
use collector_common::slot::SlotControl;

use super::{
    OBJECT, bpf,
    bpf::MapType,
    map::{Map, OpenError},
    mapping::{Mapping, Word, word},
    pins::{Pins, ProgramSet, open},
    programs::{Hook, PROGRAMS},
};

/// When the first agent loaded its programs.
pub(super) const LOADED_AT: Word<SlotControl> = word!(SlotControl, loaded_at);
/// The map that says which programs count.
const GENERATION: &str = ".data.generation";
/// The map that serves as a mark.
const MARK: &str = "SLOT_CONTROL";
/// The program that counts CPU time by growth: what happens while it is off would be counted later.
const GROWTH: &str = "sched_switch";

/// Maps that an earlier agent has left, with the programs that count there.
pub(super) struct Kept {
    /// Maps by name.
    pub maps: HashMap<String, MapData>,
    /// The generation that counts.
    pub generation: u32,
    /// When the first agent loaded its programs, CLOCK_MONOTONIC, ns.
    pub loaded_at: u64,
    sets: Vec<ProgramSet>,
}

/// Whether a map is of one version of the programs: their constants.
fn is_private(name: &str) -> bool {
    name.starts_with('.') && name != GENERATION
}

/// Why nobody can go on with what is pinned. Other errors may pass, and then it is still there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unfit(String);

fn unfit(why: String) -> anyhow::Error {
    Unfit(why).into()
}

/// A map of another shape stays so.
fn of_shape(error: OpenError) -> anyhow::Error {
    match error {
        OpenError::Shape { .. } => unfit(error.to_string()),
        OpenError::Kernel(error) => error.into(),
    }
}

impl Kept {
    /// Opens what is there. What nobody can use is removed, and the log says so.
    ///
    /// # Errors
    ///
    /// If it can't be looked at or removed, or the directory for new pins can't be made.
    pub(super) fn open(pins: &Pins, programs: &[&'static str]) -> Result<Option<Self>> {
        let halves = pins.halves()?;
        if !halves.is_empty() {
            tracing::warn!(
                directory = %pins.root().display(),
                found = halves.join(", "),
                "what is pinned there is incomplete, and is removed"
            );
            pins.remove(&halves)?;
        }
        if pins.has_maps()? {
            match Self::open_maps(pins, programs) {
                Ok(kept) => return Ok(Some(kept)),
                Err(error) if !error.is::<Unfit>() => {
                    let directory = pins.root().display();
                    return Err(error.context(format!(
                        "what is pinned in {directory} can't be opened, and is left as it is; \
                         `cgmeter unload` removes it"
                    )));
                }
                Err(error) => {
                    tracing::warn!(
                        directory = %pins.root().display(),
                        error = format!("{error:#}"),
                        "what is pinned there cannot be used and is removed: counters begin at 0"
                    );
                    pins.remove_own()?;
                }
            }
        }
        pins.make_layout()?;
        Ok(None)
    }

    fn open_maps(pins: &Pins, programs: &[&'static str]) -> Result<Self> {
        let object = aya_obj::Object::parse(OBJECT)?;
        let mut maps = HashMap::new();
        for (name, expected) in &object.maps {
            if is_private(name) {
                continue;
            }
            // A map that this version has added is made by the loader, and pinned with the programs.
            let Some(map) = open(&pins.map(name)).with_context(|| format!("opening {name}"))?
            else {
                continue;
            };
            let found = bpf::map_info(map.as_fd()).with_context(|| format!("asking for {name}"))?;
            let mut pairs = vec![
                (found.map_type, expected.map_type()),
                (found.key_size, expected.key_size()),
                (found.flags & expected.map_flags(), expected.map_flags()),
            ];
            // The definition of an array of maps has no size of values.
            if expected.value_size() != 0 {
                pairs.push((found.value_size, expected.value_size()));
            }
            if pairs.iter().any(|(found, expected)| found != expected) {
                bail!(unfit(format!(
                    "the map {name} has another type or other sizes"
                )));
            }
            maps.insert(name.clone(), MapData::from_fd(map)?);
        }
        let named = |name: &str| {
            let map = maps.get(name).map(|map| map.fd().as_fd());
            map.ok_or_else(|| unfit(format!("{name} is missing")))
        };
        let control: Mapping<SlotControl> = Mapping::open(named(MARK)?).map_err(of_shape)?;
        let current: Map<u32, u32> =
            Map::open(named(GENERATION)?, MapType::Array).map_err(of_shape)?;
        let generation = current.get(&0)?.unwrap_or_default();
        named("FREE_SLOTS")?;
        let (mut active, mut others) = (Vec::new(), Vec::new());
        for set in pins.sets()? {
            if set.generation == generation && set.is_whole()? {
                active.push(set);
            } else {
                others.push(set);
            }
        }
        let [active] = active.as_slice() else {
            bail!(unfit("the programs that count are missing".to_owned()));
        };
        // An agent was killed before these counted, or before the links for packets had gone over.
        for other in others {
            supersede(&other, active)?;
        }
        if programs.contains(&GROWTH) && !active.link(GROWTH).try_exists()? {
            bail!(unfit("--collector.sched was off".to_owned()));
        }
        Ok(Self {
            generation,
            loaded_at: control.load(0, LOADED_AT),
            sets: vec![active.clone()],
            maps,
        })
    }

    /// The highest number of slots, which is that of the first agent.
    pub(super) fn max_slots(&self, wanted: u32) -> u32 {
        let map = self.maps.get("FREE_SLOTS");
        let info = map.and_then(|map| bpf::map_info(map.fd().as_fd()).ok());
        let kept = info.map_or(wanted, |info| info.max_entries.saturating_sub(1));
        if kept != wanted {
            tracing::warn!(
                kept,
                wanted,
                "--cgroup.max stays what it was, so that counters go on; `cgmeter unload` ends that"
            );
        }
        kept
    }

    /// The programs that count, if they are the same as this agent's: those with these names, made of
    /// the same.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub(super) fn programs(
        &self,
        id: u64,
        names: &[&'static str],
    ) -> Result<Option<HashMap<&'static str, OwnedFd>>> {
        let Some(set) = self.sets.iter().find(|set| set.id == id) else {
            return Ok(None);
        };
        let mut programs = HashMap::new();
        for &name in names {
            let Some(program) = open(&set.program(name))? else {
                return Ok(None);
            };
            let found = bpf::program_name(program.as_fd())?;
            if found.is_empty() || !name.starts_with(&found) {
                return Ok(None);
            }
            let attached = PROGRAMS.iter().any(|program| {
                program.name == name
                    && !matches!(
                        program.hook,
                        Hook::Baseline | Hook::TaskIterator | Hook::CgroupIterator | Hook::OnDemand
                    )
            });
            if attached && !set.link(name).exists() {
                return Ok(None);
            }
            programs.insert(name, program);
        }
        Ok(Some(programs))
    }
}

/// What an agent has kept whose maps have another layout, for agents of any: see `agent::keep`. `None` if there
/// is no such agent, or this layout's maps are there: then those are what an agent left that was killed when
/// it had taken over.
///
/// # Errors
///
/// Errors of bpf(2).
pub(super) fn of_another_layout(pins: &Pins) -> io::Result<Option<OwnedFd>> {
    if pins.has_maps()? {
        return Ok(None);
    }
    let mut others = pins.others()?;
    others.sort();
    match others.last() {
        Some(layout) => pins.map_of(layout, "KEPT"),
        None => Ok(None),
    }
}

/// Names of the programs for packets.
fn packets() -> impl Iterator<Item = &'static str> {
    PROGRAMS
        .iter()
        .filter(|program| matches!(program.hook, Hook::Packets(_)))
        .map(|program| program.name)
}

/// Removes programs in whose place others count. Their links for packets get the others, unless these have
/// links of their own.
fn supersede(old: &ProgramSet, new: &ProgramSet) -> Result<()> {
    for name in packets().filter(|name| !new.link(name).exists()) {
        if let (Some(link), Some(program)) = (open(&old.link(name))?, open(&new.program(name))?) {
            bpf::update_link(link.as_fd(), program.as_fd())?;
            new.take_link(name, old)?;
        }
    }
    Ok(old.remove()?)
}

/// Pins the maps that are not pinned yet: all of a first start; those that this version has added.
///
/// # Errors
///
/// Errors of bpf(2).
pub(super) fn pin_maps(pins: &Pins, maps: &HashMap<String, MapData>) -> Result<()> {
    for (name, map) in maps {
        let path = pins.map(name);
        if !is_private(name) && !path.exists() {
            bpf::pin(map.fd().as_fd(), &path)
                .with_context(|| format!("pinning {}", path.display()))?;
        }
    }
    Ok(())
}

/// Programs that are pinned, and those in whose place they come.
pub(super) struct Replacement {
    pins: Pins,
    /// The new ones; `None` if the earlier agent's go on.
    new: Option<ProgramSet>,
    before: Vec<ProgramSet>,
    continues: bool,
}

impl Replacement {
    /// The earlier agent's programs go on.
    pub(super) fn none(pins: Pins, kept: Kept) -> Self {
        Self {
            pins,
            new: None,
            before: kept.sets,
            continues: true,
        }
    }

    /// Pins new programs, which are not attached yet.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub(super) fn begin(
        pins: Pins,
        kept: Option<Kept>,
        generation: u32,
        id: u64,
        programs: &HashMap<&'static str, BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let new = pins.make_set(generation, id)?;
        for (name, program) in programs {
            bpf::pin(*program, &new.program(name))?;
        }
        Ok(Self {
            pins,
            new: Some(new),
            continues: kept.is_some(),
            before: kept.map_or_else(Vec::new, |kept| kept.sets),
        })
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    pub(super) fn continues(&self) -> bool {
        self.continues
    }

    /// Where the link of a new program is pinned.
    pub(super) fn link(&self, name: &str) -> PathBuf {
        let set = self.new.as_ref().or(self.before.first());
        set.map_or_else(PathBuf::new, |set| set.link(name))
    }

    /// Whether a program gets the link of an earlier one, and needs none of its own.
    pub(super) fn takes_over(&self, name: &str) -> bool {
        self.before.iter().any(|set| set.link(name).exists())
    }

    /// Lets the new programs count, and ends the earlier ones.
    ///
    /// # Errors
    ///
    /// If something can't be pinned or removed.
    pub(super) fn finish(&mut self, maps: &HashMap<String, MapData>) -> Result<()> {
        let mark = maps.get(MARK).context("no map to mark with")?;
        let mark = mark.fd().as_fd();
        if let Some(new) = &self.new {
            new.mark(mark)?;
            if self.continues {
                let current = maps.get(GENERATION).context("no map of generations")?;
                let current: Map<u32, u32> = Map::open(current.fd().as_fd(), MapType::Array)?;
                current.insert(&0, &new.generation)?;
            }
            for before in std::mem::take(&mut self.before) {
                supersede(&before, new)?;
            }
        }
        if !self.pins.has_maps()? {
            self.pins.mark_maps(mark)?;
        }
        // Their programs have counted until now, in maps that these can't read.
        Ok(self.pins.remove(&self.pins.others()?)?)
    }
}
