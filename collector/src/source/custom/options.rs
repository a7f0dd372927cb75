//! Settings of custom metrics, which `settings` fills in.

use std::{path::PathBuf, time::Duration};

use super::endpoint::EndpointRule;

/// Settings of custom metrics.
#[derive(Clone, Debug, Default)]
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
    /// `--custom.max-bytes`
    pub max_bytes: usize,
    /// `--custom.max-age`; `None` selects the defaults of [`CustomOptions::file_age`] and
    /// [`CustomOptions::endpoint_age`].
    pub max_age: Option<Duration>,
    /// `--custom.host-network`
    pub host_network: bool,
    /// `--custom.textfile-directory`
    pub textfile_directory: Option<PathBuf>,
    /// `[[custom.endpoint]]`
    pub rules: Vec<EndpointRule>,
}

impl CustomOptions {
    /// Settings for tests.
    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        Self {
            prefix: "custom_".to_owned(),
            interval: Duration::from_secs(15),
            timeout: Duration::from_secs(5),
            max_body: 1 << 20,
            max_samples: 1000,
            max_bytes: 8 << 20,
            ..Self::default()
        }
    }

    /// Maximum age of a text file.
    pub fn file_age(&self) -> Duration {
        self.max_age.unwrap_or(Duration::from_secs(300))
    }

    /// Maximum age of an endpoint's last valid answer.
    pub fn endpoint_age(&self, interval: Duration) -> Duration {
        self.max_age.unwrap_or(interval * 3)
    }
}
