//! Drops all packets that a cgroup sends, with a program of two instructions at its egress.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};

use crate::cgroup::Cgroup;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
const BPF_CGROUP_INET_EGRESS: u32 = 1;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Sending fails with EPERM for the sockets of a cgroup, until dropped.
pub struct Blocked {
    cgroup: File,
    program: OwnedFd,
}

#[repr(C)]
struct Attach {
    target_fd: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: `attributes` outlives the call and has the size that is passed.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

impl Blocked {
    /// Attaches the program.
    pub fn new(cgroup: &Cgroup) -> Result<Self> {
        #[repr(C)]
        struct Load {
            prog_type: u32,
            insn_cnt: u32,
            insns: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log_buf: u64,
            kern_version: u32,
            prog_flags: u32,
            prog_name: [u8; 16],
            prog_ifindex: u32,
            expected_attach_type: u32,
        }
        // r0 = 0; exit
        let instructions: [u64; 2] = [0xb7, 0x95];
        let license = c"GPL";
        let load = Load {
            prog_type: BPF_PROG_TYPE_CGROUP_SKB,
            insn_cnt: 2,
            insns: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: 0,
            prog_name: [0; 16],
            prog_ifindex: 0,
            expected_attach_type: BPF_CGROUP_INET_EGRESS,
        };
        let program = bpf(BPF_PROG_LOAD, &load).context("loading a program")?;
        // SAFETY: the kernel has just created this descriptor, and nobody else owns it.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let blocked = Self {
            cgroup: File::open(&cgroup.directory)?,
            program,
        };
        bpf(BPF_PROG_ATTACH, &blocked.attributes(BPF_F_ALLOW_MULTI)).context("attaching it")?;
        Ok(blocked)
    }

    fn attributes(&self, flags: u32) -> Attach {
        Attach {
            target_fd: self.cgroup.as_raw_fd() as u32,
            program: self.program.as_raw_fd() as u32,
            attach_type: BPF_CGROUP_INET_EGRESS,
            flags,
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let _ = bpf(BPF_PROG_DETACH, &self.attributes(0));
    }
}
