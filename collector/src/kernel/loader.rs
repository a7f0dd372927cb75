//! Makes aya's loader without its copy of the kernel's BTF.

use std::{io, thread};

use aya::EbpfLoader;

/// A loader that has no BTF. `EbpfLoader::new` of aya 0.14 always reads and parses
/// /sys/kernel/btf/vmlinux, and goes on without if it can't be opened. It runs on a thread that
/// can't open files, so that BTF is parsed once: by this agent.
pub fn without_btf() -> EbpfLoader<'static> {
    let made = thread::Builder::new().spawn(|| {
        if let Err(error) = refuse_to_open_files() {
            tracing::debug!(%error, "no seccomp filter: the kernel's BTF is parsed twice");
        }
        EbpfLoader::new()
    });
    let made = made.ok().and_then(|thread| thread.join().ok());
    let mut loader = made.unwrap_or_default();
    // Where the filter could not be installed there is a copy to be freed.
    loader.btf(None);
    loader
}

/// The number of open(2), which newer processors' tables don't have.
#[cfg(target_arch = "x86_64")]
const OPEN: libc::c_long = libc::SYS_open;
#[cfg(not(target_arch = "x86_64"))]
const OPEN: libc::c_long = libc::SYS_openat;

/// Lets open(2) and openat(2) of the calling thread fail with ENOENT for the rest of its life. Other
/// threads are not affected. Needs no privileges.
///
/// # Errors
///
/// Errors of prctl(2): EINVAL if the kernel has no seccomp filters.
fn refuse_to_open_files() -> io::Result<()> {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let equals = |call: libc::c_long, jt| {
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            jt,
            0,
            call as u32,
        )
    };
    let end = |action| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    let number = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let mut filter = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, number),
        // glibc opens files with openat, musl with open where the processor's table has it.
        equals(libc::SYS_openat, 2),
        equals(OPEN, 1),
        end(libc::SECCOMP_RET_ALLOW),
        end(libc::SECCOMP_RET_ERRNO | libc::ENOENT as u32),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: sets a flag of the calling thread.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel copies the filter, which lives until the call returns.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, io, thread};

    use super::refuse_to_open_files;

    #[test]
    fn only_the_thread_itself_cannot_open_files() {
        let opened = thread::spawn(|| {
            fs::read("/proc/self/stat")?;
            refuse_to_open_files()?;
            io::Result::Ok(fs::read("/proc/self/stat").map_err(|error| error.kind()))
        });
        let opened = opened.join().expect("no panic").expect("a filter");
        assert_eq!(opened, Err(io::ErrorKind::NotFound));
        assert!(fs::read("/proc/self/stat").is_ok());
    }
}
