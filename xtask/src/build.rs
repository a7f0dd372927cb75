//! `build`: the agent, which has the kernel programs in it.

use anyhow::Result;

use crate::{
    setup::setup,
    shell::{cargo, run},
};

/// Builds the agent.
pub fn build() -> Result<()> {
    setup()?;
    build_only()
}

/// Builds the agent with a toolchain that is set up.
pub fn build_only() -> Result<()> {
    run(&mut cargo(&[
        "build",
        "--release",
        "--locked",
        "--package",
        "cgmeter",
    ]))
}
