//! What the cgroup iterator copies of each cgroup from the kernel's own structures.
//!
//! A record is plain copies: userspace knows which statistic is which, its scale and its unit.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Records in a chunk. A power of two.
pub const RECORDS_PER_CHUNK: u32 = 1 << RECORD_SHIFT;
/// log2 of [`RECORDS_PER_CHUNK`].
pub const RECORD_SHIFT: u32 = 8;

/// [`CgroupRecord::flags`]: the cgroup is of cgroup2.
pub const UNIFIED: u64 = 1 << 0;
/// [`CgroupRecord::flags`]: the cpu controller's fields are filled in.
pub const HAS_CPU: u64 = 1 << 1;
/// [`CgroupRecord::flags`]: the cgroup has been removed and only awaits its last reference.
pub const DYING: u64 = 1 << 2;
/// [`CgroupRecord::flags`]: [`CgroupRecord::memory`] is filled in.
pub const HAS_MEMORY: u64 = 1 << 3;
/// [`CgroupRecord::flags`]: the pids controller's fields are filled in.
pub const HAS_PIDS: u64 = 1 << 4;
/// [`CgroupRecord::flags`]: [`CgroupRecord::hugetlb`] is filled in.
pub const HAS_HUGETLB: u64 = 1 << 5;
/// [`CgroupRecord::flags`]: [`CgroupRecord::pressure_ns`] is filled in.
pub const HAS_PRESSURE: u64 = 1 << 6;

/// Words copied of `memcg_vmstats.state`: more than any kernel's array has so far (MEMCG_NR_STAT is
/// 58 in 6.18; the compact arrays since 6.10 have about 40). What lies behind the array is copied
/// as well and means nothing.
pub const STATES: usize = 64;
/// Words copied of `memcg_vmstats.events`, likewise.
pub const EVENTS: usize = 40;
/// Entries of `mem_cgroup.memory_events` that are copied: up to MEMCG_OOM_KILL.
pub const MEMORY_EVENTS: usize = 5;
/// Huge page sizes that are distinguished (HUGE_MAX_HSTATE is 2 on x86-64 and up to 4 elsewhere).
pub const HUGE_SIZES: usize = 4;
/// PSI states: io, memory and cpu, *some* and *full* of each (include/linux/psi_types.h, enum
/// psi_states, 4.20 to 6.18).
pub const PRESSURES: usize = 6;

/// A `page_counter`: pages, as the kernel keeps them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct PageCounter {
    /// `usage`
    pub usage: u64,
    /// `watermark`: the highest usage so far.
    pub watermark: u64,
    /// `max`: the limit.
    pub max: u64,
    /// `failcnt`: how often the limit was hit.
    pub failcnt: u64,
}

/// The memory controller's statistics of one cgroup, in pages unless a member says otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct MemoryRecord {
    /// `mem_cgroup.memory`
    pub memory: PageCounter,
    /// `mem_cgroup.swap` in cgroup2, `memsw` (memory and swap) in v1.
    pub swap: PageCounter,
    /// `mem_cgroup.memory.min`
    pub min: u64,
    /// `mem_cgroup.soft_limit`, v1's reservation.
    pub soft_limit: u64,
    /// `mem_cgroup.memory_events`, counts: low, high, max, oom, oom_kill.
    pub memory_events: [u64; MEMORY_EVENTS],
    /// `mem_cgroup.memory.low`
    pub low: u64,
    /// `mem_cgroup.vmstats->state`, descendants included as far as the kernel has added them up.
    pub state: [u64; STATES],
    /// `mem_cgroup.vmstats->events`, likewise; counts.
    pub events: [u64; EVENTS],
    /// `mem_cgroup.vmstats->events_local`, the cgroup's own; 0 where the kernel has no such array.
    pub events_local: [u64; EVENTS],
}

/// What is read of one cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct CgroupRecord {
    /// Cgroup id in the hierarchy walked.
    pub id: u64,
    /// A combination of [`UNIFIED`], `HAS_*` and [`DYING`].
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
    /// `psi_group.total` of the averages, ns, in the kernel's order.
    pub pressure_ns: [u64; PRESSURES],
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
    /// `pids_cgroup.counter`: tasks, descendants included.
    pub pids: u64,
    /// `pids_cgroup.limit`; PIDS_MAX (the highest pid and one more) is none.
    pub pids_limit: u64,
    /// `hugetlb_cgroup.hugepage`, base pages, by the kernel's number of the size.
    pub hugetlb: [PageCounter; HUGE_SIZES],
    /// The memory controller's statistics.
    pub memory: MemoryRecord,
}

const _: () = assert!(size_of::<PageCounter>() == 8 * 4);
const _: () =
    assert!(size_of::<MemoryRecord>() == 8 * (4 + 4 + 2 + MEMORY_EVENTS + 1 + STATES + 2 * EVENTS));
const _: () = assert!(size_of::<CgroupRecord>() == 8 * (14 + 8 + 16 + 16 + STATES + 2 * EVENTS));

/// Key of a removed cgroup's final record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct FinalRecordKey {
    /// Cgroup id.
    pub cgroup: u64,
    /// Number of its hierarchy; 0 is cgroup2.
    pub hierarchy: u64,
}

const _: () = assert!(size_of::<FinalRecordKey>() == 16);

/// The io controller's statistics (blkcg) of one cgroup and one device.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IoRecord {
    /// Id of the cgroup that is charged.
    pub id: u64,
    /// Device number as the kernel keeps it: major << 20 | minor.
    pub device: u64,
    /// `blkcg_gq.iostat.cur.bytes`: read, written, discarded; descendants included.
    pub bytes: [u64; 3],
    /// `blkcg_gq.iostat.cur.ios`, likewise.
    pub ios: [u64; 3],
}

const _: () = assert!(size_of::<IoRecord>() == 64);

/// Io records in a chunk. A power of two.
pub const IO_RECORDS_PER_CHUNK: u32 = 1 << IO_RECORD_SHIFT;
/// log2 of [`IO_RECORDS_PER_CHUNK`].
pub const IO_RECORD_SHIFT: u32 = 10;
/// Devices of one cgroup that are read; io.stat of a cgroup with more is not complete.
pub const MAX_DEVICES: u32 = 1024;

/// Control block of the iterator.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IteratorControl {
    /// Records written so far.
    pub next: u64,
    /// Cgroups for which there was no record left; userspace adds a chunk and iterates again.
    pub missed: u64,
    /// Io records written so far.
    pub io_next: u64,
    /// Io records for which there was no room.
    pub io_missed: u64,
    /// The kernel side's own: where it is in a cgroup's list of devices.
    pub io_node: u64,
    /// The kernel side's own: id of the cgroup that the list is of.
    pub io_cgroup: u64,
}

const _: () = assert!(size_of::<IteratorControl>() == 48);
