//! `run`: runs the agent on this host.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::Result;

use crate::{
    build::build,
    shell::{agent, require_root},
};

/// The default address of the agent.
const ADDRESS: &str = "127.0.0.1:10295";
const ADDRESS_FLAG: &str = "--web.listen-address";

/// The agent's commands that print something and end: all but `run`.
const COMMANDS: &[&str] = &[
    "check",
    "dump",
    "healthcheck",
    "metrics",
    "settings",
    "unload",
];

/// Sets up, builds, and replaces this process by the agent.
pub fn run(arguments: &[String]) -> Result<()> {
    require_root("run", "the agent loads BPF programs into the kernel")?;
    build()?;
    if serves(arguments) {
        let from_environment = std::env::var("CGMETER_WEB_LISTEN_ADDRESS").ok();
        let address = listen_address(arguments, from_environment.as_deref());
        println!("\nMetrics of this host's cgroups:  http://{address}/metrics");
        println!("  curl -s http://{address}/metrics | grep container_cpu_usage");
        println!("Ctrl-C ends it.\n");
    }
    let error = Command::new(agent()).args(arguments).exec();
    Err(anyhow::anyhow!("cannot run {}: {error}", agent().display()))
}

/// Whether these arguments make the agent serve metrics, rather than print something and end.
fn serves(arguments: &[String]) -> bool {
    let ends = |argument: &String| {
        COMMANDS.contains(&argument.as_str())
            || matches!(
                argument.as_str(),
                "help" | "--help" | "-h" | "--version" | "-V"
            )
    };
    !arguments.iter().any(ends)
}

/// The first address that the agent will listen on, as a browser accepts it.
fn listen_address(arguments: &[String], from_environment: Option<&str>) -> String {
    let flag = arguments.iter().enumerate().find_map(|(index, argument)| {
        match argument.strip_prefix(ADDRESS_FLAG)? {
            "" => arguments.get(index + 1).map(String::as_str),
            rest => rest.strip_prefix('='),
        }
    });
    let addresses = flag.or(from_environment).unwrap_or(ADDRESS);
    let first = addresses.split(',').next().unwrap_or(ADDRESS);
    match first.strip_prefix("0.0.0.0").or(first.strip_prefix("[::]")) {
        Some(port) => format!("localhost{port}"),
        None if first.starts_with(':') => format!("localhost{first}"),
        None => first.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_address_is_the_one_that_was_asked_for() {
        for (line, environment, address) in [
            ("", None, "127.0.0.1:10295"),
            ("", Some("127.0.0.1:1,127.0.0.1:2"), "127.0.0.1:1"),
            (
                "--web.listen-address=127.0.0.1:9",
                Some("127.0.0.1:1"),
                "127.0.0.1:9",
            ),
            ("run --web.listen-address 0.0.0.0:9", None, "localhost:9"),
            ("--web.listen-address [::]:9", None, "localhost:9"),
        ] {
            assert_eq!(listen_address(&words(line), environment), address, "{line}");
        }
    }

    #[test]
    fn every_command_of_the_agent_is_known() {
        let source = include_str!("../../collector/src/cli.rs");
        let (_, commands) = source.split_once("pub enum Command {\n").unwrap();
        let (commands, _) = commands.split_once("\n}").unwrap();
        // Variants are indented by four spaces, their fields by more.
        let mut names: Vec<String> = commands
            .lines()
            .filter_map(|line| line.strip_prefix("    "))
            .filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()))
            .map(|line| line.trim_end_matches([' ', '{', ',']).to_lowercase())
            .filter(|name| name != "run")
            .collect();
        names.sort();
        assert_eq!(names, COMMANDS);
    }

    #[test]
    fn only_what_serves_is_announced() {
        assert!(serves(&words("")) && serves(&words("run --cgroup.max 5")));
        assert!(!serves(&words("dump --format json")) && !serves(&words("--help")));
    }
}
