//! Counters of the kernel side about itself (a per-CPU array, indexed by [`Stat`]).

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What kernel programs count about their own work.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Stat { $($(#[$doc])* $name,)* }
        /// Number of entries of the array.
        pub const STATS: u32 = [$(Stat::$name),*].len() as u32;
    };
}

stats! {
    /// Events that found no room for a value of their own.
    Overflow,
    /// Cgroups that got no slot, because none was free. They count in an ancestor's.
    Borrowed,
    /// Lifecycle events lost because the ring buffer was full.
    LostEvents,
    /// Tasks that had no storage when they were switched out; their time before that is lost
    /// if they are older than the agent.
    NoTaskStorage,
    /// Runs of `sched_process_fork`.
    Forks,
    /// Runs of `sched_process_exec`.
    Execs,
    /// Runs of `sched_process_exit`.
    Exits,
    /// Runs of `cgroup_attach_task`.
    Moves,
    /// Runs of `cgroup_mkdir`.
    Made,
    /// Runs of `cgroup_rmdir`.
    Removed,
    /// Runs of `cgroup_rename`.
    Renamed,
    /// Removed cgroups whose final record could not be saved.
    LostRecords,
    /// TCP sockets for which storage could not be had.
    NoSocketStorage,
    /// Runs of `inet_sock_set_state` in which a connection opened, failed or closed.
    TcpStates,
    /// Runs of `tcp_retransmit_skb`.
    TcpRetransmits,
    /// Runs of `tcp_retransmit_synack`.
    SynAckRetransmits,
    /// Runs of `tcp_send_reset` for a socket.
    ResetsSent,
    /// Runs of `tcp_receive_reset`.
    ResetsReceived,
    /// Runs of `kfree_skb` and `udp_fail_queue_rcv_skb` that found a socket.
    Drops,
}
