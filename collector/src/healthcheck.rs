//! `cgmeter healthcheck`: asks the agent of the same settings whether it is ready.
//!
//! For container images without a shell. Invariant: knows nothing of the agent but its address, and
//! never takes longer than `PATIENCE` an address. Checked over sockets, and in a container by
//! tests/live/image.rs.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// Time to connect, and between bytes of the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The answer's status line fits in.
const ENOUGH: usize = 256;

/// Asks each address, and is content with the first that is ready.
///
/// # Errors
///
/// What the last one said or did not say.
pub fn run(addresses: &[SocketAddr]) -> Result<()> {
    let mut last = Ok(());
    for &address in addresses {
        let address = reachable(address);
        last = ask(address).with_context(|| {
            format!(
                "the agent is not ready at {address}: is it running with the same \
                 --web.listen-address?"
            )
        });
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Where to connect to what listens on every address of the host.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn ask(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET /-/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    while answer.len() < ENOUGH && !answer.contains(&b'\n') {
        let mut part = [0; ENOUGH];
        match stream.read(&mut part)? {
            0 => break,
            count => answer.extend_from_slice(&part[..count]),
        }
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.lines().next().unwrap_or_default();
    match status.split(' ').collect::<Vec<_>>()[..] {
        [version, "200", ..] if version.starts_with("HTTP/1.") => Ok(()),
        _ => bail!("it answered {status:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that gives one client one answer.
    fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(answer.as_bytes());
        });
        address
    }

    #[test]
    fn only_200_is_ready() {
        assert!(run(&[answering("HTTP/1.1 200 OK\r\n\r\n")]).is_ok());
        for (answer, told) in [
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"),
            ("", "\"\""),
            ("HTTP/1.1 2000 No\r\n\r\n", "2000"),
            ("SSH-2.0 200\n", "SSH"),
        ] {
            let address = answering(answer);
            let error = format!("{:#}", run(&[address]).unwrap_err());
            assert!(error.contains(told), "{error}");
            assert!(error.contains(&address.to_string()), "{error}");
        }
    }

    #[test]
    fn one_of_several_is_enough() {
        let closed = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let error = format!("{:#}", run(&[closed]).unwrap_err());
        assert!(error.contains("refused"), "{error}");
        assert!(run(&[closed, answering("HTTP/1.1 200 OK\r\n\r\n")]).is_ok());
    }

    #[test]
    fn every_address_is_asked_at_loopback() {
        for (listens, asked) in [
            ("0.0.0.0:7", "127.0.0.1:7"),
            ("[::]:7", "[::1]:7"),
            ("10.1.2.3:7", "10.1.2.3:7"),
        ] {
            assert_eq!(reachable(listens.parse().unwrap()).to_string(), asked);
        }
    }
}
