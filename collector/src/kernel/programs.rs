//! The list of programs, their hooks, and the sources that need them.
//!
//! A program that this kernel can't run turns off the sources that require it, and nothing else.
//! [`Availability`] gives the reason in one sentence. The log, `cgmeter check` and
//! `cgmeter_source_up` all use it.

use aya::programs::CgroupSkbAttachType;

/// How a program is attached.
#[derive(Clone, Copy, Debug)]
pub enum Hook {
    /// BTF tracepoint with this name.
    Tracepoint(&'static str),
    /// BTF tracepoint with this name, if the kernel has it. Otherwise its substitutes are used.
    Newer(&'static str),
    /// BTF tracepoint with the first name, used if the kernel lacks the newer one with the second
    /// name.
    Substitute(&'static str, &'static str),
    /// Attached to the root of cgroup2, for packets that tasks below it receive or send.
    Packets(CgroupSkbAttachType),
    /// Task iterator, run once at the time of attaching.
    Baseline,
    /// Task iterator, run by its source.
    TaskIterator,
    /// Cgroup iterator, run by the agent.
    CgroupIterator,
    /// Not attached. The agent runs it on the CPUs that it chooses.
    OnDemand,
}

/// One program of the kernel object.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Name of the function in the object.
    pub name: &'static str,
    /// The hook that it attaches to.
    pub hook: Hook,
}

const fn program(name: &'static str, hook: Hook) -> Program {
    Program { name, hook }
}

const fn tracepoint(name: &'static str) -> Program {
    program(name, Hook::Tracepoint(name))
}

/// All programs, in the order of attaching. Lifecycle comes first, so that no cgroup is missed
/// between the walk of the hierarchy and the first event. Task creation comes before the baseline,
/// and the baseline before `sched_switch`, so that every task has its task state when it is first
/// switched out.
pub const PROGRAMS: &[Program] = &[
    tracepoint("cgroup_mkdir"),
    tracepoint("cgroup_rmdir"),
    tracepoint("cgroup_release"),
    tracepoint("cgroup_rename"),
    tracepoint("cgroup_attach_task"),
    tracepoint("sched_process_fork"),
    tracepoint("sched_process_exec"),
    tracepoint("sched_process_exit"),
    tracepoint("sched_process_free"),
    program("baseline", Hook::Baseline),
    tracepoint("sched_switch"),
    program("in_flight", Hook::OnDemand),
    program("cgroup_iterator", Hook::CgroupIterator),
    tracepoint("mm_vmscan_direct_reclaim_begin"),
    tracepoint("mm_vmscan_direct_reclaim_end"),
    tracepoint("mm_vmscan_memcg_reclaim_begin"),
    tracepoint("mm_vmscan_memcg_reclaim_end"),
    program("block_submit", Hook::Newer("block_io_start")),
    program(
        "block_insert",
        Hook::Substitute("block_rq_insert", "block_io_start"),
    ),
    program(
        "block_issue",
        Hook::Substitute("block_rq_issue", "block_io_start"),
    ),
    tracepoint("block_bio_queue"),
    tracepoint("block_bio_complete"),
    tracepoint("block_rq_complete"),
    program("net_ingress", Hook::Packets(CgroupSkbAttachType::Ingress)),
    program("net_egress", Hook::Packets(CgroupSkbAttachType::Egress)),
    program("namespaces", Hook::TaskIterator),
    program("namespaces_left", Hook::OnDemand),
    tracepoint("inet_sock_set_state"),
    tracepoint("tcp_retransmit_skb"),
    tracepoint("tcp_retransmit_synack"),
    tracepoint("tcp_send_reset"),
    tracepoint("tcp_receive_reset"),
    tracepoint("kfree_skb"),
    tracepoint("udp_fail_queue_rcv_skb"),
    program("tasks", Hook::TaskIterator),
];

/// What a source needs from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Requirement {
    /// The source's name, as in `--collector.NAME`.
    pub source: &'static str,
    /// Programs that the source can't run without.
    pub required: &'static [&'static str],
    /// Programs without which the source is less exact, and what is less exact then.
    pub optional: &'static [(&'static str, &'static str)],
}

/// The cgroup tree itself, which the agent can't run without.
pub const LIFECYCLE: Requirement = Requirement {
    source: "cgroups",
    required: &[
        "cgroup_mkdir",
        "cgroup_rmdir",
        "cgroup_release",
        "sched_process_exit",
        "sched_process_free",
    ],
    optional: &[("cgroup_rename", "a renamed v1 cgroup keeps its old path")],
};

/// Whether a source can run on this kernel, and if not, why.
#[derive(Clone, Debug)]
pub struct Availability {
    /// The source's name.
    pub source: &'static str,
    /// Whether the source runs.
    pub up: bool,
    /// Why the source is off, or what is less exact.
    pub reason: Option<String>,
    /// The source is off because this host does not have what it reads. That is no fault.
    pub absent: bool,
}

/// This host or its kernel does not have what a source reads, and there is nothing to be mended.
/// The text says what is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotOnThisHost(pub String);
