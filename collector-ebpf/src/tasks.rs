//! Tasks: an iteration over all of them, which counts each in its cgroup's cell.
//!
//! Hook: `iter/task`, run by the agent at a scrape; the kernel calls it for every thread
//! (kernel/bpf/task_iter.c), each exactly once, in the order of pids. Cells carry the number of the
//! iteration that wrote them, so that nothing has to be cleared in between. The agent runs one
//! iteration at a time and waits for it: nobody else writes the cells and the control block.
//! Metrics: collector/src/source/tasks.rs. Oracle: tests/live/tasks.rs.
//!
//! What counts is what cgroup.procs and cgroup.threads list (kernel/cgroup/cgroup.c,
//! `css_task_iter_advance`): threads that have not ended; leaders that have not, or whose process
//! has threads that have not. A zombie is neither a process nor a thread.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    btf_maps::{Array, LruHashMap},
    helpers::bpf_get_current_pid_tgid,
    macros::btf_map,
};
use collector_common::{
    stat::Stat,
    tasks::{TasksCell, TasksControl, WORDS_A_RUN},
};

use crate::{
    cell::Cells,
    kernel::{Files, Task, ThreadState, file_operations, read},
    maps::{Find, MMAPABLE},
    shared::{Shared, member, repeat},
    slot::{self, Slot},
    stat,
};

/// Cells, one a slot.
#[btf_map]
pub static TASKS_CELLS: Cells<TasksCell> = Cells::new();

/// One entry, mapped by the agent.
#[btf_map]
static TASKS: Array<TasksControl, 1, MMAPABLE> = Array::new();

/// File tables of threads that don't share their leader's, and the iteration that counted each.
/// Rare: unshare(2), or a leader that has ended before its threads.
#[btf_map]
static OWN_TABLES: LruHashMap<u64, u64, 1024> = LruHashMap::new();

/// Return values of an iterator program (kernel/bpf/bpf_iter.c, `bpf_iter_run_prog`): go on to the
/// next object, or give the reader EAGAIN and show the same object again at its next read(2).
const NEXT: i32 = 0;
const AGAIN: i32 = 1;

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn tasks(ctx: *const c_void) -> i32 {
    let Some(control) = TASKS.find(0) else {
        return NEXT;
    };
    let Some(task) = Task::iterated(ctx) else {
        return NEXT;
    };
    if member!(control.generation).get() == 0 {
        learn(task, control);
        return NEXT;
    }
    let pid = u64::from(task.pid());
    let walked = member!(control.walked).get();
    if walked == pid && member!(control.walked_since).get() == task.start_time() {
        return walk(task, control);
    }
    // The task whose table was being walked may have ended meanwhile.
    member!(control.walked).set(0);
    count(task, pid, control)
}

/// Counts a task. Called once for each, before those that have ended are left out.
#[inline(always)]
fn count(task: Task, pid: u64, control: Shared<TasksControl>) -> i32 {
    let leader = task.is_thread_group_leader();
    let ended = task.has_ended();
    if ended && (!leader || task.live_threads() == 0) {
        return NEXT;
    }
    let Some((cell, slot)) = cell_of(task, control) else {
        return NEXT;
    };
    if leader {
        member!(cell.processes).add_alone(1);
        let start = task.start_boottime();
        let oldest = member!(cell.oldest_start_ns).get();
        if oldest == 0 || start < oldest {
            member!(cell.oldest_start_ns).set(start);
            member!(cell.oldest_nofile).set(task.soft_descriptor_limit());
        }
    }
    if ended {
        return NEXT;
    }
    member!(cell.threads).add_alone(1);
    let in_state = match task.state() {
        ThreadState::Running => member!(cell.running),
        ThreadState::Sleeping => member!(cell.sleeping),
        ThreadState::Stopped => member!(cell.stopped),
        ThreadState::Uninterruptible => {
            if task.byte_of_in_iowait() & member!(control.iowait_mask).get() != 0 {
                member!(cell.iowaiting)
            } else {
                member!(cell.uninterruptible)
            }
        }
    };
    in_state.add_alone(1);
    let table = task.files();
    if table.is_null() || task.is_kernel() {
        return NEXT;
    }
    if !leader && (table.0 == task.group_leader().files().0 || counted(table, control)) {
        return NEXT;
    }
    member!(control.walked).set(pid);
    member!(control.walked_since).set(task.start_time());
    member!(control.table).set(table.0 as u64);
    member!(control.slot).set(slot.into());
    member!(control.next).set(0);
    member!(control.descriptors).set(0);
    member!(control.sockets).set(0);
    walk(task, control)
}

/// Whether this iteration has met the table before; notes it.
#[inline(always)]
fn counted(table: Files, control: Shared<TasksControl>) -> bool {
    let key = table.0 as u64;
    let generation = member!(control.generation).get();
    if let Some(found) = OWN_TABLES.find(key)
        && found.get() == generation
    {
        return true;
    }
    let _ = OWN_TABLES.insert(key, generation, 0);
    false
}

/// Looks at the next part of the table, and adds up in the cell when it was the last.
///
/// Bits of `open_fds` alone would not do: a descriptor is reserved before its file is there, for as
/// long as accept(2) waits for a connection (net/socket.c, `__sys_accept4_file`), and /proc/PID/fd
/// doesn't list it.
#[inline(always)]
fn walk(task: Task, control: Shared<TasksControl>) -> i32 {
    let table = task.files();
    // The task has left the table by exit, exec or unshare. What was found until then counts.
    if table.is_null() || table.0 as u64 != member!(control.table).get() {
        return finish(control);
    }
    let descriptors = table.table();
    let words = u64::from(descriptors.max()) / 64;
    let next = member!(control.next).get();
    if next < words {
        let mut run = words - next;
        if run > WORDS_A_RUN as u64 {
            run = WORDS_A_RUN as u64;
        }
        member!(control.files).set(descriptors.files() + next * 64 * 8);
        let from = ptr::with_exposed_provenance((descriptors.open() + next * 8) as usize);
        member!(control.bitmap).copy_first(run, from);
        repeat(run as u32, look_at_word);
        member!(control.next).set(next + run);
        if next + run < words {
            return AGAIN;
        }
    }
    finish(control)
}

#[inline(always)]
fn finish(control: Shared<TasksControl>) -> i32 {
    member!(control.walked).set(0);
    if let Some(cell) = TASKS_CELLS.find(member!(control.slot).get() as u32) {
        member!(cell.descriptors).add_alone(member!(control.descriptors).get());
        member!(cell.sockets).add_alone(member!(control.sockets).get());
    }
    NEXT
}

/// Counts the descriptors of one word of the bitmap: a callback of [`repeat`].
#[inline(never)]
extern "C" fn look_at_word(index: u64, _: *mut c_void) -> i64 {
    let Some(control) = TASKS.find(0) else {
        return 1;
    };
    let number = index as usize & (WORDS_A_RUN - 1);
    let mut open = member!(control.bitmap).wrapped(number).get();
    if open == 0 {
        return 0;
    }
    // Most processes have few: a quarter of the copying.
    let size = if open >> 16 == 0 { 16 } else { 64 };
    let files = member!(control.files).get() as usize + number * 64 * 8;
    // The table has room for as many files as the bitmap has bits.
    let word = member!(control.word);
    word.copy_first(size, ptr::with_exposed_provenance(files));
    let with_sockets = member!(control.with_sockets).get() != 0;
    let socket_ops = member!(control.socket_ops).get();
    let mut descriptors = 0;
    let mut sockets = 0;
    for at in 0..64 {
        if open == 0 {
            break;
        }
        let file = word.wrapped(at).get();
        if open & 1 != 0 && file != 0 {
            descriptors += 1;
            // This reads a cache line of the file, mostly a cold one. It is the main cost where
            // there are very many files.
            if with_sockets {
                sockets += u64::from(file_operations(file) == socket_ops);
            }
        }
        open >>= 1;
    }
    member!(control.descriptors).add_alone(descriptors);
    member!(control.sockets).add_alone(sockets);
    0
}

/// Learns the file operations of sockets from a socket of the agent, which is the process that runs
/// the iteration. The iteration that does this counts nothing.
///
/// Sockets are recognised by their operations, as the kernel does (net/socket.c, `sock_from_file`): an
/// O_PATH descriptor of a Unix socket's name has an inode of type S_IFSOCK too, and is none.
#[inline(always)]
fn learn(task: Task, control: Shared<TasksControl>) {
    if u64::from(task.tgid()) != bpf_get_current_pid_tgid() >> 32 {
        return;
    }
    let table = task.files();
    if table.is_null() {
        return;
    }
    let at = table.table().files() + member!(control.sample_socket).get() * 8;
    let file: u64 = read(ptr::with_exposed_provenance(at as usize));
    member!(control.socket_ops).set(file_operations(file));
}

/// The cell of the task's cgroup, made ready for this iteration, and its slot.
///
/// Neighbours in the order of pids are mostly threads of one process: the slot of the task before is
/// tried first, and then the hash. The task's storage, where its slot is cached for the scheduler,
/// is four cold cache lines.
#[inline(always)]
fn cell_of(task: Task, control: Shared<TasksControl>) -> Option<(Shared<TasksCell>, u32)> {
    let cgroup = task.cgroup();
    let id = cgroup.id();
    let generation = member!(control.generation).get();
    let last_slot = member!(control.last_slot).get() as u32;
    if member!(control.last_owner).get() == id
        && let Some(cell) = claimed(id, last_slot, generation)
    {
        return Some((cell, last_slot));
    }
    let slot = slot::resolve(cgroup);
    if let Some(cell) = claimed(slot.owner, slot.number, generation) {
        member!(control.last_owner).set(slot.owner);
        member!(control.last_slot).set(slot.number.into());
        return Some((cell, slot.number));
    }
    stat::count(Stat::Overflow);
    let slot = Slot::ROOT;
    let cell = claimed(slot.owner, slot.number, generation)?;
    Some((cell, slot.number))
}

/// The slot's cell if it is `owner`'s or nobody's yet.
#[inline(always)]
fn claimed(owner: u64, slot: u32, generation: u64) -> Option<Shared<TasksCell>> {
    let cell = TASKS_CELLS.find(slot)?;
    // Plain: no other program writes these cells.
    if cell.owner().get() == 0 {
        cell.owner().set(owner);
    }
    if cell.owner().get() != owner {
        return None;
    }
    if member!(cell.generation).get() != generation {
        cell.clear();
        member!(cell.generation).set(generation);
    }
    Some(cell)
}
