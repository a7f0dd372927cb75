//! The command line: what was typed. What it means is in [`crate::config`].

use std::{ffi::OsString, path::PathBuf};

use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::{
    exposition::Format,
    log::{LogFormat, LogLevel},
    source::SOURCES,
};

/// Meters every cgroup from inside the kernel and serves the result to Prometheus.
#[derive(Clone, Debug, Parser)]
#[command(name = "cgmeter", version = crate::VERSION, subcommand_required = false)]
pub struct Cli {
    /// What to do; run, if nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Read settings from a TOML file. Its keys are these flags: `[web] listen-address = [...]`.
    #[arg(
        long = "config.file",
        global = true,
        value_name = "FILE",
        env = "CGMETER_CONFIG_FILE"
    )]
    pub config_file: Option<PathBuf>,
    /// Address to listen on; may be given several times [default: 127.0.0.1:10295]
    #[arg(
        long = "web.listen-address",
        global = true,
        value_name = "ADDRESS:PORT",
        env = "CGMETER_WEB_LISTEN_ADDRESS",
        value_delimiter = ','
    )]
    pub listen_address: Option<Vec<String>>,
    /// Path of the metrics [default: /metrics]
    #[arg(
        long = "web.telemetry-path",
        global = true,
        value_name = "PATH",
        env = "CGMETER_WEB_TELEMETRY_PATH"
    )]
    pub telemetry_path: Option<String>,
    /// Scrapes that follow each other faster get the same snapshot [default: 250ms]
    #[arg(
        long = "web.min-interval",
        global = true,
        value_name = "DURATION",
        env = "CGMETER_WEB_MIN_INTERVAL"
    )]
    pub min_interval: Option<String>,
    /// Scrapes served at the same time; more are told to come back [default: 40]
    #[arg(
        long = "web.max-requests",
        global = true,
        value_name = "N",
        env = "CGMETER_WEB_MAX_REQUESTS"
    )]
    pub max_requests: Option<usize>,
    /// Root of the cgroup2 hierarchy [default: where it is mounted]
    #[arg(
        long = "cgroup.root",
        global = true,
        value_name = "DIR",
        env = "CGMETER_CGROUP_ROOT"
    )]
    pub cgroup_root: Option<PathBuf>,
    /// Export only cgroups whose path matches; the others still count in their parents
    #[arg(
        long = "cgroup.include",
        global = true,
        value_name = "REGEX",
        env = "CGMETER_CGROUP_INCLUDE"
    )]
    pub include: Option<String>,
    /// Don't export cgroups whose path matches
    #[arg(
        long = "cgroup.exclude",
        global = true,
        value_name = "REGEX",
        env = "CGMETER_CGROUP_EXCLUDE"
    )]
    pub exclude: Option<String>,
    /// Most cgroups that are counted apart at a time; the excess shares one [default: 16384]
    #[arg(
        long = "cgroup.max",
        global = true,
        value_name = "N",
        env = "CGMETER_CGROUP_MAX"
    )]
    pub cgroup_max: Option<u32>,
    /// How long a cgroup is still reported after its end [default: 5m]
    #[arg(
        long = "cgroup.linger",
        global = true,
        value_name = "DURATION",
        env = "CGMETER_CGROUP_LINGER"
    )]
    pub linger: Option<String>,
    /// Most cgroups that have series of their own; the excess counts in its parents [default: 10000]
    #[arg(
        long = "cgroup.export-max",
        global = true,
        value_name = "N",
        env = "CGMETER_CGROUP_EXPORT_MAX"
    )]
    pub export_max: Option<usize>,
    /// Export only containers, pods and units called so: name=REGEX, image=REGEX or namespace=REGEX;
    /// may be given several times: one of each field must match
    #[arg(
        long = "container.include",
        global = true,
        value_name = "FIELD=REGEX",
        env = "CGMETER_CONTAINER_INCLUDE"
    )]
    pub container_include: Option<Vec<String>>,
    /// Don't export containers, pods and units called so; may be given several times
    #[arg(
        long = "container.exclude",
        global = true,
        value_name = "FIELD=REGEX",
        env = "CGMETER_CONTAINER_EXCLUDE"
    )]
    pub container_exclude: Option<Vec<String>>,
    /// Labels of containers that their series get as container_label_NAME, `PREFIX*` and `*` included;
    /// may be given several times [default: docker-compose's project, service and working directory]
    #[arg(
        long = "container.label",
        global = true,
        value_name = "NAME",
        env = "CGMETER_CONTAINER_LABEL",
        value_delimiter = ','
    )]
    pub container_label: Option<Vec<String>>,
    /// Container runtimes to ask for names: auto, none, docker, podman, containerd or crio, each of
    /// the last four with =unix://SOCKET where it isn't the usual one; may be given several times
    /// [default: auto]
    #[arg(
        long = "container.runtime",
        global = true,
        value_name = "RUNTIME",
        env = "CGMETER_CONTAINER_RUNTIME",
        value_delimiter = ','
    )]
    pub container_runtime: Option<Vec<String>>,
    /// Run only the sources that are switched on by --collector.NAME
    #[arg(
        long = "collector.disable-defaults",
        global = true,
        env = "CGMETER_COLLECTOR_DISABLE_DEFAULTS"
    )]
    pub disable_defaults: bool,
    /// What custom metrics' own names begin with [default: custom_]
    #[arg(
        long = "custom.prefix",
        global = true,
        value_name = "NAME",
        env = "CGMETER_CUSTOM_PREFIX"
    )]
    pub custom_prefix: Option<String>,
    /// How often applications' endpoints and text files are read [default: 15s]
    #[arg(
        long = "custom.interval",
        global = true,
        value_name = "DURATION",
        env = "CGMETER_CUSTOM_INTERVAL"
    )]
    pub custom_interval: Option<String>,
    /// How long an endpoint may take for its whole answer [default: 5s]
    #[arg(
        long = "custom.timeout",
        global = true,
        value_name = "DURATION",
        env = "CGMETER_CUSTOM_TIMEOUT"
    )]
    pub custom_timeout: Option<String>,
    /// Longest answer of an endpoint, longest text file [default: 1048576]
    #[arg(
        long = "custom.max-body",
        global = true,
        value_name = "BYTES",
        env = "CGMETER_CUSTOM_MAX_BODY"
    )]
    pub custom_max_body: Option<usize>,
    /// Most samples of custom metrics that a cgroup may have [default: 1000]
    #[arg(
        long = "custom.max-samples",
        global = true,
        value_name = "N",
        env = "CGMETER_CUSTOM_MAX_SAMPLES"
    )]
    pub custom_max_samples: Option<usize>,
    /// Drop custom metrics that are older [default: 5m for text files, 3 intervals for endpoints]
    #[arg(
        long = "custom.max-age",
        global = true,
        value_name = "DURATION",
        env = "CGMETER_CUSTOM_MAX_AGE"
    )]
    pub custom_max_age: Option<String>,
    /// Read text files (*.prom) from a directory
    #[arg(
        long = "custom.textfile-directory",
        global = true,
        value_name = "DIR",
        env = "CGMETER_CUSTOM_TEXTFILE_DIRECTORY"
    )]
    pub custom_textfile_directory: Option<PathBuf>,
    /// Also ask endpoints of containers that share the host's network namespace
    #[arg(
        long = "custom.host-network",
        global = true,
        env = "CGMETER_CUSTOM_HOST_NETWORK"
    )]
    pub custom_host_network: bool,
    /// What to log [default: info]
    #[arg(
        long = "log.level",
        global = true,
        value_name = "LEVEL",
        env = "CGMETER_LOG_LEVEL"
    )]
    pub log_level: Option<LogLevel>,
    /// How to log [default: logfmt]
    #[arg(
        long = "log.format",
        global = true,
        value_name = "FORMAT",
        env = "CGMETER_LOG_FORMAT"
    )]
    pub log_format: Option<LogFormat>,
    /// Sources switched on or off by --collector.NAME and --no-collector.NAME.
    #[arg(skip)]
    pub collectors: Vec<(&'static str, bool)>,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Meter and serve
    Run,
    /// Say what this host and kernel allow, and what not and why
    Check,
    /// Ask the running agent whether it is ready: for containers without a shell
    Healthcheck,
    /// Print one snapshot
    Dump {
        /// How to print it
        #[arg(long, default_value = "text")]
        format: DumpFormat,
    },
    /// Print the reference of all metrics
    Metrics {
        /// How to print it
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

/// Formats of `cgmeter metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReferenceFormat {
    /// Plain text
    Text,
    /// Markdown, as in docs/metrics.md
    Markdown,
}

/// The parser: the flags above, and a pair for each source.
pub fn command() -> clap::Command {
    SOURCES.iter().fold(Cli::command(), |command, source| {
        let name = source.requirement.source;
        let on = Arg::new(format!("collector.{name}"))
            .long(format!("collector.{name}"))
            .help(format!("Switch the source {name} on (it is by default)"))
            .global(true)
            .action(ArgAction::SetTrue);
        let off = Arg::new(format!("no-collector.{name}"))
            .long(format!("no-collector.{name}"))
            .help(format!("Switch the source {name} off"))
            .global(true)
            .conflicts_with(format!("collector.{name}"))
            .action(ArgAction::SetTrue);
        command.arg(on).arg(off)
    })
}

/// Parses a command line, program name first.
///
/// # Errors
///
/// clap's, which say what is wrong and what comes near it.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    for source in SOURCES {
        let name = source.requirement.source;
        if matches.get_flag(&format!("collector.{name}")) {
            cli.collectors.push((name, true));
        }
        if matches.get_flag(&format!("no-collector.{name}")) {
            cli.collectors.push((name, false));
        }
    }
    Ok(cli)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_after_the_command() {
        for line in ["cgmeter --cgroup.max 5 dump", "cgmeter dump --cgroup.max 5"] {
            let cli = parsed(line).unwrap();
            assert_eq!(cli.cgroup_max, Some(5));
            assert!(matches!(cli.command, Some(Command::Dump { .. })));
        }
    }

    #[test]
    fn collectors() {
        let cli = parsed("cgmeter --no-collector.sched --collector.cpu").unwrap();
        assert_eq!(cli.collectors, [("sched", false), ("cpu", true)]);
        assert!(parsed("cgmeter --no-collector.sched --collector.sched").is_err());
    }

    #[test]
    fn a_misspelt_flag_is_told_its_nearest() {
        let error = parsed("cgmeter --web.listen-adress x")
            .unwrap_err()
            .to_string();
        assert!(error.contains("--web.listen-address"), "{error}");
    }
}
