//! Tasks: one pass over all of them, counting each into its cgroup's cell.
//!
//! Hook: `iter/task`, run by the agent at a scrape; the kernel calls it for every thread
//! (kernel/bpf/task_iter.c), each exactly once, in the order of pids. Cells carry the number of the
//! pass that wrote them, so that nothing has to be cleared.
//! Metrics: collector/src/source/tasks.rs. Oracle: tests/live/tasks.rs.
//!
//! What counts is what cgroup.procs and cgroup.threads list (kernel/cgroup/cgroup.c,
//! `css_task_iter_advance`): threads that have not ended; leaders that have not, or whose process
//! has threads that have not. A zombie is neither a process nor a thread.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    btf_maps::{Array, LruHashMap},
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_loop, bpf_probe_read_kernel},
    },
    macros::btf_map,
};
use collector_common::{
    stat::Stat,
    tasks::{TasksCell, TasksControl, WORDS_A_RUN},
};

use crate::{
    cell::{TASKS_CELLS, cell},
    kernel::{Files, Task, TaskState, file_operations, read},
    slot::{self, Slot},
    stat,
};

/// BPF_F_MMAPABLE
const MMAPABLE: usize = 1 << 10;

/// One entry, mapped by the agent.
#[btf_map]
static TASKS: Array<TasksControl, 1, MMAPABLE> = Array::new();

/// File tables of threads that don't share their leader's, and the pass that counted each. Rare:
/// unshare(2), or a leader that has ended before its threads.
#[btf_map]
static OWN_TABLES: LruHashMap<u64, u64, 1024> = LruHashMap::new();

/// Return values of an iterator program (kernel/bpf/bpf_iter.c, `bpf_iter_run_prog`): go on to the
/// next object, or give the reader EAGAIN and show the same object again at its next read(2).
const NEXT: i32 = 0;
const AGAIN: i32 = 1;

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn tasks(ctx: *const c_void) -> i32 {
    // struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; }
    // SAFETY: the verifier knows the context's layout.
    let task = unsafe { *ctx.cast::<*const c_void>().add(1) };
    let Some(control) = TASKS.get_ptr_mut(0) else {
        return NEXT;
    };
    if task.is_null() {
        return NEXT;
    }
    // SAFETY: a map value, and nobody else's: the agent runs one pass at a time and waits for it.
    let control = unsafe { &mut *control };
    let task = Task(task);
    if control.generation == 0 {
        learn(task, control);
        return NEXT;
    }
    let pid = u64::from(task.pid());
    if control.walked == pid && control.walked_since == task.start_time() {
        return walk(task, control);
    }
    // A walk that its task did not live to see the end of is forgotten.
    control.walked = 0;
    count(task, pid, control)
}

/// Counts a task. Called once for each; what else is to be learnt of tasks or of processes (their
/// namespaces, say) has its place at the beginning, where those are that have ended as well.
#[inline(always)]
fn count(task: Task, pid: u64, control: &mut TasksControl) -> i32 {
    let leader = task.is_thread_group_leader();
    let ended = task.has_ended();
    if ended && (!leader || task.live_threads() == 0) {
        return NEXT;
    }
    let Some((cell, slot)) = cell_of(task, control) else {
        return NEXT;
    };
    if leader {
        cell.processes += 1;
        let start = task.start_boottime();
        if cell.oldest_start_ns == 0 || start < cell.oldest_start_ns {
            cell.oldest_start_ns = start;
            cell.oldest_nofile = task.soft_descriptor_limit();
        }
    }
    if ended {
        return NEXT;
    }
    cell.threads += 1;
    match task.state() {
        TaskState::Running => cell.running += 1,
        TaskState::Sleeping => cell.sleeping += 1,
        TaskState::Stopped => cell.stopped += 1,
        TaskState::Uninterruptible if task.byte_of_in_iowait() & control.iowait_mask != 0 => {
            cell.iowaiting += 1;
        }
        TaskState::Uninterruptible => cell.uninterruptible += 1,
    }
    let table = task.files();
    if table.is_null() || task.is_kernel() {
        return NEXT;
    }
    if !leader && (table.0 == task.group_leader().files().0 || counted(table, control)) {
        return NEXT;
    }
    control.walked = pid;
    control.walked_since = task.start_time();
    control.table = table.0 as u64;
    control.slot = u64::from(slot);
    control.next = 0;
    control.descriptors = 0;
    control.sockets = 0;
    walk(task, control)
}

/// Whether this pass has met the table before; notes it.
#[inline(always)]
fn counted(table: Files, control: &TasksControl) -> bool {
    let key = table.0 as u64;
    // SAFETY: the value is one word.
    if unsafe { OWN_TABLES.get(key) }.is_some_and(|&generation| generation == control.generation) {
        return true;
    }
    let _ = OWN_TABLES.insert(key, control.generation, 0);
    false
}

/// Looks at the next part of the table, and adds up in the cell when it was the last.
///
/// Bits of `open_fds` alone would not do: a descriptor is reserved before its file is there, for as
/// long as accept(2) waits for a connection (net/socket.c, `__sys_accept4_file`), and /proc/PID/fd
/// doesn't list it.
#[inline(always)]
fn walk(task: Task, control: &mut TasksControl) -> i32 {
    let table = task.files();
    // Gone by exit, exec or unshare: what has been found was there.
    if table.is_null() || table.0 as u64 != control.table {
        return finish(control);
    }
    let descriptors = table.table();
    let words = u64::from(descriptors.max()) / 64;
    let next = control.next;
    if next < words {
        let mut run = words - next;
        if run > WORDS_A_RUN as u64 {
            run = WORDS_A_RUN as u64;
        }
        control.files = descriptors.files() + next * 64 * 8;
        // SAFETY: `bitmap` has room for so many words; the helper checks the source.
        unsafe {
            bpf_probe_read_kernel(
                control.bitmap.as_mut_ptr().cast(),
                run as u32 * 8,
                ptr::with_exposed_provenance((descriptors.open() + next * 8) as usize),
            );
            let callback: extern "C" fn(u64, *mut c_void) -> i64 = look_at_word;
            bpf_loop(run as u32, callback as *mut c_void, ptr::null_mut(), 0);
        }
        control.next = next + run;
        if next + run < words {
            return AGAIN;
        }
    }
    finish(control)
}

#[inline(always)]
fn finish(control: &mut TasksControl) -> i32 {
    control.walked = 0;
    if let Some(cell) = cell!(TASKS_CELLS, control.slot as u32) {
        // SAFETY: a map value that only the pass writes.
        unsafe {
            (*cell).descriptors += control.descriptors;
            (*cell).sockets += control.sockets;
        }
    }
    NEXT
}

/// Counts the descriptors of one word of the bitmap: a callback of bpf_loop.
///
/// What it works on is in the map and not on the stack, so that one look at it satisfies the
/// verifier whatever the number of rounds.
#[inline(never)]
extern "C" fn look_at_word(index: u64, _: *mut c_void) -> i64 {
    let Some(control) = TASKS.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: as in `tasks`.
    let control = unsafe { &mut *control };
    let number = index as usize & (WORDS_A_RUN - 1);
    let mut open = control.bitmap[number];
    if open == 0 {
        return 0;
    }
    // Most processes have few: a quarter of the copying.
    let size = if open >> 16 == 0 { 16 * 8 } else { 64 * 8 };
    // SAFETY: `word` has room for 64 pointers; the helper checks the source, which has as many as
    // the bitmap has bits.
    unsafe {
        bpf_probe_read_kernel(
            control.word.as_mut_ptr().cast(),
            size,
            ptr::with_exposed_provenance(control.files as usize + number * 64 * 8),
        );
    }
    let with_sockets = control.with_sockets != 0;
    let mut descriptors = 0;
    let mut sockets = 0;
    for at in 0..64 {
        if open == 0 {
            break;
        }
        let file = control.word[at];
        if open & 1 != 0 && file != 0 {
            descriptors += 1;
            // A cache line of the file's own, mostly a cold one: what a pass costs where there are
            // very many.
            if with_sockets {
                sockets += u64::from(file_operations(file) == control.socket_ops);
            }
        }
        open >>= 1;
    }
    control.descriptors += descriptors;
    control.sockets += sockets;
    0
}

/// Learns the file operations of sockets from a socket of the agent's, which runs the pass: the one
/// that counts nothing.
///
/// Sockets are told by their operations, as the kernel does (net/socket.c, `sock_from_file`): an
/// O_PATH descriptor of a Unix socket's name has an inode of type S_IFSOCK too, and is none.
#[inline(always)]
fn learn(task: Task, control: &mut TasksControl) {
    if u64::from(task.tgid()) != bpf_get_current_pid_tgid() >> 32 {
        return;
    }
    let table = task.files();
    if table.is_null() {
        return;
    }
    let file: u64 = read(ptr::with_exposed_provenance(
        (table.table().files() + control.sample_socket * 8) as usize,
    ));
    control.socket_ops = file_operations(file);
}

/// The cell of the task's cgroup, made ready for this pass, and its slot.
///
/// Neighbours in the order of pids are mostly threads of one process: the slot of the task before is
/// tried first, and then the hash. The task's storage, where its slot is cached for the scheduler,
/// is four cache lines that nobody else has touched lately.
#[inline(always)]
fn cell_of(task: Task, control: &mut TasksControl) -> Option<(&'static mut TasksCell, u32)> {
    let id = task.cgroup().id();
    if control.last_owner == id
        && let Some(cell) = claimed(id, control.last_slot as u32, control.generation)
    {
        return Some((cell, control.last_slot as u32));
    }
    let slot = slot::resolve(id);
    if let Some(cell) = claimed(slot.owner, slot.number, control.generation) {
        control.last_owner = slot.owner;
        control.last_slot = u64::from(slot.number);
        return Some((cell, slot.number));
    }
    stat::count(Stat::Overflow);
    let slot = Slot::OVERFLOW;
    let cell = claimed(slot.owner, slot.number, control.generation)?;
    Some((cell, slot.number))
}

/// The slot's cell if it is `owner`'s or nobody's yet.
#[inline(always)]
fn claimed(owner: u64, slot: u32, generation: u64) -> Option<&'static mut TasksCell> {
    // SAFETY: a map value that only the pass writes.
    let cell = unsafe { &mut *cell!(TASKS_CELLS, slot)? };
    if cell.owner == 0 {
        cell.owner = owner;
    }
    if cell.owner != owner {
        return None;
    }
    if cell.generation != generation {
        *cell = TasksCell {
            owner,
            generation,
            processes: 0,
            threads: 0,
            descriptors: 0,
            sockets: 0,
            sleeping: 0,
            running: 0,
            stopped: 0,
            uninterruptible: 0,
            iowaiting: 0,
            oldest_start_ns: 0,
            oldest_nofile: 0,
            reserved: [0; 3],
        };
    }
    Some(cell)
}
