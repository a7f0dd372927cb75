//! File systems of the host: size and usage, with cAdvisor's names, at id="/".
//!
//! Values come from statvfs(3) for each block device that is mounted in the agent's mount
//! namespace. In a container, mount the host's root somewhere, and its devices are found there.
//! Oracle: statvfs(3) by the test, df (tests/live/filesystem.rs).
//!
//! A file system counts if its source is a device (`/dev/...`). It counts once, however often it is
//! mounted. Images that are always full (squashfs, iso9660 and the like) are left out, as in
//! node_exporter. A device that does not answer delays a single scrape, by at most [`PATIENCE`]: a
//! separate thread queries it, see [`Prober`], and it is absent until it answers.

mod mounts;
mod prober;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Result;

use super::{Change, Inputs, Partly, Reading, Registration, Source, values::PerNode};
use crate::{
    cgroup::{Nodes, ROOT},
    exposition::{Encoder, Family, Labels, MetricKind, Unit, Value},
    kernel::{programs::Requirement, system::FileSystem},
};
use prober::Prober;

/// How long a scrape waits for the next answer. The thread may also have to wait for a CPU.
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
        kind: MetricKind::Gauge,
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
            "Space used on a mounted device; only for the root.",
            Unit::Bytes,
            "statvfs(3): f_blocks - f_bfree",
            "statvfs(3), df",
        ),
        |fs| Some(fs.blocks.saturating_sub(fs.free) * fs.block_size),
    ),
    (
        family(
            "container_fs_limit_bytes",
            "Size of a mounted device, including space reserved for the superuser; only for the root.",
            Unit::Bytes,
            "statvfs(3): f_blocks",
            "statvfs(3), df",
        ),
        |fs| Some(fs.blocks * fs.block_size),
    ),
    (
        family(
            "container_fs_inodes_free",
            "Free inodes; absent if the file system allocates inodes dynamically.",
            Unit::None,
            "statvfs(3): f_ffree",
            "statvfs(3), df -i",
        ),
        |fs| (fs.inodes > 0).then_some(fs.inodes_free),
    ),
    (
        family(
            "container_fs_inodes_total",
            "Number of inodes; absent if the file system allocates inodes dynamically.",
            Unit::None,
            "statvfs(3): f_files",
            "statvfs(3), df -i",
        ),
        |fs| (fs.inodes > 0).then_some(fs.inodes),
    ),
];

/// Registers the source `filesystem` in [`super::SOURCES`].
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

    fn collect(&mut self, _inputs: &Inputs<'_>) -> Result<()> {
        let round = self.prober.ask(PATIENCE);
        self.found = Arc::new(round.found);
        if round.errors.is_empty() {
            return Ok(());
        }
        Err(Partly(round.errors.join("; ")).into())
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
