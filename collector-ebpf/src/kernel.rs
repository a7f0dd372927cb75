//! Kernel structures as programs see them: typed pointers whose fields are read by one load each.
//!
//! The offset in each load is a placeholder that the agent replaces before it loads the object
//! (see `collector_common::field`). Loads go through BTF pointers, so that the verifier checks
//! them against the running kernel's types and the JIT makes one instruction of each.

use core::{ffi::c_void, ptr};

use aya_ebpf::helpers::{
    bpf_get_current_task_btf, bpf_probe_read_kernel, generated::bpf_seq_write,
};
use collector_common::field;

/// Reads a field of 8 bytes (or a pointer).
///
/// SAFETY of the expansion: the verifier proves that the base is a pointer to a structure which
/// has such a field at the offset that the loader wrote into the instruction.
macro_rules! load64 {
    ($base:expr, $field:expr) => {{
        let value: u64;
        // SAFETY: see above; the load has no other effect.
        unsafe {
            core::arch::asm!(
                "{value} = *(u64 *)({base} + {offset})",
                value = lateout(reg) value,
                base = in(reg) $base,
                offset = const $field,
                options(readonly, nostack, preserves_flags),
            );
        }
        value
    }};
}

/// Reads a field of 4 bytes, zero-extended.
macro_rules! load32 {
    ($base:expr, $field:expr) => {{
        let value: u64;
        // SAFETY: as in `load64`.
        unsafe {
            core::arch::asm!(
                "{value} = *(u32 *)({base} + {offset})",
                value = lateout(reg) value,
                base = in(reg) $base,
                offset = const $field,
                options(readonly, nostack, preserves_flags),
            );
        }
        value as u32
    }};
}

/// Reads a field of 1 byte, zero-extended.
macro_rules! load8 {
    ($base:expr, $field:expr) => {{
        let value: u64;
        // SAFETY: as in `load64`.
        unsafe {
            core::arch::asm!(
                "{value} = *(u8 *)({base} + {offset})",
                value = lateout(reg) value,
                base = in(reg) $base,
                offset = const $field,
                options(readonly, nostack, preserves_flags),
            );
        }
        value as u8
    }};
}

/// Whether this kernel has a field: a constant to the verifier, which removes the code behind a 0.
macro_rules! has {
    ($field:expr) => {{
        let value: u64;
        // SAFETY: a constant.
        unsafe {
            core::arch::asm!(
                "{value} = {present}",
                value = lateout(reg) value,
                present = const collector_common::field::present($field),
                options(nomem, nostack, preserves_flags),
            );
        }
        value != 0
    }};
}

/// The address of a field beyond what BTF lets a program load directly (a structure that embeds
/// the one pointed to). `r += imm` with the placeholder as immediate; to be read by
/// `bpf_probe_read_kernel`.
macro_rules! address {
    ($base:expr, $field:expr) => {{
        // The verifier sees a pointer, Rust sees a number.
        let mut address = $base as u64;
        // SAFETY: pure arithmetic.
        unsafe {
            core::arch::asm!(
                "{address} += {offset}",
                address = inout(reg) address,
                offset = const $field,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        address as *const core::ffi::c_void
    }};
}

/// An argument of a tracepoint as a mere number.
///
/// For pointers that may be null: kernels from 6.3 to some 6.12 take every argument of a `tp_btf`
/// program for a valid one, remove the check for null and let the program read through it
/// (kernel/bpf/btf.c, `raw_tp_null_args` is what put an end to it). The helper reads the context
/// as any memory.
macro_rules! argument {
    ($context:expr, $field:expr) => {
        crate::kernel::read::<u64>(crate::kernel::address!($context, $field))
    };
}

/// The value of an enumerator.
macro_rules! enumerator {
    ($field:expr) => {
        crate::kernel::address!(0u64, $field) as u64
    };
}
mod files;
mod thread;

pub use files::{Files, file_operations};
pub use thread::ThreadState;

/// `CSS_ONLINE` of `cgroup->self` (include/linux/cgroup-defs.h): cleared by rmdir.
const CSS_ONLINE: u32 = 1 << 1;

/// `struct task_struct`
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Task(pub *const c_void);

/// `struct cgroup`
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Cgroup(pub *const c_void);

/// `struct seq_file`: what the agent reads from an iterator.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct SequenceFile(*const c_void);

/// `struct cgroup`, or null: read by `bpf_probe_read_kernel` alone. Its memory is there as long as a
/// task, a socket or a child refers to it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct AnyCgroup(pub u64);

/// `struct net`
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct NetNamespace(pub *const c_void);

/// `struct cgroup_subsys_state` of the cpu controller, the first member of `struct task_group`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct TaskGroup(pub *const c_void);

/// `struct cgroup_subsys_state` of a controller, the first member of the controller's own structure.
/// What lies behind it is beyond what BTF lets a program load: it is read by
/// `bpf_probe_read_kernel`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Css(pub *const c_void);

/// `PF_KTHREAD` (include/linux/sched.h): kernel threads, and the idle tasks since 5.16.
const PF_KTHREAD: u32 = 0x0020_0000;
/// `PF_EXITING`: from the beginning of do_exit on.
const PF_EXITING: u32 = 0x4;

/// The object that an iterator program is run for, null at the end.
///
/// struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; }, and the same of
/// `struct cgroup`.
#[inline(always)]
fn iterated(ctx: *const c_void) -> *const c_void {
    // SAFETY: an iterator program's context, whose layout the verifier knows.
    unsafe { *ctx.cast::<*const c_void>().add(1) }
}

impl SequenceFile {
    /// The file of an iterator program's run.
    ///
    /// struct bpf_iter_meta { struct seq_file *seq; ... }
    #[inline(always)]
    pub fn of(ctx: *const c_void) -> Self {
        // SAFETY: an iterator program's context and its first member, whose layouts the verifier
        // knows.
        unsafe {
            let meta = *ctx.cast::<*const c_void>();
            Self(*meta.cast::<*const c_void>())
        }
    }
    /// Appends a record. If it does not fit, the kernel takes it out again, and runs the program for
    /// the same object once the reader has made room (kernel/bpf/bpf_iter.c, `bpf_seq_read`).
    #[inline(always)]
    pub fn append<T>(self, record: &T) {
        let record = ptr::from_ref(record).cast();
        // SAFETY: the verifier proves that this is a file, and that the record is initialised.
        unsafe { bpf_seq_write(self.0.cast_mut().cast(), record, size_of::<T>() as u32) };
    }
}

impl Task {
    /// The task that an `iter/task` program is run for.
    #[inline(always)]
    pub fn iterated(ctx: *const c_void) -> Option<Self> {
        let task = iterated(ctx);
        if task.is_null() {
            return None;
        }
        Some(Self(task))
    }
    /// The task that is running on this CPU.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: always allowed.
        Self(unsafe { bpf_get_current_task_btf() }.cast_const().cast())
    }
    /// `task->cgroups`, compared but never followed by those who cache it.
    #[inline(always)]
    pub fn css_set(self) -> u64 {
        load64!(self.0, field::TASK_CGROUPS)
    }
    /// The cgroup2 cgroup: `task->cgroups->dfl_cgrp`.
    #[inline(always)]
    pub fn cgroup(self) -> Cgroup {
        let css_set = load64!(self.0, field::TASK_CGROUPS) as *const c_void;
        Cgroup(load64!(css_set, field::CSS_SET_CGROUP) as *const c_void)
    }
    /// CLOCK_MONOTONIC of birth, ns.
    #[inline(always)]
    pub fn start_time(self) -> u64 {
        load64!(self.0, field::TASK_START_TIME)
    }
    /// Thread id, as the first pid namespace has it.
    #[inline(always)]
    pub fn pid(self) -> u32 {
        load32!(self.0, field::TASK_PID)
    }
    /// `None` for a task on its way out (kernel/nsproxy.c, `exit_task_namespaces`).
    #[inline(always)]
    pub fn net_namespace(self) -> Option<NetNamespace> {
        let proxy = load64!(self.0, field::TASK_NSPROXY) as *const c_void;
        if proxy.is_null() {
            return None;
        }
        Some(NetNamespace(
            load64!(proxy, field::NSPROXY_NET) as *const c_void
        ))
    }
    /// A task that has begun to exit.
    #[inline(always)]
    pub fn is_ending(self) -> bool {
        load32!(self.0, field::TASK_FLAGS) & PF_EXITING != 0
    }
    /// The idle task of a CPU: the only one with pid 0.
    #[inline(always)]
    pub fn is_idle(self) -> bool {
        load32!(self.0, field::TASK_PID) == 0
    }
    /// A kernel thread, the idle task included.
    #[inline(always)]
    pub fn is_kernel(self) -> bool {
        load32!(self.0, field::TASK_FLAGS) & PF_KTHREAD != 0 || self.is_idle()
    }
    #[inline(always)]
    pub fn is_thread_group_leader(self) -> bool {
        load32!(self.0, field::TASK_PID) == load32!(self.0, field::TASK_TGID)
    }
    #[inline(always)]
    pub fn group_leader(self) -> Task {
        Task(load64!(self.0, field::TASK_GROUP_LEADER) as *const c_void)
    }
    /// Threads of the process that are not on their way out (`signal->live`).
    #[inline(always)]
    pub fn live_threads(self) -> u32 {
        let signal = load64!(self.0, field::TASK_SIGNAL) as *const c_void;
        load32!(signal, field::SIGNAL_LIVE)
    }
    /// Whether the OOM killer has chosen the task's process (`signal->oom_mm`).
    #[inline(always)]
    pub fn is_oom_victim(self) -> bool {
        let signal = load64!(self.0, field::TASK_SIGNAL) as *const c_void;
        load64!(signal, field::SIGNAL_OOM_MM) != 0
    }
    #[inline(always)]
    pub fn exit_code(self) -> u32 {
        load32!(self.0, field::TASK_EXIT_CODE)
    }
}

impl Cgroup {
    /// The cgroup that an `iter/cgroup` program is run for.
    #[inline(always)]
    pub fn iterated(ctx: *const c_void) -> Option<Self> {
        let cgroup = iterated(ctx);
        if cgroup.is_null() {
            return None;
        }
        Some(Self(cgroup))
    }
    /// Cgroup id: the inode number of its directory (`cgroup->kn->id`).
    #[inline(always)]
    pub fn id(self) -> u64 {
        load64!(self.kernfs_node(), field::KERNFS_ID)
    }
    #[inline(always)]
    fn kernfs_node(self) -> *const c_void {
        load64!(self.0, field::CGROUP_KN) as *const c_void
    }
    /// Address of the directory's name, for `bpf_probe_read_kernel_str`.
    #[inline(always)]
    pub fn name(self) -> *const u8 {
        load64!(self.kernfs_node(), field::KERNFS_NAME) as *const u8
    }
    /// `None` for the root of a hierarchy.
    #[inline(always)]
    pub fn parent(self) -> Option<Cgroup> {
        let css = load64!(self.0, field::CGROUP_PARENT_CSS) as *const c_void;
        if css.is_null() {
            return None;
        }
        Some(Cgroup(load64!(css, field::CSS_CGROUP) as *const c_void))
    }
    /// Number of the hierarchy (`cgroup_root.hierarchy_id`): 0 for cgroup2.
    #[inline(always)]
    pub fn hierarchy(self) -> u32 {
        let root = load64!(self.0, field::CGROUP_ROOT) as *const c_void;
        load32!(root, field::CGROUP_ROOT_HIERARCHY)
    }
    /// Whether it was not removed.
    #[inline(always)]
    pub fn is_online(self) -> bool {
        load32!(self.0, field::CGROUP_FLAGS) & CSS_ONLINE != 0
    }
    /// (user, system, total) CPU time as far as the kernel has added it up, ns.
    #[inline(always)]
    pub fn cpu_time(self) -> (u64, u64, u64) {
        (
            load64!(self.0, field::CGROUP_UTIME),
            load64!(self.0, field::CGROUP_STIME),
            load64!(self.0, field::CGROUP_RUNTIME),
        )
    }
    /// Per-CPU address of the CPUs' statistics: a number, to which an offset can be added.
    #[inline(always)]
    pub fn rstat(self) -> u64 {
        read(address!(self.0, field::CGROUP_RSTAT))
    }
    /// (user, system) CPU time that cpu.stat last showed, ns.
    #[inline(always)]
    pub fn shown_cpu_time(self) -> (u64, u64) {
        (
            load64!(self.0, field::CGROUP_PREV_UTIME),
            load64!(self.0, field::CGROUP_PREV_STIME),
        )
    }
    /// The state of a controller, `None` where it is not enabled or the kernel has none.
    #[inline(always)]
    pub fn memory(self) -> Option<Css> {
        if !has!(field::CGROUP_MEMORY) {
            return None;
        }
        Css::new(load64!(self.0, field::CGROUP_MEMORY))
    }
    #[inline(always)]
    pub fn pids(self) -> Option<Css> {
        if !has!(field::CGROUP_PIDS) {
            return None;
        }
        Css::new(load64!(self.0, field::CGROUP_PIDS))
    }
    #[inline(always)]
    pub fn hugetlb(self) -> Option<Css> {
        if !has!(field::CGROUP_HUGETLB) {
            return None;
        }
        Css::new(load64!(self.0, field::CGROUP_HUGETLB))
    }
    #[inline(always)]
    pub fn io(self) -> Option<Css> {
        if !has!(field::CGROUP_IO) {
            return None;
        }
        Css::new(load64!(self.0, field::CGROUP_IO))
    }
    /// Address of `psi_group.total`, `None` where pressure is not measured.
    #[inline(always)]
    pub fn pressure(self) -> Option<*const c_void> {
        if !has!(field::CGROUP_PSI) || !has!(field::PSI_TOTAL) {
            return None;
        }
        let group = load64!(self.0, field::CGROUP_PSI);
        if group == 0 {
            return None;
        }
        Some(address!(group, field::PSI_TOTAL))
    }
    /// The cpu controller's state, `None` where the controller is not enabled.
    #[inline(always)]
    pub fn task_group(self) -> Option<TaskGroup> {
        let css = load64!(self.0, field::CGROUP_CPU) as *const c_void;
        if css.is_null() {
            None
        } else {
            Some(TaskGroup(css))
        }
    }
}

impl AnyCgroup {
    /// Cgroup id, see [`Cgroup::id`]; 0 for null.
    #[inline(always)]
    pub fn id(self) -> u64 {
        let kernfs_node: u64 = read(address!(self.0, field::CGROUP_KN));
        read(address!(kernfs_node, field::KERNFS_ID))
    }
    /// Null for the root.
    #[inline(always)]
    pub fn parent(self) -> Self {
        let css: u64 = read(address!(self.0, field::CGROUP_PARENT_CSS));
        if css == 0 {
            return Self(0);
        }
        Self(read(address!(css, field::CSS_CGROUP)))
    }
    /// See [`Cgroup::is_online`].
    #[inline(always)]
    pub fn is_online(self) -> bool {
        let flags: u32 = read(address!(self.0, field::CGROUP_FLAGS));
        flags & CSS_ONLINE != 0
    }
}

impl NetNamespace {
    /// A number that is never used for another namespace (SO_NETNS_COOKIE).
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        load64!(self.0, field::NET_COOKIE)
    }
}

impl TaskGroup {
    pub fn shares(self) -> u64 {
        read(address!(self.0, field::TG_SHARES))
    }
    pub fn quota_ns(self) -> u64 {
        read(address!(self.0, field::TG_QUOTA))
    }
    pub fn period_ns(self) -> u64 {
        read(address!(self.0, field::TG_PERIOD))
    }
    pub fn throttled_ns(self) -> u64 {
        read(address!(self.0, field::TG_THROTTLED_TIME))
    }
    pub fn burst_ns(self) -> u64 {
        read(address!(self.0, field::TG_BURST_TIME))
    }
    pub fn periods(self) -> u32 {
        read(address!(self.0, field::TG_NR_PERIODS))
    }
    pub fn throttled_periods(self) -> u32 {
        read(address!(self.0, field::TG_NR_THROTTLED))
    }
    pub fn burst_periods(self) -> u32 {
        read(address!(self.0, field::TG_NR_BURST))
    }
}

impl Css {
    #[inline(always)]
    fn new(css: u64) -> Option<Self> {
        if css == 0 {
            None
        } else {
            Some(Self(css as *const c_void))
        }
    }
}

/// Reads a value at a kernel address. Callers give addresses of fields, which can be read; for any
/// other address it would be 0.
#[inline(always)]
pub fn read<T: Default>(address: *const c_void) -> T {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address.cast::<T>()) }.unwrap_or_default()
}

mod block;

pub use block::{Bio, Gendisk, Request};
pub(crate) use {address, argument, enumerator, has, load32, load64};
