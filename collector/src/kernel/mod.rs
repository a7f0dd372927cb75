//! The agent's interface to the kernel programs: loading, attaching, reading maps.
//!
//! Invariant: this module knows about programs, maps and cells. It knows nothing about paths,
//! containers, metric names or HTTP. All `unsafe` code of the agent is here, behind safe types.

pub mod bpf;
pub mod btf;
pub mod cells;
pub mod cgroup_iterator;
mod chunks;
pub mod events;
pub mod fields;
mod kept;
pub mod keyed;
pub mod load;
mod loader;
pub mod map;
pub mod mapping;
mod names;
pub mod netlink;
pub mod netns;
pub mod open_files;
mod per_cpu;
pub mod pins;
pub mod programs;
pub mod slots;
pub mod socket;
pub mod system;
pub mod tasks;
pub mod trial;

/// The kernel object, built by build.rs. It is aligned because it is parsed in place.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/cgmeter.bpf.o"));

/// Number of possible CPUs of this host, which is the number of shards of a per-CPU source.
///
/// # Errors
///
/// If /sys/devices/system/cpu/possible can't be read.
pub fn possible_cpus() -> anyhow::Result<u32> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, error)| anyhow::anyhow!("cannot read {path}: {error}"))?;
    Ok(u32::try_from(cpus)?)
}

/// The type of the file system at a path (`f_type` of statfs(2)).
///
/// # Errors
///
/// Errors of statfs(2).
pub fn filesystem_type(path: &std::ffi::CStr) -> std::io::Result<i64> {
    let mut info = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path is NUL-terminated and `info` is writable.
    if unsafe { libc::statfs(path.as_ptr(), info.as_mut_ptr()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: statfs has filled it.
    Ok(unsafe { info.assume_init() }.f_type)
}

/// Mounts bpffs at a directory.
///
/// # Errors
///
/// Errors of mount(2): EPERM without CAP_SYS_ADMIN.
fn mount_bpffs(directory: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let directory = std::ffi::CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: three strings that end with 0, and no data.
    let mounted = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            directory.as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            std::ptr::null(),
        )
    };
    if mounted != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Size of a page, bytes.
pub fn page_size() -> u64 {
    // SAFETY: always allowed.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// Most free memory that the allocator keeps at the end of each of its arenas, bytes.
const FREE_END: libc::c_int = 1 << 20;

/// Bounds what the allocator keeps where [`release_free_memory`] does not look: at the end of every arena but
/// the main one. By itself glibc lets that grow to twice the largest block ever freed, and the kernel's types
/// take megabytes.
pub fn bound_free_memory() {
    // SAFETY: always allowed; mallopt(3) only sets a parameter of glibc's allocator.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, FREE_END)
    };
}

/// Returns freed memory to the kernel.
pub fn release_free_memory() {
    // SAFETY: always allowed; glibc's malloc_trim(3) only looks at free memory.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}
