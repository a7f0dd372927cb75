//! User and system time, CFS bandwidth and settings of the cpu controller, from the kernel
//! statistics.
//!
//! Program: `cgroup_iterator` (collector-ebpf/src/cgroup_iterator.rs). Oracle: cpu.stat, cpu.max,
//! cpu.cfs_* (tests).

use anyhow::Result;
use collector_common::cgroup_iterator::{CgroupRecord, HAS_CPU, UNIFIED};

use super::{
    Change, Inputs, Metric, Part, Reading, Registration, Samples, Source, Table,
    values::{Column, Continued, PerNode, Retained, digest, sums},
};
use crate::{
    cgroup::ROOT,
    exposition::{Family, MetricKind, Unit, Value},
    kernel::programs::Requirement,
};

/// A node's numbers.
#[derive(Clone, Debug, Default)]
pub struct CpuNumbers {
    time: Continued<CpuTime>,
    bandwidth: Continued<Bandwidth>,
    /// `None` if no quota is set.
    quota: Option<Quota>,
    shares: Option<u64>,
}

sums! {
    struct CpuTime {
        user_ns: u64,
        system_ns: u64,
    }
}

sums! {
    struct Bandwidth {
        periods: u64,
        throttled_periods: u64,
        throttled_ns: u64,
        burst_periods: u64,
        burst_ns: u64,
    }
}

#[derive(Clone, Copy, Debug)]
struct Quota {
    quota_ns: u64,
    period_ns: u64,
}

impl Retained for CpuNumbers {
    const SHAPE: u64 = digest(
        <Continued<CpuTime> as Retained>::SHAPE,
        <Continued<Bandwidth> as Retained>::SHAPE,
    );

    fn save(&self, words: &mut Vec<u64>) {
        self.time.save(words);
        self.bandwidth.save(words);
    }

    fn save_end(&self, words: &mut Vec<u64>) {
        self.time.save_end(words);
        self.bandwidth.save_end(words);
    }

    fn restore(&mut self, words: &mut &[u64]) -> Option<()> {
        self.time.restore(words)?;
        self.bandwidth.restore(words)
    }
}

impl CpuNumbers {
    fn time(&self, read: fn(&CpuTime) -> u64) -> Option<Value> {
        let known = self.time.is_known();
        known.then(|| Value::Nanos(read(&self.time.total())))
    }

    /// Returns a counter of the quota's enforcement. It exists if a quota is set, or has been.
    fn bandwidth(&self, read: fn(&Bandwidth) -> Value) -> Option<Value> {
        let total = self.bandwidth.total();
        let limited = self.quota.is_some() || total.periods > 0;
        limited.then(|| read(&total))
    }
}

impl CpuTime {
    /// Scales tick-sampled user and system time to the exact sum, as cpu.stat does
    /// (kernel/sched/cputime.c, `cputime_adjust`). Neither decreases.
    fn adjust(&mut self, user_ns: u64, system_ns: u64, usage_ns: u64) {
        if self.user_ns + self.system_ns >= usage_ns {
            return;
        }
        let system = if system_ns == 0 {
            0
        } else if user_ns == 0 {
            usage_ns
        } else {
            let scaled = u128::from(system_ns) * u128::from(usage_ns);
            (scaled / (u128::from(system_ns) + u128::from(user_ns))) as u64
        };
        let system = system.max(self.system_ns);
        let user = usage_ns.saturating_sub(system).max(self.user_ns);
        self.system_ns = usage_ns - user;
        self.user_ns = user;
    }
}

const fn family(name: &'static str, help: &'static str, kind: MetricKind, unit: Unit) -> Family {
    Family {
        name,
        help,
        kind,
        unit,
        labels: &[],
        origin: "cgroup_iterator: task_group.cfs_bandwidth",
        oracle: "cpu.stat, cpu.max",
    }
}

macro_rules! bandwidth {
    ($name:literal, $help:literal, $unit:ident, $read:expr) => {
        Metric {
            family: family($name, $help, MetricKind::Counter, Unit::$unit),
            samples: Samples::Scalars(&[(&[], |v: &CpuNumbers| v.bandwidth($read))]),
        }
    };
}

macro_rules! quota {
    ($name:literal, $help:literal, $read:expr) => {
        Metric {
            family: family($name, $help, MetricKind::Gauge, Unit::None),
            samples: Samples::Scalars(&[(&[], |v: &CpuNumbers| {
                let read: fn(&Quota) -> u64 = $read;
                v.quota.as_ref().map(read).map(micros)
            })]),
        }
    };
}

/// Converts to microseconds, the unit in which quota and period are set and shown.
fn micros(ns: u64) -> Value {
    Value::Count(ns / 1000)
}

/// The source's families.
pub const METRICS: &[Metric<CpuNumbers>] = &[
    Metric {
        family: Family {
            origin: "cgroup_iterator: cgroup.bstat.cputime",
            oracle: "cpu.stat user_usec",
            ..family(
                "container_cpu_user_seconds_total",
                "CPU time spent in user mode.",
                MetricKind::Counter,
                Unit::Seconds,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| v.time(|time| time.user_ns))]),
    },
    Metric {
        family: Family {
            origin: "cgroup_iterator: cgroup.bstat.cputime",
            oracle: "cpu.stat system_usec",
            ..family(
                "container_cpu_system_seconds_total",
                "CPU time spent in kernel mode.",
                MetricKind::Counter,
                Unit::Seconds,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| v.time(|time| time.system_ns))]),
    },
    bandwidth!(
        "container_cpu_cfs_periods_total",
        "Number of elapsed enforcement periods; only if a quota is set.",
        None,
        |b| Value::Count(b.periods)
    ),
    bandwidth!(
        "container_cpu_cfs_throttled_periods_total",
        "Number of enforcement periods in which the cgroup was throttled.",
        None,
        |b| Value::Count(b.throttled_periods)
    ),
    bandwidth!(
        "container_cpu_cfs_throttled_seconds_total",
        "Time for which the cgroup's run queues were throttled, summed over CPUs.",
        Seconds,
        |b| Value::Nanos(b.throttled_ns)
    ),
    bandwidth!(
        "container_cpu_cfs_burst_periods_total",
        "Number of enforcement periods in which the cgroup used accumulated quota (burst).",
        None,
        |b| Value::Count(b.burst_periods)
    ),
    bandwidth!(
        "container_cpu_cfs_burst_seconds_total",
        "CPU time used beyond the quota from accumulated quota (burst).",
        Seconds,
        |b| Value::Nanos(b.burst_ns)
    ),
    quota!(
        "container_spec_cpu_quota",
        "CPU quota per period in microseconds; only if one is set.",
        |q| q.quota_ns
    ),
    quota!(
        "container_spec_cpu_period",
        "Length of an enforcement period in microseconds; only if a quota is set.",
        |q| q.period_ns
    ),
    Metric {
        family: Family {
            origin: "cgroup_iterator: task_group.shares",
            oracle: "cpu.shares, cpu.weight",
            ..family(
                "container_spec_cpu_shares",
                "CPU shares, 1024 by default; on cgroup2 converted from cpu.weight as in cAdvisor.",
                MetricKind::Gauge,
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| v.shares.map(Value::Count))]),
    },
];

/// Registers the source `cpu` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "cpu",
        required: &["cgroup_iterator"],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |_| Ok(Box::new(Cpu::default())),
};

#[derive(Debug, Default)]
struct Cpu {
    numbers: Column<CpuNumbers>,
}

fn take_time(numbers: &mut CpuNumbers, record: &CgroupRecord) {
    let Some(time) = numbers.time.reading_of(record.id) else {
        return;
    };
    if time.user_ns == 0 && time.system_ns == 0 {
        // Never less than cpu.stat has already shown.
        time.user_ns = record.prev_utime_ns;
        time.system_ns = record.prev_stime_ns;
    }
    time.adjust(record.utime_ns, record.stime_ns, record.usage_ns);
}

fn take_controller(numbers: &mut CpuNumbers, record: &CgroupRecord) {
    if let Some(bandwidth) = numbers.bandwidth.reading_of(record.id) {
        *bandwidth = Bandwidth {
            periods: u64::from(record.periods),
            throttled_periods: u64::from(record.throttled_periods),
            throttled_ns: record.throttled_ns,
            burst_periods: u64::from(record.burst_periods),
            burst_ns: record.burst_ns,
        };
    }
    let v1 = record.flags & UNIFIED == 0;
    // Shares have 10 more bits, the resolution of load (include/linux/sched.h,
    // SCHED_FIXEDPOINT_SHIFT; kernel/sched/sched.h, scale_load).
    let shares = record.shares >> 10;
    numbers.shares = Some(if v1 {
        shares
    } else {
        // cpu.weight is 1 to 10,000, and 100 stands for 1024 shares. The conversion back is
        // cAdvisor's.
        let weight = (shares * 100).div_ceil(1024).max(1);
        2 + (weight - 1) * 262_142 / 9_999
    });
    numbers.quota = (record.quota_ns != u64::MAX).then_some(Quota {
        quota_ns: record.quota_ns,
        period_ns: record.period_ns,
    });
}

impl Source for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        vec![&mut self.numbers]
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> Result<()> {
        let (tree, statistics) = (inputs.tree, inputs.statistics()?);
        let mut column = self.numbers.places(tree.capacity());
        for (number, node) in tree.iter() {
            if number == ROOT {
                let times = statistics.root_times();
                if let Some(time) = column[number].time.reading_of(node.id) {
                    time.user_ns = times.user_ns;
                    time.system_ns = times.system_ns;
                }
            } else if let Some(record) = statistics.part(number, Part::Time) {
                take_time(&mut column[number], &record);
            }
            if let Some(record) = statistics.part(number, Part::Cpu) {
                take_controller(&mut column[number], &record);
            }
        }
        Ok(())
    }

    fn change(&mut self, change: &Change<'_>) {
        if let Change::Made { node, again: true } = *change
            && let Some(numbers) = self.numbers.held_mut(node)
        {
            // Settings belong to the new cgroup.
            (numbers.quota, numbers.shares) = (None, None);
        }
        let Some((node, record)) = change.final_record() else {
            return;
        };
        let numbers = self.numbers.at(node);
        if record.flags & UNIFIED != 0 {
            take_time(numbers, record);
        }
        if record.flags & HAS_CPU != 0 {
            take_controller(numbers, record);
        }
    }

    fn reading(&self) -> Box<dyn Reading> {
        Table::reading(METRICS, &self.numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn periods(numbers: &CpuNumbers) -> Option<Value> {
        numbers.bandwidth(|bandwidth| Value::Count(bandwidth.periods))
    }

    #[test]
    fn throttling_counters_continue_when_a_path_is_remade() {
        let mut numbers = CpuNumbers::default();
        assert_eq!(periods(&numbers), None);
        let mut record = CgroupRecord {
            id: 7,
            quota_ns: 1,
            periods: 20,
            ..CgroupRecord::new_zeroed()
        };
        take_controller(&mut numbers, &record);
        assert_eq!(periods(&numbers), Some(Value::Count(20)));
        // The new cgroup has no quota at first, then it gets one.
        (record.id, record.quota_ns, record.periods) = (9, u64::MAX, 0);
        take_controller(&mut numbers, &record);
        assert_eq!(periods(&numbers), Some(Value::Count(20)));
        (record.quota_ns, record.periods) = (1, 3);
        take_controller(&mut numbers, &record);
        assert_eq!(periods(&numbers), Some(Value::Count(23)));
    }

    #[test]
    fn user_and_system_sum_to_usage_and_never_decrease() {
        let mut time = CpuTime::default();
        time.adjust(30, 10, 1000);
        assert_eq!((time.user_ns, time.system_ns), (750, 250));
        // The sampled ratio changes in the other direction; neither time may decrease.
        time.adjust(30, 300, 1100);
        assert_eq!((time.user_ns, time.system_ns), (750, 350));
        time.adjust(0, 0, 1100);
        assert_eq!((time.user_ns, time.system_ns), (750, 350));
    }

    #[test]
    fn unsampled_time_is_user_time() {
        let mut time = CpuTime::default();
        time.adjust(0, 0, 5000);
        assert_eq!((time.user_ns, time.system_ns), (5000, 0));
    }

    #[test]
    fn default_weight_and_shares() {
        let mut numbers = CpuNumbers::default();
        let mut record = CgroupRecord {
            shares: 1024 << 10,
            quota_ns: u64::MAX,
            ..CgroupRecord::new_zeroed()
        };
        take_controller(&mut numbers, &record);
        assert_eq!(numbers.shares, Some(1024));
        record.flags = UNIFIED;
        take_controller(&mut numbers, &record);
        // cAdvisor's value for cpu.weight 100.
        assert_eq!(numbers.shares, Some(2597));
        assert!(numbers.quota.is_none());
    }
}
