//! Sockets to listen on.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use crate::kernel::socket;

/// Connections that may wait to be accepted. A burst of more has to try again after a second
/// (include/net/tcp.h, TCP_TIMEOUT_INIT).
pub(super) const BACKLOG: i32 = 4096;
/// Bytes that the kernel keeps of an answer, before it doubles them for its own overhead. What a
/// client that doesn't read costs the kernel, and what can be under way to a client that is far
/// away. A few have [more](super::clients::WIDE_BUFFER).
pub(super) const SEND_BUFFER: i32 = 64 << 10;
/// Bytes that the kernel keeps of requests, doubled likewise. A head has 16 KiB at most.
const RECEIVE_BUFFER: i32 = 16 << 10;

/// The server can't listen on an address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}{}", .error, hint(.error))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// The error of the system call.
    pub error: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process uses this address (ss -ltnp shows which); choose a free one with \
             --web.listen-address"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; this host does not have this address; choose another one with --web.listen-address"
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE; choose another port with --web.listen-address"
        }
        _ => "",
    }
}

/// Listens on all the addresses.
///
/// # Errors
///
/// When the agent can't listen on one of them; the error names the first such address.
pub fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, BindError> {
    addresses
        .iter()
        .map(|&address| {
            let listener = TcpListener::bind(address).and_then(prepared);
            listener.map_err(|error| BindError { address, error })
        })
        .collect()
}

fn prepared(listener: TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    // Connections inherit the buffers.
    socket::set_buffers(&listener, SEND_BUFFER, RECEIVE_BUFFER)?;
    socket::set_backlog(&listener, BACKLOG)?;
    Ok(listener)
}
