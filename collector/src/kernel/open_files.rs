//! The limit of open files, and how the agent's parts share it.
//!
//! Invariant: what the parts may hold together leaves a reserve for what a scrape opens for a moment.
//! Connections have a quarter, files of the kernel statistics a sixteenth, network namespaces what
//! nothing else needs.

use std::io;

/// The soft limit of open files that processes usually have.
const USUAL: u64 = 1024;
/// Maximum number of files of the kernel statistics that stay open.
const MOST_STATISTICS: u64 = 256;

fn get() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}

/// Raises the soft limit of open files to the hard limit.
///
/// # Errors
///
/// Errors of getrlimit(2) and setrlimit(2).
pub fn raise() -> io::Result<()> {
    let mut limit = get()?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is readable.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The soft limit of open files, which someone else may change.
pub fn limit() -> u64 {
    get().map_or(USUAL, |limit| limit.rlim_cur)
}

/// Maximum number of connections of the web server.
pub fn connections(limit: u64) -> u64 {
    (limit / 4).clamp(8, 384)
}

/// Maximum number of files that the kernel statistics keep open.
pub fn statistics(limit: u64) -> u64 {
    (limit / 16).min(MOST_STATISTICS)
}

/// Number of descriptors that the process has.
///
/// # Errors
///
/// If /proc/self/fd can't be read.
pub fn count() -> io::Result<u64> {
    // The directory itself is one of them.
    Ok(std::fs::read_dir("/proc/self/fd")?
        .count()
        .saturating_sub(1) as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_leave_something() {
        for limit in [160, 256, 1024, 65_536, u64::MAX] {
            assert!(
                connections(limit) + statistics(limit) <= limit / 2,
                "{limit}"
            );
        }
        assert_eq!((connections(0), connections(1 << 20)), (8, 384));
        assert_eq!((statistics(160), statistics(1 << 20)), (10, 256));
    }

    #[test]
    fn descriptors_are_counted() {
        let before = count().unwrap();
        let files: Vec<_> = (0..50)
            .map(|_| std::fs::File::open("/dev/null").unwrap())
            .collect();
        // Other tests open and close files too.
        let now = count().unwrap();
        assert!(
            now >= before.saturating_sub(40) + 50,
            "{now} after {before}"
        );
        drop(files);
        assert!(limit() > 0);
    }
}
