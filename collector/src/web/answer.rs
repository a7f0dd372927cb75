//! Answers HTTP requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use tokio::sync::Semaphore;

use super::{
    Counters, Served, WebOptions,
    api::{self, Call},
    body::Chunks,
};
use crate::exposition::{Body, Format};

type Answer = Response<Chunks>;

/// Shortest time between two attempts to free encoded bodies.
const RELEASE_PAUSE: Duration = Duration::from_millis(50);

/// Answers the requests of all connections.
pub(super) struct Handler {
    served: Served,
    options: WebOptions,
    counters: Counters,
    scrapes: Arc<Semaphore>,
    landing: Bytes,
    /// Whether a task is waiting to free encoded bodies.
    releasing: Arc<AtomicBool>,
}

impl Handler {
    pub(super) fn new(served: Served, options: WebOptions, counters: Counters) -> Self {
        let landing = include_str!("landing.html")
            .replace("{version}", crate::VERSION)
            .replace("{metrics}", &html(&options.telemetry_path));
        Self {
            served,
            scrapes: Arc::new(Semaphore::new(options.max_requests)),
            options,
            counters,
            landing: Bytes::from(landing),
            releasing: Arc::default(),
        }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let route = match path {
            path if path == self.options.telemetry_path => "metrics",
            path if path.starts_with(api::PREFIX) => api::is_there(path).unwrap_or("other"),
            path => fixed_route(path).unwrap_or("other"),
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
                _ if path.starts_with(api::PREFIX) => self.call(&request).await,
                "ready" => match self.served.metrics.ready() {
                    Ok(()) => ok(),
                    Err(reason) => error(StatusCode::SERVICE_UNAVAILABLE, &reason),
                },
                // "healthy": it answers.
                _ => ok(),
            }
        };
        self.counters.count(route, answer.status());
        answer
    }

    async fn scrape(&self, request: &Request<Incoming>) -> Answer {
        let format = Format::negotiate(accepted(request));
        let work = move |served: &Served| match served.metrics.scrape(format) {
            Ok(body) => content(format.content_type(), body),
            Err(message) => error(StatusCode::INTERNAL_SERVER_ERROR, &message),
        };
        let answer = self.blocking(work).await;
        self.release_later();
        answer
    }

    /// Frees encoded bodies once no further scrape can get them. Only one task waits for that at a
    /// time.
    fn release_later(&self) {
        if self.releasing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (metrics, releasing) = (
            Arc::clone(&self.served.metrics),
            Arc::clone(&self.releasing),
        );
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(metrics.shared_for().max(RELEASE_PAUSE)).await;
                // A scrape that arrives after this starts a task of its own. That holds if the next
                // line panics, too.
                releasing.store(false, Ordering::Release);
                if metrics.release() || releasing.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
    }

    /// Answers a request to the JSON API.
    async fn call(&self, request: &Request<Incoming>) -> Answer {
        if !api::json_is_welcome(accepted(request)) {
            let message = "answers are application/json, but the Accept header does not allow that";
            return error(StatusCode::NOT_ACCEPTABLE, message);
        }
        let uri = request.uri();
        let call = match Call::new(uri.path(), uri.query()) {
            Ok(call) => call,
            Err(refusal) => return json(refusal.code, refusal.body()),
        };
        let work = move |served: &Served| match call.answer(served) {
            Ok(body) => json(StatusCode::OK, body),
            Err(refusal) => json(refusal.code, refusal.body()),
        };
        self.blocking(work).await
    }

    /// Runs blocking work, unless the limit of concurrent requests is reached.
    async fn blocking(&self, work: impl FnOnce(&Served) -> Answer + Send + 'static) -> Answer {
        let Ok(_permit) = self.scrapes.try_acquire() else {
            let message = format!(
                "{} requests are already in progress",
                self.options.max_requests
            );
            let mut answer = error(StatusCode::SERVICE_UNAVAILABLE, &message);
            answer
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return answer;
        };
        let served = self.served.clone();
        let done = tokio::task::spawn_blocking(move || work(&served)).await;
        done.unwrap_or_else(|_| {
            error(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the request failed; see the log of the agent",
            )
        })
    }
}

/// Name of the page at a path that is not configurable, outside the API.
fn fixed_route(path: &str) -> Option<&'static str> {
    match path {
        "/" => Some("index"),
        "/-/healthy" => Some("healthy"),
        "/-/ready" => Some("ready"),
        _ => None,
    }
}

/// Whether the metrics page at this path would hide another page.
pub fn is_reserved(path: &str) -> bool {
    path.starts_with(api::PREFIX) || fixed_route(path).is_some()
}

/// The `Accept` header.
fn accepted(request: &Request<Incoming>) -> Option<&str> {
    let value = request.headers().get(ACCEPT)?;
    value.to_str().ok()
}

fn ok() -> Answer {
    content("text/plain; charset=utf-8", Bytes::from_static(b"OK\n"))
}

fn content(kind: &'static str, body: impl Into<Body>) -> Answer {
    let mut answer = Response::new(Chunks::new(body.into()));
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
    json(code, Bytes::from(body))
}

fn json(code: StatusCode, body: Bytes) -> Answer {
    let mut answer = content("application/json", body);
    *answer.status_mut() = code;
    answer
}

/// Escapes text for HTML.
fn html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}
