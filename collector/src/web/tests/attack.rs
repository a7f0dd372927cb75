//! Clients that don't read, don't ask, or give up.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use super::{Fixed, Limits, Server};
use crate::{
    kernel::socket,
    web::{cut::Cut, listen::BACKLOG},
};

const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
const MEGABYTE: usize = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(30);

/// Each scrape gets an exposition of its own.
fn limits() -> Limits {
    Limits {
        reuse: Duration::ZERO,
        ..Limits::new(20_000)
    }
}

/// A server whose expositions are this long.
fn large(length: usize, limits: Limits) -> Server {
    let metrics = Fixed {
        length,
        ..Fixed::default()
    };
    Server::with(metrics, 1000, limits)
}

/// A client whose kernel takes few bytes unless it reads.
fn small(server: &Server) -> TcpStream {
    let stream = server.connect();
    socket::set_buffers(&stream, 4096, 4096).unwrap();
    stream
}

/// A client that asks for an exposition.
fn asking(server: &Server) -> TcpStream {
    let mut stream = small(server);
    stream.write_all(GET).unwrap();
    stream
}

/// Waits until something is so.
fn until(what: &str, so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the server has ended a connection. What it has sent before is dropped.
fn ended(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let ended = loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(error) => break error.kind() != ErrorKind::WouldBlock,
        }
    };
    stream.set_nonblocking(false).unwrap();
    ended
}

/// Length of the body of an answer.
fn body_length(answer: &[u8]) -> usize {
    let head = answer.windows(4).position(|part| part == b"\r\n\r\n");
    answer.len() - head.unwrap() - 4
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    for length in [4 * MEGABYTE, 100_000] {
        // Also if the kernel has the whole answer and the connection would be over.
        let server = large(
            length,
            Limits {
                stall: Duration::from_millis(800),
                ..limits()
            },
        );
        let mut stream = small(&server);
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        until("it is not cut off", || {
            server.counters.cuts(Cut::Stalled) == 1
        });
        until("its answer is still in memory", || {
            server.metrics.live.load(SeqCst) == 0
        });
        let mut received = Vec::new();
        let error = stream.read_to_end(&mut received).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(received.len() < length, "{} bytes", received.len());
    }
}

#[test]
fn a_client_that_reads_slowly_gets_everything() {
    let length = 400_000;
    let stall = Duration::from_millis(400);
    let server = large(length, Limits { stall, ..limits() });
    let mut stream = small(&server);
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    // The server's buffer has room for more only after several of these pauses: what counts is
    // what the client acknowledges.
    let begin = Instant::now();
    let mut received = Vec::new();
    let mut part = [0; 4096];
    loop {
        let count = stream.read(&mut part).unwrap();
        received.extend_from_slice(&part[..count]);
        if count == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(40));
    }
    assert_eq!(body_length(&received), length);
    assert!(begin.elapsed() > 5 * stall, "{:?}", begin.elapsed());
    assert_eq!(server.counters.cuts(Cut::Stalled), 0);
}

#[test]
fn the_oldest_idle_connection_gives_way() {
    let server = large(
        10,
        Limits {
            connections: 8,
            ..limits()
        },
    );
    // One has had an answer, one is in its head, the others are silent.
    let mut answered = server.connect();
    answered.write_all(GET).unwrap();
    let mut first = [0; 1];
    answered.read_exact(&mut first).unwrap();
    let mut idle: Vec<TcpStream> = (0..7).map(|_| server.connect()).collect();
    idle[0].write_all(b"GET /metrics HTTP/1.1\r\nHo").unwrap();
    until("no answer to the first", || {
        server.metrics.scrapes.load(SeqCst) == 1
    });
    assert!(!ended(&mut answered));
    let begin = Instant::now();
    assert!(server.get("/metrics").starts_with("HTTP/1.1 200"));
    assert!(begin.elapsed() < limits().head / 2, "{:?}", begin.elapsed());
    assert_eq!(server.counters.cuts(Cut::Place), 1);
    until("the oldest is still there", || {
        ended(&mut answered.try_clone().unwrap())
    });
    assert!(!idle.iter_mut().any(ended));
    let _more = server.connect();
    assert!(server.get("/metrics").starts_with("HTTP/1.1 200"));
    until("the half-open one is still there", || {
        ended(&mut idle[0].try_clone().unwrap())
    });
    assert!(!ended(&mut idle[6]));
}

#[test]
fn a_scraper_gets_in_beside_half_open_connections_renewed_all_the_time() {
    let server = large(10, limits());
    let flood = || {
        let opened = (0..2000).map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost:").unwrap();
            stream
        });
        opened.collect::<Vec<_>>()
    };
    let mut held = flood();
    for _ in 0..5 {
        held = flood();
        assert!(server.get("/metrics").starts_with("HTTP/1.1 200"));
    }
    drop(held);
    assert!(server.counters.cuts(Cut::Place) > 5 * 1000);
}

#[test]
fn a_client_that_has_stalled_gives_way_if_nobody_is_idle() {
    let server = large(
        4 * MEGABYTE,
        Limits {
            connections: 2,
            ..limits()
        },
    );
    let _stuck = [asking(&server), asking(&server)];
    until("not asked", || server.metrics.live.load(SeqCst) > 0);
    let answer = server.get("/-/ready");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.counters.cuts(Cut::Place), 1);
    assert_eq!(server.counters.cuts(Cut::Stalled), 0);
}

#[test]
fn a_request_at_work_does_not_give_way() {
    let metrics = Fixed {
        wait: Duration::from_secs(1),
        length: 10,
        ..Fixed::default()
    };
    let limits = Limits {
        connections: 1,
        ..limits()
    };
    let server = Server::with(metrics, 1000, limits);
    let mut first = asking(&server);
    until("not asked", || server.metrics.scrapes.load(SeqCst) == 1);
    let second = server.get("/metrics");
    assert!(second.starts_with("HTTP/1.1 200"), "{second}");
    let mut answer = [0; 15];
    first.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}

#[test]
fn at_most_three_expositions_are_on_their_way() {
    let server = large(
        4 * MEGABYTE,
        Limits {
            older_bytes: usize::MAX,
            ..limits()
        },
    );
    let mut stuck = Vec::new();
    for number in 1..=6 {
        stuck.push(asking(&server));
        until("not asked", || {
            server.metrics.scrapes.load(SeqCst) == number
        });
        let live = number.min(3);
        until("more are in memory", || {
            server.metrics.live.load(SeqCst) == live
        });
        // So that the order in which the clients took their last bytes is clear.
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(server.counters.cuts(Cut::Superseded), 3);
    let cut: Vec<bool> = stuck.iter_mut().map(ended).collect();
    assert_eq!(cut, [true, true, true, false, false, false]);
    // A client that reads is served beside them.
    assert!(server.get("/metrics").len() > 4 * MEGABYTE);
}

#[test]
fn large_expositions_that_stall_are_two_at_most() {
    let server = large(
        4 * MEGABYTE,
        Limits {
            older_bytes: 6 * MEGABYTE,
            older_stall: Duration::from_millis(200),
            ..limits()
        },
    );
    let mut stuck = Vec::new();
    for number in 1..=4 {
        stuck.push(asking(&server));
        until("not asked", || {
            server.metrics.scrapes.load(SeqCst) == number
        });
        until("more are in memory", || {
            server.metrics.live.load(SeqCst) == number.min(2)
        });
        // Longer than a client may pause.
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(server.counters.cuts(Cut::Superseded), 2);
}

#[test]
fn a_client_that_reads_keeps_its_exposition_beside_newer_ones_that_stall() {
    let server = large(4 * MEGABYTE, limits());
    let mut reader = server.connect();
    socket::set_buffers(&reader, 4096, 64 << 10).unwrap();
    reader.write_all(GET).unwrap();
    let mut received = 0;
    let mut part = vec![0; 64 << 10];
    let mut stuck = Vec::new();
    while received < 4 * MEGABYTE {
        received += reader.read(&mut part).unwrap();
        if stuck.len() < 8 && received > stuck.len() * 400_000 {
            let number = server.metrics.scrapes.load(SeqCst);
            stuck.push(asking(&server));
            until("not asked", || server.metrics.scrapes.load(SeqCst) > number);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    assert_eq!(stuck.len(), 8);
    assert!(server.metrics.live.load(SeqCst) <= 3);
}

#[test]
fn a_crowd_gets_an_exposition_that_is_in_memory() {
    let limits = Limits {
        connections: 3,
        reuse: PATIENCE,
        ..limits()
    };
    let server = large(4 * MEGABYTE, limits);
    let mut stuck = Vec::new();
    for _ in 0..2 {
        let client = asking(&server);
        // Its answer has begun.
        client.peek(&mut [0]).unwrap();
        stuck.push(client);
    }
    assert_eq!(server.metrics.scrapes.load(SeqCst), 2);
    // It has the last place, so it gets the newer one again.
    let answer = server.get("/metrics");
    assert!(answer.ends_with("2222"), "{}", answer.len());
    assert_eq!(server.metrics.scrapes.load(SeqCst), 2);
    assert_eq!(server.counters.cuts(Cut::Superseded), 0);
}

#[test]
fn an_exposition_that_is_too_old_for_a_crowd_is_made_anew() {
    let limits = Limits {
        connections: 2,
        reuse: Duration::from_millis(50),
        ..limits()
    };
    let server = large(4 * MEGABYTE, limits);
    let stuck = asking(&server);
    stuck.peek(&mut [0]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(server.get("/metrics").ends_with("2222"));
}

#[test]
fn scrapes_at_the_same_time_share_a_thread_and_an_exposition() {
    let metrics = Fixed {
        wait: Duration::from_secs(1),
        length: 10,
        ..Fixed::default()
    };
    let server = Server::with(metrics, 1, limits());
    let first = asking(&server);
    until("not asked", || server.metrics.scrapes.load(SeqCst) == 1);
    // These arrive while the first snapshot is taken, so it may be too old for them. None is
    // refused.
    let mut others: Vec<TcpStream> = (0..100).map(|_| asking(&server)).collect();
    others.insert(0, first);
    for (number, stream) in others.iter_mut().enumerate() {
        let mut answer = [0; 1000];
        let count = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        let expected = if number == 0 {
            "1111111111"
        } else {
            "2222222222"
        };
        assert!(answer.ends_with(expected), "{answer}");
    }
    assert_eq!(server.metrics.scrapes.load(SeqCst), 2);
}

#[test]
fn a_scraper_is_answered_before_it_gives_up() {
    let metrics = Fixed {
        wait: Duration::from_secs(2),
        length: 10,
        ..Fixed::default()
    };
    let server = Server::with(metrics, 40, limits());
    let ask = |timeout: &str| {
        server.ask(&format!(
            "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             X-Prometheus-Scrape-Timeout-Seconds: {timeout}\r\n\r\n"
        ))
    };
    let begin = Instant::now();
    let answer = ask("0.5");
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(
        answer.contains("no snapshot was ready within 450ms"),
        "{answer}"
    );
    // The first scrape is still at work; for this one nobody waits when its turn comes.
    assert!(ask("0.2").starts_with("HTTP/1.1 503"));
    assert!(ask("10").ends_with("2222222222"));
    assert_eq!(server.metrics.scrapes.load(SeqCst), 2);
}

#[test]
fn a_burst_of_connections_finds_room_to_wait() {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let allowed = text.trim().parse::<i32>().unwrap().min(BACKLOG);
    let listener = crate::web::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let address = listener[0].local_addr().unwrap();
    // Nobody accepts.
    let count = allowed.min(1000);
    let waiting: Vec<TcpStream> = (0..count)
        .map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(500)).unwrap())
        .collect();
    assert_eq!(waiting.len(), count as usize);
}
