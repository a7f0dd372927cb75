//! cgmeter: meters every cgroup from inside the kernel and serves the result to Prometheus.
//!
//! Modules follow the way of a number: [`kernel`] reads cells, [`cgroup`] knows their cgroups,
//! [`source`] turns them into families, [`exposition`] encodes, [`web`] serves. Imports point one
//! way along it; [`agent`] holds them together.
#![deny(missing_docs, unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
pub mod cgroup;
pub mod check;
pub mod cli;
pub mod dump;
pub mod exposition;
pub mod healthcheck;
#[allow(
    unsafe_code,
    reason = "the only module with system calls and shared memory"
)]
pub mod kernel;
pub mod log;
pub mod reference;
pub mod reload;
pub mod runtime;
pub mod service;
pub mod settings;
pub mod source;
pub mod threads;
pub mod web;

/// Version of the agent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
