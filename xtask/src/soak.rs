//! `soak`: the agent under everything at once, for long, killed every minute. See tests/live/soak.rs.

use anyhow::Result;

use crate::{
    build::build_only,
    setup::setup,
    shell::{agent, require_root, run},
    test::live_cargo,
};

/// How long to soak.
#[derive(Debug, clap::Args)]
pub struct SoakOptions {
    /// Minutes
    #[arg(long, default_value_t = 30)]
    minutes: u64,
}

/// Builds the agent and the live tests, and soaks.
pub fn soak(options: &SoakOptions) -> Result<()> {
    require_root("soak", "it loads BPF programs and makes cgroups")?;
    setup()?;
    build_only()?;
    run(live_cargo(&[])
        .env("CGMETER_BIN", agent())
        .env("CGMETER_SOAK_MINUTES", options.minutes.to_string()))
}
