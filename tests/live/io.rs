//! The io controller's statistics. Oracle: io.stat.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{
    Test, agent::Agent, cgroup::Cgroup, metrics::same, needs::Need, twin::Twin, worker::Worker,
};

pub const TESTS: &[Test] = &[(
    "io::equal_to_io_stat",
    &[Need::Agent, Need::Unified("io"), Need::SpareDisk],
    charged,
)];

/// `rbytes`, `wbytes`, `rios`, `wios` of a device in io.stat.
fn charges(cgroup: &Cgroup, device: &str) -> Result<Option<[f64; 4]>> {
    let number = fs::read_to_string(format!("/sys/class/block/{device}/dev"))?;
    let text = fs::read_to_string(cgroup.directory.join("io.stat"))?;
    let Some(line) = text
        .lines()
        .find_map(|line| line.strip_prefix(number.trim())?.strip_prefix(' '))
    else {
        return Ok(None);
    };
    let value = |key: &str| {
        line.split(' ')
            .find_map(|field| {
                field
                    .strip_prefix(key)?
                    .strip_prefix('=')?
                    .parse::<f64>()
                    .ok()
            })
            .with_context(|| format!("no {key} in {line}"))
    };
    Ok(Some([
        value("rbytes")?,
        value("wbytes")?,
        value("rios")?,
        value("wios")?,
    ]))
}

fn charged() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let twin = Twin::of(&cgroup, "io")?;
    let mut worker = Worker::start(&cgroup)?;
    twin.admit(worker.pid())?;
    worker.run("cache-some /dev/vda 4")?;
    let expected = charges(&cgroup, "vda")?.context("io.stat has no line for vda")?;
    ensure!(
        expected[0] >= 4.0 * 1048576.0,
        "4 MiB were read, io.stat has {}",
        expected[0]
    );
    let metrics = agent.scrape()?;
    let found = |name: &str, operation: &str| {
        metrics.sum(
            name,
            &[
                ("id", &cgroup.id),
                ("device", "/dev/vda"),
                ("operation", operation),
            ],
        )
    };
    let bytes = "container_io_charged_bytes_total";
    let operations = "container_io_charged_operations_total";
    same("bytes read", found(bytes, "read"), expected[0])?;
    same("bytes written", found(bytes, "write"), expected[1])?;
    same("reads", found(operations, "read"), expected[2])?;
    same("writes", found(operations, "write"), expected[3])
}
