//! Requests and their answers.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use tokio::sync::Semaphore;

use super::{Counters, Metrics, Options};
use crate::exposition::Format;

type Answer = Response<Full<Bytes>>;

/// Answers requests.
pub(super) struct Handler {
    metrics: Arc<dyn Metrics>,
    options: Options,
    counters: Counters,
    scrapes: Arc<Semaphore>,
    landing: Bytes,
}

impl Handler {
    pub(super) fn new(metrics: Arc<dyn Metrics>, options: Options, counters: Counters) -> Self {
        let landing = include_str!("landing.html")
            .replace("{version}", crate::VERSION)
            .replace("{metrics}", &html(&options.telemetry_path));
        Self {
            metrics,
            scrapes: Arc::new(Semaphore::new(options.max_requests)),
            options,
            counters,
            landing: Bytes::from(landing),
        }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let route = match path {
            path if path == self.options.telemetry_path => "metrics",
            "/" => "index",
            "/-/healthy" => "healthy",
            "/-/ready" => "ready",
            _ => "other",
        };
        let answer = if route == "other" {
            error(
                StatusCode::NOT_FOUND,
                &format!("there is nothing at {path}"),
            )
        } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = error(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET and HEAD are allowed",
            );
            answer
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            answer
        } else {
            match route {
                "metrics" => self.scrape(&request).await,
                "index" => content("text/html; charset=utf-8", self.landing.clone()),
                // The server listens only once the agent has its first snapshot.
                _ => content("text/plain; charset=utf-8", Bytes::from_static(b"OK\n")),
            }
        };
        self.counters.count(route, answer.status());
        answer
    }

    async fn scrape(&self, request: &Request<Incoming>) -> Answer {
        let Ok(_permit) = self.scrapes.try_acquire() else {
            let message = format!("{} scrapes are under way", self.options.max_requests);
            let mut answer = error(StatusCode::SERVICE_UNAVAILABLE, &message);
            answer
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return answer;
        };
        let accept = request
            .headers()
            .get(ACCEPT)
            .and_then(|value| value.to_str().ok());
        let format = Format::negotiate(accept);
        let metrics = Arc::clone(&self.metrics);
        match tokio::task::spawn_blocking(move || metrics.scrape(format)).await {
            Ok(Ok(text)) => content(format.content_type(), text),
            Ok(Err(message)) => error(StatusCode::INTERNAL_SERVER_ERROR, &message),
            Err(_) => error(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the scrape failed; the log says how",
            ),
        }
    }
}

fn content(kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn error(code: StatusCode, message: &str) -> Answer {
    let body = format!("{}\n", serde_json::json!({ "error": message }));
    let mut answer = content("application/json", Bytes::from(body));
    *answer.status_mut() = code;
    answer
}

/// Text within HTML.
fn html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}
