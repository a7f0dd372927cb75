//! What tests need of the machine.

use std::{fs::OpenOptions, io::Write, path::Path, process::Command};

/// A need.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Root, a BTF kernel and the agent's binary.
    Agent,
    /// The agent's binary alone.
    Binary,
    /// A program on the path.
    Program(&'static str),
    /// A module of Debian's Python.
    Python(&'static str),
    /// Two CPUs.
    TwoCpus,
    /// The cpu controller, in cgroup2 or v1.
    CpuController,
}

/// Python as Debian's packages install for it.
pub const PYTHON: &str = "/usr/bin/python3";

/// The first need that isn't met, in words.
pub fn missing(needs: &[Need]) -> Option<String> {
    needs.iter().find_map(|need| match need {
        Need::Agent => {
            // SAFETY: always allowed.
            if unsafe { libc::geteuid() } != 0 {
                return Some("needs root".to_owned());
            }
            if std::env::var_os("CGMETER_NO_PRIVILEGED").is_some() {
                return Some("needs root, which was told to be left out".to_owned());
            }
            if !Path::new("/sys/kernel/btf/vmlinux").exists() {
                return Some("needs a kernel with BTF".to_owned());
            }
            missing(&[Need::Binary])
        }
        Need::Binary => std::env::var_os("CGMETER_BIN")
            .is_none()
            .then(|| "needs CGMETER_BIN, the path of the agent".to_owned()),
        Need::Program(program) => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
            (!found).then(|| format!("needs the program {program}"))
        }
        Need::Python(module) => {
            let import = Command::new(PYTHON)
                .args(["-c", &format!("import {module}")])
                .output();
            (!import.is_ok_and(|output| output.status.success()))
                .then(|| format!("needs Python's module {module}"))
        }
        Need::TwoCpus => {
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            (cpus < 2).then(|| "needs two CPUs".to_owned())
        }
        Need::CpuController => crate::cgroup::cpu_controller()
            .is_none()
            .then(|| "needs the cpu controller".to_owned()),
    })
}

/// Notes a skipped test where the caller counts them.
pub fn record_skip(name: &str, reason: &str) {
    if let Some(path) = std::env::var_os("CGMETER_SKIPS")
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = writeln!(file, "{name}: {reason}");
    }
}
