//! ns per event of each kernel program.

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    agent::{Agent, Binary, value},
    empty::{Empty, Packets},
    load::{Cgroups, connections, datagrams, drops, ping_pong, processes, retransmits},
};

/// Programs, each named as the tracepoint that it and the empty program are attached to.
const PROGRAMS: &[&str] = &[
    "sched_switch",
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
    "sched_process_free",
    "cgroup_mkdir",
    "cgroup_rmdir",
    "cgroup_release",
    "cgroup_attach_task",
    "inet_sock_set_state",
    "kfree_skb",
    "tcp_retransmit_skb",
];

/// Programs for packets, with their direction.
const PACKETS: &[(&str, Packets)] = &[
    ("net_ingress", Packets::Ingress),
    ("net_egress", Packets::Egress),
];

/// Makes the kernel measure the run time of programs until it is dropped.
pub struct Statistics(String);

const SYSCTL: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Statistics {
    /// Turns the statistics on.
    pub fn on() -> Result<Self> {
        let before = std::fs::read_to_string(SYSCTL)?;
        std::fs::write(SYSCTL, "1")?;
        Ok(Self(before))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = std::fs::write(SYSCTL, &self.0);
    }
}

/// Measures under a load that runs all of them.
pub fn measure(binary: &Binary) -> Result<Vec<Value>> {
    let agent = Agent::start(binary)?;
    let tracepoints = PROGRAMS.iter().map(|name| Empty::attach(name));
    let packets = PACKETS
        .iter()
        .map(|(_, direction)| Empty::attach_to_packets(*direction));
    let empties = tracepoints.chain(packets).collect::<Result<Vec<_>>>()?;
    // Warms the caches and makes the task storage.
    ping_pong(20_000)?;
    let _statistics = Statistics::on()?;
    let look = || -> Result<_> { Ok((agent.scrape()?, times(&empties)?)) };
    let begin = look()?;
    ping_pong(300_000)?;
    processes(1500)?;
    connections(20_000)?;
    drops(20_000)?;
    retransmits(300)?;
    drop(Cgroups::make(500)?);
    // Separate, because the first packet of each connection has to make the socket's storage.
    let between = look()?;
    datagrams(300_000)?;
    let end = look()?;
    let packets = PACKETS.iter().map(|(name, _)| name);
    let rows = PROGRAMS
        .iter()
        .chain(packets)
        .enumerate()
        .filter_map(|(at, program)| {
            let (before, after) = if at < PROGRAMS.len() {
                (&begin, &between)
            } else {
                (&between, &end)
            };
            let gained = |family: &str| {
                let series = format!("{family}{{program=\"{program}\"}} ");
                value(&after.0, &series) - value(&before.0, &series)
            };
            let runs = gained("cgmeter_program_runs_total");
            // The other agent may have a program that this one lacks.
            if runs == 0.0 {
                return None;
            }
            let gross = gained("cgmeter_program_run_seconds_total") * 1e9 / runs;
            let empty = after.1[at].1.saturating_sub(before.1[at].1) as f64
                / after.1[at].0.saturating_sub(before.1[at].0) as f64;
            Some(json!({
                "program": program,
                "runs": runs,
                "gross_ns": gross,
                "empty_ns": empty,
                "net_ns": gross - empty,
            }))
        });
    Ok(rows.collect())
}

fn times(empties: &[Empty]) -> Result<Vec<(u64, u64)>> {
    empties.iter().map(Empty::run_time).collect()
}
