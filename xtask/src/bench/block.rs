//! ns per event of the programs that a block request runs.

use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    agent::{Agent, Binary, value},
    empty::Empty,
    programs::Statistics,
};

/// Programs and the tracepoints that they, and the empty program beside them, are attached to.
const PROGRAMS: &[(&str, &str)] = &[
    ("block_bio_queue", "block_bio_queue"),
    ("block_submit", "block_io_start"),
    ("block_insert", "block_rq_insert"),
    ("block_issue", "block_rq_issue"),
    ("block_rq_complete", "block_rq_complete"),
];
/// Direct reads of one block each.
const READS: usize = 100_000;
const BLOCK: usize = 4096;
/// Blocks of the disk.
const BLOCKS: usize = 4096;

/// A loop device over a file whose pages are in memory.
struct Loop {
    device: String,
    file: PathBuf,
}

impl Loop {
    fn new() -> Result<Self> {
        let file = std::env::temp_dir().join(format!("cgmeter-bench-{}", std::process::id()));
        std::fs::write(&file, vec![0x5a; BLOCKS * BLOCK])?;
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&file)
            .output()
            .context("losetup")?;
        let device = String::from_utf8(output.stdout)?.trim().to_owned();
        let made = Self { device, file };
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "losetup: {errors}");
        Ok(made)
    }

    fn read(&self, count: usize) -> Result<()> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(&self.device)?;
        let mut buffer = vec![0; 2 * BLOCK];
        let start = buffer.as_ptr().align_offset(BLOCK);
        let buffer = &mut buffer[start..start + BLOCK];
        for n in 0..count {
            file.read_exact_at(buffer, (n % BLOCKS * BLOCK) as u64)?;
        }
        Ok(())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Measures with direct reads of a loop device.
pub fn measure(binary: &Binary) -> Result<Vec<Value>> {
    let agent = Agent::start(binary)?;
    let disk = Loop::new()?;
    // Where a kernel lacks a tracepoint, the agent has no program on it either.
    let programs: Vec<(&str, Empty)> = PROGRAMS
        .iter()
        .filter_map(|&(program, tracepoint)| Some((program, Empty::attach(tracepoint).ok()?)))
        .collect();
    disk.read(READS / 10)?;
    let _statistics = Statistics::on()?;
    let times = || -> Result<Vec<(u64, u64)>> {
        programs.iter().map(|(_, empty)| empty.run_time()).collect()
    };
    let before = (agent.scrape()?, times()?);
    disk.read(READS)?;
    let after = (agent.scrape()?, times()?);
    let mut rows = Vec::new();
    for (at, (program, _)) in programs.iter().enumerate() {
        let gained = |family: &str| {
            let series = format!("{family}{{program=\"{program}\"}} ");
            value(&after.0, &series) - value(&before.0, &series)
        };
        let runs = gained("cgmeter_program_runs_total");
        if runs == 0.0 {
            continue;
        }
        let gross = gained("cgmeter_program_run_seconds_total") * 1e9 / runs;
        let (empty_runs, empty_ns) = (
            after.1[at].0.saturating_sub(before.1[at].0) as f64,
            after.1[at].1.saturating_sub(before.1[at].1) as f64,
        );
        rows.push(json!({
            "program": program,
            "runs": runs,
            "gross_ns": gross,
            "empty_ns": empty_ns / empty_runs,
            "net_ns": gross - empty_ns / empty_runs,
        }));
    }
    Ok(rows)
}
