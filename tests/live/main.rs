//! The agent against a live kernel.
//!
//! Each test runs a workload in its own cgroups and compares the agent's values with another
//! source: cpu.stat, /proc/PID/schedstat and status, /proc/stat, wait(2), Prometheus itself.
//! Results depend on counts, never on timing.
//!
//! A test's definition has its needs, its tier and whether it may be rerun ([`Need`]). [`harness`]
//! chooses the tests and runs them. [`kernels`] lists those for other kernels.
#![allow(unsafe_code, reason = "workloads consist of system calls")]

mod agent;
mod alerts;
mod api;
mod attack;
mod block;
mod block_device;
mod born;
mod cgroup;
mod compose;
mod conservation;
mod counters;
mod cpu;
mod cri;
mod custom;
mod dashboards;
mod dead;
mod demo;
mod disk;
mod docker;
mod docker_faults;
mod drops;
mod egress;
mod errors;
mod faults;
mod filesystem;
mod folder_server;
mod formats;
mod grpc;
mod guests;
mod harness;
mod held_disk;
mod image;
mod io;
mod kernels;
mod kills;
mod machine;
mod memory;
mod metrics;
mod mixed;
mod mounted;
mod names;
mod namespaces;
mod needs;
mod net;
mod netdev;
mod netns;
mod panels;
mod pids;
mod podman;
mod pressure;
mod process;
mod programs;
mod queried;
mod resident;
mod restart;
mod runtimes;
mod sched;
mod service;
mod skips;
mod slots;
mod soak;
mod sockets;
mod state;
mod systemd;
mod tasks;
mod tcp;
mod trace;
mod traffic;
mod tree;
mod twin;
mod wire;
mod worker;

use needs::Need;

/// A test: its name, its needs and its function.
type Test = (&'static str, &'static [Need], fn() -> anyhow::Result<()>);

/// All tests, in the order in which they run.
const TESTS: &[&[Test]] = &[
    cpu::TESTS,
    sched::TESTS,
    process::TESTS,
    tasks::TESTS,
    machine::TESTS,
    filesystem::TESTS,
    pids::TESTS,
    memory::TESTS,
    pressure::TESTS,
    io::TESTS,
    tree::TESTS,
    names::TESTS,
    slots::TESTS,
    conservation::TESTS,
    counters::TESTS,
    restart::TESTS,
    kills::TESTS,
    faults::TESTS,
    block::TESTS,
    disk::TESTS,
    net::TESTS,
    netdev::TESTS,
    namespaces::TESTS,
    tcp::TESTS,
    drops::TESTS,
    programs::TESTS,
    formats::TESTS,
    api::TESTS,
    attack::TESTS,
    errors::TESTS,
    service::TESTS,
    custom::TESTS,
    alerts::TESTS,
    panels::TESTS,
    image::TESTS,
    demo::TESTS,
    compose::TESTS,
    docker::TESTS,
    docker_faults::TESTS,
    podman::TESTS,
    cri::TESTS,
    dead::TESTS,
    dashboards::TESTS,
    systemd::TESTS,
];

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(worker::FLAG) {
        return worker::main();
    }
    if let Ok(minutes) = std::env::var(soak::MINUTES) {
        return soak::main(&minutes);
    }
    harness::run(TESTS)
}
