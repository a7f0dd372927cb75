//! `deny`: the dependencies of both workspaces, by cargo-deny and deny.toml: licences, sources,
//! crates in two versions, and known vulnerabilities where their database can be had.
//!
//! Invariant: what was not checked is a skipped test with a name and a reason.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{
    notes::Skip,
    shell::{cargo, has, root, run, target},
    tally::Tally,
};

/// The test that is skipped where the database of vulnerabilities can't be had.
pub const ADVISORIES: &str = "dependencies::advisories";

/// The cargo-deny that is installed where there is none.
const VERSION: &str = "0.20.2";

/// Seconds for fetching the database: some networks swallow packets instead of refusing them.
const PATIENCE: &str = "60";

/// Runs `cargo xtask deny`.
pub fn deny() -> Result<()> {
    let mut tally = Tally::default();
    step(&mut tally);
    tally.close()
}

/// Checks licences, sources, duplicates and known vulnerabilities.
pub fn step(tally: &mut Tally) {
    tally.counted("dependencies", |counts| {
        install()?;
        check(&["bans", "licenses", "sources"])?;
        counts.passed += 1;
        Ok(())
    });
    let name = "dependencies: advisories";
    if let Err(why) = fetch() {
        let reason = format!("no database of vulnerabilities: {why:#}");
        tally.skip(name, vec![Skip::new(ADVISORIES, reason)]);
        return;
    }
    tally.counted(name, |counts| {
        check(&["--disable-fetch", "advisories"])?;
        counts.passed += 1;
        Ok(())
    });
}

/// Installs cargo-deny, unless it is on the path or was installed here. It is built without
/// optimization and debug information: that is quick, and it still checks in two seconds.
pub fn install() -> Result<()> {
    if has("cargo-deny") || own().is_file() {
        return Ok(());
    }
    println!("building cargo-deny {VERSION}");
    let mut command = cargo(&["install", "--locked", "--debug", "cargo-deny"]);
    command.args(["--version", VERSION, "--root"]);
    command.arg(target().join("tools"));
    // Not the flags and the folder of this workspace's builds.
    for flags in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR"] {
        command.env_remove(flags);
    }
    run(command.env("CARGO_PROFILE_DEV_DEBUG", "0"))
}

/// Where it is installed.
fn own() -> PathBuf {
    target().join("tools/bin/cargo-deny")
}

/// The program: the one on the path, else the one that is installed here.
fn program() -> PathBuf {
    if has("cargo-deny") {
        PathBuf::from("cargo-deny")
    } else {
        own()
    }
}

/// Fetches the database of vulnerabilities.
fn fetch() -> Result<()> {
    let output = Command::new("timeout")
        .arg(PATIENCE)
        .arg(program())
        .args(["--color", "never", "fetch", "db"])
        .current_dir(root())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    bail!(
        "{}",
        last.unwrap_or("cargo-deny fetched none and did not say why")
    )
}

fn check(which: &[&str]) -> Result<()> {
    for (workspace, allowed) in [
        (root(), &[][..]),
        // It shares deny.toml, some lines of which are about the other workspace alone.
        (
            root().join("collector-ebpf"),
            &["license-exception-not-encountered", "unmatched-skip"],
        ),
    ] {
        let mut command = Command::new(program());
        command.current_dir(root()).arg("--manifest-path");
        command.arg(workspace.join("Cargo.toml")).arg("check");
        for lint in allowed {
            command.args(["--allow", lint]);
        }
        run(command.args(which))?;
    }
    Ok(())
}
