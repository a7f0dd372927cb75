//! Kernel statistics of every cgroup, read by the cgroup iterator, one run per hierarchy, and
//! joined to the tree.
//!
//! Program: `cgroup_iterator` (collector-ebpf/src/cgroup_iterator.rs). Sources read their parts of
//! the records: `cpu`, `memory`, `hugetlb`, `pids`, `pressure`, `io`.
//!
//! On a hybrid host controllers are in v1 hierarchies. The iterator runs over those as well, and
//! their cgroups are joined to those of cgroup2 by path. Invariant: no file of a cgroup is opened,
//! except for cgroups just below the root: reading their files makes the kernel flush the
//! statistics of the subtree.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use collector_common::cgroup_iterator::{
    CgroupRecord, DYING, FinalRecordKey, HAS_CPU, HAS_HUGETLB, HAS_MEMORY, HAS_PIDS, HAS_PRESSURE,
    IoRecord, UNIFIED,
};

use super::kernel_file::KernelFile;
use crate::{
    cgroup::{Found, Hierarchies, NodeId, ROOT, Tree, V1Mount, V1Paths},
    kernel::{
        cgroup_iterator::{CgroupIterator, CgroupIteratorLink},
        load::Kernel,
        map::Map,
        open_files,
    },
};

/// A part of a record, which a kernel or hierarchy may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// CPU time; only in cgroup2.
    Time,
    /// What the cpu controller counts.
    Cpu,
    /// What the memory controller counts.
    Memory,
    /// What the pids controller counts.
    Pids,
    /// What the hugetlb controller counts.
    Hugetlb,
    /// Pressure; only in cgroup2.
    Pressure,
}

/// Parts, and the flags of records that contain them.
const PARTS: [(Part, u64); 6] = [
    (Part::Time, UNIFIED),
    (Part::Cpu, HAS_CPU),
    (Part::Memory, HAS_MEMORY),
    (Part::Pids, HAS_PIDS),
    (Part::Hugetlb, HAS_HUGETLB),
    (Part::Pressure, HAS_PRESSURE),
];

/// A cgroup was created or removed in a v1 hierarchy.
#[derive(Clone, Debug)]
pub struct V1Event {
    /// Number of the hierarchy; 0 is cgroup2.
    pub hierarchy: u32,
    /// Id of the cgroup.
    pub id: u64,
    /// The parent's id and the directory's name if it was created, `None` if it was removed.
    pub made: Option<(u64, Vec<u8>)>,
    /// Its final record if it was removed and there is one.
    pub record: Option<CgroupRecord>,
}

/// A mounted v1 hierarchy whose statistics are read.
#[derive(Debug)]
struct V1Hierarchy {
    link: CgroupIteratorLink,
    mount: V1Mount,
    paths: V1Paths,
}

/// Times from the root's cpu.stat, ns. The root's cgroup has no such statistics; the kernel
/// computes them from those of the CPUs.
#[derive(Clone, Copy, Debug, Default)]
pub struct RootTimes {
    /// `usage_usec` of cpu.stat, in ns.
    pub usage_ns: u64,
    /// `user_usec` of cpu.stat, in ns.
    pub user_ns: u64,
    /// `system_usec` of cpu.stat, in ns.
    pub system_ns: u64,
}

/// Kernel statistics of all cgroups.
#[derive(Debug)]
pub struct CgroupStatistics {
    iterator: CgroupIterator,
    unified: CgroupIteratorLink,
    v1: Vec<V1Hierarchy>,
    final_records: Map<FinalRecordKey, CgroupRecord>,
    /// By node and part: the record's number plus one; 0 stands for no record.
    places: Vec<[u32; PARTS.len()]>,
    /// Whether all records of the last frame are there.
    complete: bool,
    root: PathBuf,
    /// Files of the cgroups just below the root. Reading them flushes the statistics.
    flushers: HashMap<NodeId, Vec<File>>,
    /// Maximum number of cgroups whose files stay open for flushing. Usual hosts have few cgroups
    /// below the root; the files of further ones are opened each time.
    most_flushers: usize,
    /// Files of the root.
    cpu_stat: KernelFile,
    io_stat: Option<KernelFile>,
    /// Names of those files.
    flushing: Vec<&'static str>,
    root_times: RootTimes,
    /// Root directory of the hierarchy with the memory controller.
    memory_root: Option<PathBuf>,
    memory_stat: Option<File>,
    memory_text: Vec<u8>,
}

/// Records that the kernel side made when cgroups were removed.
#[derive(Debug, Default)]
pub struct FinalRecords {
    /// Records of cgroup2, by cgroup id.
    pub unified: HashMap<u64, CgroupRecord>,
    /// Records of v1 hierarchies, with the node of the same path.
    pub v1: Vec<(NodeId, CgroupRecord)>,
}

impl CgroupStatistics {
    /// Attaches the cgroup iterator to cgroup2 and to every v1 hierarchy with controllers.
    ///
    /// # Errors
    ///
    /// When the iterator can't be attached.
    pub fn new(
        kernel: &mut Kernel,
        hierarchies: &Hierarchies,
        v1: Vec<(V1Mount, Vec<Found>)>,
    ) -> Result<Self> {
        let iterator = kernel.cgroup_iterator()?;
        let final_records = kernel.final_records()?;
        let link = |path: &Path| {
            let directory =
                File::open(path).with_context(|| format!("opening {}", path.display()))?;
            iterator.link(&directory).with_context(|| {
                format!(
                    "attaching the cgroup iterator to {} (kernel 6.1 or later has it)",
                    path.display()
                )
            })
        };
        let root = hierarchies.unified.path.clone();
        let unified = link(&root)?;
        let mut linked = Vec::new();
        for (mount, found) in v1 {
            linked.push(V1Hierarchy {
                link: link(&mount.mount.path)?,
                mount,
                paths: V1Paths::new(found),
            });
        }
        let controllers =
            std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let has = |name| controllers.split_whitespace().any(|found| found == name);
        let memory_root = if has("memory") {
            Some(root.clone())
        } else {
            let of = |v1: &&V1Hierarchy| v1.mount.controllers.contains(&"memory");
            linked.iter().find(of).map(|v1| v1.mount.mount.path.clone())
        };
        let mut flushing = vec!["cpu.stat"];
        // Since 6.17 each controller flushes only its own statistics.
        flushing.extend(has("io").then_some("io.stat"));
        let files = open_files::statistics(open_files::limit());
        let most_flushers = files as usize / flushing.len();
        Ok(Self {
            iterator,
            unified,
            v1: linked,
            final_records,
            places: Vec::new(),
            complete: false,
            flushers: HashMap::new(),
            most_flushers,
            cpu_stat: KernelFile::new(root.join("cpu.stat")),
            io_stat: has("io").then(|| KernelFile::new(root.join("io.stat"))),
            flushing,
            root_times: RootTimes::default(),
            memory_stat: memory_root
                .as_ref()
                .and_then(|root| File::open(root.join("memory.stat")).ok()),
            memory_root,
            memory_text: Vec::new(),
            root,
        })
    }

    /// Makes the kernel flush its statistics, and reads them all.
    ///
    /// # Errors
    ///
    /// When cpu.stat can't be read or the iterator fails.
    pub fn refresh(&mut self, tree: &Tree) -> Result<()> {
        // After a failure nothing may be read: the records of the last frame may be of cgroups whose
        // node numbers others have now.
        self.complete = false;
        self.places.clear();
        self.flush(tree).context("reading the root's cpu.stat")?;
        self.iterator.clear();
        self.iterator
            .run(&self.unified)
            .context("running the cgroup iterator over cgroup2")?;
        let mut ends = vec![self.iterator.len()];
        for v1 in &self.v1 {
            self.iterator.run(&v1.link).with_context(|| {
                format!(
                    "running the cgroup iterator over {}",
                    v1.mount.mount.path.display()
                )
            })?;
            ends.push(self.iterator.len());
        }
        self.places.resize(tree.capacity(), [0; PARTS.len()]);
        let mut hierarchy = 0;
        for number in 0..self.iterator.len() {
            while number >= ends[hierarchy] {
                hierarchy += 1;
            }
            let (id, flags) = self.iterator.head(number);
            if flags & DYING != 0 {
                continue;
            }
            let node = match hierarchy.checked_sub(1) {
                None => tree.knows(id).then(|| tree.by_id(id)).flatten(),
                Some(v1) => self.v1[v1]
                    .paths
                    .get(id)
                    .and_then(|path| tree.by_path(path)),
            };
            let Some(places) = node.and_then(|node| self.places.get_mut(node)) else {
                continue;
            };
            for (place, (_, flag)) in places.iter_mut().zip(PARTS) {
                if flags & flag != 0 {
                    *place = number as u32 + 1;
                }
            }
        }
        self.complete = true;
        Ok(())
    }

    /// Whether the last [`refresh`](Self::refresh) succeeded.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    fn flush(&mut self, tree: &Tree) -> Result<()> {
        let mut buffer = [0; 512];
        self.flushers.retain(|&number, files| {
            tree.node(number).is_some_and(|node| node.died.is_none())
                && files
                    .iter()
                    .all(|file| file.read_at(&mut buffer, 0).is_ok())
        });
        for (number, node) in tree.iter() {
            if node.parent != Some(ROOT)
                || node.died.is_some()
                || self.flushers.contains_key(&number)
            {
                continue;
            }
            let open = |name: &&str| File::open(below(&self.root, &node.path).join(name));
            let opened = self.flushing.iter().map(open);
            // Where there are no descriptors, it is tried again.
            let without = |error: &io::Error| error.raw_os_error() == Some(libc::EMFILE);
            let opened: Vec<io::Result<File>> = opened.collect();
            let failed = opened
                .iter()
                .filter_map(|file| file.as_ref().err())
                .any(without);
            let files: Vec<File> = opened.into_iter().flatten().collect();
            let read = |file: &File| file.read_at(&mut buffer, 0).is_ok();
            if files.iter().all(read) && !failed && self.flushers.len() < self.most_flushers {
                self.flushers.insert(number, files);
            }
        }
        if let Some(file) = &mut self.io_stat {
            // The root's I/O statistics are computed when its file is read (block/blk-cgroup.c,
            // blkcg_fill_root_iostats).
            file.read()?;
        }
        let text = self.cpu_stat.read()?;
        let [usage, user, system] = ["usage_usec ", "user_usec ", "system_usec "].map(|key| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.parse::<u64>().ok())
        });
        if let (Some(usage), Some(user), Some(system)) = (usage, user, system) {
            self.root_times = RootTimes {
                usage_ns: usage * 1000,
                user_ns: user * 1000,
                system_ns: system * 1000,
            };
        }
        self.memory_text = self.read_memory_stat();
        Ok(())
    }

    /// Reads the root's memory.stat. This flushes the statistics of the whole tree.
    fn read_memory_stat(&self) -> Vec<u8> {
        let mut text = vec![0; 8192];
        let length = self
            .memory_stat
            .as_ref()
            .and_then(|file| file.read_at(&mut text, 0).ok())
            .unwrap_or(0);
        text.truncate(length);
        text
    }

    /// Returns the root's memory.stat as it was just before the iterator ran, and as it is now.
    pub fn root_memory_stat(&self) -> [Vec<u8>; 2] {
        [self.memory_text.clone(), self.read_memory_stat()]
    }

    /// Path of a file in a cgroup's directory of the memory controller.
    pub fn memory_file(&self, path: &[u8], name: &str) -> Option<PathBuf> {
        Some(below(self.memory_root.as_ref()?, path).join(name))
    }

    /// Returns the times of the root's cpu.stat.
    pub fn root_times(&self) -> RootTimes {
        self.root_times
    }

    /// Returns the record with a part of a node's statistics; `None` if the cgroup was removed or
    /// the controller is missing.
    pub fn part(&self, node: NodeId, part: Part) -> Option<CgroupRecord> {
        let column = PARTS.iter().position(|(other, _)| *other == part)?;
        let number = self.places.get(node)?[column].checked_sub(1)?;
        self.iterator.record(number as usize)
    }

    /// Returns the statistics of the io controller, by cgroup and device.
    pub fn devices(&self) -> impl Iterator<Item = IoRecord> + '_ {
        self.iterator.devices()
    }

    /// Applies an event of a v1 hierarchy. If a cgroup was removed whose path is in the tree,
    /// returns its node and final record.
    pub fn v1_event(&mut self, event: &V1Event, tree: &Tree) -> Option<(NodeId, CgroupRecord)> {
        let v1 = self
            .v1
            .iter_mut()
            .find(|v1| v1.mount.mount.hierarchy == event.hierarchy)?;
        match &event.made {
            Some((parent, name)) => {
                v1.paths.place(event.id, *parent, name);
                None
            }
            None => {
                let path = v1.paths.remove(event.id)?;
                Some((tree.by_path(&path)?, event.record?))
            }
        }
    }

    /// Paths of the v1 hierarchies' cgroups, with the hierarchies' numbers.
    pub fn v1_paths(&mut self) -> impl Iterator<Item = (u32, &mut V1Paths)> {
        self.v1
            .iter_mut()
            .map(|v1| (v1.mount.mount.hierarchy, &mut v1.paths))
    }

    /// Takes every final record out of the kernel's map: those of events that were lost. Paths of v1 cgroups
    /// are those that were known before the loss.
    pub fn take_final_records(&mut self, tree: &Tree) -> FinalRecords {
        let (mut keys, mut found) = (Vec::new(), Vec::new());
        let mut records = FinalRecords::default();
        if self.final_records.read_all(&mut keys, &mut found).is_err() {
            return records;
        }
        for key in keys {
            let Ok(record) = self.final_records.take(&key) else {
                continue;
            };
            let hierarchy = key.hierarchy as u32;
            if hierarchy == 0 {
                if tree.knows(key.cgroup) {
                    records.unified.insert(key.cgroup, record);
                }
                continue;
            }
            let of = |v1: &&V1Hierarchy| v1.mount.mount.hierarchy == hierarchy;
            let path = self
                .v1
                .iter()
                .find(of)
                .and_then(|v1| v1.paths.get(key.cgroup));
            if let Some(node) = path.and_then(|path| tree.by_path(path)) {
                records.v1.push((node, record));
            }
        }
        // Of cgroups with the same path, the older one comes first.
        records.v1.sort_by_key(|(_, record)| record.id);
        records
    }

    /// Walks the v1 hierarchies again, after lost events.
    pub fn walk_again(&mut self) {
        for v1 in &mut self.v1 {
            if let Ok(found) = crate::cgroup::walk(&v1.mount.mount.path) {
                v1.paths = V1Paths::new(found);
            }
        }
    }

    /// Kernel memory of the buffers, bytes.
    pub fn kernel_memory(&self) -> u64 {
        self.iterator.bytes()
    }
}

/// Path of a cgroup's directory below a mount point.
fn below(root: &Path, path: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(
        path.get(1..).unwrap_or_default(),
    ))
}
