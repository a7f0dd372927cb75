//! The shop over real sockets, and a collector of its spans.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use crate::{client::ask, http::serve, routes::Shop, spans::Exporter};

struct Open {
    address: String,
    close: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

async fn open(exporter: Option<Exporter>) -> Open {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let shop = Arc::new(Shop::new(1 << 20, exporter).unwrap());
    let (close, closed) = oneshot::channel();
    let ended = async {
        let _ = closed.await;
    };
    let server = tokio::spawn(serve(listener, shop, ended));
    Open {
        address,
        close,
        server,
    }
}

impl Open {
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let answer = ask(&self.address, method, path, body.to_owned(), None)
            .await
            .unwrap();
        (answer.status.as_u16(), answer.text())
    }

    /// The exposition, value by series.
    async fn metrics(&self) -> HashMap<String, f64> {
        let (status, text) = self.ask("GET", "/metrics", "").await;
        assert_eq!(status, 200);
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        };
        samples.map(sample).collect()
    }
}

fn count(method: &str, route: &str, status: u16) -> String {
    format!(
        "http_request_duration_seconds_count{{method=\"{method}\",route=\"{route}\",status_code=\"{status}\"}}"
    )
}

#[tokio::test]
async fn what_is_answered() {
    let shop = open(None).await;
    for (method, path, body, status) in [
        ("GET", "/healthz", "", 200),
        ("POST", "/healthz", "", 405),
        ("GET", "/products", "", 200),
        ("GET", "/products/tea", "", 200),
        ("GET", "/products/gold", "", 404),
        ("DELETE", "/products/tea", "", 405),
        ("GET", "/", "", 404),
        ("GET", "/orders", "", 405),
        ("POST", "/orders", r#"{"product":"tea"}"#, 201),
        ("POST", "/orders", r#"{"product":"tea","quantity":99}"#, 201),
        (
            "POST",
            "/orders",
            r#"{"product":"tea","quantity":200}"#,
            409,
        ),
        ("POST", "/orders", r#"{"product":"tea","quantity":0}"#, 400),
        ("POST", "/orders", r#"{"product":"gold"}"#, 404),
        ("POST", "/orders", r#"{"product":"tea","size":1}"#, 400),
        ("POST", "/orders", "", 400),
        ("POST", "/orders", &"x".repeat(20_000), 413),
        ("GET", "/chaos", "", 200),
        ("PUT", "/chaos", "", 405),
        ("POST", "/chaos", "no", 400),
    ] {
        let (got, text) = shop.ask(method, path, body).await;
        assert_eq!(got, status, "{method} {path} {body:.40}: {text}");
    }
    let metrics = shop.metrics().await;
    let value = |series: &str| metrics.get(series).copied();
    assert_eq!(value(&count("GET", "/products/{name}", 404)), Some(1.0));
    assert_eq!(value(&count("other", "/products/{name}", 405)), Some(1.0));
    assert_eq!(value(&count("POST", "/orders", 201)), Some(2.0));
    let orders = |product: &str, result: &str| {
        value(&format!(
            "shop_orders_total{{product=\"{product}\",result=\"{result}\"}}"
        ))
    };
    assert_eq!(orders("tea", "taken"), Some(2.0));
    assert_eq!(orders("tea", "sold_out"), Some(1.0));
    assert_eq!(orders("unknown", "refused"), Some(3.0));
    assert_eq!(value("shop_inventory_items{product=\"tea\"}"), Some(100.0));
    assert!(value("process_resident_memory_bytes") > Some(0.0));
    // Health, metrics and chaos don't count as requests of customers.
    assert!(
        !metrics
            .keys()
            .any(|series| series.contains("route=\"/healthz\""))
    );
    assert!(
        !metrics
            .keys()
            .any(|series| series.contains("route=\"/chaos\""))
    );
}

#[tokio::test]
async fn chaos_is_felt_and_ends() {
    let shop = open(None).await;
    let (status, settings) = shop
        .ask(
            "POST",
            "/chaos?latency=120ms",
            r#"{"error_rate":0.5,"inventory":1}"#,
        )
        .await;
    assert_eq!(status, 200, "{settings}");
    assert!(settings.contains("\"error_rate\":0.5"), "{settings}");
    let begin = Instant::now();
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(shop.ask("GET", "/products", "").await.0);
    }
    assert!(begin.elapsed() >= Duration::from_millis(480));
    assert_eq!(statuses, [200, 500, 200, 500]);
    let metrics = shop.metrics().await;
    assert_eq!(metrics["shop_inventory_items{product=\"mug\"}"], 1.0);
    assert_eq!(metrics[&count("GET", "/products", 500)], 2.0);
    let sum = count("GET", "/products", 200).replace("_count", "_sum");
    assert!(metrics[&sum] >= 0.24);
    let (status, _) = shop.ask("POST", "/chaos", r#"{"reset":true}"#).await;
    assert_eq!(status, 200);
    for _ in 0..4 {
        assert_eq!(shop.ask("GET", "/products", "").await.0, 200);
    }
    let metrics = shop.metrics().await;
    assert_eq!(metrics["shop_inventory_items{product=\"mug\"}"], 100.0);
}

#[tokio::test]
async fn chaos_is_not_for_web_pages() {
    let shop = open(None).await;
    let mut stream = TcpStream::connect(&shop.address).await.unwrap();
    let request = "POST /chaos?cpu=1 HTTP/1.1\r\nHost: x\r\nOrigin: http://elsewhere\r\n\
                   Content-Length: 0\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[tokio::test]
async fn an_answer_under_way_is_finished_at_the_end() {
    let shop = open(None).await;
    let mut stream = TcpStream::connect(&shop.address).await.unwrap();
    let order = r#"{"product":"tea"}"#;
    let length = order.len();
    let head = format!(
        "POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The shop asks for the body, so it is serving the request.
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    shop.close.send(()).unwrap();
    stream.write_all(order.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    shop.server.await.unwrap();
    let address: SocketAddr = shop.address.parse().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn spans_reach_a_collector_in_the_caller_s_trace() {
    let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let shop = open(Some(Exporter::start(endpoint.parse().unwrap()))).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let path = "/products/tea";
    ask(&shop.address, "GET", path, String::new(), Some(traceparent))
        .await
        .unwrap();
    let (mut stream, _) = collector.accept().await.unwrap();
    let mut received = Vec::new();
    let spans = loop {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).await.unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&received);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        assert!(head.starts_with("POST /v1/traces HTTP/1.1"), "{head}");
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(body) {
            break value;
        }
    };
    let span = &spans["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    assert_eq!(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(span["parentSpanId"], "b7ad6b7169203331");
    assert_eq!(span["name"], "GET /products/{name}");
}
