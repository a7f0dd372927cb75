//! Huge pages, from the hugetlb controller.
//!
//! Program: `cgroup_iterator` (collector-ebpf/src/cgroup_iterator.rs). Oracle: hugetlb.*.current,
//! hugetlb.*.events, and v1's usage_in_bytes, max_usage_in_bytes, failcnt (tests/live/memory.rs).

use anyhow::Result;
use collector_common::cgroup_iterator::{CgroupRecord, HAS_HUGETLB, HUGE_SIZES, PageCounter};

use super::{
    Change, Inputs, Part, Reading, Registration, Source,
    values::{Column, Continued, PerNode, Retained},
};
use crate::{
    cgroup::{Nodes, ROOT},
    exposition::{Encoder, Family, Labels, MetricKind, Unit, Value},
    kernel::{self, programs::Requirement},
};

const fn family(name: &'static str, help: &'static str, kind: MetricKind, unit: Unit) -> Family {
    Family {
        name,
        help,
        kind,
        unit,
        labels: &["pagesize"],
        origin: "cgroup_iterator: hugetlb_cgroup.hugepage",
        oracle: "hugetlb.SIZE.current, hugetlb.SIZE.max_usage_in_bytes, hugetlb.SIZE.failcnt",
    }
}

const USAGE: Family = family(
    "container_hugetlb_usage_bytes",
    "Huge pages in use.",
    MetricKind::Gauge,
    Unit::Bytes,
);
const MAX_USAGE: Family = family(
    "container_hugetlb_max_usage_bytes",
    "Highest use of huge pages so far.",
    MetricKind::Gauge,
    Unit::Bytes,
);
const FAILCNT: Family = family(
    "container_hugetlb_failcnt",
    "Number of times that the limit of huge pages was hit, if the kernel counts that.",
    MetricKind::Counter,
    Unit::None,
);

/// Registers the source `hugetlb` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "hugetlb",
        required: &["cgroup_iterator"],
        optional: &[],
    },
    families: || FAMILIES.iter().map(|(family, _)| *family).collect(),
    build: |builder| {
        builder.require_controller("hugetlb", "hugetlb_cgroup.hugepage")?;
        let page = kernel::page_size();
        Ok(Box::new(Hugetlb {
            orders: orders(page),
            seen: [None; HUGE_SIZES],
            sizes: Vec::new(),
            page,
            numbers: Column::default(),
        }))
    },
};

/// A node's values, by the kernel's index of a size.
#[derive(Clone, Debug, Default)]
struct HugePages {
    /// Current and highest usage, in base pages; only while the cgroup exists.
    levels: Option<Box<[PageCounter; HUGE_SIZES]>>,
    failures: Continued<[u64; HUGE_SIZES]>,
}

impl Retained for HugePages {
    const SHAPE: u64 = <Continued<[u64; HUGE_SIZES]> as Retained>::SHAPE;

    fn save(&self, words: &mut Vec<u64>) {
        self.failures.save(words);
    }

    fn save_end(&self, words: &mut Vec<u64>) {
        self.failures.save_end(words);
    }

    fn restore(&mut self, words: &mut &[u64]) -> Option<()> {
        self.failures.restore(words)
    }
}

/// How a family is read, by the kernel's index of a size.
type Read = fn(&HugePages) -> Option<[u64; HUGE_SIZES]>;

const FAMILIES: [(&Family, Read); 3] = [
    (&USAGE, |v| {
        Some(v.levels.as_deref()?.map(|counter| counter.usage))
    }),
    (&MAX_USAGE, |v| {
        Some(v.levels.as_deref()?.map(|counter| counter.watermark))
    }),
    (&FAILCNT, |v| {
        let known = v.failures.is_known();
        known.then(|| *v.failures.total())
    }),
];

impl HugePages {
    fn take(&mut self, record: &CgroupRecord) {
        match &mut self.levels {
            Some(levels) => **levels = record.hugetlb,
            None => self.levels = Some(Box::new(record.hugetlb)),
        }
        if let Some(now) = self.failures.reading_of(record.id) {
            *now = record.hugetlb.map(|counter| counter.failcnt);
        }
    }
}

#[derive(Debug)]
struct Hugetlb {
    /// Orders of the kernel's page sizes, largest first.
    orders: Vec<u32>,
    /// By the kernel's index of a size: the smallest power of two of which every limit seen so far
    /// was a multiple.
    seen: [Option<u32>; HUGE_SIZES],
    /// By the kernel's index: the size in cAdvisor's notation.
    sizes: Vec<String>,
    page: u64,
    numbers: Column<HugePages>,
}

/// Orders of the page sizes of this kernel, largest first: `hugepages-2048kB` has order 9.
fn orders(page: u64) -> Vec<u32> {
    let mut orders: Vec<u32> = std::fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kib: u64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            (kib * 1024 / page).checked_ilog2()
        })
        .collect();
    orders.sort_unstable_by(|a, b| b.cmp(a));
    orders.truncate(HUGE_SIZES);
    orders
}

/// Finds out which size has which index in the kernel.
///
/// The kernel numbers sizes in the order of their registration: gigantic ones first
/// (arch/x86/mm/hugetlbpage.c, gigantic_pages_init), unless the command line changes that. A limit
/// is a multiple of its size, and the limit of a new cgroup is the largest possible one
/// (mm/hugetlb_cgroup.c, hugetlb_cgroup_init). So each limit rules out the sizes that do not divide
/// it.
fn assign(orders: &[u32], seen: &[Option<u32>]) -> Vec<u32> {
    let fits = |order: u32, number: usize| seen[number].is_none_or(|seen| order <= seen);
    let mut left = orders.to_vec();
    let mut assigned = vec![0; orders.len()];
    // The most constrained indices choose first, and take the largest possible size.
    let mut numbers: Vec<usize> = (0..orders.len()).collect();
    numbers.sort_by_key(|&number| (seen[number].unwrap_or(u32::MAX), number));
    for number in numbers {
        let at = left
            .iter()
            .position(|&order| fits(order, number))
            .unwrap_or(0);
        assigned[number] = left.remove(at);
    }
    assigned
}

fn text(bytes: u64) -> String {
    match bytes.trailing_zeros() {
        30.. => format!("{}GB", bytes >> 30),
        20.. => format!("{}MB", bytes >> 20),
        _ => format!("{}KB", bytes >> 10),
    }
}

impl Source for Hugetlb {
    fn name(&self) -> &'static str {
        "hugetlb"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        vec![&mut self.numbers]
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> Result<()> {
        let (tree, statistics) = (inputs.tree, inputs.statistics()?);
        let mut column = self.numbers.places(tree.capacity());
        for (number, _) in tree.iter().filter(|(number, _)| *number != ROOT) {
            let Some(record) = statistics.part(number, Part::Hugetlb) else {
                continue;
            };
            column[number].take(&record);
            for (seen, counter) in self.seen.iter_mut().zip(record.hugetlb) {
                if counter.max > 0 {
                    let multiple = counter.max.trailing_zeros();
                    *seen = Some(seen.map_or(multiple, |seen| seen.min(multiple)));
                }
            }
        }
        self.sizes = assign(&self.orders, &self.seen)
            .into_iter()
            .map(|order| text(self.page << order))
            .collect();
        Ok(())
    }

    fn change(&mut self, change: &Change<'_>) {
        if let Change::Made { node, again: true } = *change
            && let Some(numbers) = self.numbers.held_mut(node)
        {
            numbers.levels = None;
        }
        if let Some((node, record)) = change.final_record()
            && record.flags & HAS_HUGETLB != 0
        {
            self.numbers.at(node).take(record);
        }
    }

    fn reading(&self) -> Box<dyn Reading> {
        Box::new(HugetlbReading {
            sizes: self.sizes.clone(),
            page: self.page,
            numbers: self.numbers.clone(),
        })
    }
}

/// What the source serves in one frame.
struct HugetlbReading {
    sizes: Vec<String>,
    page: u64,
    numbers: Column<HugePages>,
}

impl Reading for HugetlbReading {
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
        for (family, read) in FAMILIES {
            out.family(family);
            let scale = if family.unit == Unit::Bytes {
                self.page
            } else {
                1
            };
            for (number, node) in nodes.exported() {
                if !node.serves(family.kind) {
                    continue;
                }
                let Some(values) = self.numbers.get(number).and_then(read) else {
                    continue;
                };
                for (size, value) in self.sizes.iter().zip(values) {
                    let value = Value::Count(value * scale);
                    out.sample(Labels::new(&node.labels, &[("pagesize", size)]), value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gigantic_pages_come_first_unless_limits_rule_it_out() {
        assert_eq!(assign(&[18, 9], &[None, None]), [18, 9]);
        assert_eq!(assign(&[18, 9], &[Some(18), Some(9)]), [18, 9]);
        assert_eq!(assign(&[18, 9], &[Some(9), Some(18)]), [9, 18]);
        assert_eq!(assign(&[18, 9], &[Some(9), None]), [9, 18]);
        // A limit of 4 GiB on pages of 2 MiB rules nothing out.
        assert_eq!(assign(&[18, 9], &[Some(18), Some(20)]), [18, 9]);
    }

    #[test]
    fn sizes_are_written_as_in_the_kernel() {
        assert_eq!(text(2 << 20), "2MB");
        assert_eq!(text(1 << 30), "1GB");
        assert_eq!(text(64 << 10), "64KB");
    }
}
