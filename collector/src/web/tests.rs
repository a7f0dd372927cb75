//! The server with well-behaved and misbehaving clients, over real sockets.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Counters, Limits, Metrics, WebOptions, bind, serve};
use crate::{
    agent::{AgentStatus, Inventory},
    exposition::{Body, Format},
};

mod api;
mod attack;

/// Serves a text after an optional wait.
#[derive(Default)]
struct Fixed {
    wait: Duration,
    scrapes: AtomicUsize,
    /// A faulty agent: every scrape panics, and it is not ready.
    faulty: AtomicBool,
    /// Length of the exposition: a new one at each scrape. 0 for a short fixed text.
    length: usize,
    /// Expositions that are in memory.
    live: Arc<AtomicUsize>,
}

/// Bytes of an exposition. Counts itself as long as it is in memory.
struct Tracked(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fixed {
    /// An exposition whose bytes are those of its number.
    fn exposition(&self, number: usize) -> Body {
        self.live.fetch_add(1, Ordering::SeqCst);
        let bytes = vec![b'0' + (number % 10) as u8; self.length];
        Bytes::from_owner(Tracked(bytes, Arc::clone(&self.live))).into()
    }
}

impl Metrics for Fixed {
    fn scrape(&self, format: Format) -> Result<Body, String> {
        let number = self.scrapes.fetch_add(1, Ordering::SeqCst) + 1;
        std::thread::sleep(self.wait);
        assert!(!self.faulty.load(Ordering::SeqCst), "a test");
        match format {
            _ if self.length > 0 => Ok(self.exposition(number)),
            Format::Text => Ok(Bytes::from_static(b"text 1\n").into()),
            _ => Ok(Bytes::from_static(b"# EOF\n").into()),
        }
    }

    fn at_hand(&self, _: Format) -> Option<Body> {
        None
    }

    fn release(&self) -> bool {
        true
    }

    fn shared_for(&self) -> Duration {
        Duration::ZERO
    }

    fn inventory(&self) -> Result<Arc<Inventory>, String> {
        self.scrapes.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(self.wait);
        Ok(Arc::new(api::inventory()))
    }

    fn status(&self) -> Result<AgentStatus, String> {
        Ok(api::status())
    }

    fn ready(&self) -> Result<(), String> {
        match self.faulty.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err("the last snapshot failed: a test".to_owned()),
        }
    }
}

struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: mpsc::Receiver<()>,
    metrics: Arc<Fixed>,
    counters: Counters,
}

impl Server {
    fn start(wait: Duration, max_requests: usize) -> Self {
        let metrics = Fixed {
            wait,
            ..Fixed::default()
        };
        Self::with(metrics, max_requests, Limits::new(20_000))
    }

    fn with(metrics: Fixed, max_requests: usize, limits: Limits) -> Self {
        let listeners = bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let address = listeners[0].local_addr().unwrap();
        let metrics = Arc::new(metrics);
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = mpsc::channel();
        let options = WebOptions {
            telemetry_path: "/metrics".to_owned(),
            max_requests,
        };
        let counters = Counters::new(&prometheus::Registry::new()).unwrap();
        let (served, counted) = (Arc::clone(&metrics), counters.clone());
        std::thread::spawn(move || {
            // As in main.rs.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .max_blocking_threads(4)
                .enable_all()
                .build()
                .unwrap();
            let shutdown = async {
                let _ = stopped.await;
            };
            runtime
                .block_on(serve(listeners, served, options, limits, counted, shutdown))
                .unwrap();
            end.send(()).unwrap();
        });
        Self {
            address,
            stop: Some(stop),
            ended,
            metrics,
            counters,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // The server may reset the connection after an early answer.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, path: &str) -> String {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ))
    }
}

#[test]
fn routes() {
    let server = Server::start(Duration::ZERO, 4);
    let answer = server.get("/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(
        answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\ntext 1\n"), "{answer}");
    assert!(server.get("/").contains("href=\"/metrics\""));
    assert!(server.get("/-/healthy").starts_with("HTTP/1.1 200"));
    assert!(server.get("/-/ready").starts_with("HTTP/1.1 200"));
    let answer = server.get("/nothing\"here");
    assert!(
        answer.starts_with("HTTP/1.1 404") || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
    assert!(
        server
            .get("/nothing")
            .contains("{\"error\":\"there is nothing at /nothing\"}")
    );
    let answer = server
        .ask("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 405") && answer.contains("allow: GET, HEAD"),
        "{answer}"
    );
}

#[test]
fn ready_says_what_is_wrong() {
    let server = Server::start(Duration::ZERO, 4);
    server.metrics.faulty.store(true, Ordering::SeqCst);
    let answer = server.get("/-/ready");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let body = "{\"error\":\"the last snapshot failed: a test\"}\n";
    assert!(answer.ends_with(body), "{answer}");
    assert!(server.get("/-/healthy").starts_with("HTTP/1.1 200"));
    server.metrics.faulty.store(false, Ordering::SeqCst);
    assert!(server.get("/-/ready").starts_with("HTTP/1.1 200"));
}

#[test]
fn scrapes_that_panic_are_answered_and_use_nothing_up() {
    let server = Server::start(Duration::ZERO, 4);
    server.metrics.faulty.store(true, Ordering::SeqCst);
    // More than there are threads and permits.
    for _ in 0..20 {
        let answer = server.get("/metrics");
        assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
        assert!(answer.contains("see the log of the agent"), "{answer}");
    }
    server.metrics.faulty.store(false, Ordering::SeqCst);
    assert!(server.get("/metrics").ends_with("text 1\n"));
}

#[test]
fn head_has_no_body() {
    let server = Server::start(Duration::ZERO, 4);
    let answer = server.ask("HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn openmetrics_is_negotiated() {
    let server = Server::start(Duration::ZERO, 4);
    let answer = server.ask(
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\
         Connection: close\r\n\r\n",
    );
    assert!(
        answer.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{answer}"
    );
    assert!(answer.ends_with("# EOF\n"));
}

#[test]
fn malformed_heads_are_refused_and_other_requests_are_answered() {
    let server = Server::start(Duration::ZERO, 4);
    let huge = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "a".repeat(1 << 20)
    );
    assert!(!server.ask(&huge).starts_with("HTTP/1.1 200"));
    assert!(
        !server
            .ask("\0\u{1}\u{2} nonsense\r\n\r\n")
            .starts_with("HTTP/1.1 200")
    );
    // A client that never finishes its head is cut off in the end, and delays nobody meanwhile.
    let mut slow = server.connect();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost:").unwrap();
    assert!(server.get("/metrics").ends_with("text 1\n"));
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).starts_with("HTTP/1.1 200"));
}

#[test]
fn pipelined_requests_are_all_answered() {
    let server = Server::start(Duration::ZERO, 4);
    let one = "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n";
    let last = "GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = server.ask(&format!("{one}{one}{last}"));
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 3, "{answer}");
}

#[test]
fn a_request_in_progress_is_finished_at_shutdown() {
    let mut server = Server::start(Duration::from_secs(1), 4);
    let mut slow = server.connect();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    while server.metrics.scrapes.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    server.stop.take().unwrap().send(()).unwrap();
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("text 1\n"), "{text}");
    server.ended.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(
        TcpStream::connect(server.address).is_err(),
        "the port is still open"
    );
}

#[test]
fn a_port_in_use_is_named() {
    let server = Server::start(Duration::ZERO, 1);
    let error = bind(&[server.address]).unwrap_err().to_string();
    assert!(error.contains(&server.address.to_string()), "{error}");
    assert!(
        error.contains("another process uses this address"),
        "{error}"
    );
}
