//! What a source has counted, compared with what the kernel itself counts of the same cgroups.
//!
//! It is done after lost events, because then the tree was put together anew. Nothing is corrected by it,
//! see docs/decisions/0024.

use std::time::Duration;

use crate::cgroup::NodeId;

/// The part of the kernel's value by which a value may differ: one in so many.
const FRACTION: u64 = 1000;
/// By how much more it may differ for each CPU: tasks run on while both are read, and the kernel counts what
/// a running task has used since its last tick for the cgroup that it is moved to.
const OF_A_CPU: Duration = Duration::from_millis(2);

/// The same of a cgroup, counted twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The cgroup.
    pub node: NodeId,
    /// What programs have counted, ns.
    pub counted: u64,
    /// What the kernel has counted, ns.
    pub kernel: u64,
}

impl Pair {
    fn difference(&self) -> u64 {
        self.counted.abs_diff(self.kernel)
    }
}

/// The result of comparing all cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Number of cgroups that were compared.
    pub compared: u64,
    /// Number of those that differ by more than they may.
    pub unequal: u64,
    /// The one of these with the largest difference.
    pub worst: Option<Pair>,
}

impl Comparison {
    /// Compares pairs that `cpus` CPUs have counted, if they were read within a time.
    pub fn new(pairs: impl Iterator<Item = Pair>, cpus: u32, within: Duration) -> Self {
        let slack = (OF_A_CPU + within).saturating_mul(cpus);
        let slack = u64::try_from(slack.as_nanos()).unwrap_or(u64::MAX);
        let mut all = Self::default();
        for pair in pairs {
            all.compared += 1;
            if pair.difference() <= slack.saturating_add(pair.kernel / FRACTION) {
                continue;
            }
            all.unequal += 1;
            let worst = all.worst.get_or_insert(pair);
            if pair.difference() > worst.difference() {
                *worst = pair;
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn pair(node: NodeId, counted: u64, kernel: u64) -> Pair {
        let (counted, kernel) = (counted * MS, kernel * MS);
        Pair {
            node,
            counted,
            kernel,
        }
    }

    #[test]
    fn what_differs_by_more_than_it_may_is_found_whichever_is_larger() {
        let equal = [
            pair(1, 0, 0),
            pair(2, 104, 100),
            pair(3, 96, 100),
            // A thousandth more.
            pair(4, 1_000_000, 1_001_004),
        ];
        let compare = |pairs: &[Pair], within| {
            Comparison::new(pairs.iter().copied(), 2, Duration::from_millis(within))
        };
        let all = compare(&equal, 0);
        assert_eq!((all.compared, all.unequal, all.worst), (4, 0, None));
        let lacks = pair(5, 95, 100);
        let too_much = pair(6, 110, 100);
        let all = compare(&[&equal[..], &[lacks, too_much]].concat(), 0);
        assert_eq!((all.compared, all.unequal), (6, 2));
        assert_eq!(all.worst, Some(too_much));
        let all = compare(&[lacks], 0);
        assert_eq!(all.worst, Some(lacks));
        // Both CPUs may have worked for as long as the reading took.
        let all = compare(&[lacks, too_much], 1);
        assert_eq!((all.unequal, all.worst), (1, Some(too_much)));
    }
}
