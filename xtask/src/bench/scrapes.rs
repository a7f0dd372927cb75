//! Cost of a scrape by number of cgroups.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    agent::{Agent, value},
    load::Cgroups,
    median,
};

const SCRAPES: usize = 15;

/// Measures with so many cgroups beside those of the host, all of which have run something.
pub fn measure(count: usize) -> Result<Value> {
    // The agent sees them come: histograms and process counters are all there.
    let watching = Agent::start()?;
    let cgroups = Cgroups::make(count)?;
    let mut text = watching.scrape()?;
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..SCRAPES {
        let (begin, used) = (Instant::now(), watching.cpu_ns()?);
        text = watching.scrape()?;
        wall.push(begin.elapsed().as_secs_f64() * 1e3);
        cpu.push((watching.cpu_ns()? - used) as f64 / 1e6);
    }
    let (rss, anonymous) = (watching.memory("VmRSS")?, watching.memory("RssAnon")?);
    drop(watching);
    // How long an agent takes that finds them all at its start.
    let start = Agent::start()?.start;
    drop(cgroups);
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    let cpu = median(cpu);
    Ok(json!({
        "cgroups": count,
        "series": series,
        "bytes": text.len(),
        "cpu_ms": cpu,
        "wall_ms": median(wall),
        "ns_a_series": cpu * 1e6 / series as f64,
        "rss_mb": rss / 1e6,
        "anonymous_mb": anonymous / 1e6,
        "kernel_kib": value(&text, "cgmeter_kernel_memory_bytes ") / 1024.0,
        "start_ms": start.as_secs_f64() * 1e3,
        "stages_us": stages(&text),
    }))
}

/// What each stage of the last snapshot took, µs, by the agent itself.
fn stages(text: &str) -> Value {
    let stage = |line: &str| {
        let rest = line.strip_prefix("cgmeter_scrape_duration_seconds{stage=\"")?;
        let (name, seconds) = rest.split_once("\"} ")?;
        Some((name.to_owned(), json!(seconds.parse::<f64>().ok()? * 1e6)))
    };
    Value::Object(text.lines().filter_map(stage).collect())
}
