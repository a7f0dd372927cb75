//! A small blocking HTTP/1.1 client, for the agent's health check, the tests, the demo and the
//! benchmarks.
//!
//! It sends one request a connection and knows neither TLS nor redirects nor compression.
//! Invariants: an exchange ends at its deadline, however slowly the server sends; a body that is
//! larger than its limit is an error, and is not read to its end.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod read;
#[cfg(test)]
mod tests;

use std::{
    io::Write,
    net::{TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

pub use error::Error;
use read::{Connection, Socket};

/// How long an exchange may take unless the request says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The largest body, in bytes, unless the request says otherwise.
const MAX_BODY: usize = 256 << 20;

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    method: &'static str,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    timeout: Duration,
    max_body: usize,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status, such as 200.
    pub status: u16,
    /// The first line, such as `HTTP/1.1 200 OK`.
    pub status_line: String,
    /// Names and values of the headers, in the order in which they came.
    pub headers: Vec<(String, String)>,
    /// The body, with chunks put together.
    pub body: Vec<u8>,
}

impl Request {
    /// A GET request for a path with its query.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target, Vec::new())
    }

    /// A POST request with a body.
    pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target, body.into())
    }

    fn new(method: &'static str, target: &str, body: Vec<u8>) -> Self {
        Self {
            method,
            target: target.to_owned(),
            headers: Vec::new(),
            body,
            timeout: TIMEOUT,
            max_body: MAX_BODY,
        }
    }

    /// Adds a header. `Host`, `Connection` and `Content-Length` are set by the client.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets how long the whole exchange may take, connecting included. The default is 30 seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the largest body in bytes. The default is 256 MiB.
    #[must_use]
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// Connects, sends the request and reads the answer.
    ///
    /// # Errors
    ///
    /// Returns an error if no address accepts the connection, or as [`Self::send_over`] does.
    pub fn send(&self, address: impl ToSocketAddrs) -> Result<Response, Error> {
        let deadline = Instant::now() + self.timeout;
        let stream = connect(address, deadline)?;
        let mut connection = self.ask(&stream, &stream.peer_addr()?.to_string(), deadline)?;
        connection.response(self.max_body)
    }

    /// As [`Self::send`], to a Unix socket. The host in the request is `localhost`.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn send_to_unix(&self, socket: &Path) -> Result<Response, Error> {
        let stream = UnixStream::connect(socket)?;
        let mut connection = self.ask(&stream, "localhost", Instant::now() + self.timeout)?;
        connection.response(self.max_body)
    }

    /// As [`Self::send`], over a connection that exists already.
    ///
    /// # Errors
    ///
    /// Returns an error if the deadline passes, if the server closes the connection early, if what
    /// it sends is not HTTP/1, or if the body is larger than the limit. A status such as 404 is not
    /// an error.
    pub fn send_over(&self, stream: &TcpStream) -> Result<Response, Error> {
        let host = stream.peer_addr()?.to_string();
        let mut connection = self.ask(stream, &host, Instant::now() + self.timeout)?;
        connection.response(self.max_body)
    }

    /// As [`Self::send`], but reads no body: that of the response is empty.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn send_for_head(&self, address: impl ToSocketAddrs) -> Result<Response, Error> {
        let deadline = Instant::now() + self.timeout;
        let stream = connect(address, deadline)?;
        let host = stream.peer_addr()?.to_string();
        self.ask(&stream, &host, deadline)?.head()
    }

    /// Sends the request.
    fn ask<'a>(
        &self,
        stream: &'a dyn Socket,
        host: &str,
        deadline: Instant,
    ) -> Result<Connection<'a>, Error> {
        let mut connection = Connection::new(stream, deadline);
        let mut head = format!(
            "{} {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n",
            self.method, self.target
        );
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if self.method != "GET" {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        head += "\r\n";
        let message = [head.as_bytes(), &self.body].concat();
        connection.write_all(&message)?;
        Ok(connection)
    }
}

/// Connects to the first address that accepts.
fn connect(address: impl ToSocketAddrs, deadline: Instant) -> Result<TcpStream, Error> {
    let mut last = Error::NoAddress;
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, read::left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

impl Response {
    /// The value of the first header of that name, whose case doesn't matter.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    ///
    /// # Errors
    ///
    /// Returns an error if it is not UTF-8.
    pub fn text(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.body).map_err(|_| Error::NotUtf8)
    }

    /// The body as text, if the status is 200.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Status`] for any other status, or as [`Self::text`] does.
    pub fn ok_text(&self) -> Result<&str, Error> {
        if self.status != 200 {
            let body = String::from_utf8_lossy(&self.body).into_owned();
            return Err(Error::Status(self.status_line.clone(), body));
        }
        self.text()
    }
}

/// A text with everything escaped that a query string can't hold.
pub fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
