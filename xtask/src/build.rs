//! `build`: the agent, which has the kernel programs in it.

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

/// Sets up and builds the agent quickly, for target/debug.
pub fn build_debug() -> Result<()> {
    setup()?;
    compile(&[])
}

/// Builds the agent with a toolchain that is set up.
pub fn build_only() -> Result<()> {
    compile(&["--release"])
}

/// Builds the example application, which tests use as well.
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
