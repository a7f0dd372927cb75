//! The project's chores: `cargo xtask VERB`.
//!
//! Invariants: each verb is a file of its own, and running it twice changes nothing more. Verbs share
//! [`shell`] (commands), [`apt`] and [`venv`] (packages of Debian and Python), [`tally`], [`notes`] and
//! [`skips`] (results of tests), and the crates `ebpf-toolchain` (the compiler of the kernel programs),
//! `deploy-checks` (dashboards, rules, the compose stack) and `http-client`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod apt;
#[allow(
    unsafe_code,
    reason = "workloads, and programs of its own to compare with"
)]
mod bench;
mod build;
mod check;
mod compose;
mod demo;
mod deny;
mod deploy;
mod docs;
mod image;
mod new_source;
mod notes;
mod run;
mod setup;
mod shell;
mod skips;
mod soak;
mod tally;
mod test;
mod venv;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ebpf_toolchain as toolchain;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The chores of cgmeter")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install the toolchain of the kernel programs if it is missing
    Setup {
        /// Also install what the tests use
        #[arg(long)]
        tests: bool,
    },
    /// Build the agent, kernel programs included
    Build {
        /// Build without optimization
        #[arg(long)]
        debug: bool,
    },
    /// Set up, build and run the agent (as root)
    Run {
        /// Arguments for the agent
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Set up, build, check and run the tests (as root)
    Test(test::TestOptions),
    /// Build, then test
    BuildAndTest(test::TestOptions),
    /// Check what needs no root: formatting, lints, docs, unit tests
    Check,
    /// Check licences, sources and known vulnerabilities of the dependencies
    Deny,
    /// Write docs/metrics.md and docs/configuration.md
    Docs {
        /// Only say whether it is up to date
        #[arg(long)]
        check: bool,
    },
    /// Check what is shipped for Prometheus and Alertmanager
    Deploy,
    /// Write deploy/grafana/dashboards
    Dashboards {
        /// Only say whether they are up to date
        #[arg(long)]
        check: bool,
    },
    /// Run the live tests on other kernels, in virtual machines
    Vm(vm::VmOptions),
    /// Measure speed and memory (as root)
    Bench(bench::BenchOptions),
    /// Run the agent under a mixed load for long, and kill it every minute (as root)
    Soak(soak::SoakOptions),
    /// Write the skeleton of a source with one counter
    NewSource(new_source::NewSourceOptions),
    /// Check the compose stack
    Compose,
    /// Build the agent's container image from the static binary
    Image(image::ImageOptions),
    /// Run a demo: agent, Prometheus, Alertmanager and an application under load (as root)
    Demo(demo::DemoOptions),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Setup { tests } => setup::all(tests),
        Verb::Build { debug: false } => build::build(),
        Verb::Build { debug: true } => build::build_debug(),
        Verb::Run { arguments } => run::run(&arguments),
        Verb::Test(options) | Verb::BuildAndTest(options) => test::test(&options),
        Verb::Check => check::check(),
        Verb::Deny => deny::deny(),
        Verb::Docs { check } => docs::docs(check),
        Verb::Deploy => deploy::deploy(),
        Verb::Dashboards { check } => deploy_checks::dashboards::write(check),
        Verb::Vm(options) => vm::vm(&options),
        Verb::Bench(options) => bench::bench(&options),
        Verb::Soak(options) => soak::soak(&options),
        Verb::NewSource(options) => new_source::new_source(&options),
        Verb::Compose => compose::compose(),
        Verb::Image(options) => image::image(&options),
        Verb::Demo(options) => demo::demo(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_verbs_are_sound() {
        super::Arguments::command().debug_assert();
    }
}
