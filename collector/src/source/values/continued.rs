//! What the kernel counts for a cgroup, continued over cgroups of the same path.

use std::borrow::Cow;

use super::Numbers;

/// The counters of a path that the kernel keeps, descendants included: of the cgroup that has the
/// path now, and of those that had it before.
///
/// What the kernel says of the present cgroup replaces what it said before. Once it speaks of
/// another cgroup, the last values of the one before are added to all later ones. So it does not
/// matter which events of the change were seen, nor in which order those of several hierarchies
/// came. Nothing goes to the parent at reaping: its own values contain the child's.
#[derive(Clone, Debug, Default)]
pub struct Continued<T> {
    /// Cgroup id of the cgroup that `now` is of; 0 before the first reading.
    id: u64,
    now: T,
    /// Sum of the last values of earlier cgroups. Most paths have had one cgroup only.
    earlier: Option<Box<T>>,
}

impl<T: Numbers> Continued<T> {
    /// The values of the cgroup `id`, to be replaced by a reading. `None` if a later cgroup of this
    /// path has been read already. Ids are of the hierarchy in which these counters are, where they
    /// only rise (fs/kernfs/dir.c, `__kernfs_new_node`).
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
    /// Whether the kernel has ever been read.
    pub fn is_known(&self) -> bool {
        self.id != 0
    }

    /// What earlier cgroups of this path had.
    pub fn earlier(&self) -> Option<&T> {
        self.earlier.as_deref()
    }
}

impl<T: Numbers> Continued<T> {
    /// The sum over the present cgroup and the earlier ones.
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
    fn a_path_made_again_goes_on_where_its_predecessor_stopped() {
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
    fn a_record_of_a_predecessor_that_comes_late_is_left_out() {
        let mut values = Continued::default();
        read(&mut values, 5, 100);
        read(&mut values, 8, 7);
        // Added, it would be there twice.
        assert_eq!(read(&mut values, 5, 110), 107);
        assert_eq!(read(&mut values, 8, 8), 108);
    }
}
