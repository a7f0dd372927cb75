//! The project's chores: `cargo xtask VERB`.
//!
//! Invariant: a verb run twice does nothing new. Each is a file of its own; what they share is
//! [`shell`] (running commands) and [`toolchain`] (the compiler of the kernel programs).

mod bench;
mod build;
mod check;
mod docs;
mod run;
mod setup;
mod shell;
mod test;
#[allow(dead_code, reason = "the build script uses the rest")]
mod toolchain;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The chores of cgmeter")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what builds the kernel programs
    Setup,
    /// Build the agent, kernel programs included
    Build,
    /// Set up, build and run the agent (as root)
    Run {
        /// Arguments for the agent
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Set up, check and run every test (as root)
    Test {
        /// Only integration tests whose name contains this
        filter: Option<String>,
    },
    /// Build, then test
    BuildAndTest,
    /// What needs no root: formatting, lints, docs, unit tests
    Check,
    /// Write docs/metrics.md
    Docs {
        /// Only say whether it is up to date
        #[arg(long)]
        check: bool,
    },
    /// Measure speed and memory (as root)
    Bench(bench::Options),
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Setup => setup::setup(),
        Verb::Build => build::build(),
        Verb::Run { arguments } => run::run(&arguments),
        Verb::Test { filter } => test::test(filter.as_deref()),
        Verb::BuildAndTest => build::build().and_then(|()| test::test(None)),
        Verb::Check => check::check().map(drop),
        Verb::Docs { check } => docs::docs(check),
        Verb::Bench(options) => bench::bench(&options),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
