//! Against servers of one answer each, which see what was asked.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixListener,
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use crate::{Error, Request, Response, escaped};

/// A server that reads one request, which it hands out, and then does as it is told.
fn server(serve: impl FnOnce(&mut TcpStream) + Send + 'static) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, requests) = channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        let _ = asked.send(String::from_utf8_lossy(&buffer[..count]).into_owned());
        serve(&mut stream);
    });
    (address, requests)
}

fn answered(request: Request, answer: &'static str) -> Result<Response, Error> {
    let (address, _requests) = server(move |stream| {
        let _ = stream.write_all(answer.as_bytes());
    });
    request.send(address)
}

fn get(answer: &'static str) -> Result<Response, Error> {
    answered(Request::get("/"), answer)
}

#[test]
fn a_body_ends_by_its_length_its_last_chunk_or_with_the_connection() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and more",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\nhello",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ] {
        assert_eq!(get(answer).unwrap().ok_text().unwrap(), "hello", "{answer}");
    }
    let none = get("HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n").unwrap();
    assert_eq!((none.status, none.body.len()), (204, 0));
    assert_eq!(none.header("x-a"), Some("b"));
    assert_eq!(none.status_line, "HTTP/1.1 204 No Content");
}

#[test]
fn a_unix_socket_is_asked_likewise() {
    let path = std::env::temp_dir().join(format!("http-client-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
            .unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    });
    let response = Request::get("/_ping").send_to_unix(&path);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(response.unwrap().ok_text().unwrap(), "OK");
    let asked = server.join().unwrap();
    let expected = "GET /_ping HTTP/1.1\r\nHost: localhost\r\n";
    assert!(asked.starts_with(expected), "{asked}");
}

#[test]
fn an_answer_that_is_cut_short_is_an_error() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhell",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let error = get(answer).unwrap_err();
        assert!(matches!(error, Error::Incomplete), "{answer}: {error}");
    }
}

#[test]
fn what_is_not_http_is_shown() {
    for (answer, line) in [
        ("", ""),
        ("SSH-2.0 200\n", "SSH-2.0 200"),
        ("HTTP/1.1 2000 No\r\n\r\n", "HTTP/1.1 2000 No"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            "Content-Length: many",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\nhello\r\n",
            "five",
        ),
    ] {
        let error = get(answer).unwrap_err().to_string();
        assert_eq!(error, format!("it answered {line:?}"), "{answer}");
    }
    let long = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;{}",
        "x".repeat(1 << 17)
    );
    let (address, _requests) = server(move |stream| {
        let _ = stream.write_all(long.as_bytes());
        let _ = stream.read(&mut [0]);
    });
    let error = Request::get("/").send(address).unwrap_err();
    assert!(matches!(error, Error::NotHttp(_)), "{error}");
    let error = get("HTTP/1.1 404 Not Found\r\n\r\nno")
        .unwrap()
        .ok_text()
        .unwrap_err()
        .to_string();
    assert_eq!(error, "it answered \"HTTP/1.1 404 Not Found\": no");
}

#[test]
fn a_body_over_the_limit_is_an_error_however_its_end_is_marked() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        "HTTP/1.1 200 OK\r\n\r\nhello",
    ] {
        let error = answered(Request::get("/").max_body(4), answer).unwrap_err();
        assert!(matches!(error, Error::TooLarge(4)), "{answer}: {error}");
    }
    let whole = "HTTP/1.1 200 OK\r\n\r\nhello";
    assert!(answered(Request::get("/").max_body(5), whole).is_ok());
}

#[test]
fn a_server_that_sends_a_byte_at_a_time_is_left_at_the_deadline() {
    let (address, _requests) = server(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let begin = Instant::now();
    let request = Request::get("/").timeout(Duration::from_millis(300));
    let error = request.send(address).unwrap_err();
    assert!(matches!(error, Error::TimedOut), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_silent_server_is_left_at_the_deadline() {
    let (address, requests) = server(|stream| {
        let _ = stream.read(&mut [0]);
    });
    let request = Request::get("/").timeout(Duration::from_millis(100));
    assert!(matches!(
        request.send(address).unwrap_err(),
        Error::TimedOut
    ));
    assert!(requests.recv().unwrap().starts_with("GET / HTTP/1.1\r\n"));
}

#[test]
fn the_request_is_sent_as_given() {
    let (address, requests) = server(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
    });
    let request = Request::post("/a?b=c", "{}").header("Accept", "text/plain");
    request.send(address).unwrap();
    assert_eq!(
        requests.recv().unwrap(),
        format!(
            "POST /a?b=c HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAccept: text/plain\r\n\
             Content-Length: 2\r\n\r\n{{}}"
        )
    );
}

#[test]
fn the_head_alone_needs_no_body() {
    let (address, _requests) = server(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
        let _ = stream.read(&mut [0]);
    });
    let response = Request::get("/").send_for_head(address).unwrap();
    assert_eq!((response.status, response.body.len()), (200, 0));
}

#[test]
fn a_refused_connection_is_an_error_of_the_system() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Request::get("/").send(address).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(
        std::error::Error::source(&error).is_none(),
        "reported twice"
    );
}

#[test]
fn expressions_can_be_in_a_query() {
    assert_eq!(escaped("sum(a{b=~\"x\"})"), "sum%28a%7Bb%3D~%22x%22%7D%29");
}
