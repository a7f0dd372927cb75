//! Lookups: from a map and a key to a [`Shared`] value.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_map_type},
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage},
    helpers::generated::{
        bpf_map_lookup_percpu_elem, bpf_map_update_elem, bpf_ringbuf_output, bpf_sk_storage_get,
        bpf_task_storage_get,
    },
};

use crate::{kernel::Task, shared::Shared};

/// BPF_F_MMAPABLE: the agent reads the array without a system call.
pub const MMAPABLE: usize = 1 << 10;
/// BPF_F_NO_PREALLOC: kernel memory grows with the entries in use.
pub const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
/// BPF_NOEXIST: an insertion fails where there is an entry.
pub const NOEXIST: u64 = 1;

/// Arrays of `LENGTH` values, made as they are needed, in an array of maps. The loader sets
/// `max_entries` of the outer map.
pub type ChunkMap<T, const LENGTH: usize> = ArrayOfMaps<Array<T, LENGTH, MMAPABLE>, 1>;

/// Looks up a value.
pub trait Find<K, T> {
    /// The value of a key. A hash may use it again for another key as soon as its entry is removed.
    fn find(&self, key: K) -> Option<Shared<T>>;
}

impl<T, const N: usize, const FLAGS: usize> Find<u32, T> for Array<T, N, FLAGS> {
    #[inline(always)]
    fn find(&self, index: u32) -> Option<Shared<T>> {
        // SAFETY: elements live as long as the map.
        unsafe { Shared::new(self.get_ptr_mut(index)?) }
    }
}

/// The value of this CPU.
impl<T, const N: usize, const FLAGS: usize> Find<u32, T> for PerCpuArray<T, N, FLAGS> {
    #[inline(always)]
    fn find(&self, index: u32) -> Option<Shared<T>> {
        // SAFETY: elements live as long as the map.
        unsafe { Shared::new(self.get_ptr_mut(index)?) }
    }
}

impl<K, T, const N: usize, const FLAGS: usize> Find<K, T> for HashMap<K, T, N, FLAGS> {
    #[inline(always)]
    fn find(&self, key: K) -> Option<Shared<T>> {
        // SAFETY: the kernel frees a removed entry only after the program has ended (RCU).
        unsafe { Shared::new(self.get_ptr_mut(key)?) }
    }
}

impl<K, T, const N: usize, const FLAGS: usize> Find<K, T> for LruHashMap<K, T, N, FLAGS> {
    #[inline(always)]
    fn find(&self, key: K) -> Option<Shared<T>> {
        // SAFETY: entries are used again, and are not freed before the map is.
        unsafe { Shared::new(self.get_ptr_mut(key)?) }
    }
}

/// By the number of the value; `None` if its chunk is not there.
impl<T, const LENGTH: usize> Find<u32, T> for ChunkMap<T, LENGTH> {
    #[inline(always)]
    fn find(&self, number: u32) -> Option<Shared<T>> {
        const { assert!(LENGTH.is_power_of_two()) };
        let (chunk, index) = (number / LENGTH as u32, number % LENGTH as u32);
        // SAFETY: elements live as long as their chunk, which the agent never takes out.
        unsafe { Shared::new(self.get_value_ptr_mut(chunk, &index)?) }
    }
}

/// Inserts a copy of a value that nobody writes; a value may be larger than the stack. Returns
/// whether it succeeded.
#[inline(always)]
pub fn insert<K, T, const N: usize, const FLAGS: usize>(
    map: &HashMap<K, T, N, FLAGS>,
    key: &K,
    value: Shared<T>,
    flags: u64,
) -> bool {
    let key = ptr::from_ref(key).cast();
    // SAFETY: a map, and a key and a value of its types.
    unsafe { bpf_map_update_elem(address_of(map), key, value.address(), flags) == 0 }
}

/// Address of the only element of a per-CPU array on some CPU, null if there is no such CPU.
#[inline(always)]
pub fn address_on_cpu<T>(map: &PerCpuArray<T, 1>, cpu: u32) -> *const c_void {
    let key = 0u32;
    // SAFETY: a map and a key of its type.
    unsafe { bpf_map_lookup_percpu_elem(address_of(map), ptr::from_ref(&key).cast(), cpu) }
}

/// A map as helpers know it: the kernel's own structure.
#[inline(always)]
pub fn address_of<M>(map: &M) -> *mut c_void {
    ptr::from_ref(map).cast_mut().cast()
}

/// Sends a message, every member of which `fill` writes. False if there is no room for it.
#[inline(always)]
pub fn send<T: 'static, const BYTES: usize>(
    ring: &RingBuf<T, BYTES>,
    flags: u64,
    fill: impl FnOnce(Shared<T>),
) -> bool {
    let Some(mut entry) = ring.reserve(0) else {
        return false;
    };
    // SAFETY: reserved for this program until it is submitted.
    if let Some(message) = unsafe { Shared::new(entry.as_mut_ptr()) } {
        fill(message);
    }
    entry.submit(flags);
    true
}

/// Sends the first bytes of a value, which nobody writes meanwhile. False if there is no room for them.
#[inline(always)]
pub fn send_part<R: 'static, T, const BYTES: usize>(
    ring: &RingBuf<R, BYTES>,
    value: Shared<T>,
    length: usize,
    flags: u64,
) -> bool {
    debug_assert!(length <= size_of::<T>());
    // SAFETY: a ring buffer, and at most the whole value.
    unsafe {
        bpf_ringbuf_output(
            address_of(ring),
            value.address().cast_mut(),
            length as u64,
            flags,
        ) == 0
    }
}

/// BPF_MAP_TYPE_TASK_STORAGE: aya-ebpf has no type for it yet. The members are what BTF map
/// definitions consist of; the loader reads their types and nobody reads their values.
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the pointers are never followed; access goes through the helper.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// What is stored for a task.
    #[inline(always)]
    pub fn find(&self, task: Task) -> Option<Shared<T>> {
        self.get(task, 0)
    }

    /// What is stored for a task, zeroed by the kernel if it is new. `None` if it can't be made.
    #[inline(always)]
    pub fn find_or_make(&self, task: Task) -> Option<Shared<T>> {
        self.get(task, BPF_LOCAL_STORAGE_GET_F_CREATE.into())
    }

    #[inline(always)]
    fn get(&self, task: Task, flags: u64) -> Option<Shared<T>> {
        let task = task.0.cast_mut().cast();
        // SAFETY: the verifier proves that `task` is a task; what is stored for it is freed only after
        // the program has ended (RCU).
        unsafe {
            Shared::new(bpf_task_storage_get(address_of(self), task, ptr::null_mut(), flags).cast())
        }
    }
}

/// What is stored for a socket; made and zeroed by the kernel if there is nothing and `make` is set.
///
/// # Safety
///
/// A socket, as the verifier proves.
#[inline(always)]
pub unsafe fn of_socket<T>(
    map: &SkStorage<T>,
    socket: *mut c_void,
    make: bool,
) -> Option<Shared<T>> {
    let flags = if make {
        BPF_LOCAL_STORAGE_GET_F_CREATE
    } else {
        0
    };
    // SAFETY: a socket; what is stored for it is freed only after the program has ended (RCU).
    unsafe {
        Shared::new(
            bpf_sk_storage_get(address_of(map), socket, ptr::null_mut(), flags.into()).cast(),
        )
    }
}
