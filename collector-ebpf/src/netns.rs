//! Network namespaces: which there are, and whose.
//!
//! `iter/task`, run by the netdev source. Of each namespace that a process is in it notes the
//! oldest one, to whose cgroup the interfaces' counters belong. The host's namespace is that of
//! the kernel's threads: they never leave it, while the first process may be kept from sight.
//! Metrics: collector/src/source/netdev.rs. Oracle: tests/live/netdev.rs.

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use collector_common::netns::{NAMESPACES, Namespace, NamespacePass};

use crate::kernel::Task;

/// BPF_F_MMAPABLE
const MMAPABLE: usize = 1 << 10;
/// BPF_F_NO_PREALLOC: few hosts have so many namespaces.
const NO_PREALLOC: usize = 1;
/// BPF_NOEXIST
const NOEXIST: u64 = 1;

/// Namespaces by cookie. The agent takes out those that a pass has not found.
#[btf_map]
static NETNS: HashMap<u64, Namespace, { NAMESPACES as usize }, NO_PREALLOC> = HashMap::new();

/// One entry, mapped by the agent.
#[btf_map]
static NETNS_PASS: Array<NamespacePass, 1, MMAPABLE> = Array::new();

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn namespaces(ctx: *const c_void) -> i32 {
    // struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; }
    // SAFETY: the verifier knows the context's layout.
    let task = unsafe { *ctx.cast::<*const c_void>().add(1) };
    if !task.is_null() {
        note(Task(task));
    }
    0
}

/// Notes a task's network namespace. One pass at a time: nobody else writes.
#[inline(always)]
pub fn note(task: Task) {
    // A process is where its leader is: threads may be elsewhere for a moment, to set an interface
    // up. But a leader may also have ended before the other threads.
    if !task.is_thread_group_leader() && task.group_leader().net_namespace().is_some() {
        return;
    }
    let Some(namespace) = task.net_namespace() else {
        return;
    };
    let Some(pass) = NETNS_PASS.get_ptr_mut(0) else {
        return;
    };
    let cookie = namespace.cookie();
    let pid = u64::from(task.pid());
    // SAFETY: a map value.
    unsafe {
        if task.is_kernel() {
            (*pass).host = cookie;
        }
        if cookie == (*pass).host {
            return;
        }
    }
    // SAFETY: as above.
    let generation = unsafe { (*pass).generation };
    let cgroup = task.cgroup().id();
    let start_time = task.start_time();
    if let Some(found) = NETNS.get_ptr_mut(cookie) {
        // SAFETY: a map value.
        let found = unsafe { &mut *found };
        if found.owner == cgroup {
            found.owner_seen = generation;
        }
        let first = found.generation != generation;
        // Who has the lower number is the older of two that were born in the same nanosecond.
        if first || (start_time, pid) < (found.start_time, found.pid) {
            found.generation = generation;
            found.cgroup = cgroup;
            found.start_time = start_time;
            found.pid = pid;
        }
        return;
    }
    let new = Namespace {
        generation,
        cgroup,
        start_time,
        pid,
        owner: 0,
        owner_seen: 0,
    };
    if NETNS.insert(cookie, new, NOEXIST).is_err() {
        // SAFETY: a map value.
        unsafe { (*pass).missed += 1 };
    }
}
