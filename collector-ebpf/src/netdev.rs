//! Network namespaces, and the cgroup of each one's oldest process, to which the counters of its
//! interfaces belong.
//!
//! `iter/task`, run by the netdev source. The host's namespace is that of the kernel's threads: they
//! never leave it, while the first process may be hidden from the agent.
//! Metrics: collector/src/source/netdev.rs. Oracle: tests/live/netdev.rs.

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use collector_common::netdev::{NAMESPACES, Namespace, NamespaceIterator};

use crate::{
    kernel::Task,
    maps::{Find, MMAPABLE, NO_PREALLOC, NOEXIST},
    shared::member,
};

/// Namespaces by cookie. Few hosts have many. The agent takes out those that an iteration has not
/// found.
#[btf_map]
static NETNS: HashMap<u64, Namespace, { NAMESPACES as usize }, NO_PREALLOC> = HashMap::new();

/// One entry, mapped by the agent.
#[btf_map]
static NETNS_ITERATOR: Array<NamespaceIterator, 1, MMAPABLE> = Array::new();

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn namespaces(ctx: *const c_void) -> i32 {
    if let Some(task) = Task::iterated(ctx) {
        note(task);
    }
    0
}

/// Notes a task's network namespace. The agent iterates once at a time: nobody else writes.
#[inline(always)]
fn note(task: Task) {
    // A process is where its leader is: threads may be elsewhere for a moment, to set an interface
    // up. But a leader may also have ended before the other threads.
    if !task.is_thread_group_leader() && task.group_leader().net_namespace().is_some() {
        return;
    }
    let Some(namespace) = task.net_namespace() else {
        return;
    };
    let Some(control) = NETNS_ITERATOR.find(0) else {
        return;
    };
    let cookie = namespace.cookie();
    let pid = u64::from(task.pid());
    let host = member!(control.host);
    if task.is_kernel() {
        host.set(cookie);
    }
    if cookie == host.get() {
        return;
    }
    let generation = member!(control.generation).get();
    let cgroup = task.cgroup().id();
    let start_time = task.start_time();
    if let Some(found) = NETNS.find(cookie) {
        if member!(found.owner).get() == cgroup {
            member!(found.owner_seen).set(generation);
        }
        let first = member!(found.generation).get() != generation;
        // Of two that were born in the same nanosecond, the one with the lower number is older.
        let oldest = (member!(found.start_time).get(), member!(found.pid).get());
        if first || (start_time, pid) < oldest {
            member!(found.generation).set(generation);
            member!(found.cgroup).set(cgroup);
            member!(found.start_time).set(start_time);
            member!(found.pid).set(pid);
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
        member!(control.missed).add_alone(1);
    }
}
