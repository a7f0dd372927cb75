//! User and system time, CFS bandwidth and the cpu controller's settings, from the kernel's books.
//!
//! Program: `pass` (collector-ebpf/src/pass.rs). Oracle: cpu.stat, cpu.max, cpu.cfs_* (tests).

use anyhow::Result;
use collector_common::pass::{CgroupRecord, HAS_CPU, UNIFIED};

use super::{Metric, Part, Registration, Samples, Snapshot, Source, at, encode};
use crate::{
    cgroup::{NodeId, ROOT, Tree},
    exposition::{Family, Kind, Unit, Value, Writer},
    kernel::programs::Requirement,
};

/// A node's numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// What predecessors of the same path had, and the cgroup itself.
    time: CpuTime,
    earlier: CpuTime,
    bandwidth: Option<Bandwidth>,
    shares: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct CpuTime {
    usage_ns: u64,
    user_ns: u64,
    system_ns: u64,
    known: bool,
}

#[derive(Clone, Copy, Debug)]
struct Bandwidth {
    quota_ns: u64,
    period_ns: u64,
    periods: u64,
    throttled_periods: u64,
    throttled_ns: u64,
    burst_periods: u64,
    burst_ns: u64,
}

impl CpuTime {
    /// Scales tick-sampled user and system time to the exact sum, as cpu.stat does
    /// (kernel/sched/cputime.c, `cputime_adjust`): both only rise.
    fn adjust(&mut self, user_ns: u64, system_ns: u64, usage_ns: u64) {
        self.known = true;
        self.usage_ns = usage_ns;
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

const fn family(name: &'static str, help: &'static str, kind: Kind, unit: Unit) -> Family {
    Family {
        name,
        help,
        kind,
        unit,
        labels: &[],
        origin: "pass: task_group.cfs_bandwidth",
        oracle: "cpu.stat, cpu.max",
    }
}

macro_rules! limit_metric {
    ($name:literal, $help:literal, $kind:ident, $unit:ident, $read:expr) => {
        Metric {
            family: family($name, $help, Kind::$kind, Unit::$unit),
            samples: Samples::Scalars(&[(&[], |v: &Numbers| {
                let read: fn(&Bandwidth) -> Value = $read;
                v.bandwidth.as_ref().map(read)
            })]),
        }
    };
}

/// Microseconds, the unit in which quota and period are set and shown.
fn micros(ns: u64) -> Value {
    Value::Count(ns / 1000)
}

/// The source's families.
pub const METRICS: &[Metric<Numbers>] = &[
    Metric {
        family: Family {
            origin: "pass: cgroup.bstat.cputime",
            oracle: "cpu.stat user_usec",
            ..family(
                "container_cpu_user_seconds_total",
                "CPU time spent in user mode.",
                Kind::Counter,
                Unit::Seconds,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| {
            v.time
                .known
                .then(|| Value::Nanos(v.earlier.user_ns + v.time.user_ns))
        })]),
    },
    Metric {
        family: Family {
            origin: "pass: cgroup.bstat.cputime",
            oracle: "cpu.stat system_usec",
            ..family(
                "container_cpu_system_seconds_total",
                "CPU time spent in the kernel.",
                Kind::Counter,
                Unit::Seconds,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| {
            v.time
                .known
                .then(|| Value::Nanos(v.earlier.system_ns + v.time.system_ns))
        })]),
    },
    limit_metric!(
        "container_cpu_cfs_periods_total",
        "Enforcement periods that have passed; only where a quota is set.",
        Counter,
        None,
        |b| Value::Count(b.periods)
    ),
    limit_metric!(
        "container_cpu_cfs_throttled_periods_total",
        "Enforcement periods in which the cgroup was throttled.",
        Counter,
        None,
        |b| Value::Count(b.throttled_periods)
    ),
    limit_metric!(
        "container_cpu_cfs_throttled_seconds_total",
        "Time for which the cgroup's run queues were throttled, summed over CPUs.",
        Counter,
        Seconds,
        |b| Value::Nanos(b.throttled_ns)
    ),
    limit_metric!(
        "container_cpu_cfs_burst_periods_total",
        "Enforcement periods in which the cgroup used saved-up quota.",
        Counter,
        None,
        |b| Value::Count(b.burst_periods)
    ),
    limit_metric!(
        "container_cpu_cfs_burst_seconds_total",
        "CPU time used beyond the quota from what was saved up.",
        Counter,
        Seconds,
        |b| Value::Nanos(b.burst_ns)
    ),
    limit_metric!(
        "container_spec_cpu_quota",
        "CPU quota a period, in microseconds; only where one is set.",
        Gauge,
        None,
        |b| micros(b.quota_ns)
    ),
    limit_metric!(
        "container_spec_cpu_period",
        "Length of an enforcement period, in microseconds; only where a quota is set.",
        Gauge,
        None,
        |b| micros(b.period_ns)
    ),
    Metric {
        family: Family {
            origin: "pass: task_group.shares",
            oracle: "cpu.shares, cpu.weight",
            ..family(
                "container_spec_cpu_shares",
                "CPU share, 1024 by default; converted from cpu.weight on cgroup2 as cAdvisor does.",
                Kind::Gauge,
                Unit::None,
            )
        },
        samples: Samples::Scalars(&[(&[], |v| v.shares.map(Value::Count))]),
    },
];

/// The source.
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "cpu",
        required: &["pass"],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |_| Ok(Box::new(Cpu::default())),
};

#[derive(Debug, Default)]
struct Cpu {
    numbers: Vec<Numbers>,
}

fn take(numbers: &mut Numbers, record: &CgroupRecord) {
    if numbers.time.user_ns == 0 && numbers.time.system_ns == 0 {
        // Never below what cpu.stat has shown.
        numbers.time.user_ns = record.prev_utime_ns;
        numbers.time.system_ns = record.prev_stime_ns;
    }
    numbers
        .time
        .adjust(record.utime_ns, record.stime_ns, record.usage_ns);
}

fn take_controller(numbers: &mut Numbers, record: &CgroupRecord) {
    let v1 = record.flags & UNIFIED == 0;
    // shares are kept at the resolution of load, 10 bits finer (include/linux/sched.h,
    // SCHED_FIXEDPOINT_SHIFT; kernel/sched/sched.h, scale_load).
    let shares = record.shares >> 10;
    numbers.shares = Some(if v1 {
        shares
    } else {
        // cpu.weight is 1 to 10,000 with 100 for 1024 shares; the way back is cAdvisor's.
        let weight = (shares * 100).div_ceil(1024).max(1);
        2 + (weight - 1) * 262_142 / 9_999
    });
    numbers.bandwidth = (record.quota_ns != u64::MAX).then(|| Bandwidth {
        quota_ns: record.quota_ns,
        period_ns: record.period_ns,
        periods: u64::from(record.periods),
        throttled_periods: u64::from(record.throttled_periods),
        throttled_ns: record.throttled_ns,
        burst_periods: u64::from(record.burst_periods),
        burst_ns: record.burst_ns,
    });
}

impl Source for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn families(&self) -> Vec<&'static Family> {
        METRICS.iter().map(|metric| &metric.family).collect()
    }

    fn collect(&mut self, snapshot: &Snapshot<'_>) -> Result<()> {
        let (tree, books) = (snapshot.tree, snapshot.books()?);
        self.numbers
            .resize(tree.capacity().max(self.numbers.len()), Numbers::default());
        for (number, _) in tree.iter() {
            let numbers = &mut self.numbers[number];
            if number == ROOT {
                let times = books.root_times();
                numbers.time = CpuTime {
                    usage_ns: times.usage_ns,
                    user_ns: times.user_ns,
                    system_ns: times.system_ns,
                    known: true,
                };
            } else if let Some(record) = books.part(number, Part::Time) {
                take(numbers, &record);
            }
            if let Some(record) = books.part(number, Part::Cpu) {
                take_controller(numbers, &record);
            }
        }
        Ok(())
    }

    fn last(&mut self, node: NodeId, record: &CgroupRecord) {
        let numbers = at(&mut self.numbers, node);
        if record.flags & UNIFIED != 0 {
            take(numbers, record);
        }
        if record.flags & HAS_CPU != 0 {
            take_controller(numbers, record);
        }
    }

    fn fold(&mut self, from: NodeId, _into: NodeId) {
        // The kernel's own values of the parent contain the child's.
        if let Some(numbers) = self.numbers.get_mut(from) {
            *numbers = Numbers::default();
        }
    }

    fn revive(&mut self, node: NodeId) {
        if let Some(numbers) = self.numbers.get_mut(node) {
            numbers.earlier.user_ns += numbers.time.user_ns;
            numbers.earlier.system_ns += numbers.time.system_ns;
            numbers.time = CpuTime::default();
            numbers.bandwidth = None;
        }
    }

    fn lifetime(&self) -> Option<Vec<Option<u64>>> {
        let usage = |numbers: &Numbers| numbers.time.known.then_some(numbers.time.usage_ns);
        Some(self.numbers.iter().map(usage).collect())
    }

    fn encode(&self, tree: &Tree, writer: &mut Writer) {
        encode(METRICS, tree, &self.numbers, writer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::keyed::KeyedValue;

    #[test]
    fn user_and_system_add_up_to_usage_and_never_fall() {
        let mut time = CpuTime::default();
        time.adjust(30, 10, 1000);
        assert_eq!((time.user_ns, time.system_ns), (750, 250));
        // The sampled ratio swings the other way; neither may fall.
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
        let mut numbers = Numbers::default();
        let mut record = CgroupRecord {
            shares: 1024 << 10,
            quota_ns: u64::MAX,
            ..CgroupRecord::ZERO
        };
        take_controller(&mut numbers, &record);
        assert_eq!(numbers.shares, Some(1024));
        record.flags = UNIFIED;
        take_controller(&mut numbers, &record);
        // What cAdvisor makes of cpu.weight 100.
        assert_eq!(numbers.shares, Some(2597));
        assert!(numbers.bandwidth.is_none());
    }
}
