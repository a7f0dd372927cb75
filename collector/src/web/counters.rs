//! Counters of requests.

use hyper::StatusCode;
use prometheus::{IntCounterVec, Opts, Registry};

/// Counters of the server.
#[derive(Clone, Debug)]
pub struct Counters {
    requests: IntCounterVec,
}

impl Counters {
    /// Registers the counters in a registry.
    ///
    /// # Errors
    ///
    /// When they are already registered there.
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

    /// Counts an answer. `path` is the name of a route, so that clients can't create series.
    pub fn count(&self, path: &'static str, code: StatusCode) {
        self.requests
            .with_label_values(&[path, code.as_str()])
            .inc();
    }
}
