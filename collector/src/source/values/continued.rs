//! Counters of the kernel, continued over cgroups with the same path.

use std::borrow::Cow;

use super::{Retained, Summable, Words, digest};

/// Counters that the kernel keeps for a path, descendants included: of the cgroup that has the path
/// now, and of those that had it before.
///
/// A reading replaces the previous values of the present cgroup. When a reading is of a newer
/// cgroup, the last values of the one before are added to all later totals. So it does not matter
/// which events of the change were seen, nor in which order those of several hierarchies arrived.
/// Nothing goes to the parent when a node is reaped: the parent's own values contain the child's.
#[derive(Clone, Debug, Default)]
pub struct Continued<T> {
    /// Id of the cgroup that `now` belongs to; 0 before the first reading.
    id: u64,
    now: T,
    /// Sum of the last values of earlier cgroups. Most paths have had only one cgroup.
    earlier: Option<Box<T>>,
}

impl<T: Summable> Continued<T> {
    /// Returns the values of the cgroup `id`, to be replaced by a reading. `None` if a later cgroup
    /// with this path has been read already. Ids are those of the hierarchy that has the counters.
    /// They only increase there (fs/kernfs/dir.c, `__kernfs_new_node`).
    pub fn reading_of(&mut self, id: u64) -> Option<&mut T> {
        if id < self.id {
            return None;
        }
        if id > self.id {
            if self.id != 0 {
                let last = std::mem::take(&mut self.now);
                self.earlier.get_or_insert_default().add_from(&last);
            }
            self.id = id;
        }
        Some(&mut self.now)
    }
}

impl<T> Continued<T> {
    /// Whether there has been a reading.
    pub fn is_known(&self) -> bool {
        self.id != 0
    }

    /// Returns the sum of earlier cgroups with this path.
    pub fn earlier(&self) -> Option<&T> {
        self.earlier.as_deref()
    }
}

impl<T: Summable> Continued<T> {
    /// Returns the sum over the present cgroup and earlier ones.
    pub fn total(&self) -> Cow<'_, T> {
        match &self.earlier {
            None => Cow::Borrowed(&self.now),
            Some(earlier) => {
                let mut sum = (**earlier).clone();
                sum.add_from(&self.now);
                Cow::Owned(sum)
            }
        }
    }
}

/// Of a cgroup that lives, the next agent has a reading of its own.
impl<T: Words> Retained for Continued<T> {
    const SHAPE: u64 = digest(<Option<T>>::SHAPE, <Option<(u64, T)>>::SHAPE);

    fn save(&self, words: &mut Vec<u64>) {
        put(self.earlier(), words);
        false.put(words);
    }

    fn save_end(&self, words: &mut Vec<u64>) {
        put(self.earlier(), words);
        self.is_known().put(words);
        if self.is_known() {
            self.id.put(words);
            self.now.put(words);
        }
    }

    fn restore(&mut self, words: &mut &[u64]) -> Option<()> {
        if let Some(earlier) = Words::take(words)? {
            self.earlier = Some(Box::new(earlier));
        }
        if let Some((id, now)) = Words::take(words)? {
            (self.id, self.now) = (id, now);
        }
        Some(())
    }
}

/// As [`Words::put`] of an option.
fn put<T: Words>(value: Option<&T>, words: &mut Vec<u64>) {
    value.is_some().put(words);
    if let Some(value) = value {
        value.put(words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &mut Continued<u64>, id: u64, value: u64) -> u64 {
        if let Some(now) = values.reading_of(id) {
            *now = value;
        }
        *values.total()
    }

    #[test]
    fn a_remade_path_continues_where_its_predecessor_stopped() {
        let mut values = Continued::default();
        assert!(!values.is_known());
        assert_eq!(read(&mut values, 5, 100), 100);
        assert_eq!(read(&mut values, 5, 130), 130);
        assert_eq!(read(&mut values, 8, 0), 130);
        assert_eq!(read(&mut values, 8, 7), 137);
        assert_eq!(read(&mut values, 9, 1), 138);
        assert_eq!(values.earlier(), Some(&137));
    }

    #[test]
    fn the_next_agent_goes_on_where_the_path_was() {
        let mut values = Continued::default();
        read(&mut values, 5, 100);
        read(&mut values, 8, 7);
        let mut words = Vec::new();
        values.save(&mut words);
        let mut next = Continued::default();
        next.restore(&mut words.as_slice()).unwrap();
        assert!(!next.is_known());
        assert_eq!(read(&mut next, 8, 9), 109);
        assert!(next.restore(&mut &[][..]).is_none());
    }

    #[test]
    fn a_removed_cgroup_has_all_it_had_with_the_next_agent() {
        let mut values = Continued::default();
        read(&mut values, 5, 100);
        read(&mut values, 8, 7);
        let mut words = Vec::new();
        values.save_end(&mut words);
        let mut next = Continued::default();
        next.restore(&mut words.as_slice()).unwrap();
        assert!(next.is_known());
        assert_eq!(*next.total(), 107);
        // A record that comes late does not count twice.
        assert_eq!(read(&mut next, 8, 7), 107);
        // The path is made again.
        assert_eq!(read(&mut next, 11, 3), 110);
    }

    #[test]
    fn a_late_record_of_a_predecessor_is_left_out() {
        let mut values = Continued::default();
        read(&mut values, 5, 100);
        read(&mut values, 8, 7);
        // If it were added, it would count twice.
        assert_eq!(read(&mut values, 5, 110), 107);
        assert_eq!(read(&mut values, 8, 8), 108);
    }
}
