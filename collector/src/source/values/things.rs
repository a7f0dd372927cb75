//! Values of a node for several things: devices, reasons.

use super::{AddFrom, Summable, Words};

/// Values by the number of a thing, in the order of the numbers. A cgroup has few things.
#[derive(Debug)]
pub struct Things<T>(Vec<(u64, T)>);

impl<T> Default for Things<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone> Clone for Things<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }

    fn clone_from(&mut self, other: &Self) {
        self.0.clone_from(&other.0);
    }
}

impl<T> Things<T> {
    /// Returns things and their values.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.0.iter().map(|(what, value)| (*what, value))
    }

    /// Returns the value of a thing.
    pub fn get(&self, what: u64) -> Option<&T> {
        let at = self.find(what).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    fn find(&self, what: u64) -> Result<usize, usize> {
        self.0.binary_search_by_key(&what, |(what, _)| *what)
    }
}

impl<T: Default> Things<T> {
    /// Returns the value of a thing. Creates it if necessary.
    pub fn of(&mut self, what: u64) -> &mut T {
        let at = self.find(what).unwrap_or_else(|at| {
            self.0.insert(at, (what, T::default()));
            at
        });
        &mut self.0[at].1
    }
}

impl<T: Summable> AddFrom for Things<T> {
    fn add_from(&mut self, other: &Self) {
        for (what, value) in other.iter() {
            self.of(what).add_from(value);
        }
    }
}

impl<T: Words> Words for Things<T> {
    const SHAPE: u64 = Vec::<(u64, T)>::SHAPE;

    fn put(&self, words: &mut Vec<u64>) {
        (self.0.len() as u64).put(words);
        for (what, value) in &self.0 {
            what.put(words);
            value.put(words);
        }
    }

    fn take(words: &mut &[u64]) -> Option<Self> {
        let mut found = Vec::<(u64, T)>::take(words)?;
        found.sort_by_key(|(what, _)| *what);
        Some(Self(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_added_thing_by_thing() {
        let mut one = Things::default();
        *one.of(7) += 1;
        *one.of(3) += 2;
        let mut other = one.clone();
        *other.of(5) += 4;
        one.add_from(&other);
        let found: Vec<(u64, u64)> = one.iter().map(|(what, value)| (what, *value)).collect();
        assert_eq!(found, [(3, 4), (5, 4), (7, 2)]);
        assert_eq!((one.get(7), one.get(4)), (Some(&2), None));
    }
}
