//! Run statistics of the kernel programs. Oracle: the agent's descriptors in /proc/PID/fdinfo.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};

use crate::{Test, agent::Agent, cgroup::Cgroup, metrics::same, needs::Need, worker::Worker};

pub const TESTS: &[Test] = &[("programs::runs_and_misses", &[Need::Agent], runs_and_misses)];

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Makes the kernel count runs, until it is dropped.
struct Statistics(String);

impl Statistics {
    fn on() -> Result<Self> {
        let before = fs::read_to_string(STATISTICS)?;
        fs::write(STATISTICS, "1")?;
        Ok(Self(before))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = fs::write(STATISTICS, &self.0);
    }
}

/// (runs, misses) of each program that a process has a descriptor of, keyed by the program's id.
fn counted(pid: u32) -> Result<BTreeMap<u64, (f64, f64)>> {
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // The agent may close descriptors during the reading.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let number = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok())
        };
        // Links also name their program, but have no runs.
        let (Some(id), Some(runs)) = (number("prog_id:"), number("run_cnt:")) else {
            continue;
        };
        let misses = number("recursion_misses:").context("no recursion_misses in fdinfo")?;
        programs.insert(id, (runs as f64, misses as f64));
    }
    Ok(programs)
}

fn runs_and_misses() -> Result<()> {
    let agent = Agent::start(&[])?;
    let _statistics = Statistics::on()?;
    // Make some programs run.
    Worker::once(&Cgroup::new()?, "fork 20")?;
    let sums = || -> Result<(usize, f64, f64)> {
        let programs = counted(agent.pid())?;
        let runs = programs.values().map(|(runs, _)| runs).sum();
        let misses = programs.values().map(|(_, misses)| misses).sum();
        Ok((programs.len(), runs, misses))
    };
    let (programs, runs, misses) = sums()?;
    let metrics = agent.scrape()?;
    let (_, later_runs, later_misses) = sums()?;
    ensure!(
        programs > 0 && runs > 0.0,
        "{programs} programs, {runs} runs"
    );
    same(
        "programs",
        metrics.count("cgmeter_program_misses_total", &[]) as f64,
        programs as f64,
    )?;
    let between = |what: &str, found: f64, least: f64, most: f64| {
        ensure!(
            (least..=most).contains(&found),
            "{found} {what} instead of {least} to {most}"
        );
        Ok(())
    };
    let found = metrics.sum("cgmeter_program_runs_total", &[]);
    between("runs", found, runs, later_runs)?;
    let found = metrics.sum("cgmeter_program_misses_total", &[]);
    between("misses", found, misses, later_misses)
}
