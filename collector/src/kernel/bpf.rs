//! bpf(2): the calls that aya has no interface for.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use zerocopy::{FromBytes, IntoBytes};

/// Commands of bpf(2) (include/uapi/linux/bpf.h, `enum bpf_cmd`).
#[derive(Clone, Copy, Debug)]
pub(super) struct BpfCommand(libc::c_long);

const MAP_CREATE: BpfCommand = BpfCommand(0);
pub(super) const MAP_LOOKUP_ELEM: BpfCommand = BpfCommand(1);
pub(super) const MAP_UPDATE_ELEM: BpfCommand = BpfCommand(2);
pub(super) const MAP_DELETE_ELEM: BpfCommand = BpfCommand(3);
const OBJ_PIN: BpfCommand = BpfCommand(6);
const OBJ_GET: BpfCommand = BpfCommand(7);
const PROG_TEST_RUN: BpfCommand = BpfCommand(10);
const OBJ_GET_INFO_BY_FD: BpfCommand = BpfCommand(15);
const BTF_LOAD: BpfCommand = BpfCommand(18);
pub(super) const MAP_LOOKUP_AND_DELETE_ELEM: BpfCommand = BpfCommand(21);
pub(super) const MAP_LOOKUP_BATCH: BpfCommand = BpfCommand(24);
const LINK_CREATE: BpfCommand = BpfCommand(28);
const LINK_UPDATE: BpfCommand = BpfCommand(29);
const ITER_CREATE: BpfCommand = BpfCommand(33);

/// Map types that the agent opens (include/uapi/linux/bpf.h, `enum bpf_map_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapType {
    /// BPF_MAP_TYPE_HASH
    Hash = 1,
    /// BPF_MAP_TYPE_ARRAY
    Array = 2,
    /// BPF_MAP_TYPE_PERCPU_ARRAY
    PerCpuArray = 6,
    /// BPF_MAP_TYPE_ARRAY_OF_MAPS
    ArrayOfMaps = 12,
}

/// The flag of a map that can be mapped into the agent's memory (BPF_F_MMAPABLE).
pub const MMAPABLE: u32 = 1 << 10;

const TRACE_ITER: u32 = 28;
const CGROUP_ITER_DESCENDANTS_PRE: u32 = 2;

/// Calls bpf(2) with the given attributes.
///
/// # Safety
///
/// Every address in `attributes` must be valid for what the command reads or writes there: as many
/// bytes as the attributes say, or the sizes of the map's keys and values.
pub(super) unsafe fn call<T: IntoBytes>(
    command: BpfCommand,
    attributes: &mut T,
) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads the attributes, and changes some, within their size. The caller
    // guarantees that the addresses in them are valid.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command.0,
            (&raw mut *attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// BTF for an array map whose values are structures of `words` 64-bit words. It describes the key,
/// a word, an array of words and the structure.
///
/// The template map has BTF, so inner maps need it too. Kernels before 6.2 compare the timer fields
/// of an inner map with those of the template (kernel/bpf/map_in_map.c, `bpf_map_meta_equal`), and
/// to them "no timer" and "no BTF" differ.
fn load_types(words: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(IntoBytes)]
    struct Attributes {
        btf: u64,
        log_buffer: u64,
        size: u32,
        log_size: u32,
        log_level: u32,
        pad: u32,
    }
    const INT: u32 = 1 << 24;
    const ARRAY: u32 = 3 << 24;
    const STRUCT: u32 = 4 << 24;
    let strings = b"\0key\0word\0words\0cell\0";
    // include/uapi/linux/btf.h: struct btf_type is name, info (kind and members), size or type.
    let types: [u32; 20] = [
        1,
        INT,
        4,
        32, // [1] key: int of 32 bits
        5,
        INT,
        8,
        64, // [2] word: int of 64 bits
        0,
        ARRAY,
        0,
        2,
        1,
        words, // [3] array of words, indexed by key
        16,
        STRUCT | 1,
        words * 8,
        10,
        3,
        0, // [4] cell: one member, words, of type [3], at bit 0
    ];
    let header: [u32; 6] = [
        0x0001_eb9f,
        24,
        0,
        size_of_val(&types) as u32,
        size_of_val(&types) as u32,
        strings.len() as u32,
    ];
    let mut bytes: Vec<u8> = Vec::new();
    for word in header.iter().chain(&types) {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(strings);
    let mut attributes = Attributes {
        btf: bytes.as_ptr() as u64,
        log_buffer: 0,
        size: bytes.len() as u32,
        log_size: 0,
        log_level: 0,
        pad: 0,
    };
    // SAFETY: the kernel reads `size` bytes at `btf`, and writes no log.
    owned(unsafe { call(BTF_LOAD, &mut attributes) }?)
}

/// Creates an mmapable array of structures of 64-bit words, to be put into an array of maps.
///
/// # Errors
///
/// Errors of bpf(2): EPERM without CAP_BPF, ENOMEM.
pub fn create_mmapable_array(name: &str, value_size: usize, entries: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default, IntoBytes)]
    struct Attributes {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
        numa_node: u32,
        map_name: [u8; 16],
        map_ifindex: u32,
        btf_fd: u32,
        btf_key_type_id: u32,
        btf_value_type_id: u32,
        pad: u32,
    }
    let value_size = u32::try_from(value_size).map_err(io::Error::other)?;
    let types = load_types(value_size / 8)?;
    let mut attributes = Attributes {
        map_type: MapType::Array as u32,
        key_size: 4,
        value_size,
        max_entries: entries,
        map_flags: MMAPABLE,
        btf_fd: types.as_raw_fd() as u32,
        btf_key_type_id: 1,
        btf_value_type_id: 4,
        ..Default::default()
    };
    // BPF_OBJ_NAME_LEN, which includes the terminating 0.
    for (to, from) in attributes.map_name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: there are no addresses in the attributes.
    owned(unsafe { call(MAP_CREATE, &mut attributes) }?)
}

/// Arguments of a call about a pin (the member of `union bpf_attr` for BPF_OBJ_PIN and BPF_OBJ_GET).
#[repr(C)]
#[derive(IntoBytes)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Pins a map, a program or a link in bpffs.
///
/// # Errors
///
/// Errors of bpf(2): EEXIST; EPERM if the path is not in bpffs or has a dot; ENOSPC, ENOMEM.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Pin {
        path: path.as_ptr() as u64,
        fd: object.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: the kernel reads a path that ends with 0.
    unsafe { call(OBJ_PIN, &mut attributes) }.map(drop)
}

/// Opens what is pinned at a path.
///
/// # Errors
///
/// Errors of bpf(2): ENOENT; EACCES if it is none of a map, a program and a link.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Pin {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads a path that ends with 0.
    owned(unsafe { call(OBJ_GET, &mut attributes) }?)
}

/// Puts another program in the place of a link's, without a gap. Links of cgroup programs alone have that
/// (kernel/bpf/cgroup.c, `cgroup_bpf_replace`).
///
/// # Errors
///
/// Errors of bpf(2): ENOLINK if the cgroup is gone.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    #[derive(IntoBytes)]
    struct Attributes {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attributes = Attributes {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: there are no addresses in the attributes.
    unsafe { call(LINK_UPDATE, &mut attributes) }.map(drop)
}

/// Arguments of a call about one entry of a map.
#[repr(C)]
#[derive(IntoBytes)]
pub(super) struct MapEntry {
    pub map_fd: u32,
    pub pad: u32,
    pub key: u64,
    pub value: u64,
    pub flags: u64,
}

/// Arguments of a call about many entries of a map.
#[repr(C)]
#[derive(IntoBytes)]
pub(super) struct Batch {
    pub in_batch: u64,
    pub out_batch: u64,
    pub keys: u64,
    pub values: u64,
    pub count: u32,
    pub map_fd: u32,
    pub elem_flags: u64,
    pub flags: u64,
}

/// The start of `struct bpf_map_info` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, IntoBytes, FromBytes)]
pub(super) struct MapInfo {
    pub map_type: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub name: [u8; 16],
}

impl MapInfo {
    /// The map's name, up to its terminating 0.
    pub fn name(&self) -> String {
        let name = self.name.split(|&byte| byte == 0).next();
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    }
}

/// The kind of map that a descriptor refers to.
pub(super) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    object_info(map)
}

/// The kernel's information about a map or a program, cut to the size of `T`.
fn object_info<T: FromBytes + IntoBytes>(object: BorrowedFd<'_>) -> io::Result<T> {
    #[repr(C)]
    #[derive(IntoBytes)]
    struct Attributes {
        fd: u32,
        length: u32,
        info: u64,
    }
    // All zeros request plain numbers only. The kernel fills in what it knows.
    let mut info = T::new_zeroed();
    let mut attributes = Attributes {
        fd: object.as_raw_fd() as u32,
        length: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes to `info`, and every bit pattern is a valid
    // `T`.
    unsafe { call(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info)
}

/// Attaches a loaded `iter/task` program.
///
/// # Errors
///
/// Errors of bpf(2).
pub fn link_task_iterator(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    link_iterator(program, &[])
}

/// Attaches a loaded `iter/cgroup` program to a cgroup directory. It visits the descendants in
/// pre-order.
///
/// # Errors
///
/// Errors of bpf(2): EINVAL before 6.1, which has no cgroup iterator.
pub fn link_cgroup_iterator(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    // The cgroup member of union bpf_iter_link_info: order, cgroup_fd, cgroup_id (64 bits).
    let fd = cgroup.as_raw_fd() as u32;
    link_iterator(program, &[CGROUP_ITER_DESCENDANTS_PRE, fd, 0, 0])
}

fn link_iterator(program: BorrowedFd<'_>, info: &[u32]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(IntoBytes)]
    struct Attributes {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
        iter_info: u64,
        iter_info_len: u32,
        pad: u32,
    }
    let mut attributes = Attributes {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: 0,
        attach_type: TRACE_ITER,
        flags: 0,
        // Without information the address must be null, not that of an empty buffer.
        iter_info: if info.is_empty() {
            0
        } else {
            info.as_ptr() as u64
        },
        iter_info_len: size_of_val(info) as u32,
        pad: 0,
    };
    // SAFETY: the kernel reads `iter_info_len` bytes at `iter_info`.
    owned(unsafe { call(LINK_CREATE, &mut attributes) }?)
}

/// Runs an iterator once, from start to end. It writes nothing.
///
/// # Errors
///
/// Errors of bpf(2).
pub fn run_iterator(link: BorrowedFd<'_>) -> io::Result<()> {
    read_iterator(link, &mut [0; 64], |_| {})
}

/// Runs an iterator once, from start to end, and passes on what it writes, in pieces of at most the
/// buffer's size.
///
/// # Errors
///
/// Errors of bpf(2).
pub fn read_iterator(
    link: BorrowedFd<'_>,
    buffer: &mut [u8],
    mut piece: impl FnMut(&[u8]),
) -> io::Result<()> {
    #[repr(C)]
    #[derive(IntoBytes)]
    struct Attributes {
        link_fd: u32,
        flags: u32,
    }
    let mut attributes = Attributes {
        link_fd: link.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: there are no addresses in the attributes.
    let file = owned(unsafe { call(ITER_CREATE, &mut attributes) }?)?;
    loop {
        // SAFETY: the buffer has the length that is passed.
        let n = unsafe { libc::read(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        match usize::try_from(n) {
            Ok(0) => return Ok(()),
            Ok(n) => piece(buffer.get(..n).unwrap_or_default()),
            Err(_) => {
                let error = io::Error::last_os_error();
                // EAGAIN: the program asks for the same object again, or a million objects have
                // been visited (kernel/bpf/bpf_iter.c, `bpf_iter_run_prog`, MAX_ITER_OBJECTS).
                if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                    return Err(error);
                }
            }
        }
    }
}

/// Runs a loaded raw tracepoint program once, on this CPU or on another one.
///
/// # Errors
///
/// Errors of bpf(2): ENXIO if the other CPU is offline.
pub fn run_program(program: BorrowedFd<'_>, cpu: Option<u32>) -> io::Result<()> {
    const RUN_ON_CPU: u32 = 1;
    // The member `test` of union bpf_attr. Such a program gets no data and returns none.
    #[repr(C)]
    #[derive(Default, IntoBytes)]
    struct Attributes {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        pad: u32,
    }
    let mut attributes = Attributes {
        prog_fd: program.as_raw_fd() as u32,
        flags: if cpu.is_some() { RUN_ON_CPU } else { 0 },
        cpu: cpu.unwrap_or(0),
        ..Default::default()
    };
    // SAFETY: there are no addresses in the attributes.
    unsafe { call(PROG_TEST_RUN, &mut attributes) }.map(drop)
}

/// The kernel's statistics of a program's runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runs {
    /// Number of runs. Counted only while `kernel.bpf_stats_enabled` is 1.
    pub count: u64,
    /// Run time, ns. Counted only while `kernel.bpf_stats_enabled` is 1.
    pub ns: u64,
    /// Runs skipped because the program was already running on that CPU.
    pub misses: u64,
}

/// Reads the statistics of a program's runs.
///
/// # Errors
///
/// Errors of bpf(2).
pub fn program_runs(program: BorrowedFd<'_>) -> io::Result<Runs> {
    // The start of `struct bpf_prog_info` (include/uapi/linux/bpf.h) up to `recursion_misses` (since
    // 5.12), as words.
    const RUN_TIME: usize = 24;
    const RUN_COUNT: usize = 25;
    const RECURSION_MISSES: usize = 26;
    let info: [u64; RECURSION_MISSES + 1] = object_info(program)?;
    Ok(Runs {
        count: info[RUN_COUNT],
        ns: info[RUN_TIME],
        misses: info[RECURSION_MISSES],
    })
}

/// The name of a program, which the kernel cuts to 15 characters.
///
/// # Errors
///
/// Errors of bpf(2): EINVAL if it is no program.
pub fn program_name(program: BorrowedFd<'_>) -> io::Result<String> {
    // `struct bpf_prog_info` up to `name`, as words.
    let info: [u64; 10] = object_info(program)?;
    let name = info[8..].as_bytes().split(|&byte| byte == 0).next();
    Ok(String::from_utf8_lossy(name.unwrap_or_default()).into_owned())
}

/// Kernel memory of a map in bytes, as `/proc/self/fdinfo` reports it (exact since 6.4, a lower
/// bound before).
///
/// # Errors
///
/// If the file can't be read or has no `memlock` line.
pub fn map_memory(map: BorrowedFd<'_>) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("no memlock line in fdinfo"))
}
