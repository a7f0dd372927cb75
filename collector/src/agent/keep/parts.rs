//! Words of any number in a map whose values have one size: in parts.

use std::collections::HashMap;

use collector_common::kept::{KEPT_WORDS, KeptKey, KeptPart};

use crate::source::values::{digest, pack, unpack};

/// What an agent has written.
pub(super) type Kept = HashMap<KeptKey, KeptPart>;

/// A digest of a name (FNV-1a), above the number of a part.
pub(super) fn first_part(name: &str) -> u64 {
    let digest = name.bytes().fold(0x811c_9dc5_u32, |digest, byte| {
        (digest ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    u64::from(digest) << 32
}

/// The key of the first of the parts that a part belongs to, and its number among them.
pub(super) fn first_of(key: KeptKey) -> (KeptKey, u64) {
    let number = key.part & u64::from(u32::MAX);
    let part = key.part - number;
    (KeptKey { part, ..key }, number)
}

/// Words of a part besides its seal.
const ROOM: usize = KEPT_WORDS - 1;

/// A digest of words with their number (FNV-1a by words): what all of their parts begin with. An agent may
/// be killed when it has written some of them.
pub(super) fn seal(words: &[u64]) -> u64 {
    words
        .iter()
        .copied()
        .fold(digest(0xcbf2_9ce4_8422_2325, words.len() as u64), digest)
}

/// More words than anything has that is kept.
const MOST_WORDS: usize = 1 << 20;

/// In how many parts the words are of which this is the first.
pub(super) fn count(first: &KeptPart) -> u64 {
    let [_, bytes, ..] = first.0;
    (1 + bytes.div_ceil(8)).div_ceil(ROOM as u64)
}

/// Cuts words into parts.
pub(super) fn parts(words: &[u64]) -> Vec<KeptPart> {
    let seal = seal(words);
    let packed = pack(words);
    let mut all = vec![packed.len() as u64];
    all.extend(packed.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    }));
    let parts = all.chunks(ROOM).map(|chunk| {
        let mut part = [0; KEPT_WORDS];
        part[0] = seal;
        part[1..=chunk.len()].copy_from_slice(chunk);
        KeptPart(part)
    });
    parts.collect()
}

/// Puts parts together again, the first one being `first`. `None` if one is missing or of another writing.
pub(super) fn whole(kept: &Kept, first: KeptKey) -> Option<Vec<u64>> {
    let head = kept.get(&first)?;
    let [sealed, length, ..] = head.0;
    let length = usize::try_from(length).ok()?;
    let mut bytes = Vec::new();
    for number in 0..count(head) {
        let key = KeptKey {
            part: first.part + number,
            ..first
        };
        let words = kept.get(&key)?.0;
        // The first one's first word is the length.
        let words = &words[if number == 0 { 2 } else { 1 }..];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    let words = unpack(bytes.get(..length)?, MOST_WORDS)?;
    (seal(&words) == sealed).then_some(words)
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
        for length in [0, 1, 16, 17, 18, 37, 38, 39, 60, 61, 200] {
            let words: Vec<u64> = (1..=length).map(|n| n << 56).collect();
            let mut kept: Kept = (first.part..)
                .zip(parts(&words))
                .map(|(part, value)| (KeptKey { part, ..first }, value))
                .collect();
            assert_eq!(whole(&kept, first), Some(words.clone()));
            assert_eq!(kept.len() as u64, count(&kept[&first]));
            // The agent was killed when it had written the first part alone.
            let later: Vec<u64> = words.iter().map(|word| word + 1).collect();
            let before = kept[&first];
            kept.insert(first, parts(&later)[0]);
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
    fn what_is_no_length_is_refused() {
        let first = KeptKey { cgroup: 7, part: 0 };
        let [mut part] = parts(&[1, 2])[..] else {
            panic!("more than one part");
        };
        part.0[1] = u64::MAX;
        assert_eq!(whole(&Kept::from([(first, part)]), first), None);
    }

    #[test]
    fn zeros_take_little_room() {
        let mut words = vec![0; 300];
        words[150] = 7;
        assert_eq!(parts(&words).len(), 1);
    }
}
