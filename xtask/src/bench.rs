//! `bench`: what the agent costs, measured on this machine.
//!
//! Run times of kernel programs come from the kernel (`kernel.bpf_stats_enabled`), minus those of an
//! empty program attached to the same tracepoint in the same run. Slow-down is a ratio of interleaved
//! rounds with and without the agent. Two agents (`--against`) take turns within one run, so that both
//! see the same machine. No result is an error for being slow.

mod agent;
mod block;
mod empty;
mod frames;
mod load;
mod programs;
mod removals;
mod scrapes;
mod switches;
mod table;
mod tasks;
mod throughput;
mod turns;

use std::path::PathBuf;

use agent::Binary;
use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{
    build::build,
    shell::{self, require_root, root},
};

/// Rounds for each of two agents.
const ROUNDS: usize = 3;

/// Live cgroups and scheduler cells a slot at which removals are measured; 0: as many as this host needs.
const REMOVALS: &[(usize, usize)] = &[(10, 0), (10_000, 0), (10, 128)];

/// What to measure.
#[derive(clap::Args)]
pub struct BenchOptions {
    /// Cgroups to scrape
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000, 5000, 10_000])]
    cgroups: Vec<usize>,
    /// Tasks for the tasks iterator, besides those of the host
    #[arg(long, value_delimiter = ',', default_values_t = [0, 6000])]
    tasks: Vec<usize>,
    /// Rounds of the context-switch benchmark, each with and without the agent
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Measure this agent instead of building one
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Measure this agent as well, in turn with the other, for example one built before a change
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Measure only these parts
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
}

/// A part of the benchmark.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// ns per event of each kernel program
    Programs,
    /// Slow-down of context switches
    Switches,
    /// Slow-down of whole programs
    Throughput,
    /// CPU of scrapes, alone and four at once; memory; time to start
    Scrapes,
    /// The tasks iterator
    Tasks,
    /// Removals of cgroups, beside few and many others, and as on a host with many CPUs
    Removals,
}

impl BenchOptions {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn binaries(&self) -> Result<Vec<Binary>> {
        let path = match &self.agent {
            Some(path) => path.clone(),
            None => {
                build()?;
                shell::agent()
            }
        };
        let mut binaries = vec![Binary { name: "now", path }];
        if let Some(path) = self.against.clone() {
            let name = "before";
            binaries.insert(0, Binary { name, path });
        }
        for Binary { path, .. } in &binaries {
            ensure!(path.is_file(), "there is no agent at {}", path.display());
        }
        Ok(binaries)
    }
}

/// Measures, prints a table, writes JSON.
pub fn bench(options: &BenchOptions) -> Result<()> {
    require_root("bench", "it loads BPF programs and makes cgroups")?;
    let binaries = options.binaries()?;
    let rounds = if binaries.len() == 1 { 1 } else { ROUNDS };
    let machine = machine()?;
    println!("\n{machine}\n");
    let mut result = json!({"machine": machine});
    if options.wants(Part::Programs) {
        let mut rows = turns::measure(&binaries, rounds, programs::measure)?;
        rows.extend(turns::measure(&binaries, rounds, block::measure)?);
        result["programs"] = json!(rows);
    }
    if options.wants(Part::Switches) {
        result["context_switches"] = switches::measure(&binaries, options.rounds)?;
    }
    if options.wants(Part::Throughput) {
        result["throughput"] = json!(throughput::measure(&binaries, options.rounds)?);
    }
    if options.wants(Part::Scrapes) {
        let rows = options
            .cgroups
            .iter()
            .map(|&count| scrapes::measure(&binaries, count))
            .collect::<Result<Vec<_>>>()?;
        result["scrapes"] = json!(rows.concat());
    }
    if options.wants(Part::Tasks) {
        let rows = options.tasks.iter().map(|&count| {
            turns::measure(&binaries, rounds, |binary| {
                tasks::measure(binary, count).map(|row| vec![row])
            })
        });
        result["tasks"] = json!(rows.collect::<Result<Vec<_>>>()?.concat());
    }
    if options.wants(Part::Removals) {
        let rows = REMOVALS.iter().map(|&(live, lanes)| {
            turns::measure(&binaries, rounds, |binary| {
                removals::measure(binary, live, lanes)
            })
        });
        result["removals"] = json!(rows.collect::<Result<Vec<_>>>()?.concat());
    }
    println!("{}", table::text(&result));
    let folder = root().join("bench-results");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join("latest.json");
    std::fs::write(
        &file,
        format!("{}\n", serde_json::to_string_pretty(&result)?),
    )
    .with_context(|| format!("writing {}", file.display()))?;
    println!("written to {}", file.display());
    Ok(())
}

fn machine() -> Result<String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = std::thread::available_parallelism()?;
    Ok(format!(
        "{}, {cpus} CPUs, kernel {}",
        model.unwrap_or("unknown CPU"),
        release.trim()
    ))
}

/// The median; 0 of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
