//! Which programs there are, what they attach to, and which source needs them.
//!
//! A program that this kernel can't have turns off the sources that require it and nothing else;
//! [`Availability`] says so in one sentence, for the log, `cgmeter check` and
//! `cgmeter_source_up` alike.

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// BTF tracepoint of that name.
    Tracepoint(&'static str),
    /// Iterator over tasks, run by the agent.
    TaskIterator,
    /// Iterator over cgroups, run by the agent.
    CgroupIterator,
    /// Not attached: run by the agent on a CPU of its choice.
    OnDemand,
}

/// One program of the kernel object.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Name of the function in the object.
    pub name: &'static str,
    /// Where it runs.
    pub hook: Hook,
}

impl Program {
    /// The object's section that holds it.
    pub fn section(&self) -> String {
        match self.hook {
            Hook::Tracepoint(name) => format!("tp_btf/{name}"),
            Hook::TaskIterator => "iter/task".to_owned(),
            Hook::CgroupIterator => "iter/cgroup".to_owned(),
            Hook::OnDemand => "raw_tp/sched_switch".to_owned(),
        }
    }
}

const fn tracepoint(name: &'static str) -> Program {
    Program {
        name,
        hook: Hook::Tracepoint(name),
    }
}

/// Every program. Attached in this order: lifecycle first, so that no cgroup is missed between the
/// walk of the hierarchy and the first event; births before the baseline, and the baseline before
/// `sched_switch`, so that every task has books when it is first switched out.
pub const PROGRAMS: &[Program] = &[
    tracepoint("cgroup_mkdir"),
    tracepoint("cgroup_rmdir"),
    tracepoint("cgroup_rename"),
    tracepoint("cgroup_attach_task"),
    tracepoint("sched_process_fork"),
    tracepoint("sched_process_exec"),
    tracepoint("sched_process_exit"),
    Program {
        name: "baseline",
        hook: Hook::TaskIterator,
    },
    tracepoint("sched_switch"),
    Program {
        name: "in_flight",
        hook: Hook::OnDemand,
    },
    Program {
        name: "pass",
        hook: Hook::CgroupIterator,
    },
];

/// What a source needs of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Requirement {
    /// The source's name, as in `--collector.NAME`.
    pub source: &'static str,
    /// Programs without which it is off.
    pub required: &'static [&'static str],
    /// Programs without which it is less exact, and what then happens.
    pub optional: &'static [(&'static str, &'static str)],
}

/// The cgroup tree itself; without it there is no agent.
pub const LIFECYCLE: Requirement = Requirement {
    source: "cgroups",
    required: &["cgroup_mkdir", "cgroup_rmdir"],
    optional: &[("cgroup_rename", "a renamed v1 cgroup keeps its old path")],
};

/// Whether a source can run here, and if not, why not.
#[derive(Clone, Debug)]
pub struct Availability {
    /// The source's name.
    pub source: &'static str,
    /// Whether it runs.
    pub up: bool,
    /// Why it is off, or what is less exact.
    pub reason: Option<String>,
}
