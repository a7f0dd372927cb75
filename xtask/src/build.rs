//! `build`: builds the agent, with the kernel programs embedded.

use std::process::Command;

use anyhow::Result;

use crate::{
    setup::setup,
    shell::{cargo, run},
};

/// The target of static binaries.
pub const TRIPLE: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

/// The profile of static binaries for tests: quick to build.
pub const QUICK: &str = "guest";

/// cargo for static binaries. They are built apart from the host's: a target of its own keeps the
/// flags away from build scripts.
pub fn static_cargo(verb: &str, profile: &str) -> Command {
    let mut command = cargo(&[verb, "--locked", "--profile", profile, "--target", TRIPLE]);
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    command
}

/// Sets up and builds the agent.
pub fn build() -> Result<()> {
    setup()?;
    build_only()
}

/// Sets up and builds the agent without optimization, into target/debug.
pub fn build_debug() -> Result<()> {
    setup()?;
    compile(&[])
}

/// Builds the agent. The toolchain has to be set up.
pub fn build_only() -> Result<()> {
    compile(&["--release"])
}

/// Builds the example application, which the demo and the tests use.
pub fn build_example() -> Result<()> {
    run(&mut cargo(&[
        "build",
        "--locked",
        "--release",
        "--package",
        "shop",
    ]))
}

fn compile(profile: &[&str]) -> Result<()> {
    run(cargo(&["build", "--locked", "--package", "cgmeter"]).args(profile))
}
