//! Waits for events from the kernel programs and reads them.

use std::{os::fd::RawFd, time::Duration};

use zerocopy::FromBytes;

/// The value at the start of `bytes`. `None` if there are too few bytes.
pub fn read_value<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(value, _)| value)
}

/// Sleeps until one of the descriptors is readable or the timeout has passed.
pub fn wait_readable(descriptors: &[RawFd], timeout: Duration) {
    let mut polled: Vec<libc::pollfd> = descriptors
        .iter()
        .map(|&fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `poll` is passed the array's length. An error (EINTR) only ends the sleep early.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
}
