//! System calls that neither std nor aya has, beside bpf(2).

use std::{ffi::CStr, fs::File, io, mem, os::fd::AsRawFd, time::Duration};

/// What statvfs(3) says of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Size of a block, bytes (`f_frsize`).
    pub block_size: u64,
    /// Blocks.
    pub blocks: u64,
    /// Blocks free, those reserved for root included (`f_bfree`).
    pub free: u64,
    /// Inodes; 0 where they are made as needed.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
}

/// What the file system that a path is on has, and how much of it is free. May hang with its device.
///
/// # Errors
///
/// statvfs(3)'s.
pub fn file_system(path: &CStr) -> io::Result<FileSystem> {
    let mut info = mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is terminated, `info` writable.
    if unsafe { libc::statvfs(path.as_ptr(), info.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statvfs has filled it.
    let info = unsafe { info.assume_init() };
    Ok(FileSystem {
        block_size: info.f_frsize,
        blocks: info.f_blocks,
        free: info.f_bfree,
        inodes: info.f_files,
        inodes_free: info.f_ffree,
    })
}

/// Memory of the host, bytes.
#[derive(Clone, Copy, Debug)]
pub struct HostMemory {
    /// All of it: MemTotal of /proc/meminfo.
    pub total: u64,
    /// Unused.
    pub free: u64,
    /// Swap space: SwapTotal.
    pub swap_total: u64,
    /// Unused swap space.
    pub swap_free: u64,
}

/// Memory of the host.
///
/// # Errors
///
/// sysinfo(2)'s.
pub fn memory() -> io::Result<HostMemory> {
    let mut info = mem::MaybeUninit::<libc::sysinfo>::uninit();
    // SAFETY: `info` is writable.
    if unsafe { libc::sysinfo(info.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sysinfo has filled it.
    let info = unsafe { info.assume_init() };
    let unit = u64::from(info.mem_unit);
    Ok(HostMemory {
        total: info.totalram * unit,
        free: info.freeram * unit,
        swap_total: info.totalswap * unit,
        swap_free: info.freeswap * unit,
    })
}

/// Whether mounts have come or gone since an open `/proc/PID/mountinfo` was last asked (fs/proc_namespace.c,
/// `mounts_poll`).
pub fn mounts_changed(mountinfo: &File) -> bool {
    let mut polled = libc::pollfd {
        fd: mountinfo.as_raw_fd(),
        events: libc::POLLPRI,
        revents: 0,
    };
    // SAFETY: one entry; a timeout of 0 does not wait.
    let ready = unsafe { libc::poll(&raw mut polled, 1, 0) };
    // An error counts as a change.
    ready != 0
}

/// CPU time of the calling thread.
pub fn thread_cpu_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Wall-clock time of the boot: what CLOCK_BOOTTIME counts from. It is the same at each call until
/// somebody sets the clock, but for the time between two readings.
pub fn boot_time() -> Duration {
    let sample = || {
        let before = clock(libc::CLOCK_BOOTTIME);
        let wall = clock(libc::CLOCK_REALTIME);
        let width = clock(libc::CLOCK_BOOTTIME) - before;
        (width, wall.saturating_sub(before + width / 2))
    };
    // The sample that was least interrupted.
    let samples = [sample(), sample(), sample()];
    samples
        .iter()
        .min()
        .map_or(Duration::ZERO, |&(_, boot)| boot)
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is writable.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
