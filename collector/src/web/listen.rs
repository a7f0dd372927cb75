//! Sockets to listen on.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

/// An address that can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}{}", .error, hint(.error))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub error: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process has it (ss -ltnp shows which); choose a free one with \
             --web.listen-address"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; this host has no such address; choose another with --web.listen-address"
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE; choose another with --web.listen-address"
        }
        _ => "",
    }
}

/// Listens on all the addresses.
///
/// # Errors
///
/// At the first that can't be.
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
