//! SIGHUP: reads the settings again, takes over those that a running agent can change, and says
//! which others have changed.

use crate::{
    agent::Agent,
    log::Log,
    runtime::Directory,
    settings::{Flags, RELOADED, Settings},
};

/// Takes over changed settings.
#[derive(Debug)]
pub struct Reload {
    flags: Flags,
    /// What the agent runs with.
    now: Settings,
}

/// What a reload would do.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Settings to take over.
    taken: Vec<&'static str>,
    /// Settings that need a restart.
    left: Vec<&'static str>,
}

impl Plan {
    fn new(now: &Settings, new: &Settings) -> Self {
        let changed = now.changes(new).into_iter();
        let (taken, left) = changed.partition(|name| RELOADED.contains(name));
        Self { taken, left }
    }
}

impl Reload {
    /// The agent runs with these settings, which these flags have given.
    pub fn new(flags: Flags, now: Settings) -> Self {
        Self { flags, now }
    }

    /// Reads the settings again and takes over what can be changed. Where they can't be used, the
    /// agent goes on with those that it has.
    pub fn reload(&mut self, log: &Log, agent: &Agent, directory: &Directory) {
        let new = match Settings::resolve(&self.flags) {
            Ok(new) => new,
            Err(error) => {
                let error = error.to_string();
                tracing::error!(
                    error,
                    "SIGHUP: the settings can't be used; nothing has changed"
                );
                return;
            }
        };
        let plan = Plan::new(&self.now, &new);
        for &name in &plan.taken {
            match name {
                "log.level" => log.set_level(new.log_level),
                "web.min-interval" => agent.set_min_interval(new.agent.min_interval),
                "cgroup.linger" => {
                    if let Err(error) = agent.set_linger(new.agent.linger) {
                        tracing::error!(error = format!("{error:#}"), "SIGHUP");
                        return;
                    }
                    directory.set_linger(new.agent.linger);
                }
                _ => tracing::error!(setting = name, "SIGHUP: nobody takes this setting over"),
            }
            match new.given.get(name) {
                Some(values) => self.now.given.insert(name, values.clone()),
                None => self.now.given.remove(name),
            };
        }
        for setting in &plan.left {
            tracing::warn!(
                setting,
                "SIGHUP: this setting has changed, and is read at the start only: restart the \
                 agent to take it over"
            );
        }
        let taken = plan.taken.join(" ");
        tracing::info!(taken, "SIGHUP: the settings were read again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn settings(line: &str) -> Settings {
        let words = line.split_whitespace().map(Into::into);
        let cli = cli::parse(["cgmeter".into()].into_iter().chain(words)).unwrap();
        Settings::resolve(&cli.flags).unwrap()
    }

    #[test]
    fn what_a_running_agent_can_change_and_what_not() {
        let now = settings("--cgroup.linger=5s --web.max-requests=7 --collector.disable-defaults");
        let plan = |line: &str| Plan::new(&now, &settings(line));
        let same = "--collector.disable-defaults --cgroup.linger=5s --web.max-requests=7";
        assert_eq!(
            plan(same),
            Plan {
                taken: vec![],
                left: vec![]
            }
        );
        assert_eq!(
            plan("--cgroup.linger=6s --web.max-requests=7 --log.level=debug --collector.cpu"),
            Plan {
                taken: vec!["cgroup.linger", "log.level"],
                left: vec!["collector.cpu", "collector.disable-defaults"],
            }
        );
        assert_eq!(
            plan(""),
            Plan {
                taken: vec!["cgroup.linger"],
                left: vec!["collector.disable-defaults", "web.max-requests"],
            }
        );
    }

    #[test]
    fn every_setting_that_is_taken_over_exists() {
        let known: Vec<&str> = crate::settings::settings().iter().map(|s| s.name).collect();
        assert!(RELOADED.iter().all(|name| known.contains(name)));
    }
}
