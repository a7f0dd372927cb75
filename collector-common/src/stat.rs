//! Counters of the kernel side about itself (a per-CPU array, indexed by [`Stat`]).

/// What kernel programs count about their own work.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stat {
    /// Events charged to the overflow slot.
    Overflow = 0,
    /// Lifecycle events lost because the ring buffer was full.
    LostEvents = 1,
    /// Tasks that had no storage when they were switched out; their time before that is lost
    /// if they are older than the agent.
    NoTaskStorage = 2,
    /// Runs of `sched_process_fork`.
    Forks = 3,
    /// Runs of `sched_process_exec`.
    Execs = 4,
    /// Runs of `sched_process_exit`.
    Exits = 5,
    /// Runs of `cgroup_attach_task`.
    Moves = 6,
    /// Runs of `cgroup_mkdir`.
    Made = 7,
    /// Runs of `cgroup_rmdir`.
    Removed = 8,
    /// Runs of `cgroup_rename`.
    Renamed = 9,
    /// Removed cgroups whose last record could not be kept.
    LostRecords = 10,
    /// TCP sockets for which storage could not be had.
    NoSocketStorage = 11,
    /// Runs of `inet_sock_set_state` in which a connection opened, failed or closed.
    TcpStates = 12,
    /// Runs of `tcp_retransmit_skb`.
    TcpRetransmits = 13,
    /// Runs of `tcp_retransmit_synack`.
    SynAckRetransmits = 14,
    /// Runs of `tcp_send_reset` for a socket.
    ResetsSent = 15,
    /// Runs of `tcp_receive_reset`.
    ResetsReceived = 16,
    /// Runs of `kfree_skb` and `udp_fail_queue_rcv_skb` that found a socket.
    Drops = 17,
}

/// Entries of the array.
pub const STATS: u32 = 18;
