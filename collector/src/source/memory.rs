//! Memory: usage, limits, statistics and events, from the memory controller.
//!
//! Program: `cgroup_iterator` (collector-ebpf/src/cgroup_iterator.rs). Oracle: memory.current,
//! memory.max, memory.stat, memory.events and related files; in v1 memory.usage_in_bytes and
//! related files (tests/live/memory.rs).

mod layout;
mod metrics;
mod stat;

use anyhow::{Context, Result};
use collector_common::cgroup_iterator::{
    CgroupRecord, HAS_MEMORY, MemoryRecord, PageCounter, UNIFIED,
};

use self::{layout::StatisticsLayout, metrics::METRICS, stat::Statistics};
use super::{
    CgroupStatistics, Change, Inputs, Part, Reading, Registration, Source, SourceReport, Table,
    values::{Column, Continued, PerNode, Places, Retained, sums},
};
use crate::{
    cgroup::{NodeId, ROOT, Tree},
    exposition::Value,
    kernel::{self, programs::Requirement, system},
};

/// A node's values.
#[derive(Clone, Debug, Default)]
pub struct MemoryNumbers {
    counts: Continued<Counts>,
    /// `None` once the cgroup is removed, or without the memory controller.
    levels: Option<Box<Levels>>,
}

sums! {
    /// Counters; `None` if this kernel or cgroup version does not have one.
    struct Counts {
        limit_hits: u64,
        over_high: Option<u64>,
        over_max: Option<u64>,
        faults: Option<u64>,
        major_faults: Option<u64>,
        own_faults: Option<u64>,
        own_major_faults: Option<u64>,
        scanned: Option<u64>,
        stolen: Option<u64>,
        refault_anon: Option<u64>,
        refault_file: Option<u64>,
    }
}

impl Retained for MemoryNumbers {
    const SHAPE: u64 = <Continued<Counts> as Retained>::SHAPE;

    fn save(&self, words: &mut Vec<u64>) {
        self.counts.save(words);
    }

    fn save_end(&self, words: &mut Vec<u64>) {
        self.counts.save_end(words);
    }

    fn restore(&mut self, words: &mut &[u64]) -> Option<()> {
        self.counts.restore(words)
    }
}

impl MemoryNumbers {
    fn counted(&self, read: fn(&Counts) -> Option<u64>) -> Option<Value> {
        let known = self.counts.is_known();
        known.then(|| read(&self.counts.total()))?.map(Value::Count)
    }
}

/// Bytes in use and limits: what goes up and down.
#[derive(Clone, Copy, Debug)]
struct Levels {
    usage: u64,
    highest: Option<u64>,
    limit: u64,
    reservation: u64,
    swap: Option<u64>,
    swap_limit: u64,
    statistics: Statistics,
}

impl Levels {
    fn working_set(&self) -> Option<u64> {
        let inactive = self.statistics.inactive_file?;
        Some(self.usage.saturating_sub(inactive))
    }
}

/// Values from here on mean no limit; cAdvisor exports those as 0.
const UNLIMITED: u64 = 1 << 62;

/// Counters of `mem_cgroup.memory_events` (include/linux/memcontrol.h, enum memcg_memory_event).
const MEMCG_HIGH: usize = 1;
const MEMCG_MAX: usize = 2;

/// Registers the source `memory` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "memory",
        required: &["cgroup_iterator"],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        builder.require_controller("memory", "mem_cgroup.memory")?;
        let page = kernel::page_size();
        Ok(Box::new(Memory {
            layout: StatisticsLayout::new(builder.kernel.types()?, page),
            doubt: None,
            attempts: 0,
            early: Vec::new(),
            page,
            numbers: Column::default(),
        }))
    },
};

/// Number of attempts to locate the statistics, before memory.stat is read instead for good.
const ATTEMPTS: u32 = 10;

/// More such records than the ring buffer holds.
const MOST_EARLY: usize = 512;

#[derive(Debug)]
struct Memory {
    layout: StatisticsLayout,
    /// Why the statistics have to be read from files.
    doubt: Option<String>,
    attempts: u32,
    /// Final records that came before the statistics were located: of cgroups that were removed while no
    /// agent ran.
    early: Vec<(NodeId, CgroupRecord)>,
    page: u64,
    numbers: Column<MemoryNumbers>,
}

impl Memory {
    /// Locates the statistics, by means of the root's.
    fn learn(&mut self, kernel: &CgroupStatistics) {
        let Some(root) = kernel.part(ROOT, Part::Memory) else {
            return;
        };
        self.attempts += 1;
        let v1 = root.flags & UNIFIED == 0;
        let [before, after] = kernel
            .root_memory_stat()
            .map(|text| Statistics::parse(&String::from_utf8_lossy(&text), v1));
        self.doubt = self.layout.learn(&root.memory, &before, &after).err();
    }

    /// Returns a cgroup's statistics; `None` if its memory.stat has to be read and can't be.
    fn statistics(
        &self,
        record: &CgroupRecord,
        path: &[u8],
        kernel: &CgroupStatistics,
    ) -> Option<Statistics> {
        self.layout.read(&record.memory).or_else(|| {
            let file = kernel.memory_file(path, "memory.stat")?;
            let text = std::fs::read_to_string(file).ok()?;
            Some(Statistics::parse(&text, record.flags & UNIFIED == 0))
        })
    }

    /// Takes a final record.
    fn take(&mut self, node: NodeId, record: &CgroupRecord) {
        let statistics = self.layout.read(&record.memory);
        if let Some(counts) = self.numbers.at(node).counts.reading_of(record.id) {
            counts.take(record, statistics.as_ref());
        }
    }

    fn read(
        &self,
        tree: &Tree,
        kernel: &CgroupStatistics,
        column: &mut Places<'_, MemoryNumbers>,
    ) -> Result<()> {
        for (number, node) in tree.iter() {
            let Some(record) = kernel.part(number, Part::Memory) else {
                if let Some(numbers) = column.held_mut(number) {
                    numbers.levels = None;
                }
                continue;
            };
            let statistics = self.statistics(&record, &node.path, kernel);
            let levels = match statistics {
                Some(statistics) if number == ROOT => Some(self.host(statistics)?),
                Some(statistics) => Some(self.levels(&record, statistics)),
                None => None,
            };
            let numbers = &mut column[number];
            match (&mut numbers.levels, levels) {
                (Some(before), Some(levels)) => **before = levels,
                (before, levels) => *before = levels.map(Box::new),
            }
            if let Some(counts) = numbers.counts.reading_of(record.id) {
                counts.take(&record, statistics.as_ref());
            }
        }
        Ok(())
    }

    fn bytes(&self, pages: u64) -> u64 {
        pages.saturating_mul(self.page)
    }

    fn levels(&self, record: &CgroupRecord, statistics: Statistics) -> Levels {
        let MemoryRecord {
            memory,
            swap,
            min,
            low,
            soft_limit,
            ..
        } = record.memory;
        let v1 = record.flags & UNIFIED == 0;
        let limit = |pages| {
            Some(self.bytes(pages))
                .filter(|&bytes| bytes < UNLIMITED)
                .unwrap_or(0)
        };
        Levels {
            usage: self.bytes(memory.usage),
            highest: Some(self.bytes(memory.watermark)),
            limit: limit(memory.max),
            reservation: if v1 {
                limit(soft_limit)
            } else {
                limit(min).max(limit(low))
            },
            swap: if v1 {
                statistics.swap
            } else {
                Some(self.bytes(swap.usage))
            },
            swap_limit: limit(swap.max),
            statistics,
        }
    }

    /// Levels of the host. Nothing is charged to the root itself, so its usage is the memory that
    /// is not free. Its limits are the machine's, as in cAdvisor.
    fn host(&self, statistics: Statistics) -> Result<Levels> {
        let host = system::memory().context("sysinfo")?;
        Ok(Levels {
            usage: host.total - host.free,
            highest: None,
            limit: host.total,
            reservation: 0,
            swap: Some(host.swap_total - host.swap_free),
            swap_limit: host.swap_total,
            statistics,
        })
    }
}

impl Counts {
    /// Takes a record's events, and its statistics if they are known.
    fn take(&mut self, record: &CgroupRecord, statistics: Option<&Statistics>) {
        let unified = record.flags & UNIFIED != 0;
        let MemoryRecord {
            memory: PageCounter { failcnt, .. },
            memory_events: events,
            ..
        } = record.memory;
        self.limit_hits = if unified { events[MEMCG_MAX] } else { failcnt };
        self.over_high = unified.then_some(events[MEMCG_HIGH]);
        self.over_max = unified.then_some(events[MEMCG_MAX]);
        if let Some(statistics) = statistics {
            self.faults = statistics.faults;
            self.major_faults = statistics.major_faults;
            self.own_faults = statistics.own_faults;
            self.own_major_faults = statistics.own_major_faults;
            self.scanned = statistics.scanned;
            self.stolen = statistics.stolen;
            self.refault_anon = statistics.refault_anon;
            self.refault_file = statistics.refault_file;
        }
    }
}

impl Source for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        vec![&mut self.numbers]
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> Result<()> {
        let (tree, kernel) = (inputs.tree, inputs.statistics()?);
        if !self.layout.is_known() && self.attempts < ATTEMPTS {
            self.learn(kernel);
        }
        for (node, record) in std::mem::take(&mut self.early) {
            self.take(node, &record);
        }
        let mut column = std::mem::take(&mut self.numbers);
        let result = self.read(tree, kernel, &mut column.places(tree.capacity()));
        self.numbers = column;
        result
    }

    fn change(&mut self, change: &Change<'_>) {
        if let Change::Made { node, again: true } = *change
            && let Some(numbers) = self.numbers.held_mut(node)
        {
            numbers.levels = None;
        }
        if let Change::Reaped { node, .. } = *change {
            self.early.retain(|&(of, _)| of != node);
        }
        if let Some((node, record)) = change.final_record()
            && record.flags & HAS_MEMORY != 0
        {
            let waits = !self.layout.is_known() && self.attempts == 0;
            if waits && self.early.len() < MOST_EARLY {
                self.early.push((node, *record));
            } else {
                self.take(node, record);
            }
        }
    }

    fn report(&self) -> SourceReport {
        let note = self.doubt.as_ref().map(|doubt| {
            format!(
                "memory.stat is read from each cgroup's file, because the layout of the kernel's table is unknown: {doubt}"
            )
        });
        SourceReport {
            note,
            ..SourceReport::default()
        }
    }

    fn reading(&self) -> Box<dyn Reading> {
        Table::reading(METRICS, &self.numbers)
    }
}
