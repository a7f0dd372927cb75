//! Programs from PyPI that tests use, in a virtual environment.
//!
//! Invariant: only cargo's target folder is changed, and an installed version is not fetched again.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::shell::{run, target};

/// Program and version, and the tests that are skipped without it.
const PROGRAMS: &[(&str, &str, &str)] = &[("schemathesis", "4.32.5", "the API by schemathesis")];

/// The folder of the environment, where the tests look.
pub fn folder() -> PathBuf {
    target().join("venv")
}

/// Installs what is missing. A failure is a warning that names the tests that will be skipped.
pub fn install() {
    for (program, version, tests) in PROGRAMS {
        if let Err(error) = install_one(program, version) {
            eprintln!(
                "xtask: warning: {program} is missing, so these tests are skipped: {tests}. {error:#}"
            );
        }
    }
}

fn install_one(program: &str, version: &str) -> Result<()> {
    let folder = folder();
    // Written last, so that an interrupted installation is repeated.
    let done = folder.join(format!("{program}-{version}"));
    if done.is_file() && folder.join("bin").join(program).is_file() {
        return Ok(());
    }
    println!("installing {program} {version} in {}", folder.display());
    let mut venv = Command::new("/usr/bin/python3");
    run(venv.args(["-m", "venv"]).arg(&folder))?;
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet"])
        .arg("--disable-pip-version-check")
        .arg(format!("{program}=={version}"));
    run(&mut pip)?;
    fs::write(&done, "").with_context(|| format!("cannot write {}", done.display()))
}
