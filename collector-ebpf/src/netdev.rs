//! Network namespaces: which processes are in them, and whether they still are.
//!
//! `namespaces` is an `iter/task` program. The netdev source runs it, and reads one [`Inhabitant`] for
//! each process outside of the host's namespace from the iterator's file. The host's namespace is
//! that of the kernel's threads: they never leave it, while the first process may be hidden from the
//! agent.
//!
//! `namespaces_left` is run by the source between scrapes. It looks at one process of each namespace
//! that the agent holds, and says how many have left. That costs much less than an iteration, and
//! nothing where tasks are born, end or change namespaces.
//!
//! Metrics: collector/src/source/netdev.rs. Oracle: tests/live/netdev.rs.

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::Array,
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use collector_common::{
    field,
    netdev::{Inhabitant, NAMESPACES, NamespaceControl, Witness},
};

use crate::{
    kernel::{SequenceFile, Task, address, read},
    maps::{Find, MMAPABLE},
    shared::{Shared, member, repeat},
};

/// One entry, mapped by the agent.
#[btf_map]
static NETNS: Array<NamespaceControl, 1, MMAPABLE> = Array::new();

/// The processes to look at, set by the agent.
#[btf_map]
static NETNS_WITNESSES: Array<Witness, { NAMESPACES as usize }, MMAPABLE> = Array::new();

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn namespaces(ctx: *const c_void) -> i32 {
    if let Some(task) = Task::iterated(ctx)
        && let Some(inhabitant) = inhabitant(task)
    {
        // Without room the kernel shows the task again, at the next read(2).
        SequenceFile::of(ctx).append(&inhabitant);
    }
    0
}

/// The process that a task stands for, if it is in another namespace than the host's.
#[inline(always)]
fn inhabitant(task: Task) -> Option<Inhabitant> {
    // A process is where its leader is: threads may be elsewhere for a moment, to set an interface
    // up. But a leader may also have ended before the other threads.
    if !task.is_thread_group_leader() && task.group_leader().net_namespace().is_some() {
        return None;
    }
    let address = task.net_namespace()?;
    let namespace = address.cookie();
    let control = NETNS.find(0)?;
    let host = member!(control.host);
    if task.is_kernel() {
        host.set(namespace);
    }
    if namespace == host.get() {
        return None;
    }
    Some(Inhabitant {
        namespace,
        cgroup: task.cgroup().id(),
        start_time: task.start_time(),
        pid: task.pid().into(),
        task: task.0 as u64,
        address: address.0 as u64,
    })
}

#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn namespaces_left(_ctx: RawTracePointContext) -> i32 {
    if let Some(control) = NETNS.find(0) {
        member!(control.left).set(0);
        repeat(member!(control.watched).get() as u32, look);
    }
    0
}

/// Looks at one process: a callback of [`repeat`].
#[inline(never)]
extern "C" fn look(index: u64, _: *mut c_void) -> i64 {
    let Some(witness) = NETNS_WITNESSES.find(index as u32) else {
        return 1;
    };
    if !is_there(witness)
        && let Some(control) = NETNS.find(0)
    {
        member!(control.left).add_alone(1);
    }
    0
}

/// Whether a task is alive and in its namespace. A task that ends leaves no `nsproxy` behind
/// (kernel/nsproxy.c, `exit_task_namespaces`), and a task that has its memory by now counts only if it
/// is in the namespace too.
#[inline(always)]
fn is_there(witness: Shared<Witness>) -> bool {
    let task = member!(witness.task).get();
    let proxy: u64 = read(address!(task, field::TASK_NSPROXY));
    if proxy == 0 {
        return false;
    }
    let namespace: u64 = read(address!(proxy, field::NSPROXY_NET));
    namespace == member!(witness.address).get()
}
