//! `cgmeter healthcheck`: asks the agent with the same settings whether it is ready, for container
//! images without a shell.
//!
//! Invariants: it knows nothing of the agent but its address,
//! and never spends more than `PATIENCE` on an address. Checked over sockets, and in a container by
//! tests/live/image.rs.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use http_client::Request;

/// Time to connect, ask and be answered.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks one address after the other until one is ready.
///
/// # Errors
///
/// Returns why the last one is not ready.
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

/// The address to connect to where the agent listens on every address of the host.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn ask(address: SocketAddr) -> Result<()> {
    let request = Request::get("/-/ready").timeout(PATIENCE);
    let answer = request.send_for_head(address)?;
    if answer.status != 200 {
        bail!("it answered {:?}", answer.status_line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        time::Instant,
    };

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
        for (answer, expected) in [
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"),
            ("", "\"\""),
            ("HTTP/1.1 2000 No\r\n\r\n", "2000"),
            ("SSH-2.0 200\n", "SSH"),
        ] {
            let address = answering(answer);
            let error = format!("{:#}", run(&[address]).unwrap_err());
            assert!(error.contains(expected), "{error}");
            assert!(error.contains(&address.to_string()), "{error}");
        }
    }

    #[test]
    fn a_server_that_sends_a_byte_at_a_time_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 ");
            while stream.write_all(b"O").is_ok() {
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let begin = Instant::now();
        let error = format!("{:#}", run(&[address]).unwrap_err());
        assert!(begin.elapsed() < 5 * PATIENCE, "{:?}", begin.elapsed());
        assert!(error.contains("in time"), "{error}");
    }

    #[test]
    fn one_of_several_is_enough() {
        let closed = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let error = format!("{:#}", run(&[closed]).unwrap_err());
        assert_eq!(error.matches("refused").count(), 1, "{error}");
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
