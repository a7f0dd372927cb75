//! CPU of four simultaneous scrapes of one frame, compared with that of a single scrape.

use std::{
    sync::Barrier,
    thread::{scope, sleep},
    time::Duration,
};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use super::{
    agent::{Agent, Binary},
    median,
    turns::order,
};

/// Simultaneous scrapes.
const AT_ONCE: usize = 4;
/// Rounds of one scrape and of several.
const ROUNDS: usize = 7;
/// How long an agent answers from one frame. Simultaneous scrapes take less.
const INTERVAL: Duration = Duration::from_millis(1500);

/// Agents that share a frame among the scrapes of an interval.
pub struct Sharing(Vec<Agent>);

impl Sharing {
    /// Starts the agents.
    pub fn start(binaries: &[Binary]) -> Result<Self> {
        let start = |binary| Agent::start_with(binary, INTERVAL);
        Ok(Self(binaries.iter().map(start).collect::<Result<_>>()?))
    }

    /// One row for each agent.
    pub fn measure(&self) -> Result<Vec<Value>> {
        let mut one = vec![Vec::new(); self.0.len()];
        let mut several = one.clone();
        for round in 0..ROUNDS {
            // After this, the first scrape takes a new frame.
            sleep(INTERVAL);
            for at in order(self.0.len(), round) {
                one[at].push(cpu_ms(&self.0[at], 1)?);
            }
            sleep(INTERVAL);
            for at in order(self.0.len(), round) {
                several[at].push(cpu_ms(&self.0[at], AT_ONCE)?);
            }
        }
        let rows = one.into_iter().zip(several).map(|(one, several)| {
            let (one, several) = (median(one), median(several));
            json!({
                "scrapes_at_once": AT_ONCE,
                "one_cpu_ms": one,
                "at_once_cpu_ms": several,
                "at_once_ratio": several / one,
            })
        });
        Ok(rows.collect())
    }
}

/// CPU time in ms that an agent uses for `count` scrapes that begin at the same moment.
fn cpu_ms(agent: &Agent, count: usize) -> Result<f64> {
    let begin = Barrier::new(count);
    let used = agent.cpu_ns()?;
    scope(|scope| {
        let scrape = || {
            begin.wait();
            agent.scrape().map(drop)
        };
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(scrape)).collect();
        threads.into_iter().try_for_each(|thread| {
            let joined = thread.join();
            joined.map_err(|_| anyhow!("a scrape panicked"))?
        })
    })?;
    Ok((agent.cpu_ns()? - used) as f64 / 1e6)
}
