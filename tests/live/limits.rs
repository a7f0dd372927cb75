//! CFS bandwidth and shares. Oracle: the files of the cpu controller.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::{Cgroup, CpuController, cpu_controller},
    metrics::same,
    needs::Need,
    worker::Worker,
};

pub const TESTS: &[Test] = &[(
    "limits::a_quota_and_what_it_throttles",
    &[Need::Agent, Need::CpuController],
    quota,
)];

/// The cpu controller's directory of a cgroup: itself, or its twin of the same path in v1.
struct Twin {
    directory: PathBuf,
    v1: bool,
}

impl Twin {
    fn of(cgroup: &Cgroup) -> Result<Self> {
        match cpu_controller().context("no cpu controller")? {
            CpuController::V1(mount) => {
                let directory = mount.join(cgroup.id.trim_start_matches('/'));
                fs::create_dir(&directory)?;
                Ok(Self {
                    directory,
                    v1: true,
                })
            }
            CpuController::V2(root) => {
                fs::write(root.join("cgroup.subtree_control"), "+cpu")?;
                Ok(Self {
                    directory: cgroup.directory.clone(),
                    v1: false,
                })
            }
        }
    }

    fn set_quota(&self, quota_us: u64, period_us: u64) -> Result<()> {
        if self.v1 {
            fs::write(
                self.directory.join("cpu.cfs_period_us"),
                period_us.to_string(),
            )?;
            fs::write(
                self.directory.join("cpu.cfs_quota_us"),
                quota_us.to_string(),
            )?;
        } else {
            fs::write(
                self.directory.join("cpu.max"),
                format!("{quota_us} {period_us}"),
            )?;
        }
        Ok(())
    }

    fn stat(&self, key: &str) -> Result<f64> {
        let text = fs::read_to_string(self.directory.join("cpu.stat"))?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
        value.with_context(|| format!("no {key} in cpu.stat"))
    }

    /// Seconds throttled: nanoseconds in v1, microseconds in cgroup2.
    fn throttled_seconds(&self) -> Result<f64> {
        if self.v1 {
            Ok(self.stat("throttled_time ")? / 1e9)
        } else {
            Ok(self.stat("throttled_usec ")? / 1e6)
        }
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        if self.v1 {
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

fn quota() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let twin = Twin::of(&cgroup)?;
    let mut worker = Worker::start(&cgroup)?;
    if twin.v1 {
        fs::write(
            twin.directory.join("cgroup.procs"),
            worker.pid().to_string(),
        )?;
    }
    let metrics = agent.scrape()?;
    let periods = "container_cpu_cfs_periods_total";
    ensure!(
        !metrics.has(periods, &[("id", &cgroup.id)]),
        "families of a quota without one"
    );
    twin.set_quota(20_000, 100_000)?;
    worker.run("spin 200")?;
    // At rest: periods pass only while there is something to enforce.
    worker.run("sleeps 1")?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let metrics = agent.scrape()?;
    let found = |name: &str| metrics.of(&cgroup.id, name);
    same("quota", found("container_spec_cpu_quota")?, 20_000.0)?;
    same("period", found("container_spec_cpu_period")?, 100_000.0)?;
    same("periods", found(periods)?, twin.stat("nr_periods ")?)?;
    let throttled = found("container_cpu_cfs_throttled_periods_total")?;
    same("throttled periods", throttled, twin.stat("nr_throttled ")?)?;
    ensure!(
        throttled >= 5.0,
        "200 ms at 20 ms a period were throttled {throttled} times"
    );
    let seconds = found("container_cpu_cfs_throttled_seconds_total")?;
    crate::metrics::agree("throttled", seconds, twin.throttled_seconds()?, 0.0, 2e-6)?;
    same(
        "bursts",
        found("container_cpu_cfs_burst_periods_total")?,
        twin.stat("nr_bursts ")?,
    )?;
    let shares = found("container_spec_cpu_shares")?;
    if twin.v1 {
        let file = fs::read_to_string(twin.directory.join("cpu.shares"))?;
        same("shares", shares, file.trim().parse()?)?;
    } else {
        let file = fs::read_to_string(twin.directory.join("cpu.weight"))?;
        let weight: f64 = file.trim().parse()?;
        same(
            "shares",
            shares,
            (2.0 + (weight - 1.0) * 262_142.0 / 9_999.0).floor(),
        )?;
    }
    Ok(())
}
