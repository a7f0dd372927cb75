//! Waits for events from the kernel programs and reads them.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

use zerocopy::FromBytes;

/// The value at the start of `bytes`. `None` if there are too few bytes.
pub fn read_value<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(value, _)| value)
}

/// Sleeps until one of the descriptors is readable or the timeout has passed. Returns whether one is.
pub fn wait_readable(descriptors: &[RawFd], timeout: Duration) -> bool {
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
    let found = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
    found > 0
}

/// Wakes a thread that sleeps in [`wait_readable`] (an eventfd).
#[derive(Debug)]
pub struct Alarm(File);

impl Alarm {
    /// # Errors
    ///
    /// Errors of eventfd(2).
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just created this descriptor, and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }.into()))
    }

    /// Ends the present sleep, or else the next one.
    pub fn ring(&self) {
        // It fails only after 2^64 calls that nobody has heard.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Called by the thread that was woken.
    pub fn stop(&self) {
        // It fails if nobody has called.
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_alarm_ends_one_sleep() {
        let alarm = Alarm::new().unwrap();
        let fd = [alarm.as_raw_fd()];
        let sleep = |time| {
            let begin = Instant::now();
            wait_readable(&fd, time);
            alarm.stop();
            begin.elapsed()
        };
        let short = Duration::from_millis(20);
        assert!(sleep(short) >= short);
        alarm.ring();
        alarm.ring();
        let long = Duration::from_secs(60);
        assert!(sleep(long) < long);
        assert!(sleep(short) >= short);
    }
}
