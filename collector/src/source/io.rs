//! I/O that the io controller has charged to cgroups, by device: io.stat without reading its files.
//!
//! Program: `cgroup_iterator` (collector-ebpf/src/cgroup_iterator.rs): `blkcg_gq.iostat`. The
//! kernel counts submitted I/O here (block/blk-cgroup.c, blk_cgroup_bio_start); the `block` source
//! counts completed I/O. Only if the controller is in cgroup2. Oracle: io.stat (tests/live/io.rs).

use anyhow::Result;

use super::{
    Change, Inputs, Reading, Registration, Source,
    devices::Devices,
    series::Series,
    values::{Column, Continued, PerNode, Things, sums},
};
use crate::{
    cgroup::{NodeId, Nodes, Tree},
    exposition::{Encoder, Family, Labels, MetricKind, Unit, Value},
    kernel::programs::{NotOnThisHost, Requirement},
};

const BYTES: Family = Family {
    name: "container_io_charged_bytes_total",
    help: "Bytes charged by the io controller, by device and operation (read, write, discard).",
    kind: MetricKind::Counter,
    unit: Unit::Bytes,
    labels: &["device", "operation"],
    origin: "cgroup_iterator: blkcg_gq.iostat.cur.bytes",
    oracle: "io.stat: rbytes, wbytes, dbytes",
};

const OPERATIONS: Family = Family {
    name: "container_io_charged_operations_total",
    help: "I/O requests (bios) charged by the io controller, by device and operation.",
    kind: MetricKind::Counter,
    unit: Unit::None,
    labels: &["device", "operation"],
    origin: "cgroup_iterator: blkcg_gq.iostat.cur.ios",
    oracle: "io.stat: rios, wios, dios",
};

/// In the kernel's order (block/blk-cgroup.h, enum blkg_iostat_type).
const KINDS: [&str; 3] = ["read", "write", "discard"];

sums! {
    /// Bytes and operations of one cgroup and device, by [`KINDS`].
    struct Charges {
        bytes: [u64; 3],
        ios: [u64; 3],
    }
}

/// Registers the source `io` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "io",
        required: &["cgroup_iterator"],
        optional: &[],
    },
    families: || vec![&BYTES, &OPERATIONS],
    build: |builder| {
        builder.require_controller("io", "blkcg_gq.iostat")?;
        let file = builder.hierarchies.unified.path.join("cgroup.controllers");
        let controllers = std::fs::read_to_string(file)?;
        if !controllers.split_whitespace().any(|name| name == "io") {
            let missing = "the io controller is not in cgroup2, and v1 does not count this";
            return Err(NotOnThisHost(missing.to_owned()).into());
        }
        Ok(Box::new(Io::new()))
    },
};

#[derive(Debug)]
struct Io {
    devices: Devices,
    /// Values by node and device.
    charges: Column<Continued<Things<Charges>>>,
    series: Series,
}

impl Io {
    fn new() -> Self {
        Self {
            devices: Devices::default(),
            charges: Column::default(),
            series: Series::new((SOURCE.families)()),
        }
    }

    /// Makes the labels of new devices.
    fn label(&mut self, tree: &Tree) {
        for (number, node) in tree.iter() {
            let Some(charges) = self.charges.get(number) else {
                continue;
            };
            let total = charges.total();
            let devices = total.iter().map(|(device, _)| device);
            self.series.name(number, &node.labels, devices, |device| {
                let device = self.devices.get(device as u32);
                vec![("device", device.name.clone())]
            });
        }
    }
}

impl Source for Io {
    fn name(&self) -> &'static str {
        "io"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        vec![&mut self.charges, &mut self.series]
    }

    /// Also what living cgroups have: of one that is gone when the next agent comes, nobody else knows it.
    fn save(&mut self, nodes: &[NodeId], each: &mut dyn FnMut(NodeId, &[u64])) {
        for &node in nodes {
            self.save_end(node, &mut |words| each(node, words));
        }
    }

    fn collect(&mut self, inputs: &Inputs<'_>) -> Result<()> {
        let (tree, statistics) = (inputs.tree, inputs.statistics()?);
        let mut charges = self.charges.places(tree.capacity());
        for record in statistics.devices() {
            // The id of an earlier cgroup with the same path, which the kernel may still have,
            // leads to the same node.
            let of_record = tree.by_id(record.id).filter(|&number| {
                let node = tree.node(number);
                node.is_some_and(|node| node.id == record.id)
            });
            if record.ios != [0; 3]
                && let Some(number) = of_record
                && let Some(now) = charges[number].reading_of(record.id)
            {
                *now.of(record.device) = Charges {
                    bytes: record.bytes,
                    ios: record.ios,
                };
            }
        }
        self.label(tree);
        Ok(())
    }

    fn change(&mut self, change: &Change<'_>) {
        if let Change::Relabelled { node } = *change {
            self.series.relabel(node);
        }
    }

    fn reading(&self) -> Box<dyn Reading> {
        Box::new(IoReading {
            charges: self.charges.clone(),
            series: self.series.clone(),
        })
    }
}

/// What the source serves in one frame.
struct IoReading {
    charges: Column<Continued<Things<Charges>>>,
    series: Series,
}

impl Reading for IoReading {
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
        let read: [fn(&Charges) -> &[u64; 3]; 2] = [|c| &c.bytes, |c| &c.ios];
        let Some(place) = self.series.place(&BYTES) else {
            return;
        };
        for (family, read) in [&BYTES, &OPERATIONS].into_iter().zip(read) {
            out.family(family);
            for (number, _) in nodes.exported() {
                let Some(charges) = self.charges.get(number) else {
                    continue;
                };
                for (device, charges) in charges.total().iter() {
                    let sets = self.series.get(number, device);
                    let Some(labels) = sets.and_then(|sets| sets.get(place)) else {
                        continue;
                    };
                    for (name, &value) in KINDS.iter().zip(read(charges)) {
                        if value > 0 {
                            out.sample(
                                Labels::new(labels, &[("operation", name)]),
                                Value::Count(value),
                            );
                        }
                    }
                }
            }
        }
    }
}
