//! The agent itself: whether it is well, and what it costs.

use super::{
    model::{Choice::Many, Dashboard, lines, row, stat, table, variable},
    words::{rate, ratio, sum, sum_rate},
};

/// Matchers for the agents that are chosen.
const AGENTS: &str = r#"cluster=~"$cluster",instance=~"$instance""#;
/// The agents as Prometheus scrapes them: their processes.
const JOB: &str = r#"job="cgmeter",cluster=~"$cluster",instance=~"$instance""#;

/// Makes the dashboard.
pub fn dashboard() -> Dashboard {
    let all = |by: &str, metric: &str| sum(by, &format!("{metric}{{{AGENTS}}}"));
    let growth = |by: &str, metric: &str| sum_rate(by, metric, AGENTS);
    let process = |metric: &str| sum("instance", &format!("{metric}{{{JOB}}}"));
    Dashboard {
        uid: "cgmeter-agent",
        title: "cgmeter: the agent",
        description: "The agent itself: whether it is well, and what it costs.",
        variables: vec![
            variable("cluster", "Cluster", Many, "cgmeter_build_info", "cluster"),
            variable("instance", "Host", Many, r#"cgmeter_build_info{cluster=~"$cluster"}"#, "instance"),
        ],
        rows: vec![
            row("Health", vec![
                table("Versions", "none", "Agents by version.").width(6)
                    .query(format!("count by (version) (cgmeter_build_info{{{AGENTS}}})"), "{{version}}"),
                table("Sources", "none", "Agents on which each source runs, of those chosen.").width(6)
                    .query(all("source", "cgmeter_source_up"), "{{source}}"),
                stat("Sources off", "none", "Sources that an agent could not start; its log and cgmeter check say why.")
                    .query(format!("count(cgmeter_source_up{{{AGENTS}}} == 0) or vector(0)"), ""),
                stat("Readings that fail", "ops", "Readings of sources that fail, a second.")
                    .query(growth("", "cgmeter_source_errors_total"), ""),
                stat("Scrapes with an error", "none", "Agents whose last snapshot lacks a source.")
                    .query(all("", "container_scrape_error"), ""),
            ]),
            row("Is anything lost?", vec![
                lines("No slot", "ops", "Cgroups' events that were not counted for themselves, because no slot was free: see --cgroup.max.")
                    .query(growth("instance", "cgmeter_overflow_events_total"), "{{instance}}"),
                lines("Lost events and records", "ops", "Cgroup events that did not fit into the ring buffer, and final records that could not be saved.")
                    .query(growth("instance", "cgmeter_lost_events_total"), "{{instance}} events")
                    .query(growth("instance", "cgmeter_lost_records_total"), "{{instance}} records"),
                lines("Missed by programs", "ops", "Events for which a kernel program was not run, because it was running on that CPU already.")
                    .query(growth("instance, program", "cgmeter_program_misses_total"), "{{instance}} {{program}}"),
                lines("Untracked", "ops", "Tasks and sockets for which the kernel had no storage.")
                    .query(growth("instance", "cgmeter_untracked_tasks_total"), "{{instance}} tasks")
                    .query(growth("instance", "cgmeter_untracked_sockets_total"), "{{instance}} sockets"),
                lines("Slots", "none", "Used, free, and being emptied.")
                    .query(all("instance, state", "cgmeter_slots"), "{{instance}} {{state}}"),
                lines("Cgroups", "none", "In the agent's tree, live and dead ones, and those that have no series of their own because there are too many: see export-max.")
                    .query(all("instance", "cgmeter_cgroups_suppressed"), "{{instance}} suppressed")
                    .query(all("instance, state", "cgmeter_cgroups"), "{{instance}} {{state}}"),
            ]),
            row("What it costs", vec![
                lines("CPU of the agent", "none", "CPUs that the process uses; kernel programs run in the tasks that they meter.")
                    .query(sum_rate("instance", "process_cpu_seconds_total", JOB), "{{instance}}"),
                lines("Memory of the agent", "bytes", "Resident memory of the process, and kernel memory of its maps.")
                    .query(process("process_resident_memory_bytes"), "{{instance}} resident")
                    .query(all("instance", "cgmeter_kernel_memory_bytes"), "{{instance}} maps"),
                lines("Open files of the agent", "none", "Descriptors of the process.")
                    .query(process("process_open_fds"), "{{instance}}"),
                lines("Stages of a scrape", "s", "How long each stage of the last snapshot and the last encoding took.")
                    .query(all("instance, stage", "cgmeter_scrape_duration_seconds"), "{{instance}} {{stage}}"),
                lines("Scrape as Prometheus sees it", "s", "From its request to the end of the answer.")
                    .query(process("scrape_duration_seconds"), "{{instance}}"),
                lines("Samples of a scrape", "none", "How many samples an agent serves.")
                    .query(process("scrape_samples_scraped"), "{{instance}}"),
            ]),
            row("Kernel programs", vec![
                lines("Events", "ops", "Events that each program has counted.").width(12)
                    .query(growth("instance, program", "cgmeter_events_total"), "{{instance}} {{program}}"),
                lines("Time of a run", "s", "Of each program on average, the kernel's own measuring included; only while kernel.bpf_stats_enabled is 1.").width(12)
                    .query(ratio(&rate("cgmeter_program_run_seconds_total", AGENTS), &rate("cgmeter_program_runs_total", AGENTS)), "{{instance}} {{program}}"),
            ]),
        ],
    }
}
