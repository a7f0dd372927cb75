//! How much slower context switches become.

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    agent::{Agent, Binary},
    empty::Empty,
    load::ping_pong,
    median,
    turns::order,
};

/// Round trips in one round of the ping-pong.
const ROUND_TRIPS: u32 = 150_000;

/// Slow-down of the ping-pong: rounds with nothing, with an empty program and with each agent, in
/// turn. The empty program shows what the kernel's dispatch of any program costs.
pub fn measure(binaries: &[Binary], rounds: usize) -> Result<Value> {
    let (mut without, mut empty_ratios) = (Vec::new(), Vec::new());
    let mut ratios = vec![Vec::new(); binaries.len()];
    let round = || -> Result<f64> {
        ping_pong(ROUND_TRIPS / 10)?;
        ping_pong(ROUND_TRIPS)
    };
    round()?;
    for number in 0..rounds {
        let bare = round()?;
        let empty = {
            let _empty = Empty::attach("sched_switch")?;
            round()?
        };
        without.push(bare);
        empty_ratios.push(empty / bare);
        for at in order(binaries.len(), number) {
            let _agent = Agent::start(&binaries[at])?;
            ratios[at].push(round()? / bare);
        }
    }
    let row = |with: &str, ratios| json!({"with": with, "percent": (median(ratios) - 1.0) * 100.0});
    let mut with = vec![row("an empty program", empty_ratios)];
    let agents = binaries.iter().zip(ratios);
    with.extend(agents.map(|(binary, ratios)| row(binary.name, ratios)));
    Ok(json!({"rounds": rounds, "without_ns": median(without), "with": with}))
}
