//! The HTTP server of a worker. It stands for an application with metrics.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
};

/// The file with the paths that were asked for.
pub const ASKED: &str = "asked";

/// The worker's order `http PORT FOLDER`: an HTTP server that answers with the folder's files.
/// `/hang` is never answered, and the answer of `/endless` never ends. Each request adds a line with its path to the
/// folder's file [`ASKED`].
pub fn serve(port: u16, folder: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let folder = PathBuf::from(folder);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let folder = folder.clone();
            std::thread::spawn(move || answer(stream, &folder));
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream, folder: &Path) -> std::io::Result<()> {
    let mut line = String::new();
    let mut head = BufReader::new(stream.try_clone()?);
    head.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or("/");
    let mut rest = String::new();
    while head.read_line(&mut rest)? > 2 {
        rest.clear();
    }
    let mut asked = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join(ASKED))?;
    asked.write_all(format!("{path}\n").as_bytes())?;
    if path == "/hang" {
        loop {
            std::thread::park();
        }
    }
    if path == "/endless" {
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        )?;
        loop {
            stream.write_all(b"8\r\n# more.\n\r\n")?;
        }
    }
    match fs::read(folder.join(path.trim_start_matches('/'))) {
        Ok(body) => {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                body.len()
            )?;
            stream.write_all(&body)
        }
        Err(_) => write!(stream, "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"),
    }
}
