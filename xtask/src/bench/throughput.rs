//! Throughput of whole programs with and without the agent: iperf3 over loopback, fio on a file.
//!
//! Invariant: rounds with and without an agent are interleaved, and only ratios within a round are used.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    agent::{Agent, Binary},
    median,
    turns::order,
};
use crate::{
    apt,
    shell::{has, output},
};

/// Debian's packages of the loads.
const TOOLS: &[&str] = &["iperf3", "fio"];
/// Seconds of one round of each load.
const SECONDS: u32 = 2;

/// A load: its name, and a function that returns its throughput.
type Load = (&'static str, fn() -> Result<f64>);

/// The loads. Names end with the unit.
const LOADS: &[Load] = &[
    ("iperf3, loopback, bit/s", stream),
    ("fio, 4 KiB random reads, direct, IOPS", random_reads),
    ("fio, 1 MiB writes through the cache, byte/s", writes),
];

/// Installs the loads if need be, and measures each in `rounds` rounds.
pub fn measure(binaries: &[Binary], rounds: usize) -> Result<Vec<Value>> {
    let missing: Vec<&str> = TOOLS.iter().copied().filter(|tool| !has(tool)).collect();
    if !missing.is_empty() {
        if let Err(why) = apt::usable() {
            eprintln!(
                "xtask: warning: no throughput without {}: {why}",
                missing.join(", ")
            );
            return Ok(Vec::new());
        }
        apt::install(&missing)?;
    }
    let server = Server::start()?;
    let mut rows = Vec::new();
    for (name, load) in LOADS {
        let (mut without, mut ratios) = (Vec::new(), vec![Vec::new(); binaries.len()]);
        load()?;
        for round in 0..rounds {
            let bare = load()?;
            without.push(bare);
            for at in order(binaries.len(), round) {
                let _agent = Agent::start(&binaries[at])?;
                ratios[at].push(load()? / bare);
            }
        }
        let without = median(without);
        for (binary, ratios) in binaries.iter().zip(ratios) {
            rows.push(json!({
                "load": name,
                "agent": binary.name,
                "rounds": rounds,
                "without": without,
                "agent_percent": (median(ratios) - 1.0) * 100.0,
            }));
        }
    }
    drop(server);
    Ok(rows)
}

/// The server of iperf3.
struct Server(Child);

/// Its port. The default of iperf3 may be in use.
const PORT: &str = "15201";

impl Server {
    fn start() -> Result<Self> {
        let child = Command::new("iperf3")
            .args(["--server", "--bind", "127.0.0.1", "--port", PORT])
            .stdout(Stdio::null())
            .spawn()
            .context("starting iperf3")?;
        let server = Self(child);
        for _ in 0..200 {
            if std::net::TcpStream::connect(format!("127.0.0.1:{PORT}")).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A number in a program's JSON.
fn number(text: &str, pointer: &str) -> Result<f64> {
    // fio may print notes before its JSON.
    let begin = text.find('{').context("no JSON")?;
    let value: Value = serde_json::from_str(&text[begin..])?;
    let number = value.pointer(pointer).and_then(Value::as_f64);
    let number = number.with_context(|| format!("no {pointer} in the output"))?;
    ensure!(number > 0.0, "{pointer} is {number}");
    Ok(number)
}

fn stream() -> Result<f64> {
    let seconds = SECONDS.to_string();
    let arguments = [
        "--client",
        "127.0.0.1",
        "--port",
        PORT,
        "--json",
        "--time",
        &seconds,
    ];
    let text = output(Command::new("iperf3").args(arguments))?;
    number(&text, "/end/sum_received/bits_per_second")
}

/// The file that fio uses and removes.
fn file() -> PathBuf {
    std::env::temp_dir().join(format!("cgmeter-bench-{}", std::process::id()))
}

fn fio(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("fio");
    command
        .args(["--name=bench", "--output-format=json", "--unlink=1"])
        .arg(format!("--runtime={SECONDS}"))
        .arg("--time_based=1")
        .arg(format!("--filename={}", file().display()))
        .args(arguments);
    output(&mut command)
}

fn random_reads() -> Result<f64> {
    let text = fio(&[
        "--rw=randread",
        "--bs=4k",
        "--size=256m",
        "--direct=1",
        "--ioengine=psync",
    ])?;
    number(&text, "/jobs/0/read/iops")
}

fn writes() -> Result<f64> {
    let text = fio(&[
        "--rw=write",
        "--bs=1m",
        "--size=256m",
        "--ioengine=psync",
        "--end_fsync=1",
    ])?;
    number(&text, "/jobs/0/write/bw_bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_behind_other_words() {
        let text = "note: both iodepth >= 1\n{\"a\": [{\"b\": 2.5}], \"c\": 0}";
        assert_eq!(number(text, "/a/0/b").unwrap(), 2.5);
        assert!(number(text, "/c").is_err() && number(text, "/d").is_err());
        assert!(number("nothing", "/a").is_err());
    }
}
