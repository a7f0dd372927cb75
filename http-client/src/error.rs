//! Why an exchange failed.

use std::{fmt, io};

/// Why an exchange failed.
#[derive(Debug)]
pub enum Error {
    /// The name stands for no address.
    NoAddress,
    /// The connection failed.
    Io(io::Error),
    /// The deadline passed.
    TimedOut,
    /// The answer is not HTTP/1. Holds its first line.
    NotHttp(String),
    /// The server closed the connection within the answer.
    Incomplete,
    /// The body is larger than this number of bytes.
    TooLarge(usize),
    /// The body was to be text and is not UTF-8.
    NotUtf8,
    /// The status is not 200. Holds the status line and the body.
    Status(String, String),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // The first is what a socket returns at its timeout.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Io(error),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => write!(out, "the name stands for no address"),
            Self::Io(error) => error.fmt(out),
            Self::TimedOut => write!(out, "no complete answer in time"),
            Self::NotHttp(line) => write!(out, "it answered {line:?}"),
            Self::Incomplete => write!(out, "the connection was closed within the answer"),
            Self::TooLarge(limit) => write!(out, "the body is larger than {limit} bytes"),
            Self::NotUtf8 => write!(out, "the body is not UTF-8"),
            Self::Status(line, body) => write!(out, "it answered {line:?}: {body}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // `Display` is that of the error itself, which must not be repeated as its own cause.
            Self::Io(error) => error.source(),
            _ => None,
        }
    }
}
