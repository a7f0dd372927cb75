//! The receiver of the demo's alerts, which prints each as a line.
//!
//! Invariant: it accepts connections on loopback only, and reads at most [`MOST`] bytes of a request.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

/// The largest body of a request, in bytes.
const MOST: u64 = 4 << 20;

/// A receiver of notifications.
pub struct Webhook {
    lines: mpsc::Receiver<String>,
}

impl Webhook {
    /// Starts a receiver on a port.
    pub fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))
            .with_context(|| format!("listening on 127.0.0.1:{port}"))?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let lines = body(stream).map(|body| lines_of(&body)).unwrap_or_default();
                for line in lines {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self { lines })
    }

    /// Prints alerts to standard output from now on, and those that have come before.
    pub fn print(self) {
        thread::spawn(move || {
            for line in self.lines {
                println!("{line}");
            }
        });
    }
}

/// Answers a request and returns its body.
fn body(mut stream: TcpStream) -> Option<Value> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?.take(MOST));
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut text = Vec::new();
    reader.take(length).read_to_end(&mut text).ok()?;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    stream.write_all(answer).ok()?;
    serde_json::from_slice(&text).ok()
}

/// A line for each alert in a message of Alertmanager.
fn lines_of(message: &Value) -> Vec<String> {
    let alerts = message["alerts"].as_array().cloned().unwrap_or_default();
    let line = |alert: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let time = match text(&alert["status"]).as_str() {
            "resolved" => &alert["endsAt"],
            _ => &alert["startsAt"],
        };
        let clock = text(time).get(11..19).unwrap_or("").to_owned();
        format!(
            "{clock} {:<8} {} ({}): {}",
            text(&alert["status"]).to_uppercase(),
            text(&alert["labels"]["alertname"]),
            text(&alert["labels"]["severity"]),
            text(&alert["annotations"]["summary"])
        )
    };
    alerts.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_a_line() {
        let message = serde_json::json!({"alerts": [
            {"status": "firing", "labels": {"alertname": "A", "severity": "critical"},
             "annotations": {"summary": "s"}, "startsAt": "2026-01-02T03:04:05.6Z"},
            {"status": "resolved", "labels": {}, "endsAt": "x"},
        ]});
        assert_eq!(
            lines_of(&message),
            ["03:04:05 FIRING   A (critical): s", " RESOLVED ? (?): ?"]
        );
        assert!(lines_of(&Value::Null).is_empty());
    }

    #[test]
    fn requests_are_answered() {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let webhook = Webhook::start(port).unwrap();
        let body = r#"{"alerts":[{"status":"firing","labels":{"alertname":"B"}}]}"#;
        for text in [
            "rubbish\r\n\r\n".to_owned(),
            format!(
                "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ),
        ] {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        assert!(webhook.lines.recv().unwrap().contains("FIRING   B"));
    }
}
