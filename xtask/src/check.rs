//! `check`: all that needs no root.

use anyhow::{Result, bail};

use crate::{
    docs::docs,
    setup::setup,
    shell::{cargo, root, run, watched},
    test::Counts,
};

/// Formatting, lints and docs of both sides, and unit tests; returns how many of these ran.
pub fn check() -> Result<Counts> {
    setup()?;
    let kernel_side = root().join("collector-ebpf");
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    run(cargo(&["fmt", "--check"]).current_dir(&kernel_side))?;
    run(&mut cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))?;
    lint_kernel_side()?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--locked"]);
    run(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    docs(true)?;
    let mut counts = Counts::default();
    let mut unit = cargo(&[
        "test",
        "--workspace",
        "--locked",
        "--exclude",
        "cgmeter-tests",
    ]);
    let passed = watched(&mut unit, |line| counts.add(line))?;
    if !passed {
        bail!("unit tests failed");
    }
    Ok(counts)
}

/// Lints the kernel programs for the host's target: clippy comes with stable Rust, which has no core
/// for BPF, and lints need no code to be generated.
fn lint_kernel_side() -> Result<()> {
    let mut command = cargo(&["clippy", "--release", "--locked", "--target-dir"]);
    command
        .arg(root().join("target/ebpf-lints"))
        .args(["--", "-D", "warnings"])
        .current_dir(root().join("collector-ebpf"))
        .env("RUSTC_BOOTSTRAP", "1");
    run(&mut command)
}
