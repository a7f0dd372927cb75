//! The kernel's statistics of whole disks. Oracle: /proc/diskstats, read before and after a scrape.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{Test, agent::Agent, needs::Need};

pub const TESTS: &[Test] = &[("disk::equal_to_diskstats", &[Need::Agent], diskstats)];

/// The name of the first disk with any I/O, and its columns 12, 13, 14, 5 and 9.
fn first() -> Result<(String, [f64; 5])> {
    let text = fs::read_to_string("/proc/diskstats")?;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |column: usize| {
            words
                .get(column - 1)
                .and_then(|word| word.parse::<f64>().ok())
        };
        let name = words.get(2).context("no name")?;
        let busy = number(13).unwrap_or(0.0) > 0.0;
        if busy && fs::metadata(format!("/sys/block/{name}")).is_ok() {
            let columns = [12, 13, 14, 5, 9].map(|column| number(column).unwrap_or(-1.0));
            return Ok((format!("/dev/{name}"), columns));
        }
    }
    anyhow::bail!("no disk has had any I/O")
}

fn diskstats() -> Result<()> {
    let agent = Agent::start(&[])?;
    let (device, before) = first()?;
    let metrics = agent.scrape()?;
    let (_, after) = first()?;
    let labels = [("id", "/"), ("device", device.as_str())];
    for (at, (name, unit)) in [
        ("container_fs_io_time_seconds_total", 1e3),
        ("container_fs_io_time_weighted_seconds_total", 1e3),
        ("container_fs_reads_merged_total", 1.0),
        ("container_fs_writes_merged_total", 1.0),
    ]
    .into_iter()
    .enumerate()
    {
        let found = metrics.get(name, &labels)? * unit;
        let (least, most) = (before[at + 1], after[at + 1]);
        ensure!(
            (least - 1e-6..=most + 1e-6).contains(&found),
            "{name} of {device}: {found} instead of {least} to {most}"
        );
    }
    ensure!(metrics.get("container_fs_io_current", &labels)? >= 0.0);
    ensure!(
        metrics.count("container_fs_io_current", &[("device", device.as_str())]) == 1,
        "only the host has it"
    );
    Ok(())
}
