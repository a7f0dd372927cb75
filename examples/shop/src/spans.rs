//! Spans, sent to an OTLP collector over HTTP as JSON (OpenTelemetry protocol 1.x).
//!
//! Invariant: a request never waits for the collector. At most [`QUEUE`] spans wait to be sent; those that
//! don't fit or can't be sent are dropped, and a log line says when dropping begins and ends. Spans that
//! wait on shutdown are dropped, too.

use std::{
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

use crate::{client, trace::Context};

/// The most spans that wait.
const QUEUE: usize = 2048;
/// The most spans of a message.
const BATCH: usize = 256;
/// Time between messages, unless more spans wait than fit into one.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the collector may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The address of a collector, `http://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// HOST:PORT
    authority: String,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?}: expected http://HOST:PORT, for example http://127.0.0.1:4318");
        let uri: hyper::Uri = text.parse().map_err(|_| wrong())?;
        let plain = uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/");
        let authority = uri.authority().filter(|place| place.port().is_some());
        match authority {
            Some(place) if plain => Ok(Self {
                authority: place.to_string(),
            }),
            _ => Err(wrong()),
        }
    }
}

/// A request that was answered.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its trace context.
    pub context: Context,
    /// The request's method.
    pub method: String,
    /// Its route.
    pub route: &'static str,
    /// The answer's status.
    pub status: u16,
    /// When it was received.
    pub begin: SystemTime,
    /// When it was answered.
    pub end: SystemTime,
}

impl Span {
    fn json(&self) -> Value {
        // SPAN_KIND_SERVER; STATUS_CODE_ERROR for 5xx.
        let mut span = json!({
            "traceId": self.context.trace,
            "spanId": self.context.span,
            "name": format!("{} {}", self.method, self.route),
            "kind": 2,
            "startTimeUnixNano": nanos(self.begin),
            "endTimeUnixNano": nanos(self.end),
            "attributes": [
                attribute("http.request.method", json!({ "stringValue": self.method })),
                attribute("http.route", json!({ "stringValue": self.route })),
                attribute(
                    "http.response.status_code",
                    json!({ "intValue": self.status.to_string() }),
                ),
            ],
            "status": { "code": if self.status >= 500 { 2 } else { 0 } },
        });
        if let Some(parent) = &self.context.parent {
            span["parentSpanId"] = json!(parent);
        }
        span
    }
}

/// 64-bit integers are strings in the JSON of protobuf.
fn nanos(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos().to_string()
}

fn attribute(key: &str, value: Value) -> Value {
    json!({ "key": key, "value": value })
}

fn message(spans: &[Span]) -> Value {
    let spans: Vec<Value> = spans.iter().map(Span::json).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": [
            attribute("service.name", json!({ "stringValue": "shop" })),
            attribute("service.version", json!({ "stringValue": env!("CARGO_PKG_VERSION") })),
        ]},
        "scopeSpans": [{ "scope": { "name": "shop" }, "spans": spans }],
    }]})
}

/// Sends spans.
#[derive(Debug)]
pub struct Exporter {
    queue: mpsc::Sender<Span>,
    overflowed: Arc<AtomicBool>,
}

impl Exporter {
    /// Starts a task that sends spans to a collector.
    pub fn start(endpoint: Endpoint) -> Self {
        let (queue, spans) = mpsc::channel(QUEUE);
        let overflowed = Arc::new(AtomicBool::new(false));
        tokio::spawn(send(endpoint, spans, Arc::clone(&overflowed)));
        Self { queue, overflowed }
    }

    /// Queues a span if its trace is recorded.
    pub fn export(&self, span: Span) {
        if span.context.sampled && self.queue.try_send(span).is_err() {
            self.overflowed.store(true, Ordering::Relaxed);
        }
    }
}

async fn send(endpoint: Endpoint, mut spans: mpsc::Receiver<Span>, overflowed: Arc<AtomicBool>) {
    let mut failing = false;
    let mut batch = Vec::new();
    while spans.recv_many(&mut batch, BATCH).await > 0 {
        let sent = timeout(PATIENCE, post(&endpoint, &batch)).await;
        let mut sent = sent.context("no answer").and_then(|result| result);
        if overflowed.swap(false, Ordering::Relaxed) && sent.is_ok() {
            sent = Err(anyhow!("it takes fewer than there are"));
        }
        match &sent {
            Err(error) if !failing => {
                let error = format!("{error:#}");
                tracing::warn!(collector = endpoint.authority, error, "spans are dropped");
            }
            Ok(()) if failing => {
                tracing::info!(collector = endpoint.authority, "spans are sent again");
            }
            _ => {}
        }
        failing = sent.is_err();
        let more = batch.len() == BATCH && !failing;
        batch.clear();
        if !more {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn post(endpoint: &Endpoint, spans: &[Span]) -> Result<()> {
    let body = message(spans).to_string();
    let answer = client::ask(&endpoint.authority, "POST", "/v1/traces", body, None).await?;
    ensure!(
        answer.status.is_success(),
        "the collector answers {}: {}",
        answer.status,
        answer.text()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let endpoint: Endpoint = "http://otel:4318".parse().unwrap();
        assert_eq!(endpoint.authority, "otel:4318");
        for text in [
            "",
            "otel:4318",
            "https://otel:4318",
            "http://otel",
            "http://otel:1/v1",
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(error.contains("expected http://HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn a_span_as_otlp_has_it() {
        let begin = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_000_000_001);
        let context = Context::new(Some(
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ));
        let span = Span {
            context: context.clone(),
            method: "GET".to_owned(),
            route: "/products",
            status: 500,
            begin,
            end: begin + Duration::from_millis(1),
        };
        let value = message(&[span]);
        let span = &value["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span["parentSpanId"], "b7ad6b7169203331");
        assert_eq!(span["spanId"], context.span.as_str());
        assert_eq!(span["startTimeUnixNano"], "1700000000000000001");
        assert_eq!(span["endTimeUnixNano"], "1700000000001000001");
        assert_eq!(span["status"]["code"], 2);
        assert_eq!(span["attributes"][2]["value"]["intValue"], "500");
    }
}
