//! Sends one request to an application's endpoint.
//!
//! Invariants: memory use stays within the byte limits, whatever the application sends. No redirect
//! is followed. The caller limits the time.

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    client::conn::http1,
    header::{ACCEPT, CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::store::{Failure, Reason};

/// Largest head of an answer, bytes.
const HEAD: usize = 16 << 10;
const ACCEPTED: &str =
    "text/plain;version=0.0.4,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1";

fn protocol(error: &hyper::Error) -> Failure {
    // The text of a hyper error contains nothing that the peer sent.
    Failure::new(Reason::Protocol, format!("not an HTTP answer: {error}"))
}

/// Requests `path`.
///
/// # Errors
///
/// What is wrong with the answer.
pub async fn fetch(
    stream: std::net::TcpStream,
    port: u16,
    path: &str,
    max_body: usize,
) -> Result<Bytes, Failure> {
    let connection = |error: std::io::Error| Failure::new(Reason::Connect, error.to_string());
    stream.set_nonblocking(true).map_err(connection)?;
    let stream = TcpStream::from_std(stream).map_err(connection)?;
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
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| protocol(&error))?;
            if let Some(data) = frame.data_ref() {
                if text.len() + data.len() > max_body {
                    let message =
                        format!("the answer has more than {max_body} bytes, see --custom.max-body");
                    return Err(Failure::new(Reason::Size, message));
                }
                text.extend_from_slice(data);
            }
        }
        Ok(text.freeze())
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
