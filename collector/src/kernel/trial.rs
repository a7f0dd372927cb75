//! What tests and benchmarks change in the agent (docs/testing.md).

use anyhow::{Result, bail};

/// The environment variable: words with commas between them.
const VARIABLE: &str = "_CGMETER_TRIAL";

/// Changes for a test or a benchmark. None by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trial {
    /// `slow=N`: when a task ends, the switch program waits N µs between finding its cell and adding to it.
    pub slow_us: u32,
    /// `no-grace`: retired slots are swept without a grace period.
    pub no_grace: bool,
    /// `layout=N`: as if maps contained something else than those of other agents.
    pub layout: Option<u32>,
    /// `lanes=N`: as many scheduler cells a slot as on a host with N CPUs.
    pub lanes: u32,
    /// `panic=PLACE`: a fault at the second snapshot, in the source of that name, or in the snapshot itself.
    pub fault: Fault,
}

/// A panic on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    place: Option<String>,
    met: u32,
}

impl Fault {
    /// The place that is no source.
    pub const SNAPSHOT: &str = "snapshot";

    /// Panics if this is the place, and has been passed once.
    pub fn meet(&mut self, place: &str) {
        if self.place.as_deref() == Some(place) {
            self.met += 1;
            assert!(self.met < 2, "{VARIABLE} asks for it");
        }
    }
}

impl Trial {
    /// Reads the environment.
    ///
    /// # Errors
    ///
    /// If the variable has an unknown word.
    pub fn from_environment() -> Result<Self> {
        let Some(value) = std::env::var_os(VARIABLE) else {
            return Ok(Self::default());
        };
        let trial = Self::parse(&value.to_string_lossy())?;
        tracing::warn!("{VARIABLE} is set: for a test this agent is slow, or counts wrongly");
        Ok(trial)
    }

    fn parse(words: &str) -> Result<Self> {
        let mut trial = Self::default();
        for word in words.split(',') {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match (name, value.parse()) {
                ("slow", Ok(us @ 1..=1_000_000)) => trial.slow_us = us,
                ("no-grace", Err(_)) => trial.no_grace = true,
                ("layout", Ok(layout)) => trial.layout = Some(layout),
                ("lanes", Ok(lanes @ 1..=4096)) => trial.lanes = lanes,
                ("panic", Err(_)) if !value.is_empty() => {
                    trial.fault.place = Some(value.to_owned())
                }
                _ => bail!("{VARIABLE} is for tests and has no {word:?}"),
            }
        }
        Ok(trial)
    }

    /// Scheduler cells a slot on a host with so many CPUs.
    pub(super) fn lanes(&self, cpus: u32) -> u32 {
        cpus.max(self.lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_others_refused() {
        let trial = Trial::parse("slow=30,no-grace,lanes=128,layout=7").unwrap();
        assert_eq!((trial.lanes(2), trial.lanes(256)), (128, 256));
        assert_eq!(
            (trial.slow_us, trial.no_grace, trial.layout),
            (30, true, Some(7))
        );
        for words in [
            "",
            "slow",
            "fast",
            "no-grace,",
            "lanes=0",
            "lanes=x",
            "lanes=5000",
            "panic=",
            "panic=7",
        ] {
            Trial::parse(words).unwrap_err();
        }
    }

    #[test]
    fn a_place_panics_the_second_time() {
        let mut fault = Trial::parse("panic=sched").unwrap().fault;
        let mut meet = |place: &str| {
            let met = std::panic::AssertUnwindSafe(|| fault.meet(place));
            std::panic::catch_unwind(met).is_ok()
        };
        assert!(meet("sched") && meet("tcp") && meet("tcp"));
        assert!(!meet("sched"));
        let mut none = Fault::default();
        none.meet("sched");
        none.meet("sched");
    }
}
