//! The command line: commands, and the flags of all settings ([`crate::settings`]).

use std::ffi::OsString;

use clap::{FromArgMatches, Subcommand, ValueEnum};

use crate::{
    exposition::Format,
    settings::{Flags, arguments},
};

/// A parsed command line.
#[derive(Clone, Debug)]
pub struct Cli {
    /// What to do.
    pub command: Command,
    /// Settings from flags and environment variables.
    pub flags: Flags,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Meter and serve; the default
    Run,
    /// Report what this host and kernel support, and what they don't and why
    Check,
    /// Ask the running agent whether it is ready, for containers without a shell
    Healthcheck,
    /// Print one snapshot
    Dump {
        /// Output format
        #[arg(long, default_value = "text")]
        format: DumpFormat,
    },
    /// Remove what an agent has left in the directory of --state.pin, so that nothing counts any more
    Unload,
    /// Print the reference of all metrics
    Metrics {
        /// Output format
        #[arg(long, default_value = "text")]
        format: ReferenceFormat,
    },
    /// Print the reference of all settings
    Settings {
        /// Output format
        #[arg(long, default_value = "text")]
        format: ReferenceFormat,
    },
}

/// Formats of `cgmeter dump`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DumpFormat {
    /// Prometheus text
    Text,
    /// OpenMetrics
    Openmetrics,
    /// JSON: an array of samples
    Json,
}

impl DumpFormat {
    /// The exposition format; `None` for JSON, which is none.
    pub fn exposition(self) -> Option<Format> {
        match self {
            Self::Openmetrics => Some(Format::OpenMetrics),
            Self::Text => Some(Format::Text),
            Self::Json => None,
        }
    }
}

/// Formats of `cgmeter metrics` and `cgmeter settings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReferenceFormat {
    /// Plain text
    Text,
    /// Markdown, as in docs/metrics.md and docs/configuration.md
    Markdown,
}

/// Makes the parser of the command line.
pub fn command() -> clap::Command {
    let command = clap::Command::new("cgmeter")
        .version(crate::VERSION)
        .args(arguments());
    // The description comes last, because that of the subcommands' enumeration would replace it.
    Command::augment_subcommands(command)
        .subcommand_required(false)
        .about("Meters every cgroup from inside the kernel and serves the result to Prometheus")
}

/// Parses a command line, program name first.
///
/// # Errors
///
/// clap's, which say what is wrong and name the nearest flag.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let command = match matches.subcommand_name() {
        Some(_) => Command::from_arg_matches(&matches)?,
        None => Command::Run,
    };
    let flags = Flags::of(&matches);
    Ok(Cli { command, flags })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    fn value(cli: &Cli, name: &str) -> Option<String> {
        let given = cli.flags.get(name)?;
        assert!(!given.variable);
        let values: Vec<_> = given
            .values
            .iter()
            .map(|value| value.to_str().unwrap())
            .collect();
        Some(values.join(" "))
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_after_the_command() {
        for line in ["cgmeter --cgroup.max 5 dump", "cgmeter dump --cgroup.max 5"] {
            let cli = parsed(line).unwrap();
            assert_eq!(value(&cli, "cgroup.max").as_deref(), Some("5"));
            assert!(matches!(cli.command, Command::Dump { .. }));
        }
    }

    #[test]
    fn lists_may_have_commas_unless_their_values_are_regular_expressions() {
        let cli = parsed(
            "cgmeter --container.label a,b --container.label c --container.include name=a{1,2}",
        )
        .unwrap();
        assert_eq!(value(&cli, "container.label").as_deref(), Some("a b c"));
        assert_eq!(
            value(&cli, "container.include").as_deref(),
            Some("name=a{1,2}")
        );
    }

    #[test]
    fn collectors() {
        let cli = parsed("cgmeter --no-collector.sched --collector.cpu").unwrap();
        assert_eq!(value(&cli, "collector.sched").as_deref(), Some("false"));
        assert_eq!(value(&cli, "collector.cpu").as_deref(), Some("true"));
        assert_eq!(value(&cli, "collector.memory"), None);
        assert!(parsed("cgmeter --no-collector.sched --collector.sched").is_err());
    }

    #[test]
    fn the_error_of_a_misspelt_flag_names_the_nearest() {
        let error = parsed("cgmeter --web.listen-adress x")
            .unwrap_err()
            .to_string();
        assert!(error.contains("--web.listen-address"), "{error}");
    }
}
