//! Custom metrics: an application's own metrics, served with the labels of its container.
//!
//! They come from two places: an application's own Prometheus endpoint, requested from inside its
//! network namespace ([`Worker`]), and text files in a directory (`textfile`). Each has its own
//! thread with limits of time and size, and puts its results into the [`Store`]. [`Index`] merges
//! the families of all containers for an exposition.
//!
//! Invariants: a reader of the store never waits for an application or a file. What an application
//! exports is bounded, parsed and renamed before it gets here. Only ports in the container's own
//! network namespace are requested; those of the host's only if `--custom.host-network` allows it.
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
pub struct CustomOptions {
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
    /// `--custom.max-age`; `None` selects the defaults of [`CustomOptions::file_age`] and
    /// [`CustomOptions::endpoint_age`].
    pub max_age: Option<Duration>,
    /// `--custom.host-network`
    pub host_network: bool,
    /// `--custom.textfile-directory`
    pub textfile_directory: Option<PathBuf>,
    /// `[[custom.endpoint]]`
    pub rules: Vec<Rule>,
}

impl Default for CustomOptions {
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

impl CustomOptions {
    /// Maximum age of a text file.
    pub fn file_age(&self) -> Duration {
        self.max_age.unwrap_or(Duration::from_secs(300))
    }

    /// Maximum age of an endpoint's last valid answer.
    pub fn endpoint_age(&self, interval: Duration) -> Duration {
        self.max_age.unwrap_or(interval * 3)
    }
}
