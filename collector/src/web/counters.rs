//! Counters of requests.

use hyper::StatusCode;
use prometheus::{IntCounterVec, Opts, Registry};

use super::cut::Cut;

/// Counters of the server.
#[derive(Clone, Debug)]
pub struct Counters {
    requests: IntCounterVec,
    cut: IntCounterVec,
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
        let cut = IntCounterVec::new(
            Opts::new(
                "cgmeter_http_connections_cut_total",
                "HTTP connections that the agent cut off, by reason.",
            ),
            &["reason"],
        )?;
        for reason in Cut::ALL {
            cut.with_label_values(&[reason.label()]);
        }
        registry.register(Box::new(cut.clone()))?;
        Ok(Self { requests, cut })
    }

    /// Counts a connection that was cut off.
    pub(super) fn cut(&self, reason: Cut) {
        self.cut.with_label_values(&[reason.label()]).inc();
    }

    /// Number of connections that were cut off for a reason.
    #[cfg(test)]
    pub(super) fn cuts(&self, reason: Cut) -> u64 {
        self.cut.with_label_values(&[reason.label()]).get()
    }

    /// Counts an answer. `path` is the name of a route, so that clients can't create series.
    pub fn count(&self, path: &'static str, code: StatusCode) {
        self.requests
            .with_label_values(&[path, code.as_str()])
            .inc();
    }
}
