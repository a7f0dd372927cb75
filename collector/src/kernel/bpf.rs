//! bpf(2) calls that aya has no interface for.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_BTF_LOAD: libc::c_long = 18;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
/// The map can be mapped into the agent's memory.
pub const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_TRACE_ITER: u32 = 28;
const BPF_CGROUP_ITER_DESCENDANTS_PRE: u32 = 2;

/// Calls bpf(2) with the attributes given, zero-padded as the kernel wants them.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is a `repr(C)` structure without padding that outlives the call; the
    // kernel reads and writes within its size.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *mut T, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Types for an array whose values are structures of `words` 64-bit words: a key, a word, an array
/// of words, the structure.
///
/// Kernels before 6.2 compare what BTF said of timers in an inner map with what it said of the
/// template (kernel/bpf/map_in_map.c, `bpf_map_meta_equal`), which has BTF: "no timer" and "no BTF"
/// are not the same to them.
fn load_types(words: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
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
    owned(bpf(
        BPF_BTF_LOAD,
        &mut Attributes {
            btf: bytes.as_ptr() as u64,
            log_buffer: 0,
            size: bytes.len() as u32,
            log_size: 0,
            log_level: 0,
            pad: 0,
        },
    )?)
}

/// Makes an mmapable array of structures of 64-bit words, to be put into an array of maps.
///
/// # Errors
///
/// The kernel's (EPERM without CAP_BPF, ENOMEM).
pub fn create_mmapable_array(name: &str, value_size: u32, entries: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
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
    let types = load_types(value_size / 8)?;
    let mut attributes = Attributes {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size,
        max_entries: entries,
        map_flags: BPF_F_MMAPABLE,
        btf_fd: types.as_raw_fd() as u32,
        btf_key_type_id: 1,
        btf_value_type_id: 4,
        ..Default::default()
    };
    // BPF_OBJ_NAME_LEN with the terminating 0.
    for (to, from) in attributes.map_name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    owned(bpf(BPF_MAP_CREATE, &mut attributes)?)
}

/// Arguments of a call about one entry of a map.
#[repr(C)]
struct Entry {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Sets an entry.
///
/// # Errors
///
/// The kernel's (E2BIG where there is no room).
pub fn update<K: Copy, V: Copy>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut entry = Entry {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: (&raw const *key) as u64,
        value: (&raw const *value) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut entry).map(drop)
}

/// Takes an entry out of a hash map and returns its value, read into `room`.
///
/// # Errors
///
/// The kernel's (ENOENT where there is none).
pub fn lookup_and_delete<K: Copy, V: Copy>(
    map: BorrowedFd<'_>,
    key: &K,
    mut room: V,
) -> io::Result<V> {
    let mut entry = Entry {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: (&raw const *key) as u64,
        value: (&raw mut room) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut entry)?;
    Ok(room)
}

/// Sets an entry of an array of maps. Waits for programs that still use the entry's old map.
///
/// # Errors
///
/// The kernel's (E2BIG for an index beyond the array, EINVAL for a map of another shape).
pub fn set_inner_map(outer: BorrowedFd<'_>, index: u32, inner: &OwnedFd) -> io::Result<()> {
    update(outer, &index, &inner.as_raw_fd())
}

/// Reads a whole hash map in as few calls as its size allows. Entries that come or go meanwhile may
/// be missed; none is returned twice. `zero` is any value; room is made with it.
///
/// # Errors
///
/// The kernel's (EINVAL before 5.6, where hash maps can't be read in batches).
pub fn lookup_all<K: Copy + Default, V: Copy>(
    map: BorrowedFd<'_>,
    max_entries: u32,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
    zero: V,
) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        elem_flags: u64,
        flags: u64,
    }
    keys.clear();
    values.clear();
    // The cursor is a bucket number for hash maps (kernel/bpf/hashtab.c).
    let mut cursor = 0u32;
    let mut first = true;
    // So much at a time, whatever the size of an entry: room is made before it is known to be needed.
    const BYTES: usize = 128 << 10;
    let mut room = (BYTES / (size_of::<K>() + size_of::<V>())).clamp(16, 1024);
    loop {
        let have = keys.len();
        keys.resize(have + room, K::default());
        values.resize(have + room, zero);
        let mut next = 0u32;
        let mut attributes = Attributes {
            in_batch: if first { 0 } else { (&raw const cursor) as u64 },
            out_batch: (&raw mut next) as u64,
            keys: keys[have..].as_mut_ptr() as u64,
            values: values[have..].as_mut_ptr() as u64,
            count: room as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes);
        let got = attributes.count as usize;
        match result {
            Ok(_) => {
                keys.truncate(have + got);
                values.truncate(have + got);
                first = false;
                cursor = next;
            }
            // The end; what was read last is valid.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                keys.truncate(have + got);
                values.truncate(have + got);
                return Ok(());
            }
            // One bucket holds more than there is room for.
            Err(error)
                if error.raw_os_error() == Some(libc::ENOSPC) && room < max_entries as usize =>
            {
                keys.truncate(have);
                values.truncate(have);
                room *= 2;
            }
            Err(error) => {
                keys.clear();
                values.clear();
                return Err(error);
            }
        }
    }
}

/// Attaches a loaded `iter/task` program.
///
/// # Errors
///
/// The kernel's.
pub fn link_task_iterator(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    link_iterator(program, &[])
}

/// Attaches a loaded `iter/cgroup` program to a cgroup directory, pre-order over its descendants.
///
/// # Errors
///
/// The kernel's (EINVAL before 6.1, where there is no cgroup iterator).
pub fn link_cgroup_iterator(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    // union bpf_iter_link_info, its cgroup member: order, cgroup_fd, cgroup_id (64 bits).
    let fd = cgroup.as_raw_fd() as u32;
    link_iterator(program, &[BPF_CGROUP_ITER_DESCENDANTS_PRE, fd, 0, 0])
}

fn link_iterator(program: BorrowedFd<'_>, info: &[u32]) -> io::Result<OwnedFd> {
    #[repr(C)]
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
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        // No information is no address, not an empty one.
        iter_info: if info.is_empty() {
            0
        } else {
            info.as_ptr() as u64
        },
        iter_info_len: size_of_val(info) as u32,
        pad: 0,
    };
    owned(bpf(BPF_LINK_CREATE, &mut attributes)?)
}

/// Runs an iterator once, from start to end.
///
/// # Errors
///
/// The kernel's.
pub fn run_iterator(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link_fd: u32,
        flags: u32,
    }
    let mut attributes = Attributes {
        link_fd: link.as_raw_fd() as u32,
        flags: 0,
    };
    let file = owned(bpf(BPF_ITER_CREATE, &mut attributes)?)?;
    let mut buffer = [0u8; 64];
    loop {
        // SAFETY: the buffer is as long as said.
        let n = unsafe { libc::read(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        match n {
            0 => return Ok(()),
            n if n > 0 => {}
            _ => {
                let error = io::Error::last_os_error();
                // EAGAIN: the program wants to see the object again, or a million objects have
                // been passed (kernel/bpf/bpf_iter.c, `bpf_iter_run_prog`, MAX_ITER_OBJECTS).
                if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                    return Err(error);
                }
            }
        }
    }
}

/// What the kernel has counted of a program's runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runs {
    /// Runs; only while `kernel.bpf_stats_enabled` is 1.
    pub count: u64,
    /// Their time, ns; likewise.
    pub ns: u64,
    /// Times that it was not run because it was running on that CPU already.
    pub misses: u64,
}

/// A program's runs.
///
/// # Errors
///
/// The kernel's.
pub fn program_runs(program: BorrowedFd<'_>) -> io::Result<Runs> {
    // The start of `struct bpf_prog_info` (include/uapi/linux/bpf.h) up to `recursion_misses` (since
    // 5.12), as words. All zero asks for numbers alone; the kernel fills in what it knows.
    const RUN_TIME: usize = 24;
    const RUN_COUNT: usize = 25;
    const RECURSION_MISSES: usize = 26;
    #[repr(C)]
    struct Attributes {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = [0u64; RECURSION_MISSES + 1];
    let mut attributes = Attributes {
        fd: program.as_raw_fd() as u32,
        length: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(Runs {
        count: info[RUN_COUNT],
        ns: info[RUN_TIME],
        misses: info[RECURSION_MISSES],
    })
}

/// Kernel memory of a map in bytes, as `/proc/self/fdinfo` tells it (exact since 6.4, a lower
/// bound before).
///
/// # Errors
///
/// When the file can't be read or has no `memlock` line.
pub fn map_memory(map: BorrowedFd<'_>) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("no memlock line in fdinfo"))
}
