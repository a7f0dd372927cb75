//! Events of the kernel side as the agent waits for and takes them.

use std::{os::fd::RawFd, ptr, time::Duration};

/// A value at the start of `bytes`, `None` if they are too few.
pub fn read_value<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is a value, by `Plain`.
    Some(unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// Types of which every bit pattern is a value.
///
/// # Safety
///
/// That they are such types.
pub unsafe trait Plain: Copy {}

// SAFETY: integers and an array of bytes.
unsafe impl Plain for collector_common::event::CgroupEvent {}

/// Sleeps until one of the descriptors is readable or the time is over.
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
    // SAFETY: the array is as long as said. An error (EINTR) only ends the sleep early.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
}
