//! `setup`: what builds the kernel programs, and what the tests compare with.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    shell::{has, is_root, run},
    toolchain,
};

/// Debian's packages that build core for BPF.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];
/// LLVM for bpf-linker: not older than that of the compiler above.
const LLVM: &str = "22";
/// The version of bpf-linker that is known to link for both toolchains.
const BPF_LINKER: &str = "0.13.0";

/// Programs that tests use as oracles or clients, and the Debian packages that have them.
const TEST_PROGRAMS: &[(&str, &str)] = &[("prometheus", "prometheus"), ("promtool", "prometheus")];
/// A Python module that tests use, and its package.
const PROMETHEUS_CLIENT: (&str, &str) = ("prometheus_client", "python3-prometheus-client");
/// The interpreter that Debian's packages install for.
const PYTHON: &str = "/usr/bin/python3";

/// Installs what builds the kernel programs, unless it is there.
pub fn setup() -> Result<()> {
    if let Ok(found) = toolchain::find() {
        println!("kernel programs are built with {}", found.name);
        return Ok(());
    }
    if !has("apt-get") {
        bail!(
            "{}",
            toolchain::find().err().unwrap_or_default()
                + ". This is not Debian, so nothing can be installed from here."
        );
    }
    if !is_root() {
        bail!(
            "{}. Installing them needs root: sudo apt-get install {} llvm-{LLVM}-dev",
            toolchain::find().err().unwrap_or_default(),
            COMPILER_PACKAGES.join(" ")
        );
    }
    println!("installing the toolchain of the kernel programs");
    let llvm = format!("llvm-{LLVM}-dev");
    let packages: Vec<&str> = COMPILER_PACKAGES
        .iter()
        .copied()
        .chain([llvm.as_str()])
        .collect();
    apt_install(&packages)?;
    if toolchain::bpf_linker().is_none() {
        let feature = format!("llvm-{LLVM}");
        run(Command::new("cargo")
            .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"])
            .args(["--no-default-features", "--features", &feature])
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}")))?;
    }
    match toolchain::find() {
        Ok(found) => println!("kernel programs are built with {}", found.name),
        Err(message) => bail!("{message} (it was installed just now, but is not found)"),
    }
    Ok(())
}

/// Installs what the tests use, as far as it can. What is missing in the end is skipped by the
/// tests, loudly.
pub fn setup_tests() -> Result<()> {
    let mut packages: Vec<&str> = TEST_PROGRAMS
        .iter()
        .filter(|(program, _)| !has(program))
        .map(|&(_, package)| package)
        .collect();
    let (module, package) = PROMETHEUS_CLIENT;
    let import = Command::new(PYTHON)
        .args(["-c", &format!("import {module}")])
        .output();
    if !import.is_ok_and(|output| output.status.success()) {
        packages.push(package);
    }
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    if !has("apt-get") || !is_root() {
        println!(
            "some tests will be skipped: {} can't be installed here",
            packages.join(", ")
        );
        return Ok(());
    }
    apt_install(&packages)
}

fn apt_install(packages: &[&str]) -> Result<()> {
    // A package's service must not start: it would take ports that tests and people use.
    let policy = std::path::Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists();
    if ours {
        std::fs::write(policy, "#!/bin/sh\nexit 101\n")?;
        std::fs::set_permissions(policy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let apt = |arguments: &[&str]| {
        run(Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let result = apt(&["update", "-q"]).and_then(|()| {
        let mut arguments = vec!["install", "-q", "-y", "--no-install-recommends"];
        arguments.extend_from_slice(packages);
        apt(&arguments)
    });
    if ours {
        std::fs::remove_file(policy)?;
    }
    result
}
