//! `test`: sets up, builds, and runs all checks and tests, in two tiers.
//!
//! The short tier leaves out tests that take long and, in virtual machines, all but those listed in
//! tests/live/kernels.rs. `--all` runs both tiers.
//!
//! Invariant: the closing lines count what was not run, beside what failed.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use crate::{
    build::{QUICK, build_example, build_only, static_cargo},
    check::{lints, unit_tests},
    compose, deny, deploy, image, new_source,
    notes::Notes,
    setup::{setup, setup_tests},
    shell::{agent, require_root, run, target, watched},
    skips::{self, Place},
    tally::Tally,
    venv, vm,
};

/// What to test.
#[derive(Debug, Default, clap::Args)]
pub struct TestOptions {
    /// Only tests whose name contains this, no lints and no virtual machines
    filter: Option<String>,
    /// Both tiers: also tests that take long, and every live test in the virtual machines
    #[arg(long)]
    all: bool,
    /// Without root: leave out what needs it
    #[arg(long)]
    no_privileged: bool,
    /// Leave out the virtual machines with other kernels
    #[arg(long)]
    no_vm: bool,
}

/// Sets up, builds, checks, and runs the tests.
pub fn test(options: &TestOptions) -> Result<()> {
    if !options.no_privileged {
        require_root("test", "the tests load BPF programs and make cgroups")?;
    }
    let mut tally = Tally::default();
    tally.required("setup", || {
        setup()?;
        setup_tests()
    })?;
    tally.required("build of the agent", build_only)?;
    let filter = options.filter.as_deref();
    if filter.is_none() {
        lints(&mut tally);
        deny::step(&mut tally);
        deploy::steps(&mut tally, true);
        compose::steps(&mut tally, true);
    }
    unit_tests(&mut tally, filter);
    live_tests(&mut tally, options)?;
    if filter.is_none() {
        if options.all && !options.no_privileged {
            tally.step("a new source, in a copy of the project", new_source::check);
        }
        if !options.no_vm {
            vm::matrix(&mut tally, &vm::VmOptions::tier(options.all));
        }
        if !options.no_privileged {
            tally.stale_skips();
        }
    }
    tally.close()
}

fn live_tests(tally: &mut Tally, options: &TestOptions) -> Result<()> {
    let file = target().join("test-notes.txt");
    fs::write(&file, "").with_context(|| format!("writing {}", file.display()))?;
    let mut command = live_command(options);
    command.env("CGMETER_NOTES", &file);
    if cfg!(target_arch = "x86_64") && !options.no_privileged {
        tally.step("container image", || {
            command.env("CGMETER_IMAGE", image::context(QUICK)?);
            Ok(())
        });
    }
    tally.step("the example application", || {
        build_example()?;
        command.env("CGMETER_XTASK", std::env::current_exe()?);
        command.env("CGMETER_BINARIES", target().join("release"));
        Ok(())
    });
    tally.step("build of the live tests", || {
        run(&mut live_cargo(&["--no-run"]))
    });
    let mut notes = Notes::default();
    tally.counted("live tests", |counts| {
        let ended_well = watched(&mut command, std::io::stdout(), |line| {
            counts.add_line(line)
        })?;
        let text = fs::read_to_string(&file);
        notes = Notes::parse(&text.with_context(|| format!("reading {}", file.display()))?);
        counts.take(&notes);
        counts.verdict(ended_well)
    });
    // Without root, tests are left out on purpose.
    let strict = skips::in_ci() && !options.no_privileged;
    tally.noted("host", notes, Place::Host, strict);
    Ok(())
}

/// cargo for the live tests: the static binary that virtual machines run, too.
pub fn live_cargo(arguments: &[&str]) -> Command {
    let mut command = static_cargo("test", QUICK);
    command.args(["--package", "cgmeter-tests", "--test", "live"]);
    command.args(arguments);
    command
}

fn live_command(options: &TestOptions) -> Command {
    let mut command = live_cargo(&["--", "--test-threads=1"]);
    command
        .args(&options.filter)
        .env("CGMETER_BIN", agent())
        .env("CGMETER_VENV", venv::folder())
        .env("CGMETER_TIER", if options.all { "all" } else { "short" });
    if options.no_privileged {
        command.env("CGMETER_NO_PRIVILEGED", "true");
    }
    command
}
