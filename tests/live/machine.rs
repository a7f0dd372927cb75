//! The machine. Oracle: /proc/cpuinfo, /proc/meminfo, lscpu.

use std::{collections::BTreeSet, ffi::CStr, fs, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{Test, agent::Agent, metrics::same, needs::Need};

pub const TESTS: &[Test] = &[
    ("machine::cpus_memory_and_identity", &[Need::Agent], machine),
    ("machine::versions", &[Need::Agent], versions),
    (
        "machine::cores_and_sockets",
        &[Need::Agent, Need::Program("lscpu")],
        topology,
    ),
];

fn machine() -> Result<()> {
    let metrics = Agent::start(&[])?.scrape()?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let cpus = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let labels = [("boot_id", boot.trim())];
    let get = |name: &str| metrics.get(name, &labels);
    same("CPUs", get("machine_cpu_cores")?, cpus as f64)?;
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let bytes = |key: &str| -> Result<f64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.with_context(|| format!("no {key}"))?.parse::<f64>()? * 1024.0)
    };
    same("memory", get("machine_memory_bytes")?, bytes("MemTotal:")?)?;
    same("swap", get("machine_swap_bytes")?, bytes("SwapTotal:")?)?;
    if let Ok(id) = fs::read_to_string("/etc/machine-id")
        && !id.trim().is_empty()
    {
        let labels = [("machine_id", id.trim())];
        ensure!(metrics.has("machine_cpu_cores", &labels), "no {labels:?}");
    }
    Ok(())
}

/// The versions of kernel and system.
fn versions() -> Result<()> {
    let metrics = Agent::start(&[])?.scrape()?;
    // SAFETY: an all-zero structure is a valid one, and it is writable.
    let release = unsafe {
        let mut names: libc::utsname = std::mem::zeroed();
        ensure!(libc::uname(&raw mut names) == 0);
        CStr::from_ptr(names.release.as_ptr()).to_owned()
    };
    // The shell reads the file as os-release(5) says.
    let system = Command::new("sh")
        .args([
            "-c",
            "for f in /proc/1/root/etc/os-release /etc/os-release; do \
             if [ -r $f ]; then . $f; printf %s \"$PRETTY_NAME\"; exit; fi; done",
        ])
        .output()?;
    let (release, system) = (release.into_string()?, String::from_utf8(system.stdout)?);
    let labels = [("kernelVersion", release.as_str()), ("osVersion", &system)];
    same(
        "series",
        metrics.get("cadvisor_version_info", &labels)?,
        1.0,
    )
}

fn topology() -> Result<()> {
    let metrics = Agent::start(&[])?.scrape()?;
    let output = Command::new("lscpu").arg("-p=SOCKET,CORE").output()?;
    let text = String::from_utf8(output.stdout)?;
    let lines: BTreeSet<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let sockets: BTreeSet<&str> = lines
        .iter()
        .filter_map(|line| line.split(',').next())
        .collect();
    ensure!(!sockets.is_empty(), "{text:?}");
    let get = |name: &str| metrics.get(name, &[]);
    same(
        "cores",
        get("machine_cpu_physical_cores")?,
        lines.len() as f64,
    )?;
    same("sockets", get("machine_cpu_sockets")?, sockets.len() as f64)
}
