//! The compiler and the linker of the kernel programs.
//!
//! Invariant: an error names the missing piece, why it was not installed, and how to get it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{
    apt,
    shell::{cargo, run},
    toolchain::{self, Compiler, Missing, Toolchain},
};

/// Debian's packages that build core for BPF.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];
/// Debian's clippy for that compiler.
const CLIPPY_PACKAGE: &str = "rust-web-clippy";
/// The bpf-linker that is installed where there is none.
const LINKER: &str = "0.13.0";
/// The LLVMs that this bpf-linker can be built with.
const LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// The toolchain of the kernel programs, installed if need be.
pub fn ready() -> Result<Toolchain> {
    // Compiler, then linker, then what both make together.
    for _ in 0..2 {
        match toolchain::find() {
            Ok(found) => return Ok(found),
            Err(missing @ Missing::Compiler(_)) => {
                apt::usable().map_err(|why| unmet(&missing, why))?;
                apt::install(COMPILER_PACKAGES)
                    .map_err(|error| unmet(&missing, &format!("{error:#}")))?;
            }
            Err(missing @ Missing::Linker(_)) => install_linker(&missing)?,
            Err(missing @ Missing::NewerLinker { .. }) => {
                return Err(unmet(
                    &missing,
                    "it is not replaced, since it may serve others",
                ));
            }
        }
    }
    toolchain::find().map_err(|missing| unmet(&missing, "what was installed just now is not found"))
}

/// Builds bpf-linker with an LLVM that reads what the compiler writes.
fn install_linker(missing: &Missing) -> Result<()> {
    let Missing::Linker(Compiler { llvm: needed, .. }) = missing else {
        return Ok(());
    };
    let there = LINKER_LLVMS
        .filter(|llvm| llvm >= needed)
        .find(|&llvm| has_llvm(llvm));
    let llvm = match there {
        Some(llvm) => llvm,
        None => {
            apt::usable().map_err(|why| unmet(missing, why))?;
            apt::install(&[&format!("llvm-{needed}-dev")])
                .map_err(|error| unmet(missing, &format!("{error:#}")))?;
            *needed
        }
    };
    println!("building bpf-linker {LINKER} with LLVM {llvm}");
    let mut command = cargo(&["install", "--locked", "bpf-linker", "--version", LINKER]);
    command.args([
        "--no-default-features",
        "--features",
        &format!("llvm-{llvm}"),
    ]);
    for flags in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR"] {
        command.env_remove(flags);
    }
    run(command.env("LLVM_PREFIX", llvm_prefix(llvm)))
        .map_err(|error| unmet(missing, &format!("{error:#}")))
}

fn llvm_prefix(llvm: u32) -> PathBuf {
    Path::new("/usr/lib").join(format!("llvm-{llvm}"))
}

fn has_llvm(llvm: u32) -> bool {
    let prefix = llvm_prefix(llvm);
    prefix.join("bin/llvm-config").exists() && prefix.join("include/llvm-c/Core.h").exists()
}

/// The error that says what is missing, why it was not installed, and both ways to get it.
fn unmet(missing: &Missing, why: &str) -> anyhow::Error {
    anyhow::anyhow!("{missing}; {why}.\n{}", remedy(missing))
}

fn remedy(missing: &Missing) -> String {
    let rustup = "rustup toolchain install nightly --component rust-src,clippy";
    let debian = format!(
        "apt-get install {} {CLIPPY_PACKAGE}",
        COMPILER_PACKAGES.join(" ")
    );
    let linker = |llvm: &str, force: &str| {
        format!(
            "LLVM_PREFIX=/usr/lib/llvm-{llvm} cargo install bpf-linker{force} --version {LINKER} --locked \
             --no-default-features --features llvm-{llvm}"
        )
    };
    match missing {
        Missing::Compiler(_) => format!(
            "By rustup, with LLVM's development files of the version that `rustc +nightly -vV` shows:\n  \
             {rustup}\n  {}\n\
             By Debian, as root (`cargo xtask setup` does the same):\n  \
             {debian} llvm-22-dev\n  {}",
            linker("N", ""),
            linker("22", "")
        ),
        Missing::Linker(Compiler { llvm, .. }) => format!(
            "With LLVM's development files (Debian: apt-get install llvm-{llvm}-dev; elsewhere name their \
             folder):\n  {}",
            linker(&llvm.to_string(), "")
        ),
        Missing::NewerLinker { compiler, .. } => {
            let llvm = compiler.llvm;
            format!(
                "Build it with LLVM {llvm} (Debian: apt-get install llvm-{llvm}-dev):\n  {}\n\
                 Or take a compiler whose LLVM is not newer than the linker's: \
                 rustup toolchain install nightly-YYYY-MM-DD --component rust-src,clippy",
                linker(&llvm.to_string(), " --force")
            )
        }
    }
}

/// Installs what lints the kernel programs, unless it is there.
pub fn setup_lints() -> Result<Toolchain> {
    let found = ready()?;
    let has_clippy = || found.compiler.bin.join("cargo-clippy").is_file();
    if has_clippy() {
        return Ok(found);
    }
    if found.compiler.bin != Path::new("/usr/bin") {
        let name = &found.compiler.name;
        bail!("{name} has no clippy: rustup component add clippy --toolchain {name}");
    }
    if let Err(why) = apt::usable() {
        bail!("Debian's rustc-web has no clippy, and {why}: apt-get install {CLIPPY_PACKAGE}");
    }
    apt::install(&[CLIPPY_PACKAGE]).context("clippy for Debian's rustc-web")?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nightly() -> Compiler {
        Compiler {
            name: "nightly".to_owned(),
            bin: PathBuf::new(),
            llvm: 23,
        }
    }

    #[test]
    fn an_error_names_the_piece_and_both_ways() {
        let text = unmet(&Missing::Compiler(Vec::new()), "this is not Debian").to_string();
        for part in [
            "no compiler",
            "this is not Debian",
            "rustup toolchain install nightly",
            "apt-get install rustc-web cargo-web rust-web-src",
            "cargo install bpf-linker",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn the_linker_is_asked_for_with_the_compilers_llvm() {
        let text = remedy(&Missing::Linker(nightly()));
        assert!(text.contains("--features llvm-23"), "{text}");
        let text = remedy(&Missing::NewerLinker {
            linker: PathBuf::from("bpf-linker"),
            llvm: 22,
            compiler: nightly(),
        });
        assert!(
            text.contains("--force") && text.contains("llvm-23-dev"),
            "{text}"
        );
    }
}
