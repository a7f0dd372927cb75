//! Values as words, for the next agent: see [`PerNode::save`](super::PerNode::save).

/// Values that can be written as words and read from them.
pub trait Words: Sized {
    /// Says what the words are: two types with the same shape write the same. Names of counters are part of it.
    const SHAPE: u64;
    /// Appends the values.
    fn put(&self, words: &mut Vec<u64>);
    /// Takes values from the front. `None` if there are too few words.
    fn take(words: &mut &[u64]) -> Option<Self>;
}

/// A digest of two numbers (FNV-1a by words).
pub const fn digest(one: u64, other: u64) -> u64 {
    (one ^ other).wrapping_mul(0x0100_0000_01b3)
}

/// A digest of a name.
pub const fn digest_of(name: &str) -> u64 {
    let (bytes, mut at, mut all) = (name.as_bytes(), 0, 0xcbf2_9ce4_8422_2325);
    while at < bytes.len() {
        all = digest(all, bytes[at] as u64);
        at += 1;
    }
    all
}

/// What a value of a node keeps from what is gone. By default it keeps nothing.
pub trait Retained {
    /// As [`Words::SHAPE`].
    const SHAPE: u64 = 0;
    /// Appends it.
    fn save(&self, words: &mut Vec<u64>) {
        let _ = words;
    }
    /// The same of a removed cgroup: all that there is.
    fn save_end(&self, words: &mut Vec<u64>) {
        self.save(words);
    }
    /// Takes it from the front of what an agent has saved. `None` if that is something else.
    fn restore(&mut self, words: &mut &[u64]) -> Option<()> {
        let _ = words;
        Some(())
    }
}

impl Words for u64 {
    const SHAPE: u64 = digest_of("u64");

    fn put(&self, words: &mut Vec<u64>) {
        words.push(*self);
    }

    fn take(words: &mut &[u64]) -> Option<Self> {
        let (first, rest) = words.split_first()?;
        *words = rest;
        Some(*first)
    }
}

impl Words for bool {
    const SHAPE: u64 = digest_of("bool");

    fn put(&self, words: &mut Vec<u64>) {
        words.push((*self).into());
    }

    fn take(words: &mut &[u64]) -> Option<Self> {
        Some(u64::take(words)? != 0)
    }
}

/// The length, then eight bytes a word.
impl Words for Vec<u8> {
    const SHAPE: u64 = digest_of("bytes");

    fn put(&self, words: &mut Vec<u64>) {
        put_bytes(self, words);
    }

    fn take(words: &mut &[u64]) -> Option<Self> {
        let length = usize::try_from(u64::take(words)?).ok()?;
        let (bytes, rest) = words.split_at_checked(length.div_ceil(8))?;
        *words = rest;
        let mut bytes: Self = bytes.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(length);
        Some(bytes)
    }
}

fn put_bytes(bytes: &[u8], words: &mut Vec<u64>) {
    words.push(bytes.len() as u64);
    for part in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        words.push(u64::from_le_bytes(word));
    }
}

/// As its bytes.
impl Words for String {
    const SHAPE: u64 = digest_of("string");

    fn put(&self, words: &mut Vec<u64>) {
        put_bytes(self.as_bytes(), words);
    }

    fn take(words: &mut &[u64]) -> Option<Self> {
        Self::from_utf8(Words::take(words)?).ok()
    }
}

impl<T: Words> Words for Option<T> {
    const SHAPE: u64 = digest(digest_of("option"), T::SHAPE);

    fn put(&self, words: &mut Vec<u64>) {
        self.is_some().put(words);
        if let Some(value) = self {
            value.put(words);
        }
    }

    fn take(words: &mut &[u64]) -> Option<Self> {
        match bool::take(words)? {
            true => T::take(words).map(Some),
            false => Some(None),
        }
    }
}

impl<T: Words> Words for Vec<T> {
    const SHAPE: u64 = digest(digest_of("list"), T::SHAPE);

    fn put(&self, words: &mut Vec<u64>) {
        (self.len() as u64).put(words);
        self.iter().for_each(|value| value.put(words));
    }

    fn take(words: &mut &[u64]) -> Option<Self> {
        let length = u64::take(words)?;
        // A value has a word at least.
        (length <= words.len() as u64)
            .then(|| (0..length).map(|_| T::take(words)).collect())
            .flatten()
    }
}

impl<T: Words, U: Words> Words for (T, U) {
    const SHAPE: u64 = digest(digest(digest_of("pair"), T::SHAPE), U::SHAPE);

    fn put(&self, words: &mut Vec<u64>) {
        self.0.put(words);
        self.1.put(words);
    }

    fn take(words: &mut &[u64]) -> Option<Self> {
        Some((T::take(words)?, U::take(words)?))
    }
}

impl<T: Words + Copy + Default, const N: usize> Words for [T; N] {
    const SHAPE: u64 = digest(digest(digest_of("array"), N as u64), T::SHAPE);

    fn put(&self, words: &mut Vec<u64>) {
        self.iter().for_each(|value| value.put(words));
    }

    fn take(words: &mut &[u64]) -> Option<Self> {
        let mut values = [T::default(); N];
        for value in &mut values {
            *value = T::take(words)?;
        }
        Some(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<T: Words>(value: &T) -> Vec<u64> {
        let mut words = Vec::new();
        value.put(&mut words);
        words
    }

    #[test]
    fn values_are_read_as_they_were_written() {
        let texts = vec![String::new(), "eth0".to_owned(), "a longer name".to_owned()];
        let value = (vec![(7, [1, 2]), (9, [3, 4])], (Some(5), (texts, true)));
        let written = words(&value);
        let mut rest = written.as_slice();
        type Value = (Vec<(u64, [u64; 2])>, (Option<u64>, (Vec<String>, bool)));
        assert_eq!(Value::take(&mut rest), Some(value));
        assert!(rest.is_empty());
    }

    #[test]
    fn shapes_differ_where_words_do() {
        let shapes = [
            <u64 as Words>::SHAPE,
            bool::SHAPE,
            String::SHAPE,
            Vec::<u8>::SHAPE,
            <Option<u64> as Words>::SHAPE,
            Vec::<u64>::SHAPE,
            <(u64, bool)>::SHAPE,
            <(bool, u64)>::SHAPE,
            <[u64; 2]>::SHAPE,
            <[u64; 3]>::SHAPE,
            Vec::<Vec<u64>>::SHAPE,
        ];
        let different: std::collections::HashSet<u64> = shapes.into();
        assert_eq!(different.len(), shapes.len());
    }

    #[test]
    fn too_few_words_and_lengths_that_cannot_be_are_refused() {
        let written = words(&vec![1_u64, 2, 3]);
        for length in 0..written.len() {
            assert_eq!(Vec::<u64>::take(&mut &written[..length]), None);
        }
        assert_eq!(Vec::<u64>::take(&mut &[u64::MAX, 1][..]), None);
        assert_eq!(<[u64; 3]>::take(&mut &[1, 2][..]), None);
    }
}
