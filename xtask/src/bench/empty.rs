//! The cost of a program that does nothing, which is subtracted from that of the others.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};

/// An empty program, attached to a tracepoint, or to the packets of every cgroup.
pub struct Empty {
    program: OwnedFd,
    _link: OwnedFd,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;

/// Packets to or from sockets: BPF_CGROUP_INET_INGRESS, BPF_CGROUP_INET_EGRESS.
#[derive(Clone, Copy, Debug)]
pub enum Packets {
    /// The program runs for packets that sockets receive.
    Ingress = 0,
    /// The program runs for packets that sockets send.
    Egress = 1,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attributes` outlives the call and is as large as said.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

impl Empty {
    /// Attaches an empty program to a tracepoint.
    pub fn attach(tracepoint: &str) -> Result<Self> {
        #[repr(C)]
        struct Open {
            name: u64,
            prog_fd: u32,
            pad: u32,
        }
        // r0 = 0; exit
        let program = load(BPF_PROG_TYPE_RAW_TRACEPOINT, 0, [0xb7, 0x95])?;
        let name = std::ffi::CString::new(tracepoint)?;
        let open = Open {
            name: name.as_ptr() as u64,
            prog_fd: program.as_raw_fd() as u32,
            pad: 0,
        };
        let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &open)
            .with_context(|| format!("attaching an empty program to {tracepoint}"))?;
        Ok(Self {
            program,
            _link: link,
        })
    }

    /// Attaches one that accepts the packets of every cgroup.
    pub fn attach_to_packets(direction: Packets) -> Result<Self> {
        #[repr(C)]
        struct Create {
            prog_fd: u32,
            target_fd: u32,
            attach_type: u32,
            flags: u32,
        }
        // r0 = 1; exit
        let instructions = [0x0000_0001_0000_00b7, 0x95];
        let program = load(BPF_PROG_TYPE_CGROUP_SKB, direction as u32, instructions)?;
        let root = std::fs::File::open(super::load::root()?)?;
        let create = Create {
            prog_fd: program.as_raw_fd() as u32,
            target_fd: root.as_raw_fd() as u32,
            attach_type: direction as u32,
            flags: 0,
        };
        let link = bpf(BPF_LINK_CREATE, &create)
            .with_context(|| format!("attaching an empty program to {direction:?} packets"))?;
        Ok(Self {
            program,
            _link: link,
        })
    }

    /// Returns how often the program has run so far, and for how many ns.
    pub fn run_time(&self) -> Result<(u64, u64)> {
        let text =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.program.as_raw_fd()))?;
        let number = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok())
        };
        Ok((
            number("run_cnt:").context("run_cnt")?,
            number("run_time_ns:").context("run_time_ns")?,
        ))
    }
}

fn load(kind: u32, attach_type: u32, instructions: [u64; 2]) -> Result<OwnedFd> {
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
    let license = c"GPL";
    let load = Load {
        prog_type: kind,
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
        expected_attach_type: attach_type,
    };
    bpf(BPF_PROG_LOAD, &load).context("loading an empty program")
}
