//! Kernel structure fields that programs read, by name.
//!
//! Rust's BPF target emits no CO-RE relocations. A program that reads `task->cgroups` contains one
//! load whose offset is a *placeholder*, [`PLACEHOLDER`] plus the field's number in
//! [`PATHS`](crate::paths::PATHS); before the object is loaded the agent looks the name up in the running kernel's BTF and writes the real
//! offset into the instruction. The result is what a C program with CO-RE would run: one
//! instruction a field. A field that this kernel lacks makes the programs that read it
//! unavailable, by name; the others load.

/// First placeholder. No offset that programs use otherwise (stack, map values, context) comes near.
pub const PLACEHOLDER: i16 = 0x5A00;
/// First placeholder of another kind: a number that the loader replaces by 1 if this kernel has the
/// field and by 0 if it has not, see [`present`].
pub const PRESENT: i32 = 0x5E1D_0000;

/// The number that the loader replaces by the answer to "has this kernel the field?". A program
/// that asks may read the field after the answer. The field is optional for such a program: where
/// the answer is 0, the verifier removes the code that reads it.
pub const fn present(field: i16) -> i32 {
    PRESENT + (field - PLACEHOLDER) as i32
}

/// Declares fields: a constant for each, and the list of their paths. A path is
/// `struct.member.member`, where a member may be an array element, named by an enumerator of
/// `cgroup_subsys_id` (`subsys[cpu_cgrp_id]`) or by its number (`total[0]`), and alternatives for other
/// kernel versions are separated by `|`. Of a tracepoint, `name(first, second)` is the offset in the
/// context of the last argument named, if there are that many; `enumeration::NAME` is an enumerator's
/// value.
macro_rules! fields {
    ($list:ident from $first:expr; $($(#[$doc:meta])* $name:ident = $path:literal;)*) => {
        #[allow(clippy::upper_case_acronyms, non_camel_case_types)]
        enum Number { $($name,)* }
        $(
            $(#[$doc])*
            #[doc = concat!("`", $path, "`")]
            pub const $name: i16 =
                $crate::field::PLACEHOLDER + ($first + Number::$name as usize) as i16;
        )*
        pub(crate) const $list: &[&str] = &[$($path,)*];
    };
}
pub(crate) use fields;

fields! {
    COMMON from 0;
    TASK_PID = "task_struct.pid";
    TASK_TGID = "task_struct.tgid";
    TASK_FLAGS = "task_struct.flags";
    TASK_CGROUPS = "task_struct.cgroups";
    TASK_GROUP_LEADER = "task_struct.group_leader";
    TASK_SIGNAL = "task_struct.signal";
    TASK_START_TIME = "task_struct.start_time";
    TASK_EXIT_CODE = "task_struct.exit_code";
    SIGNAL_OOM_MM = "signal_struct.oom_mm";
    SIGNAL_LIVE = "signal_struct.live.counter";
    CSS_SET_CGROUP = "css_set.dfl_cgrp";
    CGROUP_KN = "cgroup.kn";
    CGROUP_ROOT = "cgroup.root";
    CGROUP_PARENT_CSS = "cgroup.self.parent";
    CGROUP_FLAGS = "cgroup.self.flags";
    CGROUP_UTIME = "cgroup.bstat.cputime.utime";
    CGROUP_STIME = "cgroup.bstat.cputime.stime";
    CGROUP_RUNTIME = "cgroup.bstat.cputime.sum_exec_runtime";
    CGROUP_PREV_UTIME = "cgroup.prev_cputime.utime";
    CGROUP_PREV_STIME = "cgroup.prev_cputime.stime";
    CGROUP_CPU = "cgroup.subsys[cpu_cgrp_id]";
    CSS_CGROUP = "cgroup_subsys_state.cgroup";
    CGROUP_ROOT_HIERARCHY = "cgroup_root.hierarchy_id";
    KERNFS_ID = "kernfs_node.id";
    KERNFS_NAME = "kernfs_node.name";
    TG_SHARES = "task_group.shares";
    TG_QUOTA = "task_group.cfs_bandwidth.quota";
    TG_PERIOD = "task_group.cfs_bandwidth.period";
    TG_NR_PERIODS = "task_group.cfs_bandwidth.nr_periods";
    TG_NR_THROTTLED = "task_group.cfs_bandwidth.nr_throttled";
    TG_THROTTLED_TIME = "task_group.cfs_bandwidth.throttled_time";
    TG_NR_BURST = "task_group.cfs_bandwidth.nr_burst";
    TG_BURST_TIME = "task_group.cfs_bandwidth.burst_time";
    CGROUP_MEMORY = "cgroup.subsys[memory_cgrp_id]";
    CGROUP_PIDS = "cgroup.subsys[pids_cgrp_id]";
    CGROUP_HUGETLB = "cgroup.subsys[hugetlb_cgrp_id]";
    CGROUP_IO = "cgroup.subsys[io_cgrp_id]";
    CGROUP_PSI = "cgroup.psi";
    PSI_TOTAL = "psi_group.total";
    COUNTER_USAGE = "page_counter.usage";
    COUNTER_WATERMARK = "page_counter.watermark";
    COUNTER_MAX = "page_counter.max";
    COUNTER_MIN = "page_counter.min";
    COUNTER_LOW = "page_counter.low";
    COUNTER_FAILCNT = "page_counter.failcnt";
    MEMCG_MEMORY = "mem_cgroup.memory";
    MEMCG_SWAP = "mem_cgroup.swap";
    MEMCG_SOFT_LIMIT = "mem_cgroup.soft_limit";
    MEMCG_EVENTS = "mem_cgroup.memory_events";
    MEMCG_VMSTATS = "mem_cgroup.vmstats";
    VMSTATS_STATE = "memcg_vmstats.state";
    VMSTATS_EVENTS = "memcg_vmstats.events";
    VMSTATS_EVENTS_LOCAL = "memcg_vmstats.events_local";
    ARRAY_POINTERS = "bpf_array.pptrs";
    CGROUP_RSTAT = "cgroup.rstat_base_cpu|cgroup.rstat_cpu";
    RSTAT_NOW = "cgroup_rstat_base_cpu.bstat.cputime|cgroup_rstat_cpu.bstat.cputime";
    RSTAT_FLUSHED = "cgroup_rstat_base_cpu.last_bstat.cputime|cgroup_rstat_cpu.last_bstat.cputime";
    CPUTIME_UTIME = "task_cputime.utime";
    CPUTIME_STIME = "task_cputime.stime";
    CPUTIME_RUNTIME = "task_cputime.sum_exec_runtime";
    MEMCG_PERCPU = "mem_cgroup.vmstats_percpu";
    PERCPU_EVENTS = "memcg_vmstats_percpu.events";
    PERCPU_EVENTS_FLUSHED = "memcg_vmstats_percpu.events_prev";
    PIDS_COUNTER = "pids_cgroup.counter";
    PIDS_LIMIT = "pids_cgroup.limit";
    HUGETLB_0 = "hugetlb_cgroup.hugepage[0]";
    HUGETLB_1 = "hugetlb_cgroup.hugepage[1]";
    HUGETLB_2 = "hugetlb_cgroup.hugepage[2]";
    HUGETLB_3 = "hugetlb_cgroup.hugepage[3]";
    BLKCG_LIST = "blkcg.blkg_list";
    BLKG_NODE = "blkcg_gq.blkcg_node";
    BLKG_QUEUE = "blkcg_gq.q";
    BLKG_STAT = "blkcg_gq.iostat.cur";
    QUEUE_DISK = "request_queue.disk";
    DISK_PART0 = "gendisk.part0";
    BDEV_DEVICE = "block_device.bd_dev";
    CSS_SET_IO = "css_set.subsys[io_cgrp_id]";
    CGROUP_DESCENDANTS = "cgroup.nr_descendants";
    REQUEST_QUEUE = "request.q";
    REQUEST_HCTX = "request.mq_hctx";
    REQUEST_FLAGS = "request.cmd_flags";
    REQUEST_STATE = "request.rq_flags";
    REQUEST_LENGTH = "request.__data_len";
    REQUEST_BIO = "request.bio";
    REQUEST_LAST_BIO = "request.biotail";
    REQUEST_START = "request.start_time_ns";
    REQUEST_ISSUED = "request.io_start_time_ns";
    /// Link of a request that waits for a flush: in `queuelist` since `flush.list` is gone (6.11).
    REQUEST_FLUSH_LINK = "request.flush.list|request.queuelist";
    QUEUE_MQ_OPS = "request_queue.mq_ops";
    DISK_QUEUE = "gendisk.queue";
    DISK_MAJOR = "gendisk.major";
    DISK_MINOR = "gendisk.first_minor";
    BDEV_DISK = "block_device.bd_disk";
    BIO_BDEV = "bio.bi_bdev";
    BIO_FLAGS = "bio.bi_opf";
    BIO_STATUS = "bio.bi_status";
    BIO_SIZE = "bio.bi_iter.bi_size";
    BIO_VECS = "bio.bi_io_vec";
    BIO_BLKG = "bio.bi_blkg";
    BLKG_BLKCG = "blkcg_gq.blkcg";
    BLKCG_CGROUP = "blkcg.css.cgroup";
    HCTX_FLUSH = "blk_mq_hw_ctx.fq";
    FLUSH_REQUEST = "blk_flush_queue.flush_rq";
    FLUSH_INDEX = "blk_flush_queue.flush_running_idx";
    FLUSH_LISTS = "blk_flush_queue.flush_queue";
    TASK_NSPROXY = "task_struct.nsproxy";
    NSPROXY_NET = "nsproxy.net_ns";
    NET_COOKIE = "net.net_cookie";
    SOCK_FAMILY = "sock.__sk_common.skc_family";
    SOCK_STATE = "sock.__sk_common.skc_state";
    SOCK_CGROUP = "sock.sk_cgrp_data.cgroup";
    SKB_SOCK = "sk_buff.sk";
    SKB_CB = "sk_buff.cb";
    TCP_SKB_SEGMENTS = "tcp_skb_cb.tcp_gso_segs";
    TCP_TOTAL_RETRANS = "tcp_sock.total_retrans";
    TCP_MSTAMP = "tcp_sock.tcp_mstamp";
    TCP_SRTT = "tcp_sock.srtt_us";
    RETRANSMIT_ERR = "tcp_retransmit_skb(sk, skb, err)";
    KFREE_SKB_REASON = "kfree_skb(skb, location, reason)";
    KFREE_SKB_SOCK = "kfree_skb(skb, location, reason, rx_sk)";
    NOT_SPECIFIED = "skb_drop_reason::SKB_DROP_REASON_NOT_SPECIFIED";
    QUEUE_PURGE = "skb_drop_reason::SKB_DROP_REASON_QUEUE_PURGE";
    SOCKET_RCVBUFF = "skb_drop_reason::SKB_DROP_REASON_SOCKET_RCVBUFF";
    PROTO_MEM = "skb_drop_reason::SKB_DROP_REASON_PROTO_MEM";
    TASK_STATE = "task_struct.__state|task_struct.state";
    TASK_EXIT_STATE = "task_struct.exit_state";
    TASK_IN_IOWAIT = "task_struct.in_iowait";
    TASK_START_BOOTTIME = "task_struct.start_boottime|task_struct.real_start_time";
    TASK_FILES = "task_struct.files";
    SIGNAL_SOFT_NOFILE = "signal_struct.rlim[7].rlim_cur";
    FILES_TABLE = "files_struct.fdt";
    TABLE_MAX = "fdtable.max_fds";
    TABLE_FILES = "fdtable.fd";
    TABLE_OPEN = "fdtable.open_fds";
    FILE_OPERATIONS = "file.f_op";
}
