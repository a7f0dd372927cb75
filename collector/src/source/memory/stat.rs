//! Statistics of memory.stat, from the file or from the kernel's records.

/// Statistics of one cgroup, descendants included. `None` stands for unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Anonymous memory, bytes.
    pub anon: Option<u64>,
    /// Page cache, bytes.
    pub file: Option<u64>,
    /// Mapped page cache, bytes.
    pub mapped: Option<u64>,
    /// Dirty page cache, bytes.
    pub dirty: Option<u64>,
    /// Page cache under writeback, bytes.
    pub writeback: Option<u64>,
    /// Inactive page cache, bytes.
    pub inactive_file: Option<u64>,
    /// Active page cache, bytes.
    pub active_file: Option<u64>,
    /// Swap space in use, bytes.
    pub swap: Option<u64>,
    /// Kernel memory, bytes.
    pub kernel: Option<u64>,
    /// Refaults of anonymous pages.
    pub refault_anon: Option<u64>,
    /// Refaults of page cache.
    pub refault_file: Option<u64>,
    /// Page faults.
    pub faults: Option<u64>,
    /// Page faults with a wait for a device.
    pub major_faults: Option<u64>,
    /// Page faults of the cgroup itself.
    pub own_faults: Option<u64>,
    /// Page faults of the cgroup itself with a wait for a device.
    pub own_major_faults: Option<u64>,
    /// Pages scanned by reclaim.
    pub scanned: Option<u64>,
    /// Pages freed by reclaim.
    pub stolen: Option<u64>,
}

impl Statistics {
    /// Parses memory.stat of cgroup2 or v1.
    pub fn parse(text: &str, v1: bool) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(' ') else {
                continue;
            };
            let Ok(value) = value.trim().parse::<u64>() else {
                continue;
            };
            let place =
                match (v1, key) {
                    (false, "anon") | (true, "total_rss") => &mut found.anon,
                    (false, "file") | (true, "total_cache") => &mut found.file,
                    (false, "file_mapped") | (true, "total_mapped_file") => &mut found.mapped,
                    (false, "file_dirty") | (true, "total_dirty") => &mut found.dirty,
                    (false, "file_writeback") | (true, "total_writeback") => &mut found.writeback,
                    (false, "inactive_file") | (true, "total_inactive_file") => {
                        &mut found.inactive_file
                    }
                    (false, "active_file") | (true, "total_active_file") => &mut found.active_file,
                    (true, "total_swap") => &mut found.swap,
                    (false, "kernel") => &mut found.kernel,
                    (false, "workingset_refault_anon")
                    | (true, "total_workingset_refault_anon") => &mut found.refault_anon,
                    (false, "workingset_refault_file")
                    | (true, "total_workingset_refault_file") => &mut found.refault_file,
                    (false, "pgfault") | (true, "total_pgfault") => &mut found.faults,
                    (false, "pgmajfault") | (true, "total_pgmajfault") => &mut found.major_faults,
                    (true, "pgfault") => &mut found.own_faults,
                    (true, "pgmajfault") => &mut found.own_major_faults,
                    (false, "pgscan") => &mut found.scanned,
                    (false, "pgsteal") => &mut found.stolen,
                    _ => continue,
                };
            *place = Some(value);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let v2 = Statistics::parse("anon 4096\nfile 8192\npgfault 7\npgscan 3\nodd\n", false);
        assert_eq!(
            (v2.anon, v2.file, v2.faults, v2.scanned),
            (Some(4096), Some(8192), Some(7), Some(3))
        );
        let v1 = Statistics::parse(
            "cache 1\nrss 2\npgfault 5\ntotal_rss 20\ntotal_pgfault 50\n",
            true,
        );
        assert_eq!(
            (v1.anon, v1.faults, v1.own_faults),
            (Some(20), Some(50), Some(5))
        );
        assert_eq!(v1.file, None);
    }
}
