//! `bench`: what the agent costs, measured on this machine.
//!
//! Times of kernel programs are the kernel's own (`kernel.bpf_stats_enabled`), less those of an
//! empty program attached to the same tracepoint in the same run. Slow-down is a ratio of
//! interleaved rounds with and without the agent. Nothing here fails for being slow.

mod agent;
mod block;
mod empty;
mod load;
mod programs;
mod scrapes;
mod tasks;
mod throughput;

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    build::build,
    shell::{require_root, root},
};

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Cgroups to scrape
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000, 5000])]
    cgroups: Vec<usize>,
    /// Tasks to pass over, beside those of the host
    #[arg(long, value_delimiter = ',', default_values_t = [0, 6000])]
    tasks: Vec<usize>,
    /// Rounds of the context-switch benchmark, each with and without the agent
    #[arg(long, default_value_t = 15)]
    rounds: usize,
}

/// Measures, prints a table, writes JSON.
pub fn bench(options: &Options) -> Result<()> {
    require_root("bench", "BPF programs are loaded and cgroups made")?;
    build()?;
    let machine = machine()?;
    println!("\n{machine}\n");
    let mut programs = programs::measure()?;
    programs.extend(block::measure()?);
    let switching = load::slow_down(options.rounds)?;
    let throughput = throughput::measure(options.rounds)?;
    let scrapes = options
        .cgroups
        .iter()
        .map(|&count| scrapes::measure(count))
        .collect::<Result<Vec<_>>>()?;
    let tasks = options
        .tasks
        .iter()
        .map(|&count| tasks::measure(count))
        .collect::<Result<Vec<_>>>()?;
    let result = json!({
        "machine": machine,
        "programs": programs,
        "context_switches": switching,
        "throughput": throughput,
        "scrapes": scrapes,
        "tasks": tasks,
    });
    println!("{}", table(&result)?);
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

/// The results as aligned text, which is Markdown at the same time.
fn table(result: &Value) -> Result<String> {
    let mut text = String::new();
    writeln!(
        text,
        "| program | runs | ns gross | ns empty | ns net |\n| --- | --: | --: | --: | --: |"
    )?;
    for row in result["programs"].as_array().into_iter().flatten() {
        writeln!(
            text,
            "| {} | {} | {:.1} | {:.1} | {:.1} |",
            row["program"].as_str().unwrap_or_default(),
            row["runs"],
            row["gross_ns"].as_f64().unwrap_or_default(),
            row["empty_ns"].as_f64().unwrap_or_default(),
            row["net_ns"].as_f64().unwrap_or_default(),
        )?;
    }
    let switching = &result["context_switches"];
    writeln!(
        text,
        "\npinned ping-pong: {:.0} ns a round trip; with an empty program {:+.1} %, with the agent \
         {:+.1} % (medians of {} interleaved ratios)\n",
        switching["without_ns"].as_f64().unwrap_or_default(),
        switching["empty_program_percent"]
            .as_f64()
            .unwrap_or_default(),
        switching["agent_percent"].as_f64().unwrap_or_default(),
        switching["rounds"],
    )?;
    writeln!(
        text,
        "| load | without the agent | with it |\n| --- | --: | --: |"
    )?;
    for row in result["throughput"].as_array().into_iter().flatten() {
        writeln!(
            text,
            "| {} | {:.3e} | {:+.1} % |",
            row["load"].as_str().unwrap_or_default(),
            row["without"].as_f64().unwrap_or_default(),
            row["agent_percent"].as_f64().unwrap_or_default(),
        )?;
    }
    writeln!(
        text,
        "\n| cgroups | series | bytes | CPU ms | wall ms | ns a series | RSS MB | anonymous MB | kernel \
         KiB | start ms |\n| --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |"
    )?;
    for row in result["scrapes"].as_array().into_iter().flatten() {
        let number = |key: &str| row[key].as_f64().unwrap_or_default();
        writeln!(
            text,
            "| {} | {} | {} | {:.2} | {:.2} | {:.0} | {:.1} | {:.1} | {:.0} | {:.0} |",
            row["cgroups"],
            row["series"],
            row["bytes"],
            number("cpu_ms"),
            number("wall_ms"),
            number("ns_a_series"),
            number("rss_mb"),
            number("anonymous_mb"),
            number("kernel_kib"),
            number("start_ms"),
        )?;
    }
    text.push_str(&stages(result));
    writeln!(
        text,
        "\n| tasks | descriptors | pass ms | ns a task | ns a run of the program, gross |\n\
         | --: | --: | --: | --: | --: |"
    )?;
    for row in result["tasks"].as_array().into_iter().flatten() {
        let number = |key: &str| row[key].as_f64().unwrap_or_default();
        writeln!(
            text,
            "| {} | {} | {:.2} | {:.0} | {:.0} |",
            number("tasks"),
            number("descriptors"),
            number("pass_ms"),
            number("ns_a_task"),
            number("program_ns"),
        )?;
    }
    Ok(text)
}

/// What each stage of a scrape takes, by number of cgroups.
fn stages(result: &Value) -> String {
    let scrapes: Vec<&Value> = result["scrapes"].as_array().into_iter().flatten().collect();
    let names: Vec<&String> = scrapes
        .last()
        .and_then(|scrape| scrape["stages_us"].as_object())
        .into_iter()
        .flat_map(|stages| stages.keys())
        .collect();
    let heads: Vec<String> = scrapes
        .iter()
        .map(|scrape| format!("{} cgroups", scrape["cgroups"]))
        .collect();
    let mut text = format!(
        "\n| stage, µs | {} |\n| --- |{}\n",
        heads.join(" | "),
        " --: |".repeat(heads.len())
    );
    for name in names {
        let cells: Vec<String> = scrapes
            .iter()
            .map(|scrape| {
                format!(
                    "{:.0}",
                    scrape["stages_us"][name].as_f64().unwrap_or_default()
                )
            })
            .collect();
        text.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
    }
    text
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
