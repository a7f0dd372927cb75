//! What tests need from the machine and the run.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cgroup::{self, Hierarchy},
    trace,
};

/// What a test needs in order to run.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Root, a BTF kernel and the agent's binary.
    Agent,
    /// The agent's binary, but neither root nor BPF.
    Binary,
    /// An example application, built next to the agent.
    Example(&'static str),
    /// A program on the path.
    Program(&'static str),
    /// A module of Debian's Python.
    Python(&'static str),
    /// An environment variable, and a description of its value.
    Variable(&'static str, &'static str),
    /// A program from PyPI, installed by `cargo xtask setup --tests`.
    Venv(&'static str),
    /// At least two CPUs.
    TwoCpus,
    /// CPUs that are not emulated, because the test limits how long things may take.
    RealCpus,
    /// A controller, in cgroup2 or v1.
    Controller(&'static str),
    /// A controller in a v1 hierarchy.
    V1(&'static str),
    /// A controller in cgroup2.
    Unified(&'static str),
    /// A tracing file system.
    Tracing,
    /// Pressure stall information.
    Pressure,
    /// A kernel that can add loop devices.
    Loop,
    /// A kernel that can add zram devices.
    Zram,
    /// The device mapper and its tool.
    DeviceMapper,
    /// A disk that may be overwritten, as in a guest.
    SpareDisk,
    /// A file that shows that the kernel has a feature.
    File(&'static str),
    /// This kernel version or a later one, for features that can't be detected otherwise.
    Kernel(u32, u32),
    /// A virtual machine, because the test changes something that all of a machine has. The text says what.
    Guest(&'static str),
    /// FUSE file systems on block devices.
    FuseBlock,
    /// The long tier (`cargo xtask test --all`), because the test takes long. The text says what
    /// takes so long.
    LongTier(&'static str),
    /// A second run if the first one fails. The text says why it may fail without a fault. Each
    /// rerun is counted, and more than two in a run of `cargo xtask test` fail it.
    #[allow(dead_code, reason = "for tests that turn out to need it")]
    Rerun(&'static str),
}

/// The disk of a guest, where the tests may overwrite every disk.
pub const SPARE_DISK: &str = "/dev/vda";

/// The Python that Debian's packages install modules for.
pub const PYTHON: &str = "/usr/bin/python3";

/// A program from PyPI: in the folder `CGMETER_VENV`, or by default where xtask installs it.
pub fn venv(program: &str) -> PathBuf {
    let folder = std::env::var_os("CGMETER_VENV").map(PathBuf::from);
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv");
    folder.unwrap_or_else(built).join("bin").join(program)
}

/// The path of a program.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Daemons are in the folders of administration programs.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A description of the first need that isn't met.
pub fn missing(needs: &[Need]) -> Option<String> {
    needs.iter().find_map(|need| match need {
        Need::Agent => {
            // SAFETY: always allowed.
            if unsafe { libc::geteuid() } != 0 {
                return Some("needs root".to_owned());
            }
            if std::env::var_os("CGMETER_NO_PRIVILEGED").is_some() {
                return Some("needs root, but CGMETER_NO_PRIVILEGED is set".to_owned());
            }
            if !Path::new("/sys/kernel/btf/vmlinux").exists() {
                return Some("needs a kernel with BTF".to_owned());
            }
            missing(&[Need::Binary])
        }
        Need::Binary => std::env::var_os("CGMETER_BIN")
            .is_none()
            .then(|| "needs CGMETER_BIN, the path of the agent".to_owned()),
        Need::Example(name) => {
            let agent = std::env::var_os("CGMETER_BIN").unwrap_or_default();
            let built = Path::new(&agent).with_file_name(name).is_file();
            (!built).then(|| format!("needs {name} beside the agent: cargo build -p {name}"))
        }
        Need::Program(name) => {
            let found = program(name).is_some();
            (!found).then(|| format!("needs the program {name}"))
        }
        Need::Python(module) => {
            let import = Command::new(PYTHON)
                .args(["-c", &format!("import {module}")])
                .output();
            (!import.is_ok_and(|output| output.status.success()))
                .then(|| format!("needs Python's module {module}"))
        }
        Need::Variable(name, what) => std::env::var_os(name)
            .is_none()
            .then(|| format!("needs {name}, {what}")),
        Need::Venv(program) => (!venv(program).is_file())
            .then(|| format!("needs the program {program}: cargo xtask setup --tests")),
        Need::TwoCpus => {
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            (cpus < 2).then(|| "needs two CPUs".to_owned())
        }
        Need::RealCpus => emulated().then(|| "needs CPUs that are not emulated".to_owned()),
        Need::File(path) => (!Path::new(path).exists()).then(|| format!("needs {path}")),
        Need::Kernel(major, minor) => {
            (kernel() < (*major, *minor)).then(|| format!("needs kernel {major}.{minor} or later"))
        }
        Need::Controller(name) => cgroup::controller(name)
            .is_none()
            .then(|| format!("needs the {name} controller")),
        Need::V1(name) => (!matches!(cgroup::controller(name), Some(Hierarchy::V1(_))))
            .then(|| format!("needs the {name} controller in a v1 hierarchy")),
        Need::Unified(name) => (!matches!(cgroup::controller(name), Some(Hierarchy::V2(_))))
            .then(|| format!("needs the {name} controller in cgroup2")),
        Need::Guest(what) => {
            (!emulated()).then(|| format!("needs a virtual machine, because it changes {what}"))
        }
        Need::FuseBlock => {
            let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
            let known = known.split_whitespace().any(|name| name == "fuseblk");
            (!known || !Path::new("/dev/fuse").exists())
                .then(|| "needs FUSE with file systems on block devices".to_owned())
        }
        Need::Tracing => (!trace::is_there()).then(|| "needs the tracing file system".to_owned()),
        Need::Pressure => std::fs::read("/proc/pressure/cpu")
            .is_err()
            .then(|| "needs a kernel that measures pressure (psi=1)".to_owned()),
        Need::Loop => missing_path("/dev/loop-control", "loop devices"),
        Need::Zram => missing_path(crate::block_device::ZRAM_CONTROL, "zram devices"),
        Need::DeviceMapper => missing_path("/dev/mapper/control", "the device mapper")
            .or_else(|| missing(&[Need::Program("dmsetup")])),
        Need::SpareDisk => match std::env::var_os("CGMETER_EMULATED") {
            Some(_) => missing_path(SPARE_DISK, "a disk"),
            None => {
                Some("needs a disk that may be overwritten, as in a virtual machine".to_owned())
            }
        },
        // These are not needs of the machine: see `harness`.
        Need::LongTier(_) | Need::Rerun(_) => None,
    })
}

/// Whether the CPUs are emulated. Time passes for an emulated CPU even while it can't run.
pub fn emulated() -> bool {
    std::env::var_os("CGMETER_EMULATED").is_some()
}

fn missing_path(path: &str, what: &str) -> Option<String> {
    (!Path::new(path).exists()).then(|| format!("needs {what} ({path})"))
}

/// The running kernel's version.
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
