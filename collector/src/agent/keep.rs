//! What sources keep from what is gone, for the next agent: `--state.pin`.

use std::collections::HashMap;

use collector_common::kept::{KEPT_WORDS, KeptKey, KeptPart};

use super::sources::Sources;
use crate::{
    cgroup::{NodeId, Tree},
    kernel::{load::Kernel, map::Map},
};

/// Writes what sources keep into a map, and reads what an earlier agent has written.
pub(super) struct Keeper {
    map: Map<KeptKey, KeptPart>,
    /// What is in the map, and the number of the last writing that had it.
    written: HashMap<KeptKey, (KeptPart, u64)>,
    writings: u64,
}

/// Stands for no source: ids of removed cgroups whose path has been made again.
const ALIASES: &str = "aliases";

/// A digest of a source's name (FNV-1a), above the number of a part.
fn first_part(source: &str) -> u64 {
    let digest = source.bytes().fold(0x811c_9dc5_u32, |digest, byte| {
        (digest ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    u64::from(digest) << 32
}

/// Words of a part besides its seal.
const ROOM: usize = KEPT_WORDS - 1;

/// A digest of words with their number (FNV-1a by words): what all of their parts begin with. An agent may
/// be killed when it has written some of them.
fn seal(words: &[u64]) -> u64 {
    words.iter().fold(0xcbf2_9ce4_8422_2325, |digest, word| {
        (digest ^ word).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Cuts words into parts.
fn parts(words: &[u64]) -> impl Iterator<Item = KeptPart> {
    let all: Vec<u64> = [words.len() as u64].iter().chain(words).copied().collect();
    let seal = seal(&all);
    let count = all.len().div_ceil(ROOM);
    (0..count).map(move |number| {
        let mut part = [0; KEPT_WORDS];
        let words = [seal]
            .into_iter()
            .chain(all.iter().skip(number * ROOM).copied());
        for (to, from) in part.iter_mut().zip(words) {
            *to = from;
        }
        KeptPart(part)
    })
}

/// Puts parts together again, the first one being `first`. `None` if one is missing or of another writing.
fn whole(parts: &HashMap<KeptKey, KeptPart>, first: KeptKey) -> Option<Vec<u64>> {
    let [sealed, length, ..] = parts.get(&first)?.0;
    let length = usize::try_from(length).ok()?;
    let mut words = Vec::new();
    for number in 0.. {
        if words.len() > length {
            break;
        }
        let key = KeptKey {
            part: first.part + number,
            ..first
        };
        words.extend_from_slice(&parts.get(&key)?.0[1..]);
    }
    words.truncate(length + 1);
    if seal(&words) != sealed {
        return None;
    }
    words.remove(0);
    Some(words)
}

/// What is kept under a name for nodes that live.
fn of_living(
    kept: &HashMap<KeptKey, KeptPart>,
    name: &str,
    tree: &Tree,
) -> Vec<(NodeId, Vec<u64>)> {
    let part = first_part(name);
    let firsts = kept.keys().filter(|key| key.part == part);
    firsts
        .filter_map(|&first| Some((tree.living(first.cgroup)?, whole(kept, first)?)))
        .collect()
}

impl Keeper {
    /// `None` if nothing outlives this agent.
    ///
    /// # Errors
    ///
    /// If the object lacks the map.
    pub(super) fn new(kernel: &Kernel) -> anyhow::Result<Option<Self>> {
        Ok(kernel.kept()?.map(|map| Self {
            map,
            written: HashMap::new(),
            writings: 0,
        }))
    }

    /// Gives sources what an earlier agent has kept for cgroups that still live. Returns removed cgroups
    /// whose last values are still to come.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub(super) fn restore(
        &mut self,
        tree: &mut Tree,
        sources: &mut Sources,
    ) -> std::io::Result<Vec<u64>> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        self.map.read_all(&mut keys, &mut values)?;
        let kept: HashMap<KeptKey, KeptPart> = keys.into_iter().zip(values).collect();
        for source in sources.iter_mut() {
            for (number, words) in of_living(&kept, source.name(), tree) {
                if source.restore(number, &mut words.as_slice()).is_none() {
                    tracing::warn!(
                        source = source.name(),
                        "what an earlier agent has kept is not understood: counters begin anew"
                    );
                }
            }
        }
        let mut removed = Vec::new();
        for (number, ids) in of_living(&kept, ALIASES, tree) {
            for id in ids {
                tree.set_alias(id, number);
                removed.push(id);
            }
        }
        let written = kept.into_iter().map(|(key, part)| (key, (part, 0)));
        self.written = written.collect();
        Ok(removed)
    }

    /// Writes what sources keep, where it has changed, and removes what nobody keeps any more.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub(super) fn save(&mut self, tree: &Tree, sources: &mut Sources) -> std::io::Result<()> {
        let living = tree.iter().filter(|(_, node)| node.died.is_none());
        let nodes: Vec<NodeId> = living.map(|(number, _)| number).collect();
        self.writings += 1;
        let writing = self.writings;
        let mut result = Ok(());
        let mut put = |name: &str, number: NodeId, words: &[u64]| {
            let Some(node) = tree.node(number) else {
                return;
            };
            if words.iter().all(|&word| word == 0) {
                return;
            }
            for (part, value) in (first_part(name)..).zip(parts(words)) {
                let key = KeptKey {
                    cgroup: node.id,
                    part,
                };
                if let Some((before, number)) = self.written.get_mut(&key)
                    && *before == value
                {
                    *number = writing;
                } else if let Err(error) = self.map.insert(&key, &value) {
                    result = Err(error);
                } else {
                    self.written.insert(key, (value, writing));
                }
            }
        };
        for source in sources.iter_mut() {
            let name = source.name();
            source.save(&nodes, &mut |number, words| put(name, number, words));
        }
        let mut aliases: HashMap<NodeId, Vec<u64>> = HashMap::new();
        for (id, number) in tree.aliases() {
            aliases.entry(number).or_default().push(id);
        }
        for (number, mut ids) in aliases {
            ids.sort_unstable();
            put(ALIASES, number, &ids);
        }
        self.written.retain(|key, (_, number)| {
            let kept = *number == writing;
            if !kept {
                // There is nothing to be done if it can't be removed.
                let _ = self.map.remove(key);
            }
            kept
        });
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_put_together_as_they_were() {
        let first = KeptKey {
            cgroup: 7,
            part: first_part("net"),
        };
        for length in [0, 1, 30, 31, 32, 33, 63, 64, 95, 96, 200] {
            let words: Vec<u64> = (1..=length).collect();
            let mut kept: HashMap<KeptKey, KeptPart> = (first.part..)
                .zip(parts(&words))
                .map(|(part, value)| (KeptKey { part, ..first }, value))
                .collect();
            assert_eq!(whole(&kept, first), Some(words.clone()));
            // The agent was killed when it had written the first part alone.
            let later: Vec<u64> = words.iter().map(|word| word + 1).collect();
            let before = kept[&first];
            kept.extend(parts(&later).next().map(|part| (first, part)));
            let expected = (kept.len() == 1).then_some(later);
            assert_eq!(whole(&kept, first), expected);
            kept.insert(first, before);
            let last = KeptKey {
                part: first.part + kept.len() as u64 - 1,
                ..first
            };
            kept.remove(&last);
            assert_eq!(whole(&kept, first), None);
        }
    }

    #[test]
    fn sources_have_places_of_their_own() {
        let mut places: Vec<u64> = crate::source::SOURCES
            .iter()
            .map(|source| source.requirement.source)
            .chain([ALIASES])
            .map(first_part)
            .collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), crate::source::SOURCES.len() + 1);
    }
}
