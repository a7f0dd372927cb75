//! An HTTP client for health checks, chaos, load and spans. One request a connection.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The largest answer, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// An answer.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim_end().to_owned()
    }
}

/// Sends a request to `HOST:PORT` over a new connection.
///
/// # Errors
///
/// Returns an error if there is no complete answer.
pub async fn ask(
    authority: &str,
    method: &str,
    path: &str,
    body: String,
    traceparent: Option<&str>,
) -> Result<Answer> {
    let stream = TcpStream::connect(authority)
        .await
        .with_context(|| format!("connecting to {authority}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Errors of the connection are also returned by the request.
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    let response = sender
        .send_request(request.body(Full::new(Bytes::from(body)))?)
        .await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    let body = body.collect().await.map_err(anyhow::Error::from_boxed)?;
    Ok(Answer {
        status,
        body: body.to_bytes(),
    })
}

/// `shop check`
///
/// # Errors
///
/// Returns an error unless the shop answers with 200.
pub async fn check(address: &str) -> Result<()> {
    report(ask(address, "GET", "/healthz", String::new(), None).await?)
}

/// `shop chaos`
///
/// # Errors
///
/// Returns the answer of the shop if it refuses.
pub async fn chaos(address: &str, settings: &[(String, String)]) -> Result<()> {
    let pairs = settings
        .iter()
        .map(|(key, value)| (key.clone(), value.clone().into()));
    let object: serde_json::Map<String, serde_json::Value> = pairs.collect();
    let body = serde_json::Value::Object(object).to_string();
    report(ask(address, "POST", "/chaos", body, None).await?)
}

fn report(answer: Answer) -> Result<()> {
    if !answer.status.is_success() {
        bail!("the shop answers {}: {}", answer.status, answer.text());
    }
    println!("{}", answer.text());
    Ok(())
}
