//! What is kept of cgroups and what is gone, for the next agent: `--state.pin`.

mod parts;
mod record;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use collector_common::kept::{KeptKey, KeptPart};
use parts::{Kept, count, first_of, first_part, parts, seal, whole};
use record::{Record, Removed};

use super::sources::Sources;
use crate::{
    cgroup::{Container, Earlier, Node, NodeId, ROOT, Recalled, Tree},
    kernel::{load::Kernel, map::Map},
    runtime,
    source::{CgroupStatistics, SOURCES, Source, values::Words},
};

/// Writes what sources keep into a map, and reads what an earlier agent has written.
///
/// When the agent ends, it also writes what sources serve: an agent whose maps have another layout can't have
/// the values that are in these. One with the same layout goes on with them, and removes the totals.
pub(super) struct Keeper {
    map: Map<KeptKey, KeptPart>,
    /// The map of an agent whose maps have another layout.
    other: Option<Map<KeptKey, KeptPart>>,
    /// What is in the map, by the keys of first parts.
    written: HashMap<KeptKey, Written>,
    writings: u64,
    /// What the record of a living cgroup was made of, by its id.
    known: HashMap<u64, Known>,
    /// Ids of removed cgroups that nobody has looked at yet.
    fresh: Vec<u64>,
    /// Ids of those whose values may still change, or that are not written yet.
    removed: Vec<u64>,
    /// Ids of removed cgroups that are written. Once nothing changes any more, of those that have something under a name
    /// only the names are noted: a bit each.
    ended: HashMap<u64, Option<u64>>,
    /// First parts of all names under which something of removed cgroups is kept.
    names: Vec<u64>,
}

/// Words that are in the map.
#[derive(Clone, Copy, Debug)]
struct Written {
    /// Their seal; 0 if they are not whole.
    seal: u64,
    parts: u64,
    /// The number of the last writing that had them.
    writing: u64,
}

/// What a record is made of, besides the path.
struct Known {
    created: Option<SystemTime>,
    container: Option<Arc<Container>>,
}

/// Stands for no source: records of cgroups.
const CGROUPS: &str = "cgroups";

/// Stands for no source: the id of the root's cgroup.
const ROOT_OF_ALL: &str = "root";

/// Stands for no source: ids of removed cgroups whose path has been made again.
const ALIASES: &str = "aliases";

/// The name under which the paths of a v1 hierarchy's cgroups are kept.
fn paths_of(hierarchy: u32) -> String {
    format!("v1 {hierarchy}")
}

/// So many more removed cgroups may be noted than linger.
const MORE_ENDED: usize = 256;

/// For so long after a removal the values of a cgroup may still change.
const LATE: Duration = Duration::from_secs(10);

/// The longest path that is kept, bytes: there is room for some 4 KiB a removed cgroup.
const LONGEST_PATH: usize = 1024;

/// The name under which a source's totals are kept.
fn totals_of(source: &str) -> String {
    format!("totals of {source}")
}

/// What is kept under a name, by the nodes that it belongs to.
fn of_nodes(
    kept: &Kept,
    name: &str,
    node: impl Fn(u64) -> Option<NodeId>,
) -> Vec<(NodeId, Vec<u64>)> {
    let part = first_part(name);
    let firsts = kept.keys().filter(|key| key.part == part);
    firsts
        .filter_map(|&first| Some((node(first.cgroup)?, whole(kept, first)?)))
        .collect()
}

/// What an earlier agent knew of cgroups.
#[derive(Default)]
struct Past {
    /// Removed ones whose last values are in the map, and their nodes.
    ended: HashMap<u64, NodeId>,
    /// Those whose last values the kernel side has: they were removed while no agent ran, or just before.
    lost: HashMap<u64, NodeId>,
}

/// Removed cgroups that the next agent takes over.
#[derive(Default)]
pub(super) struct Departed {
    /// Their last values are still to come.
    pub(super) expected: Vec<u64>,
    /// They are known.
    pub(super) known: Vec<u64>,
}

impl Past {
    /// Reads the records, and gives the tree what is gone.
    fn recall(kept: &Kept, tree: &mut Tree) -> Self {
        let runtimes = runtime::runtimes();
        let part = first_part(CGROUPS);
        let firsts = kept.keys().filter(|key| key.part == part);
        let records = firsts.filter_map(|&first| {
            let record = Record::read(&whole(kept, first)?, &runtimes)?;
            Some((first.cgroup, record))
        });
        let mut past = Self::default();
        let same_root = of_root(kept) == tree.node(ROOT).map(|root| root.id);
        let mut gone: HashMap<Vec<u8>, (u64, Record)> = HashMap::new();
        for (id, record) in records {
            if let Some(number) = tree.living(id) {
                if let Some(created) = record.created {
                    tree.set_created(number, created);
                }
                // Until the runtime says something else.
                if let Some(container) = &record.container {
                    tree.set_container(number, container);
                }
                continue;
            }
            // Paths of another root are others.
            if !same_root {
                continue;
            }
            // An agent may be killed before it has taken out the record of the path's cgroup before.
            let later = gone.get(&record.path).is_some_and(|&(other, _)| other > id);
            if !later {
                gone.insert(record.path.clone(), (id, record));
            }
        }
        let mut gone: Vec<_> = gone.into_values().collect();
        gone.sort_by_key(|(_, record)| record.path.len());
        for (id, record) in gone {
            let end = record.removed;
            let earlier = Earlier {
                id,
                path: &record.path,
                created: record.created,
                removed: end.map(|end| end.at),
                counted: end.is_some_and(|end| end.counted),
                // Each frame shows who lives.
                shown: end.is_none_or(|end| end.shown),
                activity: end.map_or(0, |end| end.activity),
            };
            let Some(recalled) = tree.recall(&earlier) else {
                continue;
            };
            let (Recalled::Remade(number) | Recalled::Gone(number)) = recalled;
            match end {
                Some(Removed { read: true, .. }) => past.ended.insert(id, number),
                _ => past.lost.insert(id, number),
            };
            if let (Recalled::Gone(_), Some(container)) = (recalled, &record.container) {
                tree.set_container(number, container);
            }
        }
        past
    }

    /// The node to which belongs what is kept of a cgroup under a name. Where the path was made again, and the earlier agent has
    /// seen that, it has written the same for the path's later cgroup; it may have been killed before it took out
    /// the rest.
    fn node(&self, kept: &Kept, part: u64, tree: &Tree, id: u64) -> Option<NodeId> {
        let gone = self.ended.get(&id).or_else(|| self.lost.get(&id));
        let Some(&number) = gone else {
            return tree.living(id);
        };
        let cgroup = tree.node(number)?.id;
        let later = cgroup != id && kept.contains_key(&KeptKey { cgroup, part });
        (!later).then_some(number)
    }
}

/// The root of the hierarchy that the earlier agent knew.
fn of_root(kept: &Kept) -> Option<u64> {
    let part = first_part(ROOT_OF_ALL);
    let words = whole(kept, KeptKey { cgroup: 0, part })?;
    words.first().copied()
}

impl Keeper {
    /// `None` if nothing outlives this agent.
    ///
    /// # Errors
    ///
    /// If the object lacks the map.
    pub(super) fn new(kernel: &Kernel) -> anyhow::Result<Option<Self>> {
        let other = kernel.kept_of_another_layout()?;
        Ok(kernel.kept()?.map(|map| Self {
            map,
            other,
            written: HashMap::new(),
            writings: 0,
            known: HashMap::new(),
            fresh: Vec::new(),
            removed: Vec::new(),
            ended: HashMap::new(),
            names: SOURCES
                .iter()
                .map(|source| source.requirement.source)
                .chain([CGROUPS])
                .map(first_part)
                .collect(),
        }))
    }

    /// Gives the tree and the sources what an earlier agent has kept. Returns the removed cgroups that it knew.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub(super) fn restore(
        &mut self,
        tree: &mut Tree,
        sources: &mut Sources,
    ) -> std::io::Result<Departed> {
        if let Some(other) = self.other.take() {
            let kept = all_of(&other)?;
            let past = Past::recall(&kept, tree);
            take_totals(&kept, &past, tree, sources);
            self.removed = past
                .ended
                .into_keys()
                .chain(past.lost.into_keys())
                .collect();
            // The other agent's maps go as soon as this one's programs count.
            self.save_or_say(tree, sources, &HashSet::new());
            return Ok(Departed::default());
        }
        let kept = all_of(&self.map)?;
        let past = Past::recall(&kept, tree);
        for source in sources.iter_mut() {
            let part = first_part(source.name());
            let by_node = of_nodes(&kept, source.name(), |id| past.node(&kept, part, tree, id));
            take(&mut **source, by_node);
        }
        if let Some(statistics) = &mut sources.statistics {
            take_v1_paths(&kept, statistics);
        }
        let mut departed = Departed::default();
        for (number, ids) in of_nodes(&kept, ALIASES, |id| tree.living(id)) {
            for id in ids {
                tree.set_alias(id, number);
                departed.expected.push(id);
            }
        }
        departed.expected.extend(past.lost.keys());
        departed.known.extend(past.ended.keys());
        self.take_stock(&kept);
        self.removed = past.lost.into_keys().collect();
        past.ended.into_keys().for_each(|id| self.settle(id));
        Ok(departed)
    }

    /// Notes what is in the map. What belongs to nothing that is whole goes.
    fn take_stock(&mut self, kept: &Kept) {
        for (&key, part) in kept {
            let (first, number) = first_of(key);
            if number == 0 {
                let written = Written {
                    seal: whole(kept, first).map_or(0, |_| part.0[0]),
                    parts: count(part),
                    writing: 0,
                };
                self.written.insert(first, written);
            }
        }
        for &key in kept.keys() {
            let (first, number) = first_of(key);
            let written = self.written.get(&first);
            if written.is_none_or(|written| number >= written.parts) {
                // There is nothing to be done if it can't be removed.
                let _ = self.map.remove(&key);
            }
        }
    }

    /// Notes that a cgroup was removed.
    pub(super) fn note_removed(&mut self, id: u64) {
        self.fresh.push(id);
    }

    /// Writes what sources serve, for an agent whose maps have another layout. Nodes in `without` have no values of
    /// their own.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub(super) fn save_totals(
        &mut self,
        tree: &Tree,
        sources: &mut Sources,
        without: &HashSet<NodeId>,
    ) -> std::io::Result<()> {
        let living = tree
            .iter()
            .filter(|(number, node)| node.died.is_none() && !without.contains(number));
        let nodes: Vec<NodeId> = living.map(|(number, _)| number).collect();
        let mut result = Ok(());
        for source in sources.iter_mut() {
            let (name, shape) = (totals_of(source.name()), source.shape());
            source.save_totals(&nodes, &mut |number, words| {
                let put = self.put_of(tree, number, &name, &shaped(shape, words));
                if let Err(error) = put {
                    result = Err(error);
                }
            });
        }
        result
    }

    /// Writes the words of a cgroup, where they have changed.
    fn put(&mut self, name: &str, cgroup: u64, words: &[u64]) -> std::io::Result<()> {
        if words.is_empty() {
            return Ok(());
        }
        let first = KeptKey {
            cgroup,
            part: first_part(name),
        };
        let (seal, writing) = (seal(words), self.writings);
        let before = self.written.get(&first).copied();
        if let Some(written) = self.written.get_mut(&first)
            && written.seal == seal
        {
            written.writing = writing;
            return Ok(());
        }
        let key = |number| KeptKey {
            part: first.part + number,
            ..first
        };
        let mut result = Ok(());
        let parts = parts(words);
        for (number, part) in (0..).zip(&parts) {
            result = result.and(self.map.insert(&key(number), part));
        }
        let parts = parts.len() as u64;
        for number in parts..before.map_or(0, |before| before.parts) {
            let _ = self.map.remove(&key(number));
        }
        let written = Written {
            seal: if result.is_ok() { seal } else { 0 },
            parts,
            writing,
        };
        self.written.insert(first, written);
        result
    }

    /// The same of a node's cgroup.
    fn put_of(
        &mut self,
        tree: &Tree,
        number: NodeId,
        name: &str,
        words: &[u64],
    ) -> std::io::Result<()> {
        match tree.node(number) {
            Some(node) => self.put(name, node.id, words),
            None => Ok(()),
        }
    }

    /// Writes the records of living cgroups, where they have changed.
    fn save_records(&mut self, tree: &Tree, nodes: &[NodeId]) -> std::io::Result<()> {
        let part = first_part(CGROUPS);
        let mut result = Ok(());
        let mut known = HashMap::with_capacity(nodes.len());
        let nodes = nodes.iter().filter_map(|&number| tree.node(number));
        for node in nodes.filter(|node| node.path.len() <= LONGEST_PATH) {
            let first = KeptKey {
                cgroup: node.id,
                part,
            };
            let same = self.known.remove(&node.id).filter(|known| {
                let containers = (&known.container, &node.container);
                known.created == node.created
                    && match containers {
                        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                        (one, other) => one.is_none() && other.is_none(),
                    }
            });
            let written = self.written.get_mut(&first).filter(|it| it.seal != 0);
            if let (Some(known_before), Some(written)) = (same, written) {
                written.writing = self.writings;
                known.insert(node.id, known_before);
                continue;
            }
            let record = Record {
                path: node.path.to_vec(),
                created: node.created,
                removed: None,
                container: node.container.clone(),
            };
            result = result.and(self.put(CGROUPS, node.id, &record.words()));
            let now = Known {
                created: node.created,
                container: node.container.clone(),
            };
            known.insert(node.id, now);
        }
        self.known = known;
        result
    }

    /// Writes the paths of v1 cgroups: their removals are reported by id.
    fn save_v1_paths(&mut self, sources: &mut Sources) -> std::io::Result<()> {
        let Some(statistics) = &mut sources.statistics else {
            return Ok(());
        };
        let mut result = Ok(());
        for (hierarchy, paths) in statistics.v1_paths() {
            let name = paths_of(hierarchy);
            let part = first_part(&name);
            let renamed = paths.take_renamed();
            for (cgroup, path) in paths.iter().filter(|(_, path)| path.len() <= LONGEST_PATH) {
                let written = self.written.get_mut(&KeptKey { cgroup, part });
                if let Some(written) = written.filter(|it| it.seal != 0 && !renamed) {
                    written.writing = self.writings;
                    continue;
                }
                let mut words = Vec::new();
                path.to_vec().put(&mut words);
                result = result.and(self.put(&name, cgroup, &words));
            }
        }
        result
    }

    /// Between frames: writes the last values of removed containers, and of those whose path was made again; the next
    /// frame may come too late. `unread` are those whose last values are still to come.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub(super) fn save_removed(
        &mut self,
        tree: &Tree,
        sources: &mut Sources,
        unread: &HashSet<u64>,
    ) -> std::io::Result<()> {
        let mut result = Ok(());
        for id in std::mem::take(&mut self.fresh) {
            let Some((number, node)) = of_path(tree, id) else {
                continue;
            };
            if unread.contains(&id) {
                self.fresh.push(id);
            } else if node.died.is_none() {
                result = result.and(self.put_values(sources, number, node.id));
            } else {
                if node.place.kind.is_contained() {
                    result = result.and(self.save_end(tree, sources, id, true));
                }
                self.removed.push(id);
            }
        }
        let (_, dead) = tree.counts();
        if self.ended.len() > dead + MORE_ENDED {
            self.forget_ended(tree);
        }
        result
    }

    /// Writes all that sources have of a node, under a cgroup's id: that of a removed one, or that of a living one
    /// whose path others have had.
    fn put_values(
        &mut self,
        sources: &mut Sources,
        number: NodeId,
        cgroup: u64,
    ) -> std::io::Result<()> {
        let mut result = Ok(());
        for source in sources.iter_mut() {
            let (name, shape) = (source.name(), source.shape());
            source.save_end(number, &mut |words| {
                let put = self.put(name, cgroup, &shaped(shape, words));
                if let Err(error) = put {
                    result = Err(error);
                }
            });
        }
        result
    }

    /// Writes what is known of a removed cgroup, and its last values if they were `read`.
    fn save_end(
        &mut self,
        tree: &Tree,
        sources: &mut Sources,
        id: u64,
        read: bool,
    ) -> std::io::Result<()> {
        let Some((number, node)) = of_path(tree, id).filter(|(_, node)| node.id == id) else {
            return Ok(());
        };
        if node.path.len() > LONGEST_PATH {
            return Ok(());
        }
        let counted = node.is_kept();
        // One that nobody is shown is kept for its children.
        let Some(at) = node.died.filter(|_| counted || tree.has_children(number)) else {
            return Ok(());
        };
        let record = Record {
            path: node.path.to_vec(),
            created: node.created,
            removed: Some(Removed {
                at,
                shown: tree.has_shown(number),
                counted,
                read,
                activity: tree.activity(number),
            }),
            container: node.container.clone(),
        };
        let mut result = Ok(());
        if counted {
            result = self.put_values(sources, number, id);
        }
        // Last: it says that the rest is there.
        result = result.and(self.put(CGROUPS, id, &record.words()));
        if read {
            self.ended.insert(id, None);
        }
        result
    }

    /// Nothing of a removed cgroup changes any more.
    fn settle(&mut self, cgroup: u64) {
        let before = self.ended.get(&cgroup).copied().flatten();
        let mut names = before.unwrap_or(0);
        for (at, &part) in self.names.iter().enumerate() {
            if self.written.remove(&KeptKey { cgroup, part }).is_some() {
                names |= 1 << at;
            }
        }
        self.ended.insert(cgroup, Some(names));
    }

    /// Writes what sources keep, where it has changed, and removes what nobody keeps any more. `unread` are removed cgroups
    /// whose last values are still to come.
    pub(super) fn save_or_say(
        &mut self,
        tree: &Tree,
        sources: &mut Sources,
        unread: &HashSet<u64>,
    ) {
        if let Err(error) = self.save(tree, sources, unread) {
            tracing::warn!(%error, "some counters will be smaller after a restart");
        }
    }

    fn save(
        &mut self,
        tree: &Tree,
        sources: &mut Sources,
        unread: &HashSet<u64>,
    ) -> std::io::Result<()> {
        let living = tree.iter().filter(|(_, node)| node.died.is_none());
        let nodes: Vec<NodeId> = living.map(|(number, _)| number).collect();
        self.writings += 1;
        let mut result = self.save_records(tree, &nodes);
        result = result.and(self.save_v1_paths(sources));
        let mut put = |name: &str, number: NodeId, words: &[u64]| {
            if let Err(error) = self.put_of(tree, number, name, words) {
                result = Err(error);
            }
        };
        for source in sources.iter_mut() {
            let (name, shape) = (source.name(), source.shape());
            source.save(&nodes, &mut |number, words| {
                put(name, number, &shaped(shape, words));
            });
        }
        let mut aliases: HashMap<NodeId, Vec<u64>> = HashMap::new();
        for (id, number) in tree.aliases() {
            aliases.entry(number).or_default().push(id);
        }
        for (number, mut ids) in aliases {
            ids.sort_unstable();
            put(ALIASES, number, &ids);
        }
        let root = tree.node(ROOT).map_or(0, |root| root.id);
        result = result.and(self.put(ROOT_OF_ALL, 0, &[root]));
        let mut removed = std::mem::take(&mut self.removed);
        removed.append(&mut self.fresh);
        for id in removed {
            let node = of_path(tree, id).filter(|(_, node)| node.id == id);
            let Some(gone) = node.and_then(|(_, node)| node.gone) else {
                continue;
            };
            result = result.and(self.save_end(tree, sources, id, !unread.contains(&id)));
            if gone.elapsed() < LATE || !self.ended.contains_key(&id) {
                self.removed.push(id);
            } else {
                self.settle(id);
            }
        }
        self.forget(tree);
        result
    }

    /// Removes what is kept of removed cgroups that do not linger any more.
    fn forget_ended(&mut self, tree: &Tree) {
        let lingers = |id: u64| {
            let node = tree.present(id).and_then(|number| tree.node(number));
            node.is_some_and(|node| node.died.is_some())
        };
        let gone: Vec<u64> = self
            .ended
            .keys()
            .copied()
            .filter(|&id| !lingers(id))
            .collect();
        for cgroup in gone {
            self.settle(cgroup);
            let settled = self.ended.remove(&cgroup).flatten().unwrap_or(0);
            let names = self.names.iter().enumerate();
            for (_, &first) in names.filter(|(at, _)| settled & (1 << at) != 0) {
                // Until there is no further part.
                let mut parts = first..;
                while let Some(part) = parts.next()
                    && self.map.remove(&KeptKey { cgroup, part }).is_ok()
                {}
            }
        }
        self.ended.shrink_to(2 * self.ended.len());
    }

    /// Removes what nobody keeps any more.
    fn forget(&mut self, tree: &Tree) {
        self.forget_ended(tree);
        let (map, ended, writings) = (&self.map, &self.ended, self.writings);
        self.written.retain(|first, written| {
            let kept = written.writing == writings || ended.contains_key(&first.cgroup);
            for number in 0..if kept { 0 } else { written.parts } {
                let key = KeptKey {
                    part: first.part + number,
                    ..*first
                };
                // There is nothing to be done if it can't be removed.
                let _ = map.remove(&key);
            }
            kept
        });
        self.written.shrink_to(2 * self.written.len());
    }
}

/// The node of a cgroup's path, whoever has it now.
fn of_path(tree: &Tree, id: u64) -> Option<(NodeId, &Node)> {
    let number = tree.of_path(id)?;
    Some((number, tree.node(number)?))
}

/// Gives the kernel statistics the paths of v1 cgroups that were removed while no agent ran.
fn take_v1_paths(kept: &Kept, statistics: &mut CgroupStatistics) {
    for (hierarchy, paths) in statistics.v1_paths() {
        let part = first_part(&paths_of(hierarchy));
        for &first in kept.keys().filter(|key| key.part == part) {
            let words = whole(kept, first).unwrap_or_default();
            if let Some(path) = Words::take(&mut words.as_slice()) {
                paths.recall(first.cgroup, path);
            }
        }
    }
}

/// Gives sources the totals of an agent whose maps have another layout.
fn take_totals(kept: &Kept, past: &Past, tree: &Tree, sources: &mut Sources) {
    let (mut goes_on, mut anew) = (Vec::new(), Vec::new());
    for source in sources.iter_mut() {
        // Who was removed before that agent ended has no totals but its last values.
        let ended = |id: u64| past.ended.get(&id).copied();
        let last_values = of_nodes(kept, source.name(), ended);
        take(&mut **source, last_values);
        let name = totals_of(source.name());
        let part = first_part(&name);
        let totals = of_nodes(kept, &name, |id| past.node(kept, part, tree, id));
        if totals.is_empty() {
            continue;
        }
        let name = source.name();
        match take(&mut **source, totals) {
            true => goes_on.push(name),
            false => anew.push(name),
        }
    }
    if goes_on.is_empty() && anew.is_empty() {
        tracing::warn!(
            "the maps of an agent of another version have another layout, and it has left no totals, because it \
             was killed: counters begin at 0"
        );
    } else {
        tracing::info!(
            sources = goes_on.join(", "),
            anew = anew.join(", "),
            "the maps of an agent of another version have another layout: counters go on with the totals that it \
             had when it ended"
        );
    }
}

/// What an agent has written.
fn all_of(map: &Map<KeptKey, KeptPart>) -> std::io::Result<Kept> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    map.read_all(&mut keys, &mut values)?;
    Ok(keys.into_iter().zip(values).collect())
}

/// A source's words after their shape; none if there is nothing to be kept.
fn shaped(shape: u64, words: &[u64]) -> Vec<u64> {
    if words.iter().all(|&word| word == 0) {
        return Vec::new();
    }
    [shape].iter().chain(words).copied().collect()
}

/// Gives a source its words by node. Returns whether it has understood all of them.
fn take(source: &mut dyn Source, by_node: Vec<(NodeId, Vec<u64>)>) -> bool {
    let shape = source.shape();
    let mut understood = true;
    for (number, words) in by_node {
        let taken = match words.split_first() {
            Some((found, mut rest)) if *found == shape => source.restore(number, &mut rest),
            _ => None,
        };
        understood &= taken.is_some();
    }
    if !understood {
        tracing::warn!(
            source = source.name(),
            "what an earlier agent has kept is not understood: counters begin anew"
        );
    }
    understood
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cgroup::{Filter, found},
        source::{
            Change, Inputs, Reading,
            values::{PerNode, Summed},
        },
    };

    #[test]
    fn sources_have_places_of_their_own() {
        const HIERARCHIES: u32 = 64;
        let mut places: Vec<u64> = SOURCES
            .iter()
            .map(|source| source.requirement.source)
            .flat_map(|name| [name.to_owned(), totals_of(name)])
            .chain([ALIASES, CGROUPS, ROOT_OF_ALL].map(str::to_owned))
            .chain((0..HIERARCHIES).map(paths_of))
            .map(|name| first_part(&name))
            .collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 2 * SOURCES.len() + 3 + HIERARCHIES as usize);
    }

    /// A source of one counter.
    #[derive(Default)]
    struct One(Summed<u64>);

    impl Source for One {
        fn name(&self) -> &'static str {
            "one"
        }

        fn values(&mut self) -> Vec<&mut dyn PerNode> {
            vec![&mut self.0]
        }

        fn collect(&mut self, _: &Inputs<'_>) -> anyhow::Result<()> {
            Ok(())
        }

        fn change(&mut self, _: &Change<'_>) {}

        fn reading(&self) -> Box<dyn Reading> {
            unreachable!("nothing is served")
        }
    }

    #[test]
    fn totals_go_on_and_words_of_another_shape_are_refused() {
        let tree = Tree::new(&[found(1, 0, ""), found(2, 1, "a")], Filter::default());
        let [root, a] = [1, 2].map(|id| tree.by_id(id).unwrap());
        let mut before = One::default();
        before.0.change_last(a, |last| *last += 10);
        before.0.renew(&tree, |own| own[a] += 5);
        let mut totals = Vec::new();
        let shape = before.shape();
        before.save_totals(&[root, a], &mut |node, words| {
            totals.push((node, shaped(shape, words)));
        });
        let mut next = One::default();
        assert!(take(&mut next, totals.clone()));
        // What the next one counts comes on top, in the parent as well.
        next.0.renew(&tree, |own| own[a] += 3);
        let total = |node| next.0.totals().get(node).map(|total| *total);
        assert_eq!((total(root), total(a)), (Some(8), Some(18)));
        for (_, words) in &mut totals {
            words[0] += 1;
        }
        assert!(!take(&mut One::default(), totals));
    }
}
