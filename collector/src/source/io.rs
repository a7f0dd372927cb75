//! What the io controller itself has charged to cgroups, by device: io.stat without its files.
//!
//! Program: `pass` (collector-ebpf/src/pass.rs): `blkcg_gq.iostat`. The kernel counts here what was
//! submitted (block/blk-cgroup.c, blk_cgroup_bio_start), `block` what was completed. Only where the
//! controller is in cgroup2: v1 has other books. Oracle: io.stat (tests/live/io.rs).

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::{Registration, Snapshot, Source, devices::Devices};
use crate::{
    cgroup::{NodeId, Tree},
    exposition::{Family, Kind, LabelSet, Unit, Value, Writer},
    kernel::programs::Requirement,
};

const BYTES: Family = Family {
    name: "container_io_charged_bytes_total",
    help: "Bytes that the io controller has charged by device and operation: read, write, discard.",
    kind: Kind::Counter,
    unit: Unit::Bytes,
    labels: &["device", "operation"],
    origin: "pass: blkcg_gq.iostat.cur.bytes",
    oracle: "io.stat: rbytes, wbytes, dbytes",
};

const OPERATIONS: Family = Family {
    name: "container_io_charged_operations_total",
    help: "I/O requests (bios) that the io controller has charged by device and operation.",
    kind: Kind::Counter,
    unit: Unit::None,
    labels: &["device", "operation"],
    origin: "pass: blkcg_gq.iostat.cur.ios",
    oracle: "io.stat: rios, wios, dios",
};

/// In the kernel's order (block/blk-cgroup.h, enum blkg_iostat_type).
const KINDS: [&str; 3] = ["read", "write", "discard"];

/// Bytes and operations of one cgroup and device.
#[derive(Clone, Copy, Debug, Default)]
struct Charges {
    bytes: [u64; 3],
    ios: [u64; 3],
}

#[derive(Clone, Debug)]
struct Row {
    /// Absent until the next reading.
    labels: Option<LabelSet>,
    /// What predecessors of the same path had.
    earlier: Charges,
    now: Charges,
}

/// The source.
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "io",
        required: &["pass"],
        optional: &[],
    },
    families: || vec![&BYTES, &OPERATIONS],
    build: |builder| {
        builder.require_controller("io", "blkcg_gq.iostat")?;
        let file = builder.hierarchies.unified.path.join("cgroup.controllers");
        let controllers = std::fs::read_to_string(file)?;
        if !controllers.split_whitespace().any(|name| name == "io") {
            bail!("the io controller is not in cgroup2, and v1 keeps no such books");
        }
        Ok(Box::new(Io::default()))
    },
};

#[derive(Debug, Default)]
struct Io {
    devices: Devices,
    /// By node and device.
    rows: Vec<BTreeMap<u32, Row>>,
}

impl Io {
    /// Names rows that are new, or whose node is called otherwise now.
    fn label(&mut self, tree: &Tree) {
        for (number, node) in tree.iter() {
            for (&device, row) in self.rows.get_mut(number).into_iter().flatten() {
                row.labels.get_or_insert_with(|| {
                    let device = self.devices.get(device);
                    node.labels.with([("device", device.name.as_str())])
                });
            }
        }
    }
}

impl Source for Io {
    fn name(&self) -> &'static str {
        "io"
    }

    fn families(&self) -> Vec<&'static Family> {
        (SOURCE.families)()
    }

    fn collect(&mut self, snapshot: &Snapshot<'_>) -> Result<()> {
        let (tree, books) = (snapshot.tree, snapshot.books()?);
        self.rows
            .resize(tree.capacity().max(self.rows.len()), BTreeMap::new());
        for record in books.devices() {
            if !tree.knows(record.id) {
                continue;
            }
            // A predecessor of the path that lingers in the kernel leads to the same node.
            let Some(node) = tree.by_id(record.id) else {
                continue;
            };
            if tree.node(node).is_none_or(|node| node.id != record.id) {
                continue;
            }
            let now = Charges {
                bytes: record.bytes,
                ios: record.ios,
            };
            if now.ios == [0; 3] {
                continue;
            }
            let device = record.device as u32;
            let row = self.rows[node].entry(device).or_insert_with(|| Row {
                labels: None,
                earlier: Charges::default(),
                now,
            });
            row.now = now;
        }
        self.label(tree);
        Ok(())
    }

    fn relabel(&mut self, node: NodeId) {
        for row in self
            .rows
            .get_mut(node)
            .into_iter()
            .flat_map(BTreeMap::values_mut)
        {
            row.labels = None;
        }
    }

    fn fold(&mut self, from: NodeId, _into: NodeId) {
        // The kernel charges a child's I/O to its ancestors as well.
        if let Some(rows) = self.rows.get_mut(from) {
            rows.clear();
        }
    }

    fn revive(&mut self, node: NodeId) {
        for row in self
            .rows
            .get_mut(node)
            .into_iter()
            .flat_map(|rows| rows.values_mut())
        {
            let now = std::mem::take(&mut row.now);
            for kind in 0..KINDS.len() {
                row.earlier.bytes[kind] += now.bytes[kind];
                row.earlier.ios[kind] += now.ios[kind];
            }
        }
    }

    fn encode(&self, tree: &Tree, writer: &mut Writer) {
        let read: [fn(&Charges) -> &[u64; 3]; 2] = [|c| &c.bytes, |c| &c.ios];
        for (family, read) in [&BYTES, &OPERATIONS].into_iter().zip(read) {
            writer.family(family);
            for (number, _) in tree.iter().filter(|(_, node)| node.exported) {
                for row in self
                    .rows
                    .get(number)
                    .into_iter()
                    .flat_map(|rows| rows.values())
                {
                    let Some(labels) = &row.labels else {
                        continue;
                    };
                    for (kind, name) in KINDS.iter().enumerate() {
                        let value = read(&row.earlier)[kind] + read(&row.now)[kind];
                        if value > 0 {
                            writer.sample(labels, &[("operation", name)], Value::Count(value));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::{
        cgroup::{Event, Filter, found},
        exposition::Format,
    };

    fn labels(io: &Io, tree: &Tree) -> Vec<String> {
        let mut writer = Writer::new(Format::Text, BytesMut::new());
        io.encode(tree, &mut writer);
        let text = String::from_utf8(writer.finish().to_vec()).unwrap();
        let series = text.lines().filter(|line| !line.starts_with('#'));
        series
            .filter_map(|line| Some(line.split_once("{")?.1.split_once(",device=")?.0.to_owned()))
            .collect()
    }

    #[test]
    fn a_node_that_is_called_otherwise_has_its_series_called_so() {
        // A node number that is used again, by a cgroup with another path.
        let mut tree = Tree::new(&[found(1, 0, ""), found(2, 1, "a")], Filter::default());
        let node = tree.by_id(2).unwrap();
        let mut io = Io::default();
        let charged = Charges {
            bytes: [0; 3],
            ios: [1, 0, 0],
        };
        let row = Row {
            labels: None,
            earlier: Charges::default(),
            now: charged,
        };
        io.rows = vec![BTreeMap::new(); node + 1];
        io.rows[node].insert(1, row);
        io.label(&tree);
        assert_eq!(labels(&io, &tree), ["id=\"/a\""]);
        let at = std::time::SystemTime::now();
        tree.apply(&Event::Removed { id: 2, at });
        tree.reap(at, std::time::Duration::ZERO, |_| false, |_, _| {});
        tree.apply(&Event::Made {
            id: 3,
            parent: 1,
            name: b"b.service".to_vec(),
            at,
        });
        assert_eq!(tree.by_id(3), Some(node));
        io.relabel(node);
        io.label(&tree);
        assert_eq!(labels(&io, &tree), ["id=\"/b.service\",name=\"b.service\""]);
    }
}
