//! Finds which word of `memcg_vmstats` is which statistic.
//!
//! Up to 6.9 `state[]` is indexed by the enumerators of BTF. Since 6.10 it is a compact array with
//! a private table (mm/memcontrol.c, `mem_cgroup_stats_index`, filled by `init_memcg_stats` in the
//! order of `memcg_node_stat_items` and `memcg_stat_items`). `events[]` has been compact since 6.1
//! (`memcg_vm_event_stat`). Invariant: a layout is used only if the root's memory.stat confirms it.
//! Otherwise memory.stat is read for every cgroup, and the agent reports that.

use collector_common::cgroup_iterator::{EVENTS, MemoryRecord, STATES};

use super::stat::Statistics;
use crate::kernel::{
    btf::Btf,
    fields::{enumerator_value, len_of},
};

/// First entries of `memcg_node_stat_items` (6.10 to 6.18). The rest depends on the configuration.
const NODE_ITEMS: &[&str] = &[
    "NR_INACTIVE_ANON",
    "NR_ACTIVE_ANON",
    "NR_INACTIVE_FILE",
    "NR_ACTIVE_FILE",
    "NR_UNEVICTABLE",
    "NR_SLAB_RECLAIMABLE_B",
    "NR_SLAB_UNRECLAIMABLE_B",
    "WORKINGSET_REFAULT_ANON",
    "WORKINGSET_REFAULT_FILE",
    "WORKINGSET_ACTIVATE_ANON",
    "WORKINGSET_ACTIVATE_FILE",
    "WORKINGSET_RESTORE_ANON",
    "WORKINGSET_RESTORE_FILE",
    "WORKINGSET_NODERECLAIM",
    "NR_ANON_MAPPED",
    "NR_FILE_MAPPED",
    "NR_FILE_PAGES",
    "NR_FILE_DIRTY",
    "NR_WRITEBACK",
];

/// Indices of the statistics in `state[]`; `None` if this kernel has no such statistic or its index
/// is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct States {
    anon: Option<usize>,
    file: Option<usize>,
    mapped: Option<usize>,
    dirty: Option<usize>,
    writeback: Option<usize>,
    inactive_file: Option<usize>,
    active_file: Option<usize>,
    refault_anon: Option<usize>,
    refault_file: Option<usize>,
    swap: Option<usize>,
    kernel: Option<usize>,
}

/// Layout of all statistics.
#[derive(Clone, Copy, Debug)]
pub struct StatisticsLayout {
    states: States,
    /// Whether the root's memory.stat has confirmed `states`.
    confirmed: bool,
    /// Number of kinds of scanning, and of stealing, in reclaim: PGSCAN_KSWAPD, PGSCAN_DIRECT, and
    /// those added by newer kernels. Their counters come just before that of page faults.
    ways: usize,
    /// Index of PGFAULT in `events[]`, followed by PGMAJFAULT; `None` until it is found.
    faults: Option<usize>,
    /// Whether the kernel keeps `events_local[]`, as it does since 6.7. Before, a cgroup's own
    /// counts are summed over its CPUs at each reading (mm/memcontrol.c, `memcg_events_local`).
    keeps_own: bool,
    page: u64,
}

impl StatisticsLayout {
    /// Reads the layout from BTF, as far as possible.
    pub fn new(btf: &Btf, page: u64) -> Self {
        let value = |of: &str, name: &str| Some(enumerator_value(btf, of, name).ok()? as usize);
        let length = len_of(btf, "memcg_vmstats.state").unwrap_or(0) as usize;
        let all = value("memcg_stat_item", "MEMCG_NR_STAT").unwrap_or(0);
        let compact = length < all;
        let within = |index: &usize| *index < length.min(STATES);
        let node = |name: &str| {
            let index = if compact {
                NODE_ITEMS.iter().position(|item| *item == name)
            } else {
                value("node_stat_item", name)
            };
            index.filter(within)
        };
        // The memory controller's own items are the last ones, and complete.
        let own = |name: &str| {
            let index = value("memcg_stat_item", name)?;
            let index = if compact {
                (length + index).checked_sub(all)?
            } else {
                index
            };
            Some(index).filter(within)
        };
        let ways = ["KSWAPD", "DIRECT", "KHUGEPAGED", "PROACTIVE"]
            .iter()
            .filter(|way| value("vm_event_item", &format!("PGSCAN_{way}")).is_some())
            .count();
        Self {
            states: States {
                anon: node("NR_ANON_MAPPED"),
                file: node("NR_FILE_PAGES"),
                mapped: node("NR_FILE_MAPPED"),
                dirty: node("NR_FILE_DIRTY"),
                writeback: node("NR_WRITEBACK"),
                inactive_file: node("NR_INACTIVE_FILE"),
                active_file: node("NR_ACTIVE_FILE"),
                refault_anon: node("WORKINGSET_REFAULT_ANON"),
                refault_file: node("WORKINGSET_REFAULT_FILE"),
                swap: own("MEMCG_SWAP"),
                kernel: own("MEMCG_KMEM"),
            },
            confirmed: false,
            ways,
            faults: None,
            keeps_own: len_of(btf, "memcg_vmstats.events_local").is_ok(),
            page,
        }
    }

    /// Whether the whole layout is known.
    pub fn is_known(&self) -> bool {
        self.confirmed && self.faults.is_some()
    }

    /// Compares the root's record with its memory.stat from before and after the record was read.
    ///
    /// # Errors
    ///
    /// When they do not match; the message says what differs.
    pub fn learn(
        &mut self,
        root: &MemoryRecord,
        before: &Statistics,
        after: &Statistics,
    ) -> Result<(), String> {
        self.confirmed = false;
        self.faults = None;
        let found = self.states(root);
        for (name, value, before, after) in [
            ("anon", found.anon, before.anon, after.anon),
            ("file", found.file, before.file, after.file),
            ("file_mapped", found.mapped, before.mapped, after.mapped),
            (
                "inactive_file",
                found.inactive_file,
                before.inactive_file,
                after.inactive_file,
            ),
            (
                "active_file",
                found.active_file,
                before.active_file,
                after.active_file,
            ),
            ("kernel", found.kernel, before.kernel, after.kernel),
        ] {
            let (Some(before), Some(after)) = (before, after) else {
                continue;
            };
            let (low, high) = (before.min(after), before.max(after));
            // Values change meanwhile, and small counts are pending on each CPU until they are
            // flushed.
            let slack = high / 16 + (1 << 20);
            match value {
                Some(value) if value + slack >= low && value <= high + slack => {}
                _ => {
                    return Err(format!(
                        "{name} of memory.stat is not at the expected place"
                    ));
                }
            }
        }
        let (Some(f0), Some(f1), Some(m0), Some(m1)) = (
            before.faults,
            after.faults,
            before.major_faults,
            after.major_faults,
        ) else {
            return Err("the root's memory.stat has no page faults".to_owned());
        };
        let fits = |&at: &usize| {
            let (faults, major) = (root.events[at], root.events[at + 1]);
            f0 > 0 && f0 <= faults && faults <= f1 && m0 <= major && major <= m1
        };
        let places: Vec<usize> = (2 * self.ways..EVENTS - 1).filter(fits).collect();
        match places[..] {
            [place] => self.faults = Some(place),
            [] => return Err("the counter of page faults was not found".to_owned()),
            _ => return Err("more than one counter may be that of page faults".to_owned()),
        }
        self.confirmed = true;
        Ok(())
    }

    fn states(&self, record: &MemoryRecord) -> Statistics {
        let count = |index: Option<usize>| {
            // Pending counts of some CPUs may make a sum negative for a while.
            index.map(|index| (record.state[index] as i64).max(0) as u64)
        };
        let bytes = |index| count(index).map(|pages| pages * self.page);
        let states = &self.states;
        Statistics {
            anon: bytes(states.anon),
            file: bytes(states.file),
            mapped: bytes(states.mapped),
            dirty: bytes(states.dirty),
            writeback: bytes(states.writeback),
            inactive_file: bytes(states.inactive_file),
            active_file: bytes(states.active_file),
            swap: bytes(states.swap),
            kernel: bytes(states.kernel),
            refault_anon: count(states.refault_anon),
            refault_file: count(states.refault_file),
            ..Statistics::default()
        }
    }

    /// Returns a record's statistics, including the cgroup's own page faults; only once the layout
    /// is known.
    pub fn read(&self, record: &MemoryRecord) -> Option<Statistics> {
        let place = self.faults.filter(|_| self.confirmed)?;
        let sum = |range: std::ops::Range<usize>| Some(record.events[range].iter().sum());
        let own = |place: usize| self.keeps_own.then(|| record.events_local[place]);
        Some(Statistics {
            faults: Some(record.events[place]),
            major_faults: Some(record.events[place + 1]),
            own_faults: own(place),
            own_major_faults: own(place + 1),
            scanned: sum(place - 2 * self.ways..place - self.ways),
            stolen: sum(place - self.ways..place),
            ..self.states(record)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use collector_common::cgroup_iterator::CgroupRecord;
    use zerocopy::FromZeros;

    const PAGE: u64 = 4096;

    fn layout() -> StatisticsLayout {
        StatisticsLayout {
            states: States {
                anon: Some(14),
                file: Some(16),
                ..States::default()
            },
            confirmed: false,
            ways: 2,
            faults: None,
            keeps_own: true,
            page: PAGE,
        }
    }

    fn record() -> MemoryRecord {
        let mut record = CgroupRecord::new_zeroed().memory;
        record.state[14] = 100_000;
        record.state[16] = 50_000;
        record.events[2..6].copy_from_slice(&[7, 8, 5, 6]);
        record.events[6] = 1_000_000;
        record.events[7] = 3;
        record
    }

    fn stat(faults: u64) -> Statistics {
        Statistics {
            anon: Some(100_000 * PAGE),
            file: Some(50_100 * PAGE),
            faults: Some(faults),
            major_faults: Some(3),
            ..Statistics::default()
        }
    }

    #[test]
    fn a_layout_that_the_file_confirms_is_known() {
        let mut layout = layout();
        assert!(layout.read(&record()).is_none());
        layout
            .learn(&record(), &stat(999_990), &stat(1_000_020))
            .unwrap();
        let read = layout.read(&record()).unwrap();
        assert_eq!(read.faults, Some(1_000_000));
        assert_eq!(read.major_faults, Some(3));
        assert_eq!((read.scanned, read.stolen), (Some(15), Some(11)));
        assert_eq!(read.anon, Some(100_000 * PAGE));
        assert_eq!(
            read.own_faults,
            Some(0),
            "all page faults are the descendants'"
        );
    }

    #[test]
    fn own_faults_are_served_only_if_the_kernel_keeps_them() {
        let mut layout = layout();
        layout
            .learn(&record(), &stat(1_000_000), &stat(1_000_000))
            .unwrap();
        // If the kernel has no such array, counts in the record can't be complete.
        let mut own = record();
        own.events_local[6] = 7;
        own.events_local[7] = 2;
        let read = layout.read(&own).unwrap();
        assert_eq!(
            (read.own_faults, read.own_major_faults),
            (Some(7), Some(2)),
            "since 6.7"
        );
        layout.keeps_own = false;
        let read = layout.read(&own).unwrap();
        assert_eq!(
            (read.own_faults, read.own_major_faults),
            (None, None),
            "before 6.7"
        );
        assert_eq!(read.faults, Some(1_000_000));
    }

    #[test]
    fn a_layout_that_the_file_contradicts_is_not_used() {
        let mut layout = layout();
        let mut other = record();
        other.state[14] = 5;
        assert!(
            layout
                .learn(&other, &stat(1_000_000), &stat(1_000_000))
                .is_err()
        );
        let mut twice = record();
        twice.events[20] = 1_000_000;
        twice.events[21] = 3;
        assert!(
            layout
                .learn(&twice, &stat(1_000_000), &stat(1_000_000))
                .is_err()
        );
        assert!(layout.learn(&record(), &stat(5), &stat(6)).is_err());
        assert!(!layout.is_known() && layout.read(&record()).is_none());
    }
}
