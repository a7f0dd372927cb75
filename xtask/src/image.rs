//! `image`: the agent and the example shop as container images, each from its static binary alone.
//!
//! Invariant: an image is built from a folder that holds exactly two files. The build needs neither the
//! network nor a base image. Checked by tests/live/image.rs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    build::{QUICK, TRIPLE, static_cargo},
    setup::setup,
    shell::{has, root, run, target},
};

/// The programs, which are also the images' names, and their recipes.
const IMAGES: [(&str, &str); 2] = [
    ("cgmeter", "deploy/docker/Dockerfile"),
    ("shop", "examples/shop/Dockerfile"),
];

/// Options of the images.
#[derive(Debug, clap::Args)]
pub struct ImageOptions {
    /// Only the binaries and the folders to build from
    #[arg(long)]
    context_only: bool,
    /// Build faster, without link-time optimization
    #[arg(long)]
    quick: bool,
    /// The images' tag
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
}

/// Builds the static binaries and, with docker, the images.
pub fn image(options: &ImageOptions) -> Result<()> {
    if !options.context_only && !has("docker") {
        bail!(
            "there is no docker on the path (Debian: apt-get install docker.io); \
             --context-only makes all but the images"
        );
    }
    setup()?;
    let folder = context(if options.quick { QUICK } else { "release" })?;
    for (name, _) in IMAGES {
        let (tag, folder) = (format!("{name}:{}", options.tag), folder.join(name));
        if options.context_only {
            println!("docker build --tag {tag} {}", folder.display());
            continue;
        }
        let mut command = Command::new("docker");
        command.args(["build", "--network", "none", "--tag", &tag]);
        // Debian's docker.io lacks the plugin of BuildKit.
        run(command.arg(&folder).env("DOCKER_BUILDKIT", "0"))?;
    }
    Ok(())
}

/// Builds the static binaries with a profile of cargo. Returns the folder that holds a build folder for
/// each image.
pub fn context(profile: &str) -> Result<PathBuf> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the images are for x86-64, and this machine is not"
    );
    let mut command = static_cargo("build", profile);
    for (package, _) in IMAGES {
        command.args(["--package", package]);
    }
    run(&mut command)?;
    let folder = target().join("image");
    for (name, recipe) in IMAGES {
        let binary = target().join(TRIPLE).join(profile).join(name);
        lay_out(&binary, &root().join(recipe), &folder.join(name))?;
    }
    Ok(folder)
}

/// Makes a folder with the stripped binary and the Dockerfile.
fn lay_out(binary: &Path, recipe: &Path, folder: &Path) -> Result<()> {
    let making = || format!("making {}", folder.display());
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir_all(folder),
    }
    .with_context(making)?;
    let inside = folder.join(binary.file_name().unwrap_or_default());
    let mut strip = Command::new("strip");
    strip.args(["--strip-debug", "-o"]).arg(&inside).arg(binary);
    run(&mut strip)?;
    let wants = wants_loader(&fs::read(&inside)?);
    ensure!(
        !wants.with_context(|| format!("{} is no 64-bit program", inside.display()))?,
        "{} needs a dynamic loader, which an empty image does not have",
        inside.display()
    );
    fs::copy(recipe, folder.join("Dockerfile")).with_context(making)?;
    Ok(())
}

/// Whether a 64-bit ELF file has a program header PT_INTERP (elf(5)).
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
        // The test binary is linked dynamically.
        let error = lay_out(&std::env::current_exe().unwrap(), Path::new(""), &folder).unwrap_err();
        assert!(error.to_string().contains("dynamic loader"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(wants_loader(b"#!/bin/sh\n"), None);
    }
}
