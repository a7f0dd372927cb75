//! The host's file systems: how large, how full, under cAdvisor's names at id="/".
//!
//! From: statvfs(3) of each block device that is mounted in the agent's mount namespace; in a
//! container, mount the host's root somewhere and its devices are seen there. Oracle: statvfs(3) by
//! the test, df (tests/live/filesystem.rs).
//!
//! A file system counts if its source is a device (`/dev/...`), once, however often it is mounted;
//! images that are always full (squashfs, iso9660 and the like) don't count, as with node_exporter.
//! A device that doesn't answer never holds up a scrape for longer than [`PATIENCE`], once: it is
//! asked by a thread of its own, see [`Prober`], and is absent until it answers.

mod mounts;
mod prober;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Result, bail};

use super::{Change, Reading, Registration, Snapshot, Source, values::PerNode};
use crate::{
    cgroup::{Nodes, ROOT},
    exposition::{Encoder, Family, Kind, Labels, Unit, Value},
    kernel::{programs::Requirement, system::FileSystem},
};
use prober::Prober;

/// How long a scrape waits for the next answer: a thread may have to wait for a CPU as well.
const PATIENCE: Duration = Duration::from_millis(500);

const fn family(
    name: &'static str,
    help: &'static str,
    unit: Unit,
    origin: &'static str,
    oracle: &'static str,
) -> Family {
    Family {
        name,
        help,
        kind: Kind::Gauge,
        unit,
        labels: &["device"],
        origin,
        oracle,
    }
}

/// How a family is read from a file system.
type Read = fn(&FileSystem) -> Option<u64>;

const FAMILIES: [(Family, Read); 4] = [
    (
        family(
            "container_fs_usage_bytes",
            "Space used on a device that is mounted; at the root only.",
            Unit::Bytes,
            "statvfs(3): f_blocks - f_bfree",
            "statvfs(3), df",
        ),
        |fs| Some(fs.blocks.saturating_sub(fs.free) * fs.block_size),
    ),
    (
        family(
            "container_fs_limit_bytes",
            "Space on a device that is mounted, what is reserved for root included; at the root only.",
            Unit::Bytes,
            "statvfs(3): f_blocks",
            "statvfs(3), df",
        ),
        |fs| Some(fs.blocks * fs.block_size),
    ),
    (
        family(
            "container_fs_inodes_free",
            "Free inodes; absent where the file system makes them as needed.",
            Unit::None,
            "statvfs(3): f_ffree",
            "statvfs(3), df -i",
        ),
        |fs| (fs.inodes > 0).then_some(fs.inodes_free),
    ),
    (
        family(
            "container_fs_inodes_total",
            "Inodes; absent where the file system makes them as needed.",
            Unit::None,
            "statvfs(3): f_files",
            "statvfs(3), df -i",
        ),
        |fs| (fs.inodes > 0).then_some(fs.inodes),
    ),
];

/// The source.
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "filesystem",
        required: &[],
        optional: &[],
    },
    families: || {
        const { &FAMILIES }
            .iter()
            .map(|(family, _)| family)
            .collect()
    },
    build: |_| {
        Ok(Box::new(FileSystems {
            prober: Prober::new(|| Ok(Box::new(mounts::Mounts::open()?))),
            found: Arc::default(),
        }))
    },
};

struct FileSystems {
    prober: Prober,
    found: Arc<BTreeMap<String, FileSystem>>,
}

impl Source for FileSystems {
    fn name(&self) -> &'static str {
        "filesystem"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        Vec::new()
    }

    fn change(&mut self, _: &Change<'_>) {}

    fn collect(&mut self, _snapshot: &Snapshot<'_>) -> Result<()> {
        let round = self.prober.ask(PATIENCE);
        self.found = Arc::new(round.found);
        if round.errors.is_empty() {
            return Ok(());
        }
        bail!("{}", round.errors.join("; "))
    }

    fn reading(&self) -> Box<dyn Reading> {
        Box::new(FileSystemsReading {
            found: Arc::clone(&self.found),
        })
    }
}

/// What the source serves in one frame.
struct FileSystemsReading {
    found: Arc<BTreeMap<String, FileSystem>>,
}

impl Reading for FileSystemsReading {
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
        let Some(root) = nodes.node(ROOT).filter(|root| root.exported) else {
            return;
        };
        for (family, read) in &FAMILIES {
            out.family(family);
            for (device, info) in &*self.found {
                if let Some(value) = read(info) {
                    out.sample(
                        Labels::new(&root.labels, &[("device", device)]),
                        Value::Count(value),
                    );
                }
            }
        }
    }
}
