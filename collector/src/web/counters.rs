//! Requests, counted.

use hyper::StatusCode;
use prometheus::{IntCounterVec, Opts, Registry};

/// Counters of the server.
#[derive(Clone, Debug)]
pub struct Counters {
    requests: IntCounterVec,
}

impl Counters {
    /// Counters in a registry.
    ///
    /// # Errors
    ///
    /// When they are registered twice.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let requests = IntCounterVec::new(
            Opts::new(
                "cgmeter_http_requests_total",
                "HTTP requests by path and status code.",
            ),
            &["path", "code"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        Ok(Self { requests })
    }

    /// Counts an answer. `path` is one of the routes, so that clients can't make series.
    pub fn count(&self, path: &'static str, code: StatusCode) {
        self.requests
            .with_label_values(&[path, code.as_str()])
            .inc();
    }
}
