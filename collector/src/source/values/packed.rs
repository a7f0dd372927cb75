//! Values that hardly change any more, in few bytes.

use super::Words;

/// The words of a value (see [`Words`]), of which most are 0 or small: seven bits a byte, the lowest
/// first; after a 0 the number of further zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packed {
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

/// Most bytes that need no memory of their own. With them a value is as large as with a pointer.
const SHORT: usize = 22;

impl Default for Packed {
    fn default() -> Self {
        Self::Short(0, [0; SHORT])
    }
}

impl Packed {
    /// Packs a value.
    pub fn new<T: Words>(value: &T) -> Self {
        let mut words = Vec::new();
        value.put(&mut words);
        let bytes = pack(&words);
        let mut short = [0; SHORT];
        match short.get_mut(..bytes.len()) {
            Some(start) => {
                start.copy_from_slice(&bytes);
                Self::Short(bytes.len() as u8, short)
            }
            None => Self::Long(bytes.into()),
        }
    }

    /// Unpacks a value; the default if nothing was packed.
    pub fn value<T: Words + Default>(&self) -> T {
        let bytes = match self {
            Self::Short(length, bytes) => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Long(bytes) => bytes,
        };
        let words = unpack(bytes, usize::MAX).unwrap_or_default();
        T::take(&mut words.as_slice()).unwrap_or_default()
    }
}

/// Packs words, of which most are 0 or small.
pub fn pack(words: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut words = words.iter().copied().peekable();
    while let Some(word) = words.next() {
        put(word, &mut bytes);
        if word == 0 {
            let more = std::iter::from_fn(|| words.next_if_eq(&0));
            put(more.count() as u64, &mut bytes);
        }
    }
    bytes
}

/// Unpacks such words; `None` if they would be more than `most`.
pub fn unpack(mut bytes: &[u8], most: usize) -> Option<Vec<u64>> {
    let mut words = Vec::new();
    while let Some(word) = take(&mut bytes) {
        let mut more = 0;
        if word == 0 {
            more = usize::try_from(take(&mut bytes).unwrap_or(0)).ok()?;
        }
        let length = words.len().checked_add(more)?.checked_add(1)?;
        if length > most {
            return None;
        }
        words.push(word);
        words.resize(length, 0);
    }
    Some(words)
}

fn put(mut word: u64, bytes: &mut Vec<u8>) {
    while word >= 0x80 {
        bytes.push(word as u8 | 0x80);
        word >>= 7;
    }
    bytes.push(word as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let (mut word, mut shift) = (0, 0);
    loop {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        word |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        // A word has ten bytes at most.
        if byte < 0x80 || shift > 63 {
            return Some(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_they_were() {
        for values in [
            [0; 32],
            [u64::MAX; 32],
            std::array::from_fn(|at| 1 << at),
            std::array::from_fn(|at| at as u64 % 3 * 127),
            std::array::from_fn(|at| u64::from(at == 31) << 63),
            std::array::from_fn(|at| u64::from(at != 31) * 128),
        ] {
            assert_eq!(Packed::new(&values).value::<[u64; 32]>(), values);
        }
        let words: Vec<Option<u64>> = vec![None, Some(0), Some(300)];
        assert_eq!(Packed::new(&words).value::<Vec<Option<u64>>>(), words);
        assert_eq!(Packed::default().value::<u64>(), 0);
    }

    #[test]
    fn few_events_take_few_bytes() {
        let mut histogram = [0_u64; 24];
        (histogram[4], histogram[7]) = (90, 3);
        let few = Packed::new(&histogram);
        assert!(matches!(few, Packed::Short(8, _)), "{few:?}");
        assert_eq!(size_of::<Packed>(), 24);
    }
}
