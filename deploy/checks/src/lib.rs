//! Writes the dashboards, and checks everything that `deploy` ships: rules, alerts, runbooks, routes,
//! dashboards and the compose stack.
//!
//! `cargo xtask deploy`, `dashboards` and `compose` are thin verbs over this crate. Invariants: the
//! agent doesn't depend on it (collector/tests/product.rs), and it knows the agent only by
//! docs/metrics.md, as users do.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod alertmanager;
pub mod compose;
pub mod dashboards;
pub mod prometheus;
mod promql;
mod reference;
pub mod rules;
mod tool;

use std::path::{Path, PathBuf};

/// The root of the repository.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own).to_path_buf()
}
