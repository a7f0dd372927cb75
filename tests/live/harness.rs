//! Chooses the tests of a run and runs them.
//!
//! - Skipped: the machine lacks something that the test needs. The test is ignored and noted.
//! - Long tier: the test takes long ([`Need::LongTier`]) or, in a virtual machine, is not on the list
//!   of [`kernels`]. It is ignored and noted. Only `cargo xtask test --all` runs it.
//! - Rerun: a test with [`Need::Rerun`] that fails is run a second time, and a line that begins with
//!   `RERUN` reports it. Any other test has failed after its first failure.
//!
//! The environment (set by `cargo xtask test`):
//!
//! - `CGMETER_TIER`: `all` for both tiers; otherwise the short one.
//! - `CGMETER_NOTES`: a file that gets a line per note: `skip NAME: reason`, `long NAME: reason` or
//!   `took NAME: SECONDS`.
//! - `CGMETER_DONE`: a file with the names of tests that ran in another virtual machine, which died.

use std::{
    collections::HashSet,
    env, fmt,
    fs::{self, OpenOptions},
    io::Write,
    process::ExitCode,
    time::Instant,
};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{
    Test, kernels,
    needs::{self, Need},
    skips,
};

/// Runs the tests that the command line and the tier ask for.
pub fn run(tests: &[&[Test]]) -> ExitCode {
    let arguments = Arguments::from_args();
    let tests: Vec<&Test> = tests.iter().copied().flatten().collect();
    let names: Vec<&str> = tests.iter().map(|(name, ..)| *name).collect();
    let stale = kernels::stale(&names);
    if !stale.is_empty() {
        eprintln!(
            "tests/live/kernels.rs: there is no test {}",
            stale.join(", no test ")
        );
        return ExitCode::FAILURE;
    }
    let missing = skips::missing_lines(&tests);
    if !missing.is_empty() {
        eprintln!(
            "tests/allowed-skips.txt lacks tests that can't run at a place; add these lines, with the reason in \
             your words:\n{}",
            missing.join("\n")
        );
        return ExitCode::FAILURE;
    }
    let done = done();
    let left = tests.iter().filter(|(name, ..)| !done.contains(*name));
    let trials = left.map(|test| trial(&arguments, test)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test for the harness. It is ignored if it can't run here or is in the long tier.
fn trial(arguments: &Arguments, &(name, needs, body): &Test) -> Trial {
    let left_out = match (needs::missing(needs), long_tier(name, needs)) {
        (Some(reason), _) => Some(("skip", reason)),
        (None, Some(reason)) => Some(("long", reason.to_owned())),
        (None, None) => None,
    };
    let filter = arguments.filter.as_deref();
    if let Some((kind, reason)) = &left_out
        && filter.is_none_or(|part| name.contains(part))
    {
        note(kind, name, reason);
    }
    Trial::test(name, move || attempt(name, needs, body)).with_ignored_flag(left_out.is_some())
}

/// Why a test is in the long tier, if it is.
fn long_tier(name: &str, needs: &[Need]) -> Option<&'static str> {
    if env::var_os("CGMETER_TIER").is_some_and(|tier| tier == "all") {
        return None;
    }
    let own = needs.iter().find_map(|need| match need {
        Need::LongTier(reason) => Some(*reason),
        _ => None,
    });
    let in_guest = needs::emulated() && !kernels::in_short_tier(name);
    own.or(in_guest.then_some("not on the list of tests/live/kernels.rs"))
}

/// Runs a test, and once more if it failed and may be rerun.
fn attempt(name: &str, needs: &[Need], body: fn() -> anyhow::Result<()>) -> Result<(), Failed> {
    let rerun = needs.iter().find_map(|need| match need {
        Need::Rerun(reason) => Some(reason),
        _ => None,
    });
    let begin = Instant::now();
    let mut result = body();
    if let (Err(error), Some(reason)) = (&result, rerun) {
        // On its own line, because xtask counts these lines.
        println!("\nRERUN {name}: {reason}; it failed with: {error:#}");
        result = body();
    }
    note(
        "took",
        name,
        format_args!("{:.1}", begin.elapsed().as_secs_f64()),
    );
    result.map_err(|error| format!("{error:?}").into())
}

/// The tests that another virtual machine has already run.
fn done() -> HashSet<String> {
    let text = env::var_os("CGMETER_DONE").map(fs::read_to_string);
    let text = text.and_then(Result::ok).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Writes a line to the file of notes, if there is one.
fn note(kind: &str, name: &str, what: impl fmt::Display) {
    let Some(path) = env::var_os("CGMETER_NOTES") else {
        return;
    };
    let file = OpenOptions::new().create(true).append(true).open(&path);
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{kind} {name}: {what}")) {
        eprintln!("cannot write to {}: {error}", path.display());
    }
}
