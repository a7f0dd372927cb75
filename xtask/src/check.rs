//! `check`: all that needs no root: formatting, lints and docs of both sides, dependencies, the metric
//! reference, and unit tests.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    compose, deny, deploy,
    docs::docs,
    setup::{setup, setup_lints},
    shell::{cargo, root, run, target},
    tally::Tally,
    toolchain,
};

/// Checks what every commit has to pass.
pub fn check() -> Result<()> {
    let mut tally = Tally::default();
    tally.required("setup", setup)?;
    lints(&mut tally);
    deny::step(&mut tally);
    deploy::steps(&mut tally, false);
    compose::steps(&mut tally, false);
    unit_tests(&mut tally, None);
    tally.close()
}

/// Formatting, lints and docs of both sides.
pub fn lints(tally: &mut Tally) {
    tally.step("formatting", || {
        run(&mut cargo(&["fmt", "--all", "--check"]))?;
        run(cargo(&["fmt", "--check"]).current_dir(kernel_side()))
    });
    tally.step("lints", || {
        let all = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ];
        run(&mut cargo(&all))
    });
    tally.step("lints of the kernel programs", || {
        run(kernel_cargo("clippy")?.args(["--", "-D", "warnings"]))
    });
    tally.step("docs", || {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--locked"]);
        run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    });
    tally.step("docs of the kernel programs", || {
        run(kernel_cargo("doc")?
            .arg("--no-deps")
            .env("RUSTDOCFLAGS", "-D warnings"))
    });
    tally.step("metric reference", || docs(true));
}

/// Unit and doc tests whose name contains `filter`.
pub fn unit_tests(tally: &mut Tally, filter: Option<&str>) {
    let mut command = cargo(&[
        "test",
        "--workspace",
        "--locked",
        "--no-fail-fast",
        "--exclude",
        "cgmeter-tests",
    ]);
    if let Some(filter) = filter {
        command.args(["--", filter]);
    }
    tally.tests("unit tests", &mut command);
}

/// cargo for the kernel programs, with their own target: lints then see the code that is loaded, and
/// share dependencies with the build.
fn kernel_cargo(verb: &str) -> Result<std::process::Command> {
    let target = toolchain::target_folder(&target()).unwrap_or_else(|| target().join("ebpf"));
    Ok(setup_lints()?.cargo(verb, &kernel_side(), &target))
}

fn kernel_side() -> PathBuf {
    root().join("collector-ebpf")
}
