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
    body::Outgoing,
    clients::{Client, Clients},
    scrapes::Scrapes,
    timeout::ScrapeTimeout,
};
use crate::exposition::{Body, Format};

type Answer = Response<Body>;

/// Shortest time between two attempts to free encoded bodies.
const RELEASE_PAUSE: Duration = Duration::from_millis(50);
/// Threads that work for the API at a time. Together with one for each format, the runtime has as
/// many (main.rs).
const API_THREADS: usize = 2;

/// Answers the requests of all connections.
pub(super) struct Handler {
    served: Served,
    options: WebOptions,
    counters: Counters,
    clients: Arc<Clients>,
    scrapes: Scrapes,
    /// Requests to the API in progress.
    requests: Semaphore,
    /// Requests to the API that have a thread.
    calls: Semaphore,
    landing: Bytes,
    /// Whether a task is waiting to free encoded bodies.
    releasing: Arc<AtomicBool>,
}

impl Handler {
    pub(super) fn new(
        served: Served,
        options: WebOptions,
        clients: Arc<Clients>,
        counters: Counters,
    ) -> Self {
        let landing = include_str!("landing.html")
            .replace("{version}", crate::VERSION)
            .replace("{metrics}", &html(&options.telemetry_path));
        Self {
            served,
            requests: Semaphore::new(options.max_requests),
            calls: Semaphore::new(API_THREADS),
            scrapes: Scrapes::default(),
            options,
            counters,
            clients,
            landing: Bytes::from(landing),
            releasing: Arc::default(),
        }
    }

    /// Answers a request of a client.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        client: Arc<Client>,
    ) -> Response<Outgoing> {
        let path = request.uri().path();
        let route = match path {
            path if path == self.options.telemetry_path => "metrics",
            path if path.starts_with(api::PREFIX) => api::is_there(path).unwrap_or("other"),
            path => fixed_route(path).unwrap_or("other"),
        };
        let mut answer = if route == "other" {
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
                "metrics" => self.scrape(&request, &client).await,
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
        let length = answer.body().len();
        let is_noted = route == "metrics" && answer.status() == StatusCode::OK;
        if !is_noted && !self.clients.sends_other(&client, length) {
            answer = busy("too many bytes are on their way to other clients");
            Clients::sends_refusal(&client, answer.body().len());
        }
        self.counters.count(route, answer.status());
        answer.map(|body| Outgoing::new(body, client))
    }

    /// Answers a scrape, and notes that the client is sent an exposition. No scrape is refused: those
    /// that wait share one exposition.
    async fn scrape(&self, request: &Request<Incoming>, client: &Client) -> Answer {
        let format = Format::negotiate(accepted(request));
        let metrics = &self.served.metrics;
        let scrape = self.scrapes.exposition(format, metrics, &self.clients);
        let outcome = match ScrapeTimeout::of(request.headers()) {
            None => scrape.await,
            Some(timeout) => match tokio::time::timeout(timeout.budget(), scrape).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    self.release_later();
                    return error(StatusCode::SERVICE_UNAVAILABLE, &timeout.exceeded());
                }
            },
        };
        self.release_later();
        match outcome {
            Ok(made) => {
                self.clients.sends_exposition(client, &made.body);
                content(format.content_type(), made.body.clone())
            }
            Err(message) => error(StatusCode::INTERNAL_SERVER_ERROR, &message),
        }
    }

    /// Frees encoded bodies once no further scrape can get them. Only one task waits for that at a
    /// time.
    fn release_later(&self) {
        if self.releasing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (metrics, releasing, clients) = (
            Arc::clone(&self.served.metrics),
            Arc::clone(&self.releasing),
            Arc::clone(&self.clients),
        );
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(metrics.shared_for().max(RELEASE_PAUSE)).await;
                // A scrape that arrives after this starts a task of its own. That holds if the next
                // line panics, too.
                releasing.store(false, Ordering::Release);
                if metrics.release() {
                    let _ = tokio::task::spawn_blocking(move || clients.release_memory()).await;
                    return;
                }
                if releasing.swap(true, Ordering::AcqRel) {
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

    /// Runs blocking work for the API, unless the limit of concurrent requests is reached.
    async fn blocking(&self, work: impl FnOnce(&Served) -> Answer + Send + 'static) -> Answer {
        let Ok(_permit) = self.requests.try_acquire() else {
            return self.too_many();
        };
        // Never closed.
        let _thread = self.calls.acquire().await;
        let served = self.served.clone();
        let done = tokio::task::spawn_blocking(move || work(&served)).await;
        done.unwrap_or_else(|_| {
            error(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the request failed; see the log of the agent",
            )
        })
    }

    fn too_many(&self) -> Answer {
        busy(&format!(
            "{} requests to the API are already in progress",
            self.options.max_requests
        ))
    }
}

/// Where the kubelet has cAdvisor's metrics: jobs that scrape it need no other path.
const CADVISOR_PATH: &str = "/metrics/cadvisor";

/// Name of the page at a path that is not configurable, outside the API.
fn fixed_route(path: &str) -> Option<&'static str> {
    match path {
        "/" => Some("index"),
        "/-/healthy" => Some("healthy"),
        "/-/ready" => Some("ready"),
        CADVISOR_PATH => Some("metrics"),
        _ => None,
    }
}

/// Whether the metrics page at this path would hide another page.
pub fn is_reserved(path: &str) -> bool {
    path.starts_with(api::PREFIX) || fixed_route(path).is_some_and(|route| route != "metrics")
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
    let mut answer = Response::new(body.into());
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

/// Asks the client to come back.
fn busy(message: &str) -> Answer {
    let mut answer = error(StatusCode::SERVICE_UNAVAILABLE, message);
    answer
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
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
