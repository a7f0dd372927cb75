//! `setup`: what builds the kernel programs, and what the tests compare with.
//!
//! Invariant: takes what is there, installs only what is missing, and says of the rest how to get
//! it. A second run installs nothing.

mod compiler;
mod tools;

use anyhow::Result;

pub use self::compiler::setup_lints;
use self::tools::Tool;
use crate::{deny, venv};

/// Runs `cargo xtask setup`.
pub fn all(tests: bool) -> Result<()> {
    setup()?;
    if tests {
        setup_lints()?;
        deny::install()?;
        setup_tests()?;
        if setup_guests().is_ok() {
            println!("virtual machines: all of their tools are there");
        }
    }
    Ok(())
}

/// Installs what builds the kernel programs, unless it is there.
pub fn setup() -> Result<()> {
    let found = compiler::ready()?;
    println!(
        "kernel programs: {} (LLVM {}), {}",
        found.compiler.name,
        found.compiler.llvm,
        found.linker.display()
    );
    Ok(())
}

/// Installs what the tests use, as far as that can be done here. Warns of what can't be had and of
/// the tests that are skipped without it.
pub fn setup_tests() -> Result<()> {
    // There was a warning for each tool that can't be had.
    if tools::install(tools::TESTS).is_ok() {
        println!("tests: all of their tools are there");
    }
    if Tool::Python("ensurepip").is_there() {
        venv::install();
    }
    Ok(())
}

/// Installs what makes virtual machines.
///
/// # Errors
///
/// What is missing and can't be installed, in words.
pub fn setup_guests() -> Result<(), String> {
    tools::install(tools::GUESTS)
}
