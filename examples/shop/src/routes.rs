//! The routes.
//!
//! | path | |
//! | --- | --- |
//! | GET /products, GET /products/NAME | the products |
//! | POST /orders | `{"product": NAME, "quantity": N}` |
//! | GET /healthz, GET /metrics | not affected by chaos, and not counted as requests |
//! | GET, POST /chaos | the chaos settings; only for clients on loopback that are not web pages |

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Body,
    header::{ALLOW, CONTENT_TYPE, HeaderValue, ORIGIN},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    chaos::{self, Chaos},
    metrics::Metrics,
    spans::{Exporter, Span},
    store::{Refusal, Store},
    trace::Context,
};

/// The largest body of a request, in bytes.
const MAX_BODY: usize = 16 * 1024;
/// The most items of an order.
const MAX_QUANTITY: u64 = 1000;

/// An answer.
pub type Answer = Response<Full<Bytes>>;

/// The shop.
#[derive(Debug)]
pub struct Shop {
    store: Store,
    chaos: Arc<Chaos>,
    metrics: Metrics,
    exporter: Option<Exporter>,
}

/// The body of an order.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    product: String,
    #[serde(default = "one")]
    quantity: u64,
}

fn one() -> u64 {
    1
}

impl Shop {
    /// Makes a shop with full stock.
    ///
    /// # Errors
    ///
    /// Returns an error if its metrics clash.
    pub fn new(max_memory: usize, exporter: Option<Exporter>) -> Result<Self> {
        Ok(Self {
            store: Store::default(),
            chaos: Arc::new(Chaos::new(max_memory)),
            metrics: Metrics::new()?,
            exporter,
        })
    }

    /// Applies changes of the chaos. Blocks while memory is filled.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with them.
    pub fn change(&self, changes: &[(String, String)]) -> Result<chaos::Settings, String> {
        let before = self.chaos.settings();
        let after = self.chaos.change(changes)?;
        let given = changes.iter().any(|(key, _)| key == "inventory");
        if given || before.inventory != after.inventory {
            self.store.stock(after.inventory);
        }
        Ok(after)
    }

    /// Answers a request. `local` is whether the client is on loopback.
    pub async fn answer<B>(self: &Arc<Self>, request: Request<B>, local: bool) -> Answer
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match (request.method().clone(), request.uri().path()) {
            (Method::GET, "/healthz") => return text(StatusCode::OK, "well"),
            (Method::GET, "/metrics") => {
                return match self.metrics.text(&self.store.products()) {
                    Ok(exposition) => text(StatusCode::OK, exposition),
                    Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
                };
            }
            (method, "/chaos") => {
                if !local || request.headers().contains_key(ORIGIN) {
                    return problem(
                        StatusCode::FORBIDDEN,
                        "chaos is for this host alone, and not for web pages: `shop chaos`",
                    );
                }
                return self.answer_chaos(method, request).await;
            }
            (_, "/healthz" | "/metrics") => return not_allowed("GET"),
            _ => {}
        }
        self.serve(request).await
    }

    /// Answers a customer's request: with chaos, counted, logged, and with a span.
    async fn serve<B>(&self, request: Request<B>) -> Answer
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (begin, arrival) = (Instant::now(), SystemTime::now());
        let header = request.headers().get("traceparent");
        let context = Context::new(header.and_then(|value| value.to_str().ok()));
        // The values of labels must be bounded.
        let method = match *request.method() {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::HEAD => "HEAD",
            _ => "other",
        };
        let path = request.uri().path().to_owned();
        let route = route(&path);
        let latency = self.chaos.settings().latency();
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let mut answer = if self.chaos.fails() {
            problem(StatusCode::INTERNAL_SERVER_ERROR, "told to fail")
        } else {
            self.trade(route, &path, request).await
        };
        let (status, time) = (answer.status().as_u16(), begin.elapsed());
        self.metrics.answered(method, route, status, time);
        log(&context, method, route, &path, status, time.as_secs_f64());
        if let Ok(value) = HeaderValue::from_str(&context.traceparent()) {
            answer.headers_mut().insert("traceparent", value);
        }
        if let Some(exporter) = &self.exporter {
            exporter.export(Span {
                context,
                method: method.to_owned(),
                route,
                status,
                begin: arrival,
                end: arrival + time,
            });
        }
        answer
    }

    async fn trade<B>(&self, route: &str, path: &str, request: Request<B>) -> Answer
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match (route, request.method()) {
            ("/products", &Method::GET) => json(StatusCode::OK, &json!(self.store.products())),
            ("/products/{name}", &Method::GET) => {
                let products = self.store.products();
                let name = path.trim_start_matches("/products/");
                match products.iter().find(|product| product.name == name) {
                    Some(product) => json(StatusCode::OK, &json!(product)),
                    None => problem(StatusCode::NOT_FOUND, "there is no such product"),
                }
            }
            ("/orders", &Method::POST) => match body(request).await {
                Ok(body) => self.order(&body),
                Err(answer) => answer,
            },
            ("/orders", _) => not_allowed("POST"),
            ("/products" | "/products/{name}", _) => not_allowed("GET"),
            _ => problem(StatusCode::NOT_FOUND, "nothing is here: try /products"),
        }
    }

    fn order(&self, body: &[u8]) -> Answer {
        let order: Order = match serde_json::from_slice(body) {
            Ok(order) => order,
            Err(error) => {
                self.metrics.ordered("unknown", "refused");
                return problem(StatusCode::BAD_REQUEST, &format!("no order: {error}"));
            }
        };
        let products = self.store.products();
        let known = products.iter().find(|known| known.name == order.product);
        let label = known.map_or("unknown", |product| product.name);
        if !(1..=MAX_QUANTITY).contains(&order.quantity) {
            self.metrics.ordered(label, "refused");
            return problem(StatusCode::BAD_REQUEST, "quantity: expected 1 to 1000");
        }
        match self.store.order(&order.product, order.quantity) {
            Ok(cents) => {
                self.metrics.ordered(label, "taken");
                json(StatusCode::CREATED, &json!({ "total_cents": cents }))
            }
            Err(Refusal::Unknown) => {
                self.metrics.ordered(label, "refused");
                problem(StatusCode::NOT_FOUND, "there is no such product")
            }
            Err(Refusal::SoldOut { left }) => {
                self.metrics.ordered(label, "sold_out");
                problem(StatusCode::CONFLICT, &format!("only {left} left"))
            }
        }
    }

    async fn answer_chaos<B>(self: &Arc<Self>, method: Method, request: Request<B>) -> Answer
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if method == Method::GET {
            return json(StatusCode::OK, &json!(self.chaos.settings()));
        }
        if method != Method::POST {
            return not_allowed("GET, POST");
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = match body(request).await {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        let changes = chaos::from_query(&query).and_then(|mut changes| {
            if !body.is_empty() {
                changes.extend(chaos::from_json(&body)?);
            }
            Ok(changes)
        });
        let shop = Arc::clone(self);
        // Filling memory takes time.
        let changed = tokio::task::spawn_blocking(move || shop.change(&changes?)).await;
        match changed {
            Ok(Ok(settings)) => {
                let settings = json!(settings);
                tracing::warn!(%settings, "told how to misbehave");
                json(StatusCode::OK, &settings)
            }
            Ok(Err(error)) => problem(StatusCode::BAD_REQUEST, &error),
            Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }
}

/// The route of a path, out of a fixed set.
fn route(path: &str) -> &'static str {
    match path {
        "/products" => "/products",
        "/orders" => "/orders",
        _ if path.starts_with("/products/") => "/products/{name}",
        _ => "other",
    }
}

fn log(context: &Context, method: &str, route: &str, path: &str, status: u16, seconds: f64) {
    let (trace_id, span_id) = (context.trace.as_str(), context.span.as_str());
    let parent_span_id = context.parent.as_deref();
    macro_rules! request {
        ($level:ident) => {
            tracing::$level!(
                trace_id,
                span_id,
                parent_span_id,
                method,
                route,
                path,
                status_code = status,
                duration_seconds = seconds,
                "request"
            )
        };
    }
    if status >= 500 {
        request!(error);
    } else {
        request!(info);
    }
}

async fn body<B>(request: Request<B>) -> Result<Bytes, Answer>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(problem(
            StatusCode::PAYLOAD_TOO_LARGE,
            "at most 16 KiB are read",
        )),
        Err(error) => Err(problem(StatusCode::BAD_REQUEST, &error.to_string())),
    }
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; version=0.0.4; charset=utf-8", body)
}

fn json(status: StatusCode, value: &Value) -> Answer {
    answer(status, "application/json", value.to_string())
}

fn problem(status: StatusCode, message: &str) -> Answer {
    json(status, &json!({ "error": message }))
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = problem(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("expected {allowed}"),
    );
    let allowed = HeaderValue::from_static(allowed);
    answer.headers_mut().insert(ALLOW, allowed);
    answer
}
