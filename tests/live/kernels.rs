//! The tests that the short tier runs on other kernels, in virtual machines.
//!
//! The outcome of these tests depends on the kernel. They cover each hook, each structure that a
//! program reads and each controller file of cgroup2 at least once. A guest needs some five seconds
//! per test, mostly to verify the agent's programs on an emulated CPU. `cargo xtask test --all`
//! runs every test there.

/// Names of tests, or of modules with all of their tests (`drops::`).
const SHORT: &[&str] = &[
    // sched_switch and its clocks, read while a task runs. cpu.stat.
    "cpu::a_task_that_never_sleeps",
    "cpu::moving_between_cgroups",
    "cpu::user_and_system",
    "cpu::sum_of_the_host",
    "sched::waiting_for_a_cpu",
    "sched::switches_and_periods_are_exact",
    "sched::preemption_by_itself_and_by_others",
    "sched::migrations",
    // fork, exec, exit.
    "process::forks_execs_and_exits",
    // Task iterators and file descriptor tables.
    "tasks::processes_files_and_sockets",
    "tasks::states",
    "tasks::tables_of_threads",
    "tasks::a_sleeping_process_is_moved",
    // Controller files. On the host the controllers may be in v1.
    "pids::",
    "memory::usage_and_statistics",
    "memory::the_host",
    "memory::limits",
    "memory::reclaim_at_the_limit",
    "memory::an_oom_kill",
    "memory::final_record_of_a_removed_cgroup",
    "memory::huge_pages",
    "pressure::",
    "io::",
    // Block requests and bios. Some devices exist only in guests.
    "block::direct_io_of_known_size",
    "block::a_separate_disk",
    "block::pages_written_back",
    "block::pages_written_back_after_the_removal",
    "block::requests_that_complete_after_the_removal",
    "block::requests_that_complete_after_the_removal_charged_to_leaves",
    "block::removed_cgroups_while_the_agent_is_stopped",
    "block::below_a_cgroup_with_the_io_controller",
    "block::failed_requests",
    "block::a_driver_without_requests",
    "block::mapped_disks",
    // Programs that take over from others, on the same maps.
    "restart::bpffs_is_mounted_where_there_is_none",
    "restart::programs_are_replaced_under_load",
    "restart::packets_while_programs_are_replaced",
    "restart::nothing_stays_without_the_setting",
    // What only a guest can do.
    "faults::the_clock_is_set",
    "faults::a_cpu_goes_and_comes_back",
    // Packets by cgroup, interfaces by namespace.
    "net::datagrams_between_namespaces",
    "net::segments_of_a_connection",
    "net::a_socket_that_outlives_its_cgroup",
    "netdev::equal_to_proc_net_dev",
    "netdev::counting_continues_with_a_new_owner",
    "namespaces::are_not_kept_alive",
    "namespaces::a_container_whose_init_moves",
    // TCP's callbacks and tracepoints, dropped packets.
    "tcp::opened_and_closed",
    "tcp::reset",
    "tcp::retransmitted_segments",
    "tcp::unanswered_connections",
    "tcp::mptcp_subflows_count_once",
    "drops::",
    // Creation and removal of cgroups.
    "conservation::",
    "slots::",
    "tree::nested_and_removed_cgroups",
    "tree::created_and_removed_while_the_agent_was_down",
    "tree::lost_events_are_recovered",
    // Statistics of each program, and availability of each source.
    "programs::",
    "errors::commands",
];

/// Whether the short tier runs a test on other kernels.
pub fn in_short_tier(name: &str) -> bool {
    SHORT.iter().any(|entry| covers(entry, name))
}

/// Entries without a test, because it was renamed or removed.
pub fn stale(names: &[&str]) -> Vec<&'static str> {
    let is_stale = |entry: &&&str| !names.iter().any(|name| covers(entry, name));
    SHORT.iter().filter(is_stale).copied().collect()
}

fn covers(entry: &str, name: &str) -> bool {
    entry == name || entry.ends_with("::") && name.starts_with(entry)
}
