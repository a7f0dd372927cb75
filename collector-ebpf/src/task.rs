//! Books of tasks: storage, creation, baseline.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_map_type},
    helpers::generated::bpf_task_storage_get,
    macros::btf_map,
};
use collector_common::{sched::TaskBooks, stat::Stat};

use crate::{cell, kernel::Task, slot::Slot, stat};

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
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    #[inline(always)]
    fn get(&self, task: Task, flags: u64) -> *mut T {
        // SAFETY: the verifier proves that `task` is a task.
        unsafe {
            bpf_task_storage_get(
                ptr::from_ref(self).cast_mut().cast(),
                task.0.cast_mut().cast(),
                ptr::null_mut(),
                flags,
            )
        }
        .cast()
    }
}

#[btf_map]
static TASK_BOOKS: TaskStorage<TaskBooks> = TaskStorage::new();

/// CLOCK_MONOTONIC at which the agent loaded the programs, ns: a task born later has done
/// everything it ever did under their eyes.
#[unsafe(no_mangle)]
static LOADED_AT: Global<u64> = Global::new(0);

/// A task's books, `None` if it has none.
#[inline(always)]
pub fn books(task: Task) -> Option<&'static mut TaskBooks> {
    // SAFETY: the helper returns null or a value that lives as long as the program runs.
    unsafe { TASK_BOOKS.get(task, 0).as_mut() }
}

/// A task's books, made if need be: zero for a task born under our eyes, else its present clocks.
#[inline(always)]
pub fn books_or_new(task: Task) -> Option<&'static mut TaskBooks> {
    if let Some(books) = books(task) {
        return Some(books);
    }
    // SAFETY: as in `books`. New storage is zeroed by the kernel.
    let books = unsafe {
        TASK_BOOKS
            .get(task, BPF_LOCAL_STORAGE_GET_F_CREATE as u64)
            .as_mut()
    }?;
    if task.start_time() <= LOADED_AT.load() {
        books.run_ns = task.run_ns();
        books.wait_ns = task.wait_ns();
        books.periods = task.periods();
        books.voluntary = task.voluntary();
        books.involuntary = task.involuntary();
        books.migrations = task.migrations();
    }
    Some(books)
}

/// Notes the slot in which a task counts from now on. A task in the overflow slot tries again at its
/// next switch-out.
#[inline(always)]
pub fn enter(books: &mut TaskBooks, slot: Slot, css_set: u64) {
    books.slot = slot.number;
    books.first_cell = cell::first_cell(slot.number);
    books.owner = slot.owner;
    books.css_set = if slot.is_overflow() { 0 } else { css_set };
}

/// `iter/task`: gives every task that exists books with its present clocks as baseline. Run once,
/// after `sched_process_fork` and before `sched_switch` are attached.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn baseline(ctx: *const c_void) -> i32 {
    // struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; }
    // SAFETY: the verifier knows the context's layout.
    let task = unsafe { *ctx.cast::<*const c_void>().add(1) };
    if !task.is_null() && books_or_new(Task(task)).is_none() {
        stat::count(Stat::NoTaskStorage);
    }
    0
}
