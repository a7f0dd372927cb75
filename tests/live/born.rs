//! Processes that are born in a cgroup (clone3).
//!
//! One that enters it later brings some time along: what it has run since the kernel last looked, up to a
//! tick, counts for the cgroup that it enters, and with cgmeter for the one that it leaves
//! (docs/limits.md). On an emulated CPU that is often more than a test tolerates.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    process::ExitStatus,
};

use anyhow::{Result, ensure};

use crate::cgroup::Cgroup;

/// Of clone3 (include/uapi/linux/sched.h). The crate's constant is 32 bits wide, which is too narrow.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A process. It is killed when this is dropped.
pub struct Born {
    pid: libc::pid_t,
    has_ended: bool,
}

impl Born {
    /// Starts a process in a cgroup. It calls `run`, which may call only what is async-signal-safe. If that
    /// returns, its exit status is 127.
    pub fn start(cgroup: &Cgroup, run: impl FnOnce()) -> Result<Self> {
        let directory = File::open(&cgroup.directory)?;
        // SAFETY: `clone_args` consists of integers.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = CLONE_INTO_CGROUP;
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.cgroup = directory.as_raw_fd() as u64;
        // SAFETY: the child has memory of its own, and calls nothing that needs locks of this process.
        let child = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut arguments,
                size_of::<libc::clone_args>(),
            )
        };
        if child == 0 {
            run();
            // SAFETY: always allowed.
            unsafe { libc::_exit(127) };
        }
        ensure!(child > 0, "clone3: {}", io::Error::last_os_error());
        Ok(Self {
            pid: child as libc::pid_t,
            has_ended: false,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid as u32
    }

    /// Waits until it ends.
    pub fn wait(mut self) -> Result<ExitStatus> {
        self.reap()
    }

    fn reap(&mut self) -> Result<ExitStatus> {
        let mut status = 0;
        // SAFETY: `status` is writable.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        ensure!(
            waited == self.pid,
            "waitpid: {}",
            io::Error::last_os_error()
        );
        self.has_ended = true;
        Ok(ExitStatus::from_raw(status))
    }
}

impl Drop for Born {
    fn drop(&mut self) {
        if !self.has_ended {
            // SAFETY: a child that nobody has waited for.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            let _ = self.reap();
        }
    }
}
