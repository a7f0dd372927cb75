//! Custom metrics: what applications say of themselves, for the container that they run in.
//!
//! Two ways in: an application's own Prometheus endpoint, asked inside its network namespace
//! ([`Worker`]), and text files in a directory (`textfile`). Both are threads of their own with
//! limits of time and size; both leave what they learn in the [`Store`]. [`Index`] puts the
//! families of all containers together for an exposition.
//!
//! Invariants: whoever reads the store never waits for an application or a file; what an
//! application says is bounded, parsed and renamed before it gets here; only ports of the
//! container's own network namespace are asked, the host's if `--custom.host-network` allows it.
//! Checked by tests/live/custom.rs.

mod endpoint;
mod enter;
mod fetch;
mod index;
mod parse;
mod series;
mod store;
mod textfile;
mod worker;

use std::{path::PathBuf, time::Duration};

pub use endpoint::{Endpoint, Rule, by_labels, path_of};
pub use index::{Group, Index, Input, Member};
pub use parse::{Bad, Limits, Parsed, parse};
pub use series::{Family, Owner, Series};
pub use store::{Counters, Failure, File, Key, Outcome, Reason, Store};
pub use textfile::Reader;
pub use worker::{Target, Worker};

/// Settings of custom metrics.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--custom.prefix`
    pub prefix: String,
    /// `--custom.interval`
    pub interval: Duration,
    /// `--custom.timeout`
    pub timeout: Duration,
    /// `--custom.max-body`, bytes.
    pub max_body: usize,
    /// `--custom.max-samples`
    pub max_samples: usize,
    /// `--custom.max-age`; `None`: as long as [`Options::file_age`] and [`Options::endpoint_age`] say.
    pub max_age: Option<Duration>,
    /// `--custom.host-network`
    pub host_network: bool,
    /// `--custom.textfile-directory`
    pub textfile_directory: Option<PathBuf>,
    /// `[[custom.endpoint]]`
    pub rules: Vec<Rule>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefix: "custom_".to_owned(),
            interval: Duration::from_secs(15),
            timeout: Duration::from_secs(5),
            max_body: 1 << 20,
            max_samples: 1000,
            max_age: None,
            host_network: false,
            textfile_directory: None,
            rules: Vec::new(),
        }
    }
}

impl Options {
    /// How old a file may be.
    pub fn file_age(&self) -> Duration {
        self.max_age.unwrap_or(Duration::from_secs(300))
    }

    /// How old an endpoint's last good answer may be.
    pub fn endpoint_age(&self, interval: Duration) -> Duration {
        self.max_age.unwrap_or(interval * 3)
    }
}
