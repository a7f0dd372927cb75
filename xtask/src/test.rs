//! `test`: everything, the live kernel included.
//!
//! Invariant: what could not be tested is said at the end, beside what failed.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use crate::{
    build::{build_example, build_only},
    check::{lints, unit_tests},
    compose, deploy, image,
    setup::{setup, setup_tests},
    shell::{agent, cargo, require_root, target},
    skips::{self, Place},
    tally::Tally,
    venv, vm,
};

/// What to test.
#[derive(Debug, Default, clap::Args)]
pub struct Options {
    /// Only tests whose name contains this, no lints and no virtual machines
    filter: Option<String>,
    /// Without root: leave out what needs it
    #[arg(long)]
    no_privileged: bool,
    /// Leave out the virtual machines with other kernels
    #[arg(long)]
    no_vm: bool,
}

/// Sets up, builds, checks, and runs the tests.
pub fn test(options: &Options) -> Result<()> {
    if !options.no_privileged {
        require_root("test", "the tests load BPF programs and make cgroups")?;
    }
    setup()?;
    setup_tests()?;
    build_only()?;
    let filter = options.filter.as_deref();
    let mut tally = Tally::default();
    if filter.is_none() {
        lints(&mut tally);
        deploy::steps(&mut tally, true);
        compose::steps(&mut tally, true);
    }
    unit_tests(&mut tally, filter);
    integration_tests(&mut tally, options)?;
    if filter.is_none() && !options.no_vm {
        vm::matrix(&mut tally, &vm::Options::default());
    }
    tally.close()
}

fn integration_tests(tally: &mut Tally, options: &Options) -> Result<()> {
    let notes = target().join("skipped-tests.txt");
    fs::write(&notes, "").with_context(|| format!("writing {}", notes.display()))?;
    let recorded = || fs::read_to_string(&notes).unwrap_or_default();
    let mut command = integration_command(options);
    command.env("CGMETER_SKIPS", &notes);
    if cfg!(target_arch = "x86_64") && !options.no_privileged {
        tally.step("container image", || {
            // The profile that virtual machines use as well.
            command.env("CGMETER_IMAGE", image::context("guest")?);
            Ok(())
        });
    }
    tally.step("the example application", || {
        build_example()?;
        command.env("CGMETER_XTASK", std::env::current_exe()?);
        command.env("CGMETER_BINARIES", target().join("release"));
        Ok(())
    });
    tally.tests("integration tests", &mut command, || {
        skips::recorded(&recorded())
            .len()
            .try_into()
            .unwrap_or(u64::MAX)
    });
    // Whoever leaves root out leaves tests out; CI does not.
    let strict = skips::in_ci() && !options.no_privileged;
    tally.step("skipped tests", || {
        skips::judge(&skips::recorded(&recorded()), Place::Host, strict)
    });
    Ok(())
}

fn integration_command(options: &Options) -> Command {
    let mut command = cargo(&[
        "test",
        "--release",
        "--locked",
        "--package",
        "cgmeter-tests",
    ]);
    command
        .args(["--", "--test-threads=1"])
        .args(&options.filter)
        .env("CGMETER_BIN", agent())
        .env("CGMETER_VENV", venv::folder());
    if options.no_privileged {
        command.env("CGMETER_NO_PRIVILEGED", "true");
    }
    command
}
