//! `run`: the agent on this host.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::Result;

use crate::{
    build::build,
    shell::{agent, require_root},
};

/// Sets up, builds and becomes the agent.
pub fn run(arguments: &[String]) -> Result<()> {
    require_root("run", "BPF programs are loaded into the kernel")?;
    build()?;
    if !arguments
        .iter()
        .any(|argument| argument.starts_with("--web.listen-address"))
    {
        println!("\nMetrics of this host's cgroups:  http://127.0.0.1:10295/metrics");
        println!("  curl -s http://127.0.0.1:10295/metrics | grep container_cpu_usage");
        println!("Ctrl-C ends it.\n");
    }
    let error = Command::new(agent()).args(arguments).exec();
    Err(anyhow::anyhow!("cannot run {}: {error}", agent().display()))
}
