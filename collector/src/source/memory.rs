//! Memory: usage, limits, statistics and events, from the kernel's books.
//!
//! Program: `pass` (collector-ebpf/src/pass.rs). Oracle: memory.current, memory.max, memory.stat,
//! memory.events and friends, memory.usage_in_bytes and friends in v1 (tests/live/memory.rs).

mod layout;
mod metrics;
mod stat;

use anyhow::{Context, Result};
use collector_common::pass::{CgroupRecord, HAS_MEMORY, MemoryRecord, PageCounter, UNIFIED};

use self::{layout::Layout, metrics::METRICS, stat::Statistics};
use super::{Books, Part, Registration, Snapshot, Source, at, encode};
use crate::{
    cgroup::{NodeId, ROOT, Tree},
    exposition::{Family, Writer},
    kernel::{self, programs::Requirement, system},
};

/// A node's numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// What predecessors of the same path had.
    earlier: Counts,
    counts: Counts,
    /// Only while the cgroup lives and has the memory controller.
    levels: Option<Levels>,
}

/// What only rises.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    known: bool,
    limit_hits: u64,
    /// Only in cgroup2.
    over_high: Option<u64>,
    over_max: Option<u64>,
    statistics: Statistics,
}

/// Bytes.
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

/// No limit from here on: cAdvisor exports such a one as 0.
const UNLIMITED: u64 = 1 << 62;

/// Counters of `mem_cgroup.memory_events` (include/linux/memcontrol.h, enum memcg_memory_event).
const MEMCG_HIGH: usize = 1;
const MEMCG_MAX: usize = 2;

/// The source.
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "memory",
        required: &["pass"],
        optional: &[],
    },
    families: || METRICS.iter().map(|metric| &metric.family).collect(),
    build: |builder| {
        builder.require_controller("memory", "mem_cgroup.memory")?;
        let page = kernel::page_size();
        Ok(Box::new(Memory {
            layout: Layout::new(builder.kernel.types()?, page),
            doubt: None,
            attempts: 0,
            page,
            numbers: Vec::new(),
        }))
    },
};

/// How often the place of statistics is looked for before memory.stat is read for good.
const ATTEMPTS: u32 = 10;

#[derive(Debug)]
struct Memory {
    layout: Layout,
    /// Why the statistics have to be read from files.
    doubt: Option<String>,
    attempts: u32,
    page: u64,
    numbers: Vec<Numbers>,
}

impl Memory {
    /// Learns where the statistics are, from the root.
    fn learn(&mut self, books: &Books) {
        let Some(root) = books.part(ROOT, Part::Memory) else {
            return;
        };
        self.attempts += 1;
        let v1 = root.flags & UNIFIED == 0;
        let [before, after] = books
            .root_memory_stat()
            .map(|text| Statistics::parse(&String::from_utf8_lossy(&text), v1));
        self.doubt = self.layout.learn(&root.memory, &before, &after).err();
    }

    fn statistics(&self, record: &CgroupRecord, path: &[u8], books: &Books) -> Statistics {
        if let Some(statistics) = self.layout.read(&record.memory) {
            return statistics;
        }
        let text = books
            .memory_file(path, "memory.stat")
            .and_then(|path| std::fs::read_to_string(path).ok());
        Statistics::parse(&text.unwrap_or_default(), record.flags & UNIFIED == 0)
    }

    fn bytes(&self, pages: u64) -> u64 {
        pages.saturating_mul(self.page)
    }

    fn levels(&self, record: &CgroupRecord, statistics: Statistics) -> Levels {
        let MemoryRecord {
            memory,
            swap,
            min,
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
            reservation: limit(if v1 { soft_limit } else { min }),
            swap: if v1 {
                statistics.swap
            } else {
                Some(self.bytes(swap.usage))
            },
            swap_limit: limit(swap.max),
            statistics,
        }
    }

    /// The host: nothing is charged to the root itself, so its usage is what is not free.
    fn host(&self, statistics: Statistics) -> Result<Levels> {
        let host = system::memory().context("sysinfo")?;
        Ok(Levels {
            usage: host.total - host.free,
            highest: None,
            limit: 0,
            reservation: 0,
            swap: Some(host.swap_total - host.swap_free),
            swap_limit: 0,
            statistics,
        })
    }
}

fn counts(record: &CgroupRecord, statistics: Statistics) -> Counts {
    let unified = record.flags & UNIFIED != 0;
    let MemoryRecord {
        memory: PageCounter { failcnt, .. },
        memory_events: events,
        ..
    } = record.memory;
    Counts {
        known: true,
        limit_hits: if unified { events[MEMCG_MAX] } else { failcnt },
        over_high: unified.then_some(events[MEMCG_HIGH]),
        over_max: unified.then_some(events[MEMCG_MAX]),
        statistics,
    }
}

impl Source for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn families(&self) -> Vec<&'static Family> {
        METRICS.iter().map(|metric| &metric.family).collect()
    }

    fn collect(&mut self, snapshot: &Snapshot<'_>) -> Result<()> {
        let (tree, books) = (snapshot.tree, snapshot.books()?);
        self.numbers
            .resize(tree.capacity().max(self.numbers.len()), Numbers::default());
        if !self.layout.is_known() && self.attempts < ATTEMPTS {
            self.learn(books);
        }
        for (number, node) in tree.iter() {
            let Some(record) = books.part(number, Part::Memory) else {
                self.numbers[number].levels = None;
                continue;
            };
            let statistics = self.statistics(&record, &node.path, books);
            let levels = if number == ROOT {
                self.host(statistics)?
            } else {
                self.levels(&record, statistics)
            };
            let numbers = &mut self.numbers[number];
            numbers.levels = Some(levels);
            numbers.counts = counts(&record, statistics);
        }
        Ok(())
    }

    fn note(&self) -> Option<String> {
        let doubt = self.doubt.as_ref()?;
        Some(format!(
            "memory.stat is read from each cgroup's file, since the kernel's table is not understood: {doubt}"
        ))
    }

    fn last(&mut self, node: NodeId, record: &CgroupRecord) {
        if record.flags & HAS_MEMORY != 0
            && let Some(statistics) = self.layout.read(&record.memory)
        {
            at(&mut self.numbers, node).counts = counts(record, statistics);
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
            let past = numbers.counts;
            let earlier = &mut numbers.earlier;
            earlier.limit_hits += past.limit_hits;
            earlier.over_high = sum(earlier.over_high, past.over_high);
            earlier.over_max = sum(earlier.over_max, past.over_max);
            let (to, from) = (&mut earlier.statistics, past.statistics);
            for (to, from) in [
                (&mut to.faults, from.faults),
                (&mut to.major_faults, from.major_faults),
                (&mut to.own_faults, from.own_faults),
                (&mut to.own_major_faults, from.own_major_faults),
                (&mut to.scanned, from.scanned),
                (&mut to.stolen, from.stolen),
                (&mut to.refault_anon, from.refault_anon),
                (&mut to.refault_file, from.refault_file),
            ] {
                *to = sum(*to, from);
            }
            numbers.counts = Counts::default();
            numbers.levels = None;
        }
    }

    fn encode(&self, tree: &Tree, writer: &mut Writer) {
        encode(METRICS, tree, &self.numbers, writer);
    }
}

/// The sum of what is known.
fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one + other),
        (one, other) => one.or(other),
    }
}
