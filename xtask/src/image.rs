//! `image`: the agent as a container image, from the static binary alone.
//!
//! Invariant: what goes into the image is a folder of this verb's own with exactly two files; the
//! build needs no network and no image of others. Checked by tests/live/image.rs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    setup::setup,
    shell::{cargo, has, root, run, target},
};

/// What static binaries are built for, and how.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// The image's recipe.
const RECIPE: &str = "deploy/docker/Dockerfile";

/// What to make.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only the binary and the folder to build from
    #[arg(long)]
    context_only: bool,
    /// Quickly, rather than for speed
    #[arg(long)]
    quick: bool,
    /// The image's name
    #[arg(long, default_value = concat!("cgmeter:", env!("CARGO_PKG_VERSION")))]
    tag: String,
}

/// Builds the static binary and, with docker, the image.
pub fn image(options: &Options) -> Result<()> {
    if !options.context_only && !has("docker") {
        bail!(
            "there is no docker on the path (Debian: apt-get install docker.io); \
             --context-only makes all but the image"
        );
    }
    setup()?;
    let folder = context(if options.quick { "guest" } else { "release" })?;
    if options.context_only {
        println!("docker build --tag {} {}", options.tag, folder.display());
        return Ok(());
    }
    let mut command = Command::new("docker");
    command.args(["build", "--network", "none", "--tag", &options.tag]);
    // Without BuildKit's plugin, which Debian's docker.io does not bring.
    run(command.arg(&folder).env("DOCKER_BUILDKIT", "0"))
}

/// Builds the static binary by one of cargo's profiles and lays it out to be built from.
pub fn context(profile: &str) -> Result<PathBuf> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the image is for x86-64, and this machine is not"
    );
    let mut command = cargo(&["build", "--locked", "--package", "cgmeter"]);
    command
        .args(["--profile", profile, "--target", TRIPLE])
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    run(&mut command)?;
    let binary = target().join(TRIPLE).join(profile).join("cgmeter");
    let folder = target().join("image");
    lay_out(&binary, &folder)?;
    println!("static binary and recipe: {}", folder.display());
    Ok(folder)
}

/// A new folder with the binary, its debug information off, and the recipe.
fn lay_out(binary: &Path, folder: &Path) -> Result<()> {
    let told = || format!("making {}", folder.display());
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir_all(folder),
    }
    .with_context(told)?;
    let inside = folder.join("cgmeter");
    let mut strip = Command::new("strip");
    strip.args(["--strip-debug", "-o"]).arg(&inside).arg(binary);
    run(&mut strip)?;
    let wants = wants_loader(&fs::read(&inside)?);
    ensure!(
        !wants.with_context(|| format!("{} is no 64-bit program", inside.display()))?,
        "{} wants a dynamic loader, which an empty image does not have",
        inside.display()
    );
    fs::copy(root().join(RECIPE), folder.join("Dockerfile")).with_context(told)?;
    Ok(())
}

/// Whether a 64-bit ELF file of this byte order has a program header PT_INTERP (elf(5)).
fn wants_loader(file: &[u8]) -> Option<bool> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = file.get(at..at.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
        )
    };
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut wants = false;
    for index in 0..count {
        let at = usize::try_from(table.checked_add(index * size)?).ok()?;
        wants |= number(at, 4)? == PT_INTERP;
    }
    Some(wants)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_binary_is_refused() {
        let folder = std::env::temp_dir().join(format!("xtask-image-{}", std::process::id()));
        // This test, which is dynamic.
        let error = lay_out(&std::env::current_exe().unwrap(), &folder).unwrap_err();
        assert!(error.to_string().contains("dynamic loader"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(wants_loader(b"#!/bin/sh\n"), None);
    }
}
