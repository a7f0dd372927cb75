//! The agent against a live kernel.
//!
//! Each test makes a workload in cgroups of its own and compares what the agent serves with a
//! source that is not the agent: cpu.stat, /proc/PID/schedstat and status, /proc/stat, wait(2),
//! Prometheus itself. Counts decide, never durations.
//!
//! On emulated CPUs, which lose time when their host is busy, and in CI, whose machines others use as
//! well, a test that fails is run once more; it says so. Elsewhere it fails. A guest that goes on after
//! another has died is told by `CGMETER_DONE`, a file of names, what has run already.
//!
//! A test whose needs this machine can't meet is skipped loudly: it is ignored by the harness, and
//! its name and the reason go to the file that `CGMETER_SKIPS` names.

mod agent;
mod alerts;
mod api;
mod block;
mod cgroup;
mod compose;
mod cpu;
mod cri;
mod custom;
mod dashboards;
mod demo;
mod disk;
mod disk_stats;
mod docker;
mod docker_ills;
mod drops;
mod egress;
mod errors;
mod filesystem;
mod formats;
mod grpc;
mod image;
mod io;
mod limits;
mod machine;
mod memory;
mod metrics;
mod mixed;
mod mounted;
mod names;
mod needs;
mod net;
mod netdev;
mod netns;
mod panels;
mod podman;
mod pressure;
mod process;
mod programs;
mod queried;
mod resident;
mod runtimes;
mod sched;
mod slots;
mod sockets;
mod systemd;
mod tasks;
mod tcp;
mod trace;
mod traffic;
mod tree;
mod twin;
mod wire;
mod worker;

use libtest_mimic::{Arguments, Trial};
use needs::Need;

/// A test: name, what it needs, what it does.
type Test = (&'static str, &'static [Need], fn() -> anyhow::Result<()>);

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(worker::FLAG) {
        return worker::main();
    }
    let tests = [
        cpu::TESTS,
        sched::TESTS,
        process::TESTS,
        tasks::TESTS,
        machine::TESTS,
        filesystem::TESTS,
        limits::TESTS,
        memory::TESTS,
        pressure::TESTS,
        io::TESTS,
        tree::TESTS,
        names::TESTS,
        slots::TESTS,
        formats::TESTS,
        api::TESTS,
        errors::TESTS,
        custom::TESTS,
        block::TESTS,
        disk_stats::TESTS,
        net::TESTS,
        netdev::TESTS,
        tcp::TESTS,
        drops::TESTS,
        programs::TESTS,
        alerts::TESTS,
        panels::TESTS,
        image::TESTS,
        demo::TESTS,
        compose::TESTS,
        docker::TESTS,
        docker_ills::TESTS,
        podman::TESTS,
        cri::TESTS,
        dashboards::TESTS,
        systemd::TESTS,
    ];
    let arguments = Arguments::from_args();
    let asked = |name: &str| {
        let filter = arguments.filter.as_deref();
        filter.is_none_or(|part| name.contains(part))
    };
    let done = needs::done();
    let left = |(name, ..): &&Test| !done.iter().any(|done| done == name);
    let trials = tests.into_iter().flatten().filter(left);
    let trials = trials.map(|&(name, needs, test)| {
        let missing = needs::missing(needs);
        if let Some(reason) = &missing
            && asked(name)
        {
            needs::record_skip(name, reason);
        }
        let run = move || {
            let result = match test() {
                // Emulated CPUs lose time when the host is busy: once may be bad luck there.
                Err(error) if needs::emulated() || needs::in_ci() => {
                    println!("{name} failed and is run once more: {error:#}");
                    test()
                }
                result => result,
            };
            result.map_err(|error| format!("{error:?}").into())
        };
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
