//! Cost of a scrape by number of cgroups.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    agent::{Agent, Binary, value},
    frames::Sharing,
    load::Cgroups,
    median,
    turns::order,
};

const SCRAPES: usize = 15;
/// How long agents rest before their memory is read.
const REST: Duration = Duration::from_secs(3);
/// Starts of each agent.
const STARTS: usize = 3;

/// What was measured of one agent.
struct Watching {
    agent: Agent,
    text: String,
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

/// Measures with `count` cgroups besides those of the host. Returns a row for each agent.
pub fn measure(binaries: &[Binary], count: usize) -> Result<Vec<Value>> {
    // The agents start first and see each cgroup run a process, so that all its series exist.
    let mut watching = Vec::new();
    for binary in binaries {
        watching.push(Watching {
            agent: Agent::start(binary)?,
            text: String::new(),
            wall: Vec::new(),
            cpu: Vec::new(),
        });
    }
    let sharing = Sharing::start(binaries)?;
    let cgroups = Cgroups::make(count)?;
    for watching in &watching {
        watching.agent.scrape()?;
    }
    for round in 0..SCRAPES {
        for at in order(watching.len(), round) {
            watching[at].scrape()?;
        }
    }
    // At rest: an agent frees an encoded body a moment after it was sent.
    sleep(REST);
    let mut rows = watching
        .iter()
        .map(|watching| watching.row(count))
        .collect::<Result<Vec<_>>>()?;
    drop(watching);
    let frames = sharing.measure()?;
    drop(sharing);
    let starts = starts(binaries)?;
    drop(cgroups);
    for (at, row) in rows.iter_mut().enumerate() {
        row["agent"] = json!(binaries[at].name);
        row["frames"] = frames[at].clone();
        row["start_ms"] = json!(starts[at].0);
        row["start_peak_mb"] = json!(starts[at].1);
    }
    Ok(rows)
}

impl Watching {
    fn scrape(&mut self) -> Result<()> {
        let (begin, used) = (Instant::now(), self.agent.cpu_ns()?);
        self.text = self.agent.scrape()?;
        self.wall.push(begin.elapsed().as_secs_f64() * 1e3);
        self.cpu.push((self.agent.cpu_ns()? - used) as f64 / 1e6);
        Ok(())
    }

    fn row(&self, count: usize) -> Result<Value> {
        let Self { agent, text, .. } = self;
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        let cpu = median(self.cpu.clone());
        Ok(json!({
            "cgroups": count,
            "series": series,
            "bytes": text.len(),
            "cpu_ms": cpu,
            "wall_ms": median(self.wall.clone()),
            "ns_a_series": cpu * 1e6 / series as f64,
            "rss_mb": agent.memory("VmRSS")? / 1e6,
            "anonymous_mb": agent.memory("RssAnon")? / 1e6,
            "peak_mb": agent.memory("VmHWM")? / 1e6,
            "kernel_kib": value(text, "cgmeter_kernel_memory_bytes ") / 1024.0,
            "stages_us": stages(text),
        }))
    }
}

/// For each agent, started with all cgroups present: the time to its first metrics in ms, and its peak
/// memory until then in MB.
fn starts(binaries: &[Binary]) -> Result<Vec<(f64, f64)>> {
    let mut found = vec![(Vec::new(), Vec::new()); binaries.len()];
    for round in 0..STARTS {
        for at in order(binaries.len(), round) {
            let agent = Agent::start(&binaries[at])?;
            found[at].0.push(agent.start.as_secs_f64() * 1e3);
            found[at].1.push(agent.memory("VmHWM")? / 1e6);
        }
    }
    let medians = found
        .into_iter()
        .map(|(start, peak)| (median(start), median(peak)));
    Ok(medians.collect())
}

/// The duration of each stage of the last frame in µs, as the agent reports it.
fn stages(text: &str) -> Value {
    let stage = |line: &str| {
        let rest = line.strip_prefix("cgmeter_scrape_duration_seconds{stage=\"")?;
        let (name, seconds) = rest.split_once("\"} ")?;
        Some((name.to_owned(), json!(seconds.parse::<f64>().ok()? * 1e6)))
    };
    Value::Object(text.lines().filter_map(stage).collect())
}
