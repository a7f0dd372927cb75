//! A minimal gRPC client for the CRI of a container runtime. Messages are written field by field,
//! with the field numbers of cri-api's runtime.v1. curl sends them: gRPC needs HTTP/2, which
//! `http-client` does not speak.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::runtimes::Folder;

/// A message of Protocol Buffers.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    /// Adds a number.
    pub fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    /// Adds a text.
    pub fn text(self, field: u64, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    /// Adds a message.
    pub fn message(self, field: u64, message: &Self) -> Self {
        self.bytes(field, &message.0)
    }

    /// Adds a map from text to text.
    pub fn map(self, field: u64, entries: &[(&str, &str)]) -> Self {
        entries.iter().fold(self, |message, (key, value)| {
            message.message(field, &Self::default().text(1, key).text(2, value))
        })
    }

    /// Adds several texts.
    pub fn texts(self, field: u64, texts: &[&str]) -> Self {
        texts
            .iter()
            .fold(self, |message, text| message.text(field, text))
    }

    /// The first field of an answer, which must be field 1 and a text.
    fn first_text(&self) -> Result<String> {
        let [tag, length, rest @ ..] = &self.0[..] else {
            return Ok(String::new());
        };
        ensure!(*tag == 1 << 3 | 2 && *length < 0x80, "{:?}", self.0);
        let text = rest.get(..usize::from(*length)).context("a short answer")?;
        Ok(String::from_utf8(text.to_vec())?)
    }
}

/// Calls a method on a socket and returns the text in the answer's first field.
pub fn call(folder: &Folder, socket: &str, method: &str, request: &Message) -> Result<String> {
    let (body, head, answer) = (
        folder.path("body"),
        folder.path("head"),
        folder.path("answer"),
    );
    let length = u32::try_from(request.0.len())?.to_be_bytes();
    fs::write(&body, [&[0], &length[..], &request.0].concat())?;
    let _ = fs::remove_file(&answer);
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--http2-prior-knowledge",
            "--max-time",
            "60",
        ])
        .args([
            "--unix-socket",
            socket,
            "--header",
            "content-type: application/grpc",
        ])
        .args(["--header", "te: trailers", "--data-binary"])
        .arg(format!("@{}", body.display()))
        .arg("--dump-header")
        .arg(&head)
        .arg("--output")
        .arg(&answer)
        .arg(format!("http://cri/{method}"))
        .stdin(Stdio::null())
        .output()
        .context("running curl")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{method}: {error}");
    let head = fs::read_to_string(&head)?;
    ensure!(
        head.lines().any(|line| line.trim() == "grpc-status: 0"),
        "{method}: {head}"
    );
    let answer = fs::read(&answer).unwrap_or_default();
    Message(answer.get(5..).unwrap_or_default().to_vec()).first_text()
}
