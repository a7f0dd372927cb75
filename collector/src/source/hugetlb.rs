//! Huge pages, from the hugetlb controller's books.
//!
//! Program: `pass` (collector-ebpf/src/pass.rs). Oracle: hugetlb.*.current, hugetlb.*.events, and
//! v1's usage_in_bytes, max_usage_in_bytes, failcnt (tests/live/memory.rs).

use anyhow::Result;
use collector_common::pass::{CgroupRecord, HUGE_SIZES, PageCounter};

use super::{Part, Registration, Snapshot, Source};
use crate::{
    cgroup::{NodeId, ROOT, Tree},
    exposition::{Family, Kind, Unit, Value, Writer},
    kernel::{self, programs::Requirement},
};

const fn family(name: &'static str, help: &'static str, kind: Kind, unit: Unit) -> Family {
    Family {
        name,
        help,
        kind,
        unit,
        labels: &["pagesize"],
        origin: "pass: hugetlb_cgroup.hugepage",
        oracle: "hugetlb.SIZE.current, hugetlb.SIZE.max_usage_in_bytes, hugetlb.SIZE.failcnt",
    }
}

const USAGE: Family = family(
    "container_hugetlb_usage_bytes",
    "Huge pages in use.",
    Kind::Gauge,
    Unit::Bytes,
);
const MAX_USAGE: Family = family(
    "container_hugetlb_max_usage_bytes",
    "Highest use of huge pages so far.",
    Kind::Gauge,
    Unit::Bytes,
);
const FAILCNT: Family = family(
    "container_hugetlb_failcnt",
    "Times that the limit of huge pages was hit; where the kernel counts that.",
    Kind::Counter,
    Unit::None,
);

/// The source.
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "hugetlb",
        required: &["pass"],
        optional: &[],
    },
    families: || vec![&USAGE, &MAX_USAGE, &FAILCNT],
    build: |builder| {
        builder.require_controller("hugetlb", "hugetlb_cgroup.hugepage")?;
        Ok(Box::new(Hugetlb {
            sizes: Default::default(),
            page: kernel::page_size(),
            numbers: Vec::new(),
        }))
    },
};

#[derive(Debug)]
struct Hugetlb {
    /// The kernel's sizes as cAdvisor writes them; empty where there is none.
    sizes: [String; HUGE_SIZES],
    page: u64,
    numbers: Vec<Option<[PageCounter; HUGE_SIZES]>>,
}

/// The size whose counter has this highest value: a new cgroup's limit is the largest number of
/// pages that is a multiple of the size (mm/hugetlb_cgroup.c, hugetlb_cgroup_init).
fn size(max: u64, page: u64) -> String {
    if max == 0 {
        return String::new();
    }
    let bytes = page << max.trailing_zeros();
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

    fn families(&self) -> Vec<&'static Family> {
        (SOURCE.families)()
    }

    fn collect(&mut self, snapshot: &Snapshot<'_>) -> Result<()> {
        let (tree, books) = (snapshot.tree, snapshot.books()?);
        self.numbers
            .resize(tree.capacity().max(self.numbers.len()), None);
        if let Some(root) = books.part(ROOT, Part::Hugetlb) {
            self.sizes = root.hugetlb.map(|counter| size(counter.max, self.page));
        }
        for (number, _) in tree.iter().filter(|(number, _)| *number != ROOT) {
            if let Some(record) = books.part(number, Part::Hugetlb) {
                self.numbers[number] = Some(record.hugetlb);
            }
        }
        Ok(())
    }

    fn last(&mut self, node: NodeId, record: &CgroupRecord) {
        if let Some(Some(numbers)) = self.numbers.get_mut(node) {
            *numbers = record.hugetlb;
        }
    }

    fn fold(&mut self, from: NodeId, _into: NodeId) {
        if let Some(numbers) = self.numbers.get_mut(from) {
            *numbers = None;
        }
    }

    fn encode(&self, tree: &Tree, writer: &mut Writer) {
        let read: [fn(&PageCounter) -> u64; 3] = [|c| c.usage, |c| c.watermark, |c| c.failcnt];
        for (family, read) in [&USAGE, &MAX_USAGE, &FAILCNT].into_iter().zip(read) {
            writer.family(family);
            let scale = if family.unit == Unit::Bytes {
                self.page
            } else {
                1
            };
            for (number, node) in tree.iter().filter(|(_, node)| node.exported) {
                if family.kind == Kind::Gauge && node.died.is_some() {
                    continue;
                }
                let Some(Some(numbers)) = self.numbers.get(number) else {
                    continue;
                };
                for (size, counter) in self.sizes.iter().zip(numbers) {
                    if !size.is_empty() {
                        let value = Value::Count(read(counter) * scale);
                        writer.sample(&node.labels, &[("pagesize", size)], value);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_from_limits() {
        // PAGE_COUNTER_MAX of 64-bit kernels.
        let highest = (1u64 << 51) - 1;
        assert_eq!(size(highest & !511, 4096), "2MB");
        assert_eq!(size(highest & !((1 << 18) - 1), 4096), "1GB");
        assert_eq!(size(highest & !15, 4096), "64KB");
        assert_eq!(size(0, 4096), "");
    }
}
