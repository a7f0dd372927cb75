//! Sockets to listen on.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

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
            let listener = TcpListener::bind(address)
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            listener.map_err(|error| BindError { address, error })
        })
        .collect()
}
