//! `build`: builds the agent, with the kernel programs embedded.

use anyhow::Result;

use crate::{
    setup::setup,
    shell::{cargo, run},
};

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
