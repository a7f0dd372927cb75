//! The table of settings. To add one, add a row to [`table`], and the field that the row sets:
//! here, or in the options of the module that uses it, such as `WebOptions`.
//!
//! The flag, the environment variable, the key of the configuration file, `--help` and
//! docs/configuration.md follow from the row.

use std::{
    collections::BTreeMap, ffi::OsString, net::SocketAddr, path::PathBuf, sync::LazyLock,
    time::Duration,
};

use collector_common::netdev::NAMESPACES;

use super::{
    DefaultValue::{Unset, Value},
    Setting,
    SettingKind::{Choice, CommaList, Duration as Time, List, Number, Path, Source, Switch, Text},
    value,
};
use crate::{
    agent,
    cgroup::DeadMax,
    log::{LogFormat, LogLevel},
    runtime,
    source::SOURCES,
    web,
};

/// Validated settings.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `--config.file`
    pub config_file: Option<PathBuf>,
    /// `--web.listen-address`, at least one.
    pub listen: Vec<SocketAddr>,
    /// `--web.*`
    pub web: web::WebOptions,
    /// `--cgroup.*`, `--custom.*`, `--netdev.*`, the sources, and what is exported.
    pub agent: agent::AgentOptions,
    /// `--container.runtime`
    pub runtimes: runtime::Choice,
    /// `--collector.disable-defaults`
    pub disable_defaults: bool,
    /// `--log.level`
    pub log_level: LogLevel,
    /// `--log.format`
    pub log_format: LogFormat,
    /// What was given: the names of settings that don't have their default, and their values.
    pub given: BTreeMap<&'static str, Vec<OsString>>,
}

/// Settings that the running agent takes over on SIGHUP. The others are read at the start only.
pub const RELOADED: &[&str] = &["web.min-interval", "cgroup.linger", "log.level"];

/// Labels of containers that public dashboards ask for: of Compose, swarms, label-schema.org and the OCI.
const DASHBOARDS_LABELS: &str = "com.docker.compose.project,com.docker.compose.service,\
    com.docker.compose.project.working_dir,com.docker.stack.namespace,com.docker.swarm.service.name,\
    com.docker.swarm.task.name,org.label-schema.group,org.label-schema.name,\
    org.opencontainers.image.title";

/// Sections, and their titles in `--help` and documentation.
pub const SECTIONS: &[(&str, &str)] = &[
    (CONFIG, "Configuration file"),
    ("web", "Web server"),
    ("cgroup", "Cgroups"),
    ("container", "Containers"),
    ("collector", "Sources"),
    ("custom", "Custom metrics"),
    ("netdev", "Interfaces"),
    ("state", "Restarts"),
    ("log", "Logging"),
];

/// The section that is not in the configuration file.
pub const CONFIG: &str = "config";

/// Custom metrics are not read more often than this.
pub(super) const LEAST_INTERVAL: Duration = Duration::from_millis(100);

fn table() -> Vec<Setting<Settings>> {
    vec![
        Setting {
            name: "config.file",
            help: "Read settings from this TOML file",
            default: Unset("no file"),
            kind: Path("FILE", |s, path| s.config_file = Some(path)),
        },
        Setting {
            name: "web.listen-address",
            help: "Address to listen on; `:PORT` is every address of the host",
            default: Value("127.0.0.1:10295"),
            kind: CommaList("ADDRESS:PORT", |s, texts| {
                value::addresses(texts).map(|addresses| s.listen = addresses)
            }),
        },
        Setting {
            name: "web.telemetry-path",
            help: "Path of the metrics page",
            default: Value("/metrics"),
            kind: Text("PATH", |s, text| {
                value::telemetry_path(text).map(|path| s.web.telemetry_path = path)
            }),
        },
        Setting {
            name: "web.min-interval",
            help: "Minimum age of a snapshot before a scrape takes a new one",
            default: Value("250ms"),
            kind: Time(Duration::ZERO, |s, time| s.agent.min_interval = time),
        },
        Setting {
            name: "web.max-requests",
            help: "Maximum number of requests to the JSON API at the same time; others get status 503. Scrapes share what is made for them, and none is refused",
            default: Value("40"),
            kind: Number("N", 1..=1_000_000, |s, n| s.web.max_requests = n as usize),
        },
        Setting {
            name: "cgroup.root",
            help: "Root directory of the cgroup2 hierarchy",
            default: Unset("where cgroup2 is mounted"),
            kind: Path("DIR", |s, path| s.agent.root = Some(path)),
        },
        Setting {
            name: "cgroup.include",
            help: "Export only cgroups whose path matches; the others still count in their parents",
            default: Unset("all"),
            kind: Text("REGEX", |s, text| {
                value::regex(text).map(|regex| s.agent.export.filter.include = Some(regex))
            }),
        },
        Setting {
            name: "cgroup.exclude",
            help: "Don't export cgroups whose path matches; they still count in their parents",
            default: Unset("none"),
            kind: Text("REGEX", |s, text| {
                value::regex(text).map(|regex| s.agent.export.filter.exclude = Some(regex))
            }),
        },
        Setting {
            name: "cgroup.max",
            help: "Maximum number of cgroups with counters of their own, a quarter of it for containers, pods and units; the others count in their parents",
            default: Value("16384"),
            kind: Number("N", 1..=1_048_576, |s, n| s.agent.max_slots = n),
        },
        Setting {
            name: "cgroup.export-max",
            help: "Maximum number of cgroups with series of their own; the others count in their parents",
            default: Value("10000"),
            kind: Number("N", 1..=u32::MAX, |s, n| s.agent.export.max = n as usize),
        },
        Setting {
            name: "cgroup.linger",
            help: "How long a removed cgroup is still reported",
            default: Value("5m"),
            kind: Time(Duration::ZERO, |s, time| s.agent.linger = time),
        },
        Setting {
            name: "cgroup.dead-max",
            help: "Maximum number of removed containers, pods and machines that are still reported; beside them, \
               a quarter as many other removed cgroups are. Those above it count in their parents. Containers that no \
               scrape has shown yet leave last, of the others those that have used the most CPU time. \
               Each takes 1.4 to 2 KiB of the agent's memory, and some 5 KB of each scrape",
            default: Value("3800"),
            kind: Number("N", 0..=1_000_000, |s, n| {
                s.agent.dead_max = DeadMax::new(n as usize);
            }),
        },
        Setting {
            name: "container.runtime",
            help: "Container runtimes to ask for names: auto, none, docker, podman, containerd or crio; \
               the last four may have =unix://SOCKET",
            default: Value("auto"),
            kind: CommaList("RUNTIME", |s, words| {
                value::runtimes(words).map(|choice| s.runtimes = choice)
            }),
        },
        Setting {
            name: "container.label",
            help: "Labels of containers to export as container_label_NAME; `PREFIX*` and `*` are allowed",
            default: Value(DASHBOARDS_LABELS),
            kind: CommaList("NAME", |s, patterns| {
                value::labels(patterns).map(|labels| s.agent.export.labels = labels)
            }),
        },
        Setting {
            name: "container.include",
            help: "Export only containers, pods and units that match name=REGEX, unit=REGEX, image=REGEX or \
               namespace=REGEX",
            default: Unset("all"),
            kind: List("FIELD=REGEX", |s, texts| {
                value::rules(texts).map(|rules| s.agent.export.filter.containers.include = rules)
            }),
        },
        Setting {
            name: "container.exclude",
            help: "Don't export containers, pods and units that match name=REGEX, unit=REGEX, image=REGEX or \
               namespace=REGEX",
            default: Unset("none"),
            kind: List("FIELD=REGEX", |s, texts| {
                value::rules(texts).map(|rules| s.agent.export.filter.containers.exclude = rules)
            }),
        },
        Setting {
            name: "collector.disable-defaults",
            help: "Run only the sources that are switched on explicitly",
            default: Value("false"),
            kind: Switch(|s, on| s.disable_defaults = on),
        },
        Setting {
            name: "custom.prefix",
            help: "Prefix of the names of custom metrics; may be empty",
            default: Value("custom_"),
            kind: Text("PREFIX", |s, text| {
                value::metric_prefix(text).map(|prefix| s.agent.custom.prefix = prefix)
            }),
        },
        Setting {
            name: "custom.interval",
            help: "How often applications' endpoints and text files are read",
            default: Value("15s"),
            kind: Time(LEAST_INTERVAL, |s, time| s.agent.custom.interval = time),
        },
        Setting {
            name: "custom.timeout",
            help: "How long a request to an endpoint may take",
            default: Value("5s"),
            kind: Time(LEAST_INTERVAL, |s, time| s.agent.custom.timeout = time),
        },
        Setting {
            name: "custom.max-body",
            help: "Maximum size of an endpoint's answer and of a text file, in bytes",
            default: Value("1048576"),
            kind: Number("BYTES", 1..=64 << 20, |s, n| {
                s.agent.custom.max_body = n as usize;
            }),
        },
        Setting {
            name: "custom.max-samples",
            help: "Maximum number of samples of custom metrics of a cgroup",
            default: Value("1000"),
            kind: Number("N", 1..=100_000, |s, n| {
                s.agent.custom.max_samples = n as usize;
            }),
        },
        Setting {
            name: "custom.max-bytes",
            help: "Maximum size of all custom metrics together, in bytes of a scrape and in bytes of memory; \
               containers share it fairly",
            default: Value("8388608"),
            kind: Number("BYTES", 65_536..=1 << 30, |s, n| {
                s.agent.custom.max_bytes = n as usize;
            }),
        },
        Setting {
            name: "custom.max-age",
            help: "Drop custom metrics that are older than this",
            default: Unset("5m for text files, three intervals for endpoints"),
            kind: Time(LEAST_INTERVAL, |s, time| {
                s.agent.custom.max_age = Some(time)
            }),
        },
        Setting {
            name: "custom.textfile-directory",
            help: "Read text files (*.prom) from this directory",
            default: Unset("none are read"),
            kind: Path("DIR", |s, path| {
                s.agent.custom.textfile_directory = Some(path);
            }),
        },
        Setting {
            name: "custom.host-network",
            help: "Also ask endpoints of containers that share the host's network namespace",
            default: Value("false"),
            kind: Switch(|s, on| s.agent.custom.host_network = on),
        },
        Setting {
            name: "netdev.max-namespaces",
            help: "Maximum number of network namespaces whose interfaces are read, as far as the limit of open files allows",
            default: Value("4096"),
            kind: Number("N", 1..=NAMESPACES, |s, n| {
                s.agent.max_namespaces = n as usize;
            }),
        },
        Setting {
            name: "state.pin",
            help: "Directory of bpffs, such as /sys/fs/bpf/cgmeter, in which programs and maps stay when the                agent ends: they go on counting, and the next agent goes on with the counters.                `cgmeter unload` ends that",
            default: Unset("nothing stays"),
            kind: Path("DIR", |s, path| s.agent.state = Some(path)),
        },
        Setting {
            name: "log.level",
            help: "Least severe messages to log",
            default: Value("info"),
            kind: Choice("LEVEL", value::words::<LogLevel>, |s, text| {
                s.log_level = value::word(text)?;
                s.agent.kernel_log_level = s.log_level.kernel();
                Ok(())
            }),
        },
        Setting {
            name: "log.format",
            help: "Format of log messages",
            default: Value("logfmt"),
            kind: Choice("FORMAT", value::words::<LogFormat>, |s, text| {
                value::word(text).map(|format| s.log_format = format)
            }),
        },
    ]
}

/// Every setting: the rows of the table, and one for each source.
pub fn settings() -> &'static [Setting<Settings>] {
    static ALL: LazyLock<Vec<Setting<Settings>>> = LazyLock::new(|| {
        let sources = SOURCES
            .iter()
            .map(|registration| source(registration.requirement.source));
        table().into_iter().chain(sources).collect()
    });
    &ALL
}

/// Whether a source runs.
fn source(name: &'static str) -> Setting<Settings> {
    Setting {
        name: String::leak(format!("collector.{name}")),
        help: String::leak(format!("Run the source {name}")),
        default: Unset("true, or false with collector.disable-defaults"),
        kind: Source(name, |s, name, on| {
            if on.unwrap_or(!s.disable_defaults) {
                s.agent.sources.push(name);
            }
        }),
    }
}
