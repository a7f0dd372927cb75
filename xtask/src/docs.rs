//! `docs`: the metric reference, from the sources' own tables.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{
    build::build_only,
    shell::{agent, output, root},
};

/// Writes docs/metrics.md, or says whether it is up to date.
pub fn docs(check: bool) -> Result<()> {
    build_only()?;
    let text = output(Command::new(agent()).args(["metrics", "--format", "markdown"]))?;
    let path = root().join("docs/metrics.md");
    if check {
        if std::fs::read_to_string(&path).unwrap_or_default() != text {
            bail!("docs/metrics.md is out of date: run `cargo xtask docs` and commit the result");
        }
        return Ok(());
    }
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}
