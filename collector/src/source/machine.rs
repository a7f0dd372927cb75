//! The machine: CPUs, memory and swap space, with cAdvisor's names and labels.
//!
//! Read from /sys/devices/system/cpu, again when CPUs go online or offline, and by sysinfo(2) at
//! each scrape. The identity is read once, at the start. Oracle: /proc/cpuinfo, /proc/meminfo,
//! lscpu (tests/live/machine.rs).

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    Change, Inputs, Reading, Registration, Source, kernel_file::KernelFile, values::PerNode,
};
use crate::{
    cgroup::Nodes,
    exposition::{Encoder, Family, LabelSet, Labels, MetricKind, Unit, Value},
    kernel::{
        programs::Requirement,
        system::{self, HostMemory},
    },
};

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
        labels: &["machine_id", "system_uuid", "boot_id"],
        origin,
        oracle,
    }
}

const CORES: Family = family(
    "machine_cpu_cores",
    "Number of logical CPUs that are online.",
    Unit::None,
    "/sys/devices/system/cpu/online",
    "/proc/cpuinfo",
);
const PHYSICAL_CORES: Family = family(
    "machine_cpu_physical_cores",
    "Number of cores, regardless of their threads.",
    Unit::None,
    "/sys/devices/system/cpu/cpu*/topology",
    "/proc/cpuinfo, lscpu",
);
const SOCKETS: Family = family(
    "machine_cpu_sockets",
    "Number of processor packages (sockets).",
    Unit::None,
    "/sys/devices/system/cpu/cpu*/topology/physical_package_id",
    "/proc/cpuinfo, lscpu",
);
const MEMORY: Family = family(
    "machine_memory_bytes",
    "Memory that the kernel manages.",
    Unit::Bytes,
    "sysinfo(2) totalram",
    "MemTotal in /proc/meminfo",
);
const SWAP: Family = family(
    "machine_swap_bytes",
    "Swap space.",
    Unit::Bytes,
    "sysinfo(2) totalswap",
    "SwapTotal in /proc/meminfo",
);

const FAMILIES: &[&Family] = &[&CORES, &PHYSICAL_CORES, &SOCKETS, &MEMORY, &SWAP];

/// Registers the source `machine` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "machine",
        required: &[],
        optional: &[],
    },
    families: || FAMILIES.to_vec(),
    build: |_| Ok(Box::new(Machine::new("/")?)),
};

/// Numbers of logical CPUs, cores and packages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Topology {
    logical: u64,
    cores: u64,
    sockets: u64,
}

#[derive(Debug)]
struct Machine {
    labels: LabelSet,
    /// The directory /sys/devices/system/cpu, which has one directory for each CPU.
    cpus: PathBuf,
    /// The list of CPUs that are online.
    online: KernelFile,
    /// What that list was when the topology was read.
    known: String,
    topology: Topology,
    memory: Option<HostMemory>,
}

impl Machine {
    /// Reads the machine whose files are below `root`.
    fn new(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let text = |paths: &[&str]| -> String {
            let first = paths
                .iter()
                .filter_map(|path| fs::read_to_string(root.join(path)).ok())
                .map(|text| text.trim_matches(['\0', '\n', ' ']).to_owned())
                .find(|text| !text.is_empty());
            first.unwrap_or_default()
        };
        // The same files as cAdvisor, in its order. A missing file leaves the label out.
        let machine = text(&["etc/machine-id", "var/lib/dbus/machine-id"]);
        let system = text(&[
            "sys/class/dmi/id/product_uuid",
            "proc/device-tree/system-id",
            "proc/device-tree/vm,uuid",
            "etc/machine-id",
        ]);
        let boot = text(&["proc/sys/kernel/random/boot_id"]);
        let cpus = root.join("sys/devices/system/cpu");
        let mut machine = Self {
            labels: LabelSet::new(&[
                ("machine_id", &machine),
                ("system_uuid", &system),
                ("boot_id", &boot),
            ]),
            online: KernelFile::new(cpus.join("online")),
            known: String::new(),
            cpus,
            topology: Topology::default(),
            memory: None,
        };
        machine.refresh()?;
        Ok(machine)
    }

    /// Reads the topology again if CPUs have gone online or offline.
    fn refresh(&mut self) -> Result<()> {
        let online = self.online.read()?;
        if online != self.known {
            self.topology = topology(&self.cpus, &ranges(online)?);
            online.clone_into(&mut self.known);
        }
        Ok(())
    }
}

/// Counts cores and packages. CPUs of one core have the same list of siblings. Without this
/// information every CPU is a core, and all are in one package.
fn topology(cpus: &Path, online: &[u32]) -> Topology {
    let mut cores = BTreeSet::new();
    let mut sockets = BTreeSet::new();
    for cpu in online {
        let folder = cpus.join(format!("cpu{cpu}/topology"));
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        // thread_siblings_list is the name before 5.3.
        let siblings = read("core_cpus_list").or_else(|| read("thread_siblings_list"));
        cores.insert(siblings.unwrap_or_else(|| cpu.to_string()));
        sockets.insert(read("physical_package_id").unwrap_or_default());
    }
    Topology {
        logical: online.len() as u64,
        cores: cores.len() as u64,
        sockets: sockets.len() as u64,
    }
}

/// Parses a list such as `0-3,8`.
fn ranges(text: &str) -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let parse = |number: &str| {
            number
                .parse::<u32>()
                .with_context(|| format!("{text:?} is not a list of CPUs"))
        };
        numbers.extend(parse(first)?..=parse(last)?);
    }
    Ok(numbers)
}

impl Source for Machine {
    fn name(&self) -> &'static str {
        "machine"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        Vec::new()
    }

    fn change(&mut self, _: &Change<'_>) {}

    fn collect(&mut self, _inputs: &Inputs<'_>) -> Result<()> {
        self.memory = Some(system::memory().context("sysinfo")?);
        self.refresh()
    }

    fn reading(&self) -> Box<dyn Reading> {
        Box::new(MachineReading {
            labels: self.labels.clone(),
            topology: self.topology,
            memory: self.memory,
        })
    }
}

/// What the source serves in one frame.
struct MachineReading {
    labels: LabelSet,
    topology: Topology,
    memory: Option<HostMemory>,
}

impl Reading for MachineReading {
    fn encode(&self, _nodes: &Nodes, out: &mut dyn Encoder) {
        let mut sample = |family: &Family, value: u64| {
            out.family(family);
            out.sample(Labels::new(&self.labels, &[]), Value::Count(value));
        };
        sample(&CORES, self.topology.logical);
        sample(&PHYSICAL_CORES, self.topology.cores);
        sample(&SOCKETS, self.topology.sockets);
        if let Some(memory) = self.memory {
            sample(&MEMORY, memory.total);
            sample(&SWAP, memory.swap_total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(ranges("0\n").unwrap(), [0]);
        assert_eq!(ranges("0-3,8,10-11\n").unwrap(), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(ranges("\n").unwrap(), Vec::<u32>::new());
        assert!(ranges("0-x").is_err());
    }

    /// A machine whose files are in a temporary directory.
    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let folder =
                std::env::temp_dir().join(format!("cgmeter-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            Self(folder)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn cores_and_sockets_and_offline_cpus() {
        let files = Files::new("topology");
        // Two packages of two cores of two threads; core numbers repeat in each package.
        for cpu in 0..8 {
            let topology = format!("sys/devices/system/cpu/cpu{cpu}/topology");
            let first = cpu / 2 * 2;
            files.write(
                &format!("{topology}/core_cpus_list"),
                &format!("{first}-{}\n", first + 1),
            );
            files.write(
                &format!("{topology}/core_id"),
                &format!("{}\n", cpu / 2 % 2),
            );
            files.write(
                &format!("{topology}/physical_package_id"),
                &format!("{}\n", cpu / 4),
            );
        }
        files.write("sys/devices/system/cpu/online", "0-7\n");
        let mut machine = Machine::new(&files.0).unwrap();
        let (logical, cores, sockets) = (8, 4, 2);
        let expected = Topology {
            logical,
            cores,
            sockets,
        };
        assert_eq!(machine.topology, expected);
        files.write("sys/devices/system/cpu/online", "0-3,6\n");
        machine.refresh().unwrap();
        let (logical, cores) = (5, 3);
        let expected = Topology {
            logical,
            cores,
            sockets,
        };
        assert_eq!(machine.topology, expected);
    }

    #[test]
    fn a_machine_without_topology_has_one_socket() {
        let files = Files::new("silent");
        files.write("sys/devices/system/cpu/online", "0-1\n");
        let machine = Machine::new(&files.0).unwrap();
        assert_eq!(machine.topology.cores, 2);
        assert_eq!(machine.topology.sockets, 1);
        assert_eq!(machine.labels, LabelSet::empty());
    }

    #[test]
    fn identity() {
        let files = Files::new("identity");
        files.write("sys/devices/system/cpu/online", "0\n");
        files.write("etc/machine-id", "abc\n");
        files.write("proc/sys/kernel/random/boot_id", "b-1\n");
        let labels = Machine::new(&files.0).unwrap().labels;
        let expected = [
            ("machine_id", "abc"),
            ("system_uuid", "abc"),
            ("boot_id", "b-1"),
        ];
        assert_eq!(labels, LabelSet::new(&expected));
        files.write("proc/device-tree/system-id", "uuid\0");
        let labels = Machine::new(&files.0).unwrap().labels;
        let expected = [
            ("machine_id", "abc"),
            ("system_uuid", "uuid"),
            ("boot_id", "b-1"),
        ];
        assert_eq!(labels, LabelSet::new(&expected));
    }
}
