//! What the removal of a cgroup costs, by live cgroups and by scheduler cells a slot.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    agent::{Agent, Binary, value},
    empty::Empty,
    load::{Cgroups, be_born, root},
    programs::Statistics,
};

/// Programs that take part in it, each named as its tracepoint.
const PROGRAMS: &[&str] = &[
    "cgroup_mkdir",
    "cgroup_rmdir",
    "cgroup_release",
    "sched_process_free",
];
/// Cgroups that are made and removed.
const REMOVALS: usize = 2000;

/// Measures removals of cgroups with a process each, beside `live` others, on an agent that has as many
/// scheduler cells a slot as on a host with `lanes` CPUs (0: this one's).
pub fn measure(binary: &Binary, live: usize, lanes: usize) -> Result<Vec<Value>> {
    let trial = format!("lanes={lanes}");
    let variables: &[(&str, &str)] = match lanes {
        0 => &[],
        _ => &[("_CGMETER_TRIAL", &trial)],
    };
    let agent = Agent::start_in(binary, variables)?;
    let others = Cgroups::make(live)?;
    let empties = PROGRAMS
        .iter()
        .map(|name| Empty::attach(name))
        .collect::<Result<Vec<_>>>()?;
    let _statistics = Statistics::on()?;
    let look = || -> Result<_> {
        let times: Result<Vec<_>> = empties.iter().map(Empty::run_time).collect();
        Ok((agent.scrape()?, times?))
    };
    let begin = look()?;
    let parent = root()?.join(format!("cgmeter-bench-removals-{}", std::process::id()));
    fs::create_dir(&parent)?;
    for n in 0..REMOVALS {
        let cgroup = parent.join(n.to_string());
        fs::create_dir(&cgroup)?;
        be_born(&cgroup)?;
        fs::remove_dir(&cgroup)?;
    }
    fs::remove_dir(&parent)?;
    let end = look()?;
    drop(others);
    let rows = PROGRAMS.iter().enumerate().map(|(at, program)| {
        let gained = |family: &str| {
            let series = format!("{family}{{program=\"{program}\"}} ");
            value(&end.0, &series) - value(&begin.0, &series)
        };
        let runs = gained("cgmeter_program_runs_total");
        let gross = gained("cgmeter_program_run_seconds_total") * 1e9 / runs;
        let (before, after) = (begin.1[at], end.1[at]);
        let empty =
            after.1.saturating_sub(before.1) as f64 / after.0.saturating_sub(before.0) as f64;
        json!({
            "program": program,
            "live": live,
            "lanes": lanes,
            "runs": runs,
            "net_ns": gross - empty,
        })
    });
    Ok(rows.collect())
}
