//! Sends one request to an application's endpoint.
//!
//! Invariants: memory use stays within the byte limits, whatever the application sends: an answer
//! has [`SMALL`] bytes without asking, and `--custom.max-body` if it is one of the few large ones at
//! a time. No redirect is followed. The caller limits the time.

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    client::conn::http1,
    header::{ACCEPT, CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, SemaphorePermit},
};

use super::{
    stopwatch::Stopwatch,
    store::{Failure, Reason},
};

/// Largest head of an answer, bytes.
const HEAD: usize = 16 << 10;
/// An answer up to this size waits for no other, bytes.
pub const SMALL: usize = 64 << 10;
const ACCEPTED: &str =
    "text/plain;version=0.0.4,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1";

fn protocol(error: &hyper::Error) -> Failure {
    // The text of a hyper error contains nothing that the peer sent.
    Failure::new(Reason::Protocol, format!("not an HTTP answer: {error}"))
}

/// What a request may use.
#[derive(Clone, Copy, Debug)]
pub struct Allowed<'a> {
    /// `--custom.max-body`, bytes.
    pub max_body: usize,
    /// A permit for each large answer.
    pub large: &'a Semaphore,
    /// It is paused while the request waits for a permit.
    pub watch: &'a Stopwatch,
}

/// An answer's body, and the permit to keep it in memory if it is large.
pub type Answer<'a> = (Bytes, Option<SemaphorePermit<'a>>);

/// Requests `path`.
///
/// # Errors
///
/// What is wrong with the answer.
pub async fn fetch<'a>(
    stream: TcpStream,
    port: u16,
    path: &str,
    allowed: Allowed<'a>,
) -> Result<Answer<'a>, Failure> {
    let max_body = allowed.max_body;
    let (mut sender, driver) = http1::Builder::new()
        .max_buf_size(HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| protocol(&error))?;
    let request = Request::get(path)
        .header(HOST, format!("localhost:{port}"))
        .header(USER_AGENT, concat!("cgmeter/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, ACCEPTED)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::new(Reason::Protocol, format!("invalid request: {error}")))?;
    let talk = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| protocol(&error))?;
        if answer.status() != StatusCode::OK {
            let text = format!("the answer's status is {}", answer.status().as_u16());
            return Err(Failure::new(Reason::Status, text));
        }
        let mut body = answer.into_body();
        let mut text = BytesMut::new();
        let mut permit = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| protocol(&error))?;
            if let Some(data) = frame.data_ref() {
                if text.len() + data.len() > max_body {
                    let message =
                        format!("the answer has more than {max_body} bytes, see --custom.max-body");
                    return Err(Failure::new(Reason::Size, message));
                }
                if permit.is_none() && text.len() + data.len() > SMALL {
                    permit = allowed.watch.paused(allowed.large.acquire()).await.ok();
                    // It never has to grow, which would take as much memory again.
                    let mut room = BytesMut::with_capacity(max_body);
                    room.extend_from_slice(&text);
                    text = room;
                }
                text.extend_from_slice(data);
            }
        }
        Ok((text.freeze(), permit))
    };
    // The connection is driven until the exchange is over.
    tokio::pin!(driver);
    tokio::pin!(talk);
    let mut driven = false;
    loop {
        tokio::select! {
            biased;
            result = &mut talk => return result,
            _ = &mut driver, if !driven => driven = true,
        }
    }
}
