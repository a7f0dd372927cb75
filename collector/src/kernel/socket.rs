//! Options and state of TCP sockets that neither std nor tokio gives access to.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Asks for what is unsent (include/uapi/linux/sockios.h).
const SIOCOUTQNSD: libc::Ioctl = 0x894b;

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets how many connections may wait to be accepted, also on a socket that listens already. The
/// kernel allows net.core.somaxconn at most.
///
/// # Errors
///
/// Errors of listen(2).
pub fn set_backlog(listener: impl AsFd, backlog: i32) -> io::Result<()> {
    let fd = listener.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open as long as it is borrowed.
    checked(unsafe { libc::listen(fd, backlog) })
}

/// Sets the sizes of the send and receive buffers, bytes. The kernel doubles them for its own
/// overhead, and no longer adapts them. Connections that a listener accepts have its sizes.
///
/// # Errors
///
/// Errors of setsockopt(2).
pub fn set_buffers(socket: impl AsFd, send: i32, receive: i32) -> io::Result<()> {
    set_send_buffer(&socket, send)?;
    set_option(&socket, libc::SO_RCVBUF, receive)
}

/// Sets the size of the send buffer, bytes, as [`set_buffers`] does. What is in it stays there. The
/// kernel allows net.core.wmem_max at most.
///
/// # Errors
///
/// Errors of setsockopt(2).
pub fn set_send_buffer(socket: impl AsFd, bytes: i32) -> io::Result<()> {
    set_option(&socket, libc::SO_SNDBUF, bytes)
}

fn set_option(socket: &impl AsFd, option: libc::c_int, value: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as it is borrowed, and the value is an int.
    checked(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    })
}

/// Number of bytes that were written and that the other side has not acknowledged, sent or not.
///
/// # Errors
///
/// Errors of ioctl(2).
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u64> {
    queued(&socket, libc::TIOCOUTQ)
}

/// A question about the send queue.
fn queued(socket: &impl AsFd, question: libc::Ioctl) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as it is borrowed. SIOCOUTQ, which is TIOCOUTQ, and
    // SIOCOUTQNSD write an int (net/ipv4/tcp.c, tcp_ioctl).
    checked(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), question, &raw mut bytes) })?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Number of bytes that were written and not yet sent.
///
/// # Errors
///
/// Errors of ioctl(2).
pub fn unsent(socket: impl AsFd) -> io::Result<u64> {
    queued(&socket, SIOCOUTQNSD)
}

/// Says to the other side that nothing more will be written.
///
/// # Errors
///
/// Errors of shutdown(2).
pub fn finish_writing(socket: impl AsFd) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as it is borrowed.
    checked(unsafe { libc::shutdown(socket.as_fd().as_raw_fd(), libc::SHUT_WR) })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn accepted_connections_have_the_listeners_buffers_and_say_what_is_unacknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_buffers(&listener, 64 << 10, 16 << 10).unwrap();
        set_backlog(&listener, 4096).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert_eq!(unacknowledged(&server).unwrap(), 0);
        server.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(count) = server.write(&[7; 4096]) {
            written += count;
        }
        // What the client's kernel takes is acknowledged, the rest is not.
        let left = unacknowledged(&server).unwrap();
        assert!(left > 0 && left <= 128 << 10, "{left} of {written}");
        // Its window is closed, so nothing is on its way to it.
        let begin = std::time::Instant::now();
        while unsent(&server).unwrap() < unacknowledged(&server).unwrap() {
            assert!(begin.elapsed().as_secs() < 10);
            std::thread::yield_now();
        }
        finish_writing(&server).unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), written);
    }
}
