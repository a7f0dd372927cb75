//! An HTTP server that records POST requests. It stands in for the webhook, Slack and PagerDuty.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

/// A request.
#[derive(Clone, Debug)]
pub struct Post {
    /// Its path.
    pub path: String,
    /// Its Authorization header.
    pub authorization: String,
    /// Its body.
    pub body: Value,
}

/// A server that answers 200. It ends with the process.
pub struct Receiver {
    /// Its port on loopback.
    pub port: u16,
    posts: Arc<Mutex<Vec<Post>>>,
}

impl Receiver {
    /// Starts the server.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let posts = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&posts);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || {
                    if let Err(error) = serve(stream, &kept) {
                        eprintln!("the test's webhook: {error:#}");
                    }
                });
            }
        });
        Ok(Self { port, posts })
    }

    /// The requests so far.
    pub fn posts(&self) -> Vec<Post> {
        self.posts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether the webhook has received an alert in this state whose labels match `labels`.
    pub fn notified(&self, status: &str, labels: impl Fn(&Value) -> bool) -> bool {
        self.posts()
            .iter()
            .filter(|post| post.path == "/alerts")
            .filter_map(|post| post.body["alerts"].as_array())
            .flatten()
            .any(|alert| alert["status"] == status && labels(&alert["labels"]))
    }
}

/// Answers the requests of a connection.
fn serve(stream: TcpStream, kept: &Mutex<Vec<Post>>) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut first = String::new();
        match reader.read_line(&mut first) {
            // Closed by the client, or idle for longer than a test may take.
            Ok(0) | Err(_) => return Ok(()),
            Ok(_) => {}
        }
        let path = first.split(' ').nth(1).context("no path")?.to_owned();
        let (mut length, mut authorization) = (0, String::new());
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse()?,
                "authorization" => authorization = value.to_owned(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let post = Post {
            path,
            authorization,
            body: serde_json::from_slice(&body).context("a body that is no JSON")?,
        };
        kept.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(post);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")?;
    }
}
