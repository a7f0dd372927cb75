//! System calls other than bpf(2) that neither std nor aya provides.

use std::{ffi::CStr, fs::File, io, mem, os::fd::AsRawFd, time::Duration};

/// Size and free space of a file system, from statvfs(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Size of a block, bytes (`f_frsize`).
    pub block_size: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Free blocks, including those reserved for root (`f_bfree`).
    pub free: u64,
    /// Number of inodes. 0 if the file system creates them as needed.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// Size and free space of the file system at a path. The call may hang if the device hangs.
///
/// # Errors
///
/// Errors of statvfs(3).
pub fn file_system(path: &CStr) -> io::Result<FileSystem> {
    let mut info = mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is NUL-terminated and `info` is writable.
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
    /// Total memory: MemTotal of /proc/meminfo.
    pub total: u64,
    /// Memory that nothing uses: MemFree.
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
/// Errors of sysinfo(2).
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

/// Whether mounts were added or removed since an open `/proc/PID/mountinfo` was last polled
/// (fs/proc_namespace.c, `mounts_poll`).
pub fn mounts_changed(mountinfo: &File) -> bool {
    let mut polled = libc::pollfd {
        fd: mountinfo.as_raw_fd(),
        events: libc::POLLPRI,
        revents: 0,
    };
    // SAFETY: the array has one entry; a timeout of 0 does not wait.
    let ready = unsafe { libc::poll(&raw mut polled, 1, 0) };
    // An error counts as a change.
    ready != 0
}

/// CLOCK_MONOTONIC, as bpf_ktime_get_ns() reads it, ns.
pub fn monotonic_ns() -> u64 {
    let now = clock(libc::CLOCK_MONOTONIC);
    now.as_secs() * 1_000_000_000 + u64::from(now.subsec_nanos())
}

/// CPU time of the calling thread.
pub fn thread_cpu_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Wall-clock time of the boot, which CLOCK_BOOTTIME counts from. It is the same at each call until
/// the clock is set, except for the time between the two clock readings.
pub fn boot_time() -> Duration {
    let sample = || {
        let before = clock(libc::CLOCK_BOOTTIME);
        let wall = clock(libc::CLOCK_REALTIME);
        let width = clock(libc::CLOCK_BOOTTIME) - before;
        (width, wall.saturating_sub(before + width / 2))
    };
    // Use the sample with the shortest time between its readings.
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
