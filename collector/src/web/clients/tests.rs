//! Places and bytes on their way, with sockets of the test.

use super::{client::YOUNG, *};
use crate::kernel::socket;

fn clients(limits: Limits) -> Arc<Clients> {
    let counters = Counters::new(&prometheus::Registry::new()).unwrap();
    Clients::new(limits, counters)
}

/// A client to which as much was written as its side takes without reading, and its other end.
async fn stuck(clients: &Arc<Clients>) -> (Place, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    socket::set_buffers(&stream, 4096, 4096).unwrap();
    let place = clients.place(stream).await.unwrap();
    place.client.works();
    fill(&place.client).await;
    (place, other)
}

/// Writes until the other side's kernel takes no more.
async fn fill(client: &Client) {
    let stream = &client.stream;
    while let Ok(ready) = tokio::time::timeout(STALLED, stream.writable()).await {
        ready.unwrap();
        if let Ok(count) = stream.try_write(&[0; 4096]) {
            client.wrote(count);
        }
    }
    client.progress(Instant::now());
}

#[tokio::test]
async fn answers_of_the_api_are_bounded_together() {
    let limits = Limits {
        other_bytes: 100,
        ..Limits::new(1024)
    };
    let clients = clients(limits);
    let (first, _reader) = stuck(&clients).await;
    let (second, _other) = stuck(&clients).await;
    let (third, _another) = stuck(&clients).await;
    // One answer may be larger than the limit, but nothing may be beside it.
    assert!(clients.sends_other(&first.client, 1000));
    assert!(!clients.sends_other(&second.client, 1));
    assert!(!first.client.is_cut());
    tokio::time::sleep(STALLED).await;
    assert!(clients.sends_other(&second.client, 60));
    assert_eq!(first.client.cut_off().await, Cut::Superseded);
    assert!(clients.sends_other(&third.client, 40));
    assert!(!second.client.is_cut());
    drop((first, second));
    // A client that goes on taking its answer is not cut off.
    let (reading, mut taker) = stuck(&clients).await;
    assert!(clients.sends_other(&reading.client, 60));
    let begin = Instant::now();
    let mut part = vec![0; 1 << 20];
    while begin.elapsed() < STALLED * 2 {
        use tokio::io::AsyncReadExt;
        let _ = tokio::time::timeout(STALLED / 10, taker.read(&mut part)).await;
        if let Ok(count) = reading.client.stream.try_write(&[0; 4096]) {
            reading.client.wrote(count);
        }
        reading.client.progress(Instant::now());
    }
    let (last, _end) = stuck(&clients).await;
    assert!(clients.sends_other(&last.client, 40));
    assert!(!reading.client.is_cut());
    assert_eq!(third.client.cut_off().await, Cut::Superseded);
}

#[tokio::test]
async fn a_client_that_has_read_nothing_gives_way_earlier_than_one_that_reads() {
    use tokio::io::AsyncReadExt;
    let clients = clients(Limits::new(1024));
    let (place, mut other) = stuck(&clients).await;
    let client = &place.client;
    assert!(clients.sends_other(client, 1));
    let patience = |client: &Client| {
        let now = client.progress(Instant::now());
        let (progress, yields) = client.yields(now);
        yields - progress
    };
    // Its kernel has acknowledged what it took, and takes no more.
    let begin = Instant::now();
    assert_eq!(patience(client), UNREAD);
    // It reads, and stops again. It has shown that it reads.
    other.read_exact(&mut vec![0; 4096]).await.unwrap();
    while patience(client) == UNREAD {
        let _ = tokio::time::timeout(RECHECK, other.read(&mut vec![0; 1 << 20])).await;
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
    fill(client).await;
    assert_eq!(patience(client), STALLED);
    // That counts for one answer.
    clients.sends_other(client, 1);
    assert_eq!(patience(client), UNREAD);
}

#[tokio::test]
async fn an_exposition_counts_until_its_clients_are_noted() {
    let clients = clients(Limits::new(1024));
    let body = Body::from(bytes::Bytes::from_static(b"body"));
    let (live, unmade) = {
        let coming = clients.expect();
        let count = |clients: &Clients| {
            let connected = lock(&clients.connected);
            (connected.live(Instant::now()).len(), connected.unmade())
        };
        assert_eq!(count(&clients), (0, 1));
        coming.made(&body);
        assert_eq!(count(&clients), (1, 0));
        let (place, _other) = stuck(&clients).await;
        clients.sends_exposition(&place.client, &body);
        assert_eq!(count(&clients), (1, 0));
        drop(coming);
        assert_eq!(count(&clients), (1, 0));
        clients.cut(&place.client, Cut::Superseded);
        assert_eq!(count(&clients), (1, 0));
        drop(place);
        count(&clients)
    };
    assert_eq!((live, unmade), (0, 0));
}

#[tokio::test]
async fn a_connection_has_time_until_its_request_is_read() {
    let limits = Limits {
        connections: 2,
        ..Limits::new(1024)
    };
    let clients = clients(limits);
    let (sending, _other) = stuck(&clients).await;
    assert!(clients.sends_other(&sending.client, 1));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _waiting = TcpStream::connect(address).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let scraper = clients.place(stream).await.unwrap();
    let begin = scraper.client.waiting_since();
    clients.make_place();
    assert!(!scraper.client.is_cut() || begin.elapsed() >= YOUNG);
    tokio::time::sleep(YOUNG).await;
    clients.make_place();
    assert_eq!(scraper.client.cut_off().await, Cut::Place);
    assert!(!sending.client.is_cut());
}

#[tokio::test]
async fn a_wide_send_buffer_is_for_few_and_only_until_it_is_empty() {
    let limits = Limits {
        wide_buffers: 2,
        ..Limits::new(1024)
    };
    let clients = clients(limits);
    let body = Body::from(bytes::Bytes::from_static(b"body"));
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let (place, other) = stuck(&clients).await;
        clients.sends_exposition(&place.client, &body);
        stalled.push((place, other));
    }
    let wide = stalled.iter().map(|(place, _)| place.client.is_wide());
    assert!(wide.take(2).all(|wide| wide));
    let late = Arc::clone(&stalled[2].0.client);
    assert!(!late.is_wide());
    // The answer is written, but the client has not taken it.
    let written = Arc::clone(&stalled[1].0.client);
    written.taken();
    written.flushed();
    written.progress(Instant::now());
    assert!(written.is_wide());
    // One client is gone.
    drop(stalled.remove(0));
    clients.sends_exposition(&late, &body);
    assert!(late.is_wide());
    // One has taken everything.
    let (place, mut reader) = stalled.remove(0);
    let reading = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
    });
    let begin = Instant::now();
    while place.client.is_wide() && begin.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(RECHECK).await;
        place.client.progress(Instant::now());
    }
    assert!(!place.client.is_wide());
    reading.abort();
}

#[test]
fn connections_leave_descriptors_for_the_agent() {
    for (open_files, connections) in [(20_000, 384), (1024, 256), (160, 40), (3, 8)] {
        assert_eq!(Limits::new(open_files).connections, connections);
    }
}
