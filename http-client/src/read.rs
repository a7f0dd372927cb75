//! Reading an answer within a deadline.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use crate::{Error, Response};

/// The largest head, and the largest line before a chunk, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// The maximum number of headers.
const MAX_HEADERS: usize = 64;

/// The time that is left until a deadline, which is never zero: sockets take zero for no timeout.
pub fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

/// A socket whose reads and writes can be given a timeout.
pub trait Socket {
    /// Receives what is there; waits until the deadline if nothing is.
    fn receive(&self, bytes: &mut [u8], deadline: Instant) -> io::Result<usize>;
    /// Sends as much as there is room for.
    fn send(&self, bytes: &[u8], deadline: Instant) -> io::Result<usize>;
}

macro_rules! socket {
    ($($stream:ty),*) => {$(
        impl Socket for $stream {
            fn receive(&self, bytes: &mut [u8], deadline: Instant) -> io::Result<usize> {
                self.set_read_timeout(Some(left(deadline)?))?;
                let mut stream = self;
                stream.read(bytes)
            }

            fn send(&self, bytes: &[u8], deadline: Instant) -> io::Result<usize> {
                self.set_write_timeout(Some(left(deadline)?))?;
                let mut stream = self;
                stream.write(bytes)
            }
        }
    )*};
}

socket!(TcpStream, UnixStream);

/// A connection with a deadline, and what has been received and not yet used.
pub struct Connection<'a> {
    stream: &'a dyn Socket,
    deadline: Instant,
    received: Vec<u8>,
}

/// How the end of a body is marked.
enum Length {
    Bytes(usize),
    Chunked,
    UntilClosed,
}

impl<'a> Connection<'a> {
    pub fn new(stream: &'a dyn Socket, deadline: Instant) -> Self {
        Self {
            stream,
            deadline,
            received: Vec::new(),
        }
    }

    /// Receives more; false at the end of the stream.
    fn receive(&mut self) -> Result<bool, Error> {
        let mut part = [0; 64 << 10];
        let count = self.stream.receive(&mut part, self.deadline)?;
        self.received.extend_from_slice(&part[..count]);
        Ok(count > 0)
    }

    /// Receives more where the answer can't end yet.
    fn receive_more(&mut self) -> Result<(), Error> {
        if self.receive()? {
            return Ok(());
        }
        Err(Error::Incomplete)
    }

    /// Reads head and body.
    pub fn response(&mut self, max_body: usize) -> Result<Response, Error> {
        let mut response = self.head()?;
        response.body = match length(&response)? {
            Length::Bytes(count) => self.bytes(count, max_body)?,
            Length::Chunked => self.chunks(max_body)?,
            Length::UntilClosed => self.rest(max_body)?,
        };
        Ok(response)
    }

    /// Reads the head. Interim answers such as `100 Continue` are skipped.
    pub fn head(&mut self) -> Result<Response, Error> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut head = httparse::Response::new(&mut headers);
            match head.parse(&self.received) {
                Ok(httparse::Status::Complete(end)) => {
                    let response = Response {
                        status: head.code.unwrap_or_default(),
                        status_line: self.first_line(),
                        headers: head.headers.iter().map(owned).collect(),
                        body: Vec::new(),
                    };
                    self.received.drain(..end);
                    if response.status >= 200 {
                        return Ok(response);
                    }
                }
                Ok(httparse::Status::Partial) if self.received.len() < MAX_HEAD => {
                    if !self.receive()? {
                        return Err(Error::NotHttp(self.first_line()));
                    }
                }
                _ => return Err(Error::NotHttp(self.first_line())),
            }
        }
    }

    fn first_line(&self) -> String {
        let line = self.received.split(|&byte| byte == b'\n').next();
        let text = String::from_utf8_lossy(line.unwrap_or_default());
        text.trim_end().chars().take(200).collect()
    }

    fn bytes(&mut self, count: usize, max: usize) -> Result<Vec<u8>, Error> {
        if count > max {
            return Err(Error::TooLarge(max));
        }
        while self.received.len() < count {
            self.receive_more()?;
        }
        self.received.truncate(count);
        Ok(std::mem::take(&mut self.received))
    }

    fn chunks(&mut self, max: usize) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        loop {
            let (begin, size) = loop {
                match httparse::parse_chunk_size(&self.received) {
                    Ok(httparse::Status::Complete(found)) => break found,
                    Ok(httparse::Status::Partial) if self.received.len() < MAX_HEAD => {
                        self.receive_more()?;
                    }
                    _ => return Err(Error::NotHttp(self.first_line())),
                }
            };
            if size == 0 {
                // Trailers, if there are any, are not read.
                return Ok(body);
            }
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if size > max.saturating_sub(body.len()) {
                return Err(Error::TooLarge(max));
            }
            let end = begin + size;
            while self.received.len() < end + 2 {
                self.receive_more()?;
            }
            if self.received[end..end + 2] != *b"\r\n" {
                return Err(Error::NotHttp("a chunk without its end".to_owned()));
            }
            body.extend_from_slice(&self.received[begin..end]);
            self.received.drain(..end + 2);
        }
    }

    fn rest(&mut self, max: usize) -> Result<Vec<u8>, Error> {
        loop {
            if self.received.len() > max {
                return Err(Error::TooLarge(max));
            }
            if !self.receive()? {
                return Ok(std::mem::take(&mut self.received));
            }
        }
    }
}

impl Write for Connection<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.send(bytes, self.deadline)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn owned(header: &httparse::Header<'_>) -> (String, String) {
    let value = String::from_utf8_lossy(header.value);
    (header.name.to_owned(), value.into_owned())
}

/// Returns how the end of the body is marked (RFC 9112, section 6.3).
fn length(response: &Response) -> Result<Length, Error> {
    if matches!(response.status, 204 | 304) {
        return Ok(Length::Bytes(0));
    }
    if let Some(encoding) = response.header("Transfer-Encoding") {
        return Ok(if encoding.trim().eq_ignore_ascii_case("chunked") {
            Length::Chunked
        } else {
            Length::UntilClosed
        });
    }
    match response.header("Content-Length") {
        Some(text) => match text.trim().parse() {
            Ok(count) => Ok(Length::Bytes(count)),
            Err(_) => Err(Error::NotHttp(format!("Content-Length: {text}"))),
        },
        None => Ok(Length::UntilClosed),
    }
}
