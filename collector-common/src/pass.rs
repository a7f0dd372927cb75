//! The one pass: what the cgroup iterator reads of each cgroup from the kernel's own structures.

/// Records in a chunk of the pass's buffer. A power of two.
pub const RECORDS_PER_CHUNK: u32 = 1 << RECORD_SHIFT;
/// log2 of [`RECORDS_PER_CHUNK`].
pub const RECORD_SHIFT: u32 = 8;

/// [`CgroupRecord::flags`]: the base statistics (CPU time) are filled in.
pub const HAS_CPU_TIME: u64 = 1 << 0;
/// [`CgroupRecord::flags`]: the cpu controller's fields are filled in.
pub const HAS_CPU_CONTROLLER: u64 = 1 << 1;
/// [`CgroupRecord::flags`]: the cgroup has been removed and only awaits its last reference.
pub const DYING: u64 = 1 << 2;

/// What one pass reads of one cgroup. Plain copies: scaling and units are userspace's work.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CgroupRecord {
    /// Cgroup id in the hierarchy walked.
    pub id: u64,
    /// `HAS_*` and [`DYING`].
    pub flags: u64,
    /// `cgroup.bstat.cputime.utime`, ns, descendants included.
    pub utime_ns: u64,
    /// `cgroup.bstat.cputime.stime`, ns.
    pub stime_ns: u64,
    /// `cgroup.bstat.cputime.sum_exec_runtime`, ns: cpu.stat's usage.
    pub usage_ns: u64,
    /// `cgroup.prev_cputime.utime`: the user time last shown by cpu.stat, below which it never goes.
    pub prev_utime_ns: u64,
    /// `cgroup.prev_cputime.stime`.
    pub prev_stime_ns: u64,
    /// `task_group.cfs_bandwidth.quota`, ns a period; [`u64::MAX`] is none.
    pub quota_ns: u64,
    /// `task_group.cfs_bandwidth.period`, ns.
    pub period_ns: u64,
    /// `task_group.shares`, scaled as the kernel scales load (`SCHED_FIXEDPOINT_SHIFT`).
    pub shares: u64,
    /// `task_group.cfs_bandwidth.throttled_time`, ns.
    pub throttled_ns: u64,
    /// `task_group.cfs_bandwidth.burst_time`, ns.
    pub burst_ns: u64,
    /// `task_group.cfs_bandwidth.nr_periods`.
    pub periods: u32,
    /// `task_group.cfs_bandwidth.nr_throttled`.
    pub throttled_periods: u32,
    /// `task_group.cfs_bandwidth.nr_burst`.
    pub burst_periods: u32,
    /// Keeps the layout explicit.
    pub reserved: u32,
    /// Room for what later sources add without a change of size.
    pub spare: [u64; 2],
}

const _: () = assert!(size_of::<CgroupRecord>() == 128);

/// Control block of a pass.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PassControl {
    /// Records written so far.
    pub next: u64,
    /// Cgroups for which there was no record left; userspace adds a chunk and passes again.
    pub missed: u64,
}
