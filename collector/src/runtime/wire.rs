//! Requests over a unix socket, by HTTP/1.1 and gRPC.
//!
//! Invariant: every request ends within its time limit, and every answer is cut off at its size
//! limit, whatever the other side sends. Checked by the tests of [`super`] against servers that misbehave.

use std::{path::Path, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};

/// Time limit of a request.
pub(super) const TIME: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(1);
const MIB: usize = 1 << 20;
/// Longest answer about one container.
pub(super) const ONE: usize = 8 * MIB;
/// Longest list.
pub(super) const LIST: usize = 64 * MIB;
/// Longest event.
const EVENT: usize = MIB;

/// Why a runtime did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the answer is longer than {0} bytes")]
    Large(usize),
    #[error("it has no such container")]
    Unknown,
    #[error("it does not offer this: {0}")]
    Unsupported(String),
    #[error("it refused: {0}")]
    Refused(String),
    #[error("the answer makes no sense: {0}")]
    Garbage(String),
    #[error("the connection broke: {0}")]
    Broken(String),
}

/// A task that ends with its owner.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn connect(socket: &Path) -> Result<TokioIo<UnixStream>, Fault> {
    match timeout(CONNECT, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => Ok(TokioIo::new(stream)),
        Ok(Err(error)) => Err(Fault::Connect(error)),
        Err(_) => Err(Fault::Late(CONNECT)),
    }
}

fn broken(error: hyper::Error) -> Fault {
    if error.is_parse() {
        Fault::Garbage(error.to_string())
    } else {
        Fault::Broken(error.to_string())
    }
}

/// A body that is read frame by frame.
pub(super) struct Stream {
    headers: HeaderMap,
    body: Incoming,
    buffer: BytesMut,
    trailers: HeaderMap,
    _driver: Option<Driver>,
}

impl Stream {
    fn new(answer: Response<Incoming>, driver: Option<Driver>) -> Self {
        let (head, body) = answer.into_parts();
        Self {
            headers: head.headers,
            body,
            buffer: BytesMut::new(),
            trailers: HeaderMap::new(),
            _driver: driver,
        }
    }

    /// Reads another frame; `false` at the end.
    async fn more(&mut self, limit: usize) -> Result<bool, Fault> {
        let Some(frame) = self.body.frame().await else {
            return Ok(false);
        };
        match frame.map_err(broken)?.into_data() {
            Ok(data) => {
                if self.buffer.len() + data.len() > limit {
                    return Err(Fault::Large(limit));
                }
                self.buffer.extend_from_slice(&data);
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    self.trailers = trailers;
                }
            }
        }
        Ok(true)
    }

    async fn rest(&mut self, limit: usize) -> Result<Bytes, Fault> {
        while self.more(limit).await? {}
        Ok(self.buffer.split().freeze())
    }

    /// The next line that isn't empty; `None` at the end. Safe to cancel.
    pub(super) async fn line(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            while let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line.freeze()));
                }
            }
            if !self.more(EVENT).await? {
                return Ok(None);
            }
        }
    }
}

async fn open(socket: &Path, target: &str) -> Result<Stream, Fault> {
    let (mut sender, connection) = http1::handshake(connect(socket).await?)
        .await
        .map_err(broken)?;
    let driver = Driver(tokio::spawn(async move {
        // The answer carries the error.
        let _ = connection.await;
    }));
    let request = Request::get(target)
        .header("host", "localhost")
        .header("user-agent", concat!("cgmeter/", env!("CARGO_PKG_VERSION")))
        .body(Full::<Bytes>::default())
        .map_err(|error| Fault::Refused(error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let mut stream = Stream::new(answer, Some(driver));
    match status {
        StatusCode::OK => Ok(stream),
        StatusCode::NOT_FOUND => Err(Fault::Unknown),
        status => {
            let text = stream.rest(4096).await.unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            Err(Fault::Refused(format!("{status}: {}", text.trim())))
        }
    }
}

async fn within<T>(
    time: Duration,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    timeout(time, work)
        .await
        .unwrap_or_else(|_| Err(Fault::Late(time)))
}

/// An answer's headers and whole body.
pub(super) type Answer = (HeaderMap, Bytes);

/// Sends a GET request and returns the answer's headers and body.
pub(super) async fn get(
    socket: &Path,
    target: &str,
    limit: usize,
    time: Duration,
) -> Result<Answer, Fault> {
    within(time, async {
        let mut stream = open(socket, target).await?;
        let body = stream.rest(limit).await?;
        Ok((stream.headers, body))
    })
    .await
}

/// GET, with a body that is read line by line.
pub(super) async fn stream(socket: &Path, target: &str) -> Result<Stream, Fault> {
    within(TIME, open(socket, target)).await
}

/// A gRPC connection, for all calls of a session.
pub(super) struct Channel {
    sender: http2::SendRequest<Full<Bytes>>,
    _driver: Driver,
}

impl Channel {
    pub(super) async fn connect(socket: &Path) -> Result<Self, Fault> {
        within(TIME, async {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .max_header_list_size(64 << 10)
                .handshake(connect(socket).await?)
                .await
                .map_err(broken)?;
            let driver = Driver(tokio::spawn(async move {
                // The calls carry the error.
                let _ = connection.await;
            }));
            Ok(Self {
                sender,
                _driver: driver,
            })
        })
        .await
    }

    /// One call with one answer.
    pub(super) async fn call<A: prost::Message + Default>(
        &self,
        path: &'static str,
        question: &impl prost::Message,
        limit: usize,
        time: Duration,
    ) -> Result<A, Fault> {
        let mut sender = self.sender.clone();
        let request = request(path, question)?;
        within(time, async move {
            let answer = sender.send_request(request).await.map_err(broken)?;
            if answer.status() != StatusCode::OK {
                return Err(Fault::Refused(answer.status().to_string()));
            }
            status(answer.headers())?;
            let mut stream = Stream::new(answer, None);
            let mut bytes = stream.rest(limit + PREFIX).await?;
            status(&stream.trailers)?;
            if bytes.len() < PREFIX || bytes[0] != 0 {
                return Err(Fault::Garbage("no message".to_owned()));
            }
            bytes.advance(1);
            let length = bytes.get_u32() as usize;
            if length != bytes.len() {
                return Err(Fault::Garbage("a message of another length".to_owned()));
            }
            A::decode(bytes).map_err(|error| Fault::Garbage(error.to_string()))
        })
        .await
    }
}

/// Bytes before a gRPC message: whether it is compressed, and its length.
const PREFIX: usize = 5;

fn request(path: &str, question: &impl prost::Message) -> Result<Request<Full<Bytes>>, Fault> {
    let length = question.encoded_len();
    let mut body = BytesMut::with_capacity(length + PREFIX);
    body.put_u8(0);
    body.put_u32(u32::try_from(length).map_err(|_| Fault::Large(length))?);
    let refused = |error: String| Fault::Refused(error);
    question
        .encode(&mut body)
        .map_err(|error| refused(error.to_string()))?;
    Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(body.freeze()))
        .map_err(|error| refused(error.to_string()))
}

/// Checks `grpc-status`, which may be missing.
fn status(headers: &HeaderMap) -> Result<(), Fault> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let message = || text("grpc-message").unwrap_or_default().to_owned();
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some("5") => Err(Fault::Unknown),
        Some("12") => Err(Fault::Unsupported(message())),
        Some(code) => Err(Fault::Refused(format!("status {code}: {}", message()))),
    }
}
