//! The client against servers that misbehave.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use super::{
    descriptor::{containerd::CONTAINERD, crio::CRIO, docker::DOCKER},
    follow::ask_once,
    *,
};

const ID: &str = "3f8a0c1d9e2b4a5f6071829304a5b6c7d8e9f00112233445566778899aabbccd";
const LIMIT: Duration = Duration::from_secs(8);

/// A server that answers each request by its target; the socket goes with it.
struct Server {
    socket: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn target(stream: &mut UnixStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    Some(head.split(' ').nth(1)?.to_owned())
}

impl Server {
    fn new<F>(serve: impl Fn(String, UnixStream) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cgmeter-runtime-{}-{number}.sock", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let serve = serve.clone();
                tokio::spawn(async move {
                    if let Some(target) = target(&mut stream).await {
                        serve(target, stream).await;
                    }
                });
            }
        });
        Self { socket, task }
    }

    fn choice(&self) -> Choice {
        self.choice_of(&DOCKER)
    }

    fn choice_of(&self, runtime: &'static Descriptor) -> Choice {
        let word = RuntimeChoice::One(runtime, Some(self.socket.clone()));
        Choice::new(vec![word]).unwrap()
    }
}

async fn say(stream: &mut UnixStream, body: &str) {
    let text = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(text.as_bytes()).await;
}

/// What a sound Docker says, but for `inspect`.
async fn docker(target: String, mut stream: UnixStream, inspect: &str) {
    if target == "/version" {
        say(
            &mut stream,
            r#"{"Version":"1","ApiVersion":"1.41","MinAPIVersion":"1.12"}"#,
        )
        .await;
    } else if target.contains("/events") {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head.as_bytes()).await;
        let line = format!(
            "{{\"Type\":\"container\",\"Action\":\"create\",\"Actor\":{{\"ID\":\"{}\",\
             \"Attributes\":{{\"name\":\"short\",\"image\":\"i\"}}}}}}\n",
            ID.replace('3', "4")
        );
        let text = format!("{:x}\r\nnot json\n\r\n{:x}\r\n{line}\r\n", 9, line.len());
        let _ = stream.write_all(text.as_bytes()).await;
        std::future::pending::<()>().await;
    } else if target.contains("/containers/json") {
        let list = format!(r#"[{{"Id":"{ID}","Names":["/web"],"Image":"i","State":"running"}}]"#);
        say(&mut stream, &list).await;
    } else if target.contains(ID) {
        say(&mut stream, inspect).await;
    } else {
        let _ = stream
            .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            .await;
    }
}

async fn ask(server: &Server) -> (Arc<Directory>, RuntimeState, u64) {
    let (directory, _) = Directory::new();
    let statuses = ask_once(&directory, &server.choice(), LIMIT).await;
    let failed = statuses[0].results().filter(|(name, _)| *name != "ok");
    let failed = failed.map(|(_, count)| count).sum();
    (directory, statuses[0].reported(), failed)
}

#[tokio::test]
async fn a_sound_runtime_reports_its_containers() {
    let inspect =
        format!(r#"{{"Id":"{ID}","Name":"/web2","State":{{"Status":"running","Pid":7}}}}"#);
    let server = Server::new(move |target, stream| {
        let inspect = inspect.clone();
        async move { docker(target, stream, &inspect).await }
    });
    let (directory, reported, _) = ask(&server).await;
    assert_eq!(reported.up, Some(true), "{reported:?}");
    let web = directory.get(ID).unwrap();
    assert_eq!((web.name.as_str(), web.pid), ("web2", Some(7)));
}

#[tokio::test]
async fn podman_is_followed_although_its_version_takes_too_long() {
    let inspect = format!(r#"{{"Id":"{ID}","Name":"/web"}}"#);
    let server = Server::new(move |target, mut stream| {
        let inspect = inspect.clone();
        async move {
            match target.as_str() {
                "/version" => std::future::pending::<()>().await,
                "/_ping" => {
                    let text = "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nLibpod-Api-Version: 4.3.1\r\n\
                                content-length: 2\r\n\r\nOK";
                    let _ = stream.write_all(text.as_bytes()).await;
                }
                _ => docker(target, stream, &inspect).await,
            }
        }
    });
    let (directory, reported, _) = ask(&server).await;
    assert_eq!((reported.up, reported.text.as_str()), (Some(true), "4.3.1"));
    assert_eq!(reported.runtime.name(), "podman");
    assert_eq!(directory.get(ID).unwrap().name, "web");
}

#[tokio::test]
async fn a_container_that_was_gone_before_it_could_be_asked_for_has_its_name() {
    let server = Server::new(|target, stream| docker(target, stream, "{}"));
    let (directory, asked) = Directory::new();
    let followers = follow(
        Arc::clone(&directory),
        asked,
        server.choice(),
        Duration::from_secs(300),
    );
    let short = ID.replace('3', "4");
    let begin = Instant::now();
    while directory.get(&short).is_none() {
        assert!(begin.elapsed() < LIMIT, "{:?}", directory.runtimes());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(directory.get(&short).unwrap().name, "short");
    drop(followers);
}

#[tokio::test]
async fn an_answer_about_a_container_that_is_garbage_leaves_its_name() {
    let server = Server::new(|target, stream| docker(target, stream, "{\"Id\":"));
    let (directory, reported, failed) = ask(&server).await;
    assert_eq!(reported.up, Some(true), "{reported:?}");
    assert_eq!(directory.get(ID).unwrap().name, "web");
    assert!(failed > 0);
}

#[tokio::test]
async fn runtimes_that_misbehave_are_down_and_say_why() {
    let endless = Server::new(|_, mut stream| async move {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n";
        let _ = stream.write_all(head.as_bytes()).await;
        let block = vec![b'x'; 1 << 16];
        while stream.write_all(&block).await.is_ok() {}
    });
    let hanging = Server::new(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    let garbage = Server::new(|_, mut stream| async move { say(&mut stream, "]").await });
    let noise = Server::new(|_, mut stream| async move {
        let _ = stream.write_all(b"\x00\xff\r\n\r\nwhat?").await;
    });
    let half = Server::new(|_, mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-le").await;
    });
    let closing = Server::new(|_, stream| async move { drop(stream) });
    let failing = Server::new(|_, mut stream| async move {
        let text = "HTTP/1.1 500 Oh no\r\ncontent-length: 3\r\n\r\nill";
        let _ = stream.write_all(text.as_bytes()).await;
    });
    let cases = [
        (endless, "longer than 8388608 bytes"),
        (hanging, "no answer within 5s"),
        (garbage, "makes no sense"),
        (noise, "makes no sense"),
        (half, "the connection broke"),
        (closing, "the connection broke"),
        (failing, "500 Internal Server Error: ill"),
    ];
    for (server, reason) in cases {
        let (_, reported, failed) = ask(&server).await;
        assert_eq!(reported.up, Some(false), "{reason}");
        assert!(
            reported.text.contains(reason),
            "{} is not {reason}",
            reported.text
        );
        assert!(failed > 0, "{reason} is not counted");
    }
}

#[tokio::test]
async fn so_are_those_that_speak_grpc() {
    let hanging = Server::new(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    let noise = Server::new(|_, mut stream| async move { say(&mut stream, "]").await });
    // A frame of settings, then one that says it is longer than any may be.
    let large = Server::new(|_, mut stream| async move {
        let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
        let _ = stream
            .write_all(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1])
            .await;
        let block = vec![b'x'; 1 << 16];
        while stream.write_all(&block).await.is_ok() {}
    });
    let closing = Server::new(|_, stream| async move { drop(stream) });
    for (server, reason) in [
        (hanging, "no answer within 5s"),
        (noise, "the connection broke"),
        (large, "the connection broke"),
        (closing, "the connection broke"),
    ] {
        let (directory, _) = Directory::new();
        let choice = server.choice_of(&CONTAINERD);
        let statuses = ask_once(&directory, &choice, LIMIT).await;
        let reported = statuses[0].reported();
        assert_eq!(reported.up, Some(false), "{reason}");
        assert!(
            reported.text.contains(reason),
            "{} is not {reason}",
            reported.text
        );
        let failed = statuses[0]
            .results()
            .find(|&(name, count)| name != "ok" && count > 0);
        assert!(failed.is_some(), "{reason} is not counted");
    }
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_down() {
    let word = RuntimeChoice::One(&CRIO, Some("/nonexistent/crio.sock".into()));
    let (directory, _) = Directory::new();
    let statuses = ask_once(&directory, &Choice::new(vec![word]).unwrap(), LIMIT).await;
    let reported = statuses[0].reported();
    assert_eq!(reported.up, Some(false));
    assert!(
        reported.text.starts_with("cannot connect"),
        "{}",
        reported.text
    );
}
