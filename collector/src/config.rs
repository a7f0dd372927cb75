//! Settings: what flags, environment and configuration file mean together.
//!
//! A flag wins over its environment variable, that over the file, that over the default.
//! Everything is validated here; what comes out can be used as it is.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use regex::Regex;
use serde::Deserialize;

use crate::{
    cgroup::{AllowList, Export, Filter, Rule, RuleError, Rules},
    cli::Cli,
    custom::{self, Endpoint},
    log::{LogFormat, LogLevel},
    runtime::Choice,
    source::SOURCES,
};

/// A setting that can't be used: one line that says where it stands and what was expected.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// Validated settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `--web.listen-address`
    pub listen: Vec<SocketAddr>,
    /// `--web.telemetry-path`
    pub telemetry_path: String,
    /// `--web.min-interval`
    pub min_interval: Duration,
    /// `--web.max-requests`
    pub max_requests: usize,
    /// Sources that are switched on.
    pub sources: Vec<&'static str>,
    /// `--cgroup.root`
    pub cgroup_root: Option<PathBuf>,
    /// `--cgroup.include`, `--cgroup.exclude`, `--cgroup.export-max`, `--container.include`,
    /// `--container.exclude`, `--container.label`
    pub export: Export,
    /// `--container.runtime`
    pub runtimes: Choice,
    /// `--cgroup.max`
    pub cgroup_max: u32,
    /// `--cgroup.linger`
    pub linger: Duration,
    /// `--custom.*`
    pub custom: custom::Options,
    /// `--log.level`
    pub log_level: LogLevel,
    /// `--log.format`
    pub log_format: LogFormat,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    web: WebTable,
    collector: BTreeMap<String, bool>,
    cgroup: CgroupTable,
    custom: CustomTable,
    container: ContainerTable,
    log: LogTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct WebTable {
    listen_address: Option<Vec<String>>,
    telemetry_path: Option<String>,
    min_interval: Option<String>,
    max_requests: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct CgroupTable {
    root: Option<PathBuf>,
    include: Option<String>,
    exclude: Option<String>,
    max: Option<u32>,
    export_max: Option<usize>,
    linger: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct ContainerTable {
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    label: Option<Vec<String>>,
    runtime: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct LogTable {
    level: Option<LogLevel>,
    format: Option<LogFormat>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct CustomTable {
    prefix: Option<String>,
    interval: Option<String>,
    timeout: Option<String>,
    max_body: Option<usize>,
    max_samples: Option<usize>,
    max_age: Option<String>,
    host_network: Option<bool>,
    textfile_directory: Option<PathBuf>,
    endpoint: Vec<EndpointTable>,
}

/// An endpoint of every cgroup that fits all of the expressions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct EndpointTable {
    id: Option<String>,
    name: Option<String>,
    image: Option<String>,
    namespace: Option<String>,
    port: u16,
    path: Option<String>,
    interval: Option<String>,
}

/// `[collector]`'s key beside the sources' names.
const DISABLE_DEFAULTS: &str = "disable-defaults";

impl Settings {
    /// Puts the settings together.
    ///
    /// # Errors
    ///
    /// At the first one that can't be used.
    pub fn resolve(cli: &Cli) -> Result<Self, ConfigError> {
        Self::resolve_in(cli, |name| std::env::var(name).ok())
    }

    /// With an environment of the caller's. Most of it has been taken in by the command line's
    /// parser; what is left are the sources, whose flags are pairs.
    fn resolve_in(
        cli: &Cli,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let file = match &cli.config_file {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let listen = cli
            .listen_address
            .clone()
            .or(file.web.listen_address)
            .unwrap_or_else(|| vec!["127.0.0.1:10295".to_owned()]);
        let listen = listen
            .iter()
            .map(|text| addresses(text))
            .collect::<Result<Vec<_>, _>>()?;
        let telemetry_path = cli
            .telemetry_path
            .clone()
            .or(file.web.telemetry_path)
            .unwrap_or("/metrics".to_owned());
        if !telemetry_path.starts_with('/') || telemetry_path.len() < 2 {
            return Err(invalid(
                "web.telemetry-path",
                &telemetry_path,
                "a path such as /metrics",
            ));
        }
        let cgroup_max = cli.cgroup_max.or(file.cgroup.max).unwrap_or(16_384);
        if !(1..=1_048_576).contains(&cgroup_max) {
            let text = cgroup_max.to_string();
            return Err(invalid("cgroup.max", &text, "a number from 1 to 1048576"));
        }
        let max_requests = cli.max_requests.or(file.web.max_requests).unwrap_or(40);
        if max_requests == 0 {
            return Err(invalid("web.max-requests", "0", "a number from 1 on"));
        }
        let runtimes = cli
            .container_runtime
            .clone()
            .or(file.container.runtime.clone());
        let runtimes = runtimes.map_or_else(|| Ok(Choice::default()), |words| choice(&words))?;
        let export = export(cli, &file.cgroup, &file.container)?;
        Ok(Self {
            listen: listen.into_iter().flatten().collect(),
            telemetry_path,
            min_interval: duration(
                "web.min-interval",
                cli.min_interval
                    .as_deref()
                    .or(file.web.min_interval.as_deref())
                    .unwrap_or("250ms"),
            )?,
            max_requests,
            sources: sources(cli, &file.collector, environment)?,
            cgroup_root: cli.cgroup_root.clone().or(file.cgroup.root),
            export,
            runtimes,
            cgroup_max,
            linger: duration(
                "cgroup.linger",
                cli.linger
                    .as_deref()
                    .or(file.cgroup.linger.as_deref())
                    .unwrap_or("5m"),
            )?,
            custom: custom(cli, file.custom)?,
            log_level: cli.log_level.or(file.log.level).unwrap_or(LogLevel::Info),
            log_format: cli
                .log_format
                .or(file.log.format)
                .unwrap_or(LogFormat::Logfmt),
        })
    }
}

/// Settings of custom metrics.
fn custom(cli: &Cli, table: CustomTable) -> Result<custom::Options, ConfigError> {
    let defaults = custom::Options::default();
    let prefix = cli.custom_prefix.clone().or(table.prefix);
    let prefix = prefix.unwrap_or(defaults.prefix);
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if !prefix.chars().all(legal) || prefix.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(invalid(
            "custom.prefix",
            &prefix,
            "the beginning of a metric's name, such as custom_",
        ));
    }
    let time = |key: &str, flag: &Option<String>, table: Option<String>| {
        let text = flag.clone().or(table);
        let time = text.as_deref().map(|text| positive(key, text));
        time.transpose()
    };
    let interval = time("custom.interval", &cli.custom_interval, table.interval)?;
    let interval = interval.unwrap_or(defaults.interval);
    let size = |key, flag: Option<usize>, table: Option<usize>, default, max: usize| {
        let size = flag.or(table).unwrap_or(default);
        if (1..=max).contains(&size) {
            return Ok(size);
        }
        Err(invalid(
            key,
            &size.to_string(),
            &format!("a number from 1 to {max}"),
        ))
    };
    let rules = table
        .endpoint
        .into_iter()
        .enumerate()
        .map(|(at, rule)| endpoint(at + 1, rule, interval))
        .collect::<Result<_, _>>()?;
    Ok(custom::Options {
        prefix,
        interval,
        timeout: time("custom.timeout", &cli.custom_timeout, table.timeout)?
            .unwrap_or(defaults.timeout),
        max_body: size(
            "custom.max-body",
            cli.custom_max_body,
            table.max_body,
            defaults.max_body,
            64 << 20,
        )?,
        max_samples: size(
            "custom.max-samples",
            cli.custom_max_samples,
            table.max_samples,
            defaults.max_samples,
            100_000,
        )?,
        max_age: time("custom.max-age", &cli.custom_max_age, table.max_age)?,
        host_network: cli.custom_host_network || table.host_network.unwrap_or(false),
        textfile_directory: cli
            .custom_textfile_directory
            .clone()
            .or(table.textfile_directory),
        rules,
    })
}

/// The so-manieth `[[custom.endpoint]]`.
fn endpoint(
    number: usize,
    table: EndpointTable,
    interval: Duration,
) -> Result<custom::Rule, ConfigError> {
    let key = |name: &str| format!("custom.endpoint[{number}].{name}");
    if table.port == 0 {
        return Err(in_file(&key("port"), "0", "a port from 1 to 65535"));
    }
    let expressions = [&table.id, &table.name, &table.image, &table.namespace];
    if expressions.iter().all(|expression| expression.is_none()) {
        return Err(ConfigError(format!(
            "custom.endpoint[{number}] is for no cgroup: expected a regular expression as id, name, \
             image or namespace"
        )));
    }
    let path = table.path.unwrap_or("/metrics".to_owned());
    let Some(request) = custom::path_of(&path) else {
        return Err(in_file(&key("path"), &path, "a path such as /metrics"));
    };
    let expression = |name: &str, text: Option<String>| {
        // These are no flags.
        let told = |error: ConfigError| ConfigError(error.0.replacen("--", "", 1));
        regex(&key(name), text).map_err(told)
    };
    Ok(custom::Rule {
        id: expression("id", table.id)?,
        name: expression("name", table.name)?,
        image: expression("image", table.image)?,
        namespace: expression("namespace", table.namespace)?,
        endpoint: Endpoint {
            port: table.port,
            path: request,
            interval: match table.interval {
                Some(text) => positive(&key("interval"), &text)
                    .map_err(|error| ConfigError(error.0.replacen("--", "", 1)))?,
                None => interval,
            },
        },
    })
}

/// Environment variables that look like settings and are none.
pub fn unknown_variables() -> Vec<String> {
    let command = crate::cli::command();
    let known: Vec<String> = command
        .get_arguments()
        .filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned))
        .chain(
            SOURCES
                .iter()
                .map(|source| source_variable(source.requirement.source)),
        )
        .collect();
    let mut unknown: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("CGMETER_") && !known.contains(name))
        .collect();
    unknown.sort();
    unknown
}

/// The environment variable of a source.
fn source_variable(name: &str) -> String {
    format!(
        "CGMETER_COLLECTOR_{}",
        name.to_uppercase().replace('-', "_")
    )
}

fn sources(
    cli: &Cli,
    table: &BTreeMap<String, bool>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Vec<&'static str>, ConfigError> {
    let defaults = !(cli.disable_defaults || table.get(DISABLE_DEFAULTS).copied().unwrap_or(false));
    let mut on = Vec::new();
    for name in SOURCES.iter().map(|source| source.requirement.source) {
        let flag = cli.collectors.iter().find(|(found, _)| *found == name);
        let variable = source_variable(name);
        let set = match (flag, environment(&variable)) {
            (Some((_, on)), _) => Some(*on),
            (None, None) => None,
            (None, Some(text)) => Some(text.parse().map_err(|_| {
                ConfigError(format!("{variable}: {text:?} is neither true nor false"))
            })?),
        };
        if set.or(table.get(name).copied()).unwrap_or(defaults) {
            on.push(name);
        }
    }
    Ok(on)
}

/// Labels that are exported if nothing is said: what dashboards of docker-compose ask for.
const COMPOSE_LABELS: [&str; 3] = [
    "com.docker.compose.project",
    "com.docker.compose.service",
    "com.docker.compose.project.working_dir",
];

fn export(
    cli: &Cli,
    cgroup: &CgroupTable,
    container: &ContainerTable,
) -> Result<Export, ConfigError> {
    let max = cli.export_max.or(cgroup.export_max).unwrap_or(10_000);
    if max == 0 {
        return Err(invalid("cgroup.export-max", "0", "a number from 1 on"));
    }
    let text = |flag: &Option<String>, file: &Option<String>| flag.clone().or(file.clone());
    let include = text(&cli.include, &cgroup.include);
    let exclude = text(&cli.exclude, &cgroup.exclude);
    let list =
        |flag: &Option<Vec<String>>, file: &Option<Vec<String>>| flag.clone().or(file.clone());
    let included = list(&cli.container_include, &container.include);
    let excluded = list(&cli.container_exclude, &container.exclude);
    let labels = list(&cli.container_label, &container.label)
        .unwrap_or_else(|| COMPOSE_LABELS.map(str::to_owned).to_vec());
    Ok(Export {
        filter: Filter {
            include: regex("cgroup.include", include)?,
            exclude: regex("cgroup.exclude", exclude)?,
            containers: Rules {
                include: rules("container.include", &included.unwrap_or_default())?,
                exclude: rules("container.exclude", &excluded.unwrap_or_default())?,
            },
        },
        labels: AllowList::new(labels.iter().map(String::as_str)).map_err(|error| {
            let expected = format!("a list of labels such as app,com.example.* ({error})");
            invalid("container.label", &labels.join(","), &expected)
        })?,
        max,
    })
}

fn rules(key: &str, texts: &[String]) -> Result<Vec<Rule>, ConfigError> {
    let parse = |text: &String| {
        text.parse().map_err(|error| {
            let expected = match error {
                RuleError::Field => error.to_string(),
                RuleError::Regex(error) => format!("a regular expression ({})", why(&error)),
            };
            invalid(key, text, &expected)
        })
    };
    texts.iter().map(parse).collect()
}

fn choice(words: &[String]) -> Result<Choice, ConfigError> {
    let expected = "auto, none, docker, podman, containerd or crio, or one of the last four with \
                    =unix:///PATH/OF/SOCKET";
    let parsed = words.iter().map(|word| {
        word.parse()
            .map_err(|()| invalid("container.runtime", word, expected))
    });
    let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    Choice::new(parsed).ok_or_else(|| {
        let expected = "either none or a list without it";
        invalid("container.runtime", &words.join(","), expected)
    })
}

fn invalid(key: &str, value: &str, expected: &str) -> ConfigError {
    ConfigError(format!("--{key}: {value:?} is not {expected}"))
}

fn in_file(key: &str, value: &str, expected: &str) -> ConfigError {
    ConfigError(format!("{key}: {value:?} is not {expected}"))
}

/// A duration that isn't so short that work would never end.
fn positive(key: &str, text: &str) -> Result<Duration, ConfigError> {
    let found = duration(key, text)?;
    if found < Duration::from_millis(100) {
        return Err(invalid(key, text, "a duration of 100ms or more"));
    }
    Ok(found)
}

fn addresses(text: &str) -> Result<Vec<SocketAddr>, ConfigError> {
    // `:10295` is how Prometheus's exporters say "every address".
    let full = if text.starts_with(':') {
        format!("[::]{text}")
    } else {
        text.to_owned()
    };
    let found: Vec<SocketAddr> = full
        .to_socket_addrs()
        .map_err(|error| {
            let expected = format!("ADDRESS:PORT, such as 127.0.0.1:10295 ({error})");
            invalid("web.listen-address", text, &expected)
        })?
        .collect();
    Ok(found)
}

fn duration(key: &str, text: &str) -> Result<Duration, ConfigError> {
    humantime::parse_duration(text).map_err(|error| {
        invalid(
            key,
            text,
            &format!("a duration such as 5m or 250ms ({error})"),
        )
    })
}

fn regex(key: &str, text: Option<String>) -> Result<Option<Regex>, ConfigError> {
    text.map(|text| {
        Regex::new(&text).map_err(|error| {
            invalid(
                key,
                &text,
                &format!("a regular expression ({})", why(&error)),
            )
        })
    })
    .transpose()
}

/// The last line of what the parser of expressions says.
fn why(error: &regex::Error) -> String {
    let text = error.to_string();
    let line = text.lines().last().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(format!("--config.file {}: {error}", path.display())))?;
    parse(&text).map_err(|(at, message)| {
        let (line, column) = position(&text, at);
        ConfigError(format!("{}:{line}:{column}: {message}", path.display()))
    })
}

/// The file, or a byte position and what is wrong there.
fn parse(text: &str) -> Result<File, (usize, String)> {
    let file: File = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        (at, with_nearest(error.message()))
    })?;
    let known: Vec<&str> = SOURCES
        .iter()
        .map(|source| source.requirement.source)
        .chain([DISABLE_DEFAULTS])
        .collect();
    if let Some(unknown) = file
        .collector
        .keys()
        .find(|key| !known.contains(&key.as_str()))
    {
        let at = text.find(unknown.as_str()).unwrap_or(0);
        let quoted: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
        let message = format!(
            "unknown field `{unknown}`, expected one of {}",
            quoted.join(", ")
        );
        return Err((at, with_nearest(&message)));
    }
    Ok(file)
}

/// Adds the nearest valid key to serde's "unknown field `a`, expected one of `b`, `c`".
fn with_nearest(message: &str) -> String {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(unknown) = message
        .starts_with("unknown field")
        .then(|| quoted.next())
        .flatten()
    else {
        return message;
    };
    let nearest = quoted
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().div_ceil(2));
    match nearest {
        Some((_, known)) => format!("{message}; did you mean `{known}`?"),
        None => message,
    }
}

fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(line: &str) -> Cli {
        crate::cli::parse(line.split(' ').map(Into::into)).unwrap()
    }

    fn error(line: &str) -> String {
        Settings::resolve(&cli(line)).unwrap_err().to_string()
    }

    fn file_error(text: &str) -> String {
        let (at, message) = parse(text).unwrap_err();
        let (line, column) = position(text, at);
        format!("{line}:{column}: {message}")
    }

    #[test]
    fn defaults() {
        let settings = Settings::resolve(&cli("cgmeter")).unwrap();
        assert_eq!(settings.listen, ["127.0.0.1:10295".parse().unwrap()]);
        assert_eq!(settings.linger, Duration::from_secs(300));
        assert_eq!(settings.min_interval, Duration::from_millis(250));
        assert_eq!(settings.sources.len(), SOURCES.len());
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let path = std::env::temp_dir().join(format!("cgmeter-config-{}.toml", std::process::id()));
        std::fs::write(
            &path,
            "[web]\nlisten-address = [\"[::1]:1\", \"127.0.0.1:2\"]\n[cgroup]\nmax = 7\n\
             linger = \"1h30m\"\n[collector]\nsched = false\n",
        )
        .unwrap();
        let line = format!("cgmeter --cgroup.max 9 --config.file {}", path.display());
        let settings = Settings::resolve(&cli(&line)).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(settings.cgroup_max, 9);
        assert_eq!(settings.linger, Duration::from_secs(5400));
        assert_eq!(settings.listen.len(), 2);
        assert!(!settings.sources.contains(&"sched"));
        assert!(settings.sources.contains(&"cpu"));
    }

    #[test]
    fn a_source_s_variable_stands_between_flag_and_file() {
        let environment =
            |name: &str| (name == "CGMETER_COLLECTOR_SCHED").then(|| "false".to_owned());
        let sources = |line| {
            Settings::resolve_in(&cli(line), environment)
                .unwrap()
                .sources
        };
        assert!(!sources("cgmeter").contains(&"sched"));
        assert!(sources("cgmeter --collector.sched").contains(&"sched"));
        let error = Settings::resolve_in(&cli("cgmeter"), |_| Some("perhaps".to_owned()));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("CGMETER_COLLECTOR_")
        );
    }

    #[test]
    fn defaults_can_be_switched_off() {
        let settings =
            Settings::resolve(&cli("cgmeter --collector.disable-defaults --collector.cpu"))
                .unwrap();
        assert_eq!(settings.sources, ["cpu"]);
    }

    #[test]
    fn bad_values_say_what_was_expected() {
        assert!(error("cgmeter --cgroup.linger soon").contains("--cgroup.linger: \"soon\""));
        assert!(error("cgmeter --cgroup.max 0").contains("1 to 1048576"));
        assert!(error("cgmeter --web.listen-address 10295").contains("ADDRESS:PORT"));
        assert!(error("cgmeter --web.telemetry-path metrics").contains("such as /metrics"));
        assert!(error("cgmeter --cgroup.include (").contains("regular expression"));
        assert!(error("cgmeter --config.file /nonexistent").contains("/nonexistent"));
        assert!(error("cgmeter --cgroup.export-max 0").contains("--cgroup.export-max: \"0\""));
        let rule = error("cgmeter --container.include web");
        assert!(
            rule.contains("--container.include: \"web\" is not name=REGEX, image=REGEX"),
            "{rule}"
        );
        let rule = error("cgmeter --container.exclude image=(");
        assert!(
            rule.contains("--container.exclude: \"image=(\" is not a regular expression (unclosed"),
            "{rule}"
        );
        let runtime = error("cgmeter --container.runtime docker=/run/docker.sock");
        assert!(
            runtime.contains("--container.runtime: \"docker=/run/docker.sock\" is not auto, none"),
            "{runtime}"
        );
        let runtime = error("cgmeter --container.runtime auto,none");
        assert!(runtime.contains("without it"), "{runtime}");
        let label = error("cgmeter --container.label a,*b");
        assert!(label.contains("--container.label: \"a,*b\""), "{label}");
    }

    #[test]
    fn labels_and_rules_for_containers() {
        let export = |line| Settings::resolve(&cli(line)).unwrap().export;
        let labels = export("cgmeter").labels;
        assert!(labels.allows("com.docker.compose.service") && !labels.allows("team"));
        let labels = export("cgmeter --container.label team --container.label a.*,b").labels;
        assert!(labels.allows("team") && labels.allows("a.b") && labels.allows("b"));
        assert!(!labels.allows("com.docker.compose.service"));
        assert!(!export("cgmeter --container.label=").labels.allows("a"));
        let line = "cgmeter --container.include name=a,b --container.include image=c";
        let rules = export(line).filter.containers;
        assert_eq!((rules.include.len(), rules.exclude.len()), (2, 0));
        assert_eq!(export("cgmeter").max, 10_000);
        let text =
            "[container]\nlabel = [\"x\"]\nexclude = [\"name=y\"]\n[cgroup]\nexport-max = 5\n";
        let file = parse(text).unwrap();
        let export = super::export(&cli("cgmeter"), &file.cgroup, &file.container).unwrap();
        assert!(export.labels.allows("x") && export.max == 5);
        assert_eq!(export.filter.containers.exclude.len(), 1);
    }

    #[test]
    fn custom_metrics() {
        let defaults = Settings::resolve(&cli("cgmeter")).unwrap().custom;
        assert_eq!(defaults.file_age(), Duration::from_secs(300));
        assert_eq!(
            defaults.endpoint_age(defaults.interval),
            Duration::from_secs(45)
        );
        let line = "cgmeter --custom.prefix app: --custom.max-age 1m --custom.host-network \
                    --custom.textfile-directory /x";
        let custom = Settings::resolve(&cli(line)).unwrap().custom;
        assert_eq!(custom.prefix, "app:");
        assert_eq!(custom.endpoint_age(custom.interval), custom.file_age());
        assert!(custom.host_network && custom.textfile_directory.is_some());
        for (line, told) in [
            (
                "--custom.prefix 1a",
                "--custom.prefix: \"1a\" is not the beginning",
            ),
            (
                "--custom.interval 0s",
                "--custom.interval: \"0s\" is not a duration of 100ms",
            ),
            ("--custom.timeout soon", "--custom.timeout: \"soon\""),
            (
                "--custom.max-body 0",
                "--custom.max-body: \"0\" is not a number from 1 to",
            ),
            ("--custom.max-samples 100001", "1 to 100000"),
        ] {
            let error = error(&format!("cgmeter {line}"));
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn endpoints_of_custom_metrics() {
        let rules = |text: &str| {
            let file = parse(text).unwrap();
            custom(&cli("cgmeter"), file.custom).map(|custom| custom.rules)
        };
        let text = "[custom]\ninterval = \"7s\"\n[[custom.endpoint]]\nid = \"^/a$\"\nport = 1\n\
                    [[custom.endpoint]]\nname = \"b\"\nport = 2\npath = \"x\"\ninterval = \"1m\"\n";
        let found: Vec<Endpoint> = rules(text)
            .unwrap()
            .into_iter()
            .map(|rule| rule.endpoint)
            .collect();
        let endpoint = |port, path: &str, seconds| Endpoint {
            port,
            path: path.to_owned(),
            interval: Duration::from_secs(seconds),
        };
        assert_eq!(found, [endpoint(1, "/metrics", 7), endpoint(2, "/x", 60)]);
        for (keys, told) in [
            ("port = 1", "custom.endpoint[1] is for no cgroup"),
            (
                "id = \"a\"\nport = 0",
                "custom.endpoint[1].port: \"0\" is not a port",
            ),
            (
                "id = \"(\"\nport = 1",
                "custom.endpoint[1].id: \"(\" is not a regular expression",
            ),
            ("id = \"a\"\nport = 1\npath = \"/a b\"", "such as /metrics"),
            (
                "id = \"a\"\nport = 1\ninterval = \"0s\"",
                "custom.endpoint[1].interval: \"0s\"",
            ),
        ] {
            let error = rules(&format!("[[custom.endpoint]]\n{keys}\n")).unwrap_err();
            let error = error.to_string();
            assert!(
                error.starts_with("custom.endpoint[1]") && error.contains(told),
                "{error}"
            );
        }
        assert!(file_error("[[custom.endpoint]]\nid = \"a\"\n").contains("missing field `port`"));
    }

    #[test]
    fn unknown_keys_are_told_line_and_nearest() {
        let text = "[web]\nmax-requests = 3\n\n[cgroup]\nlingre = \"5m\"\n";
        let message = file_error(text);
        assert!(
            message.starts_with("5:1: unknown field `lingre`"),
            "{message}"
        );
        assert!(message.ends_with("did you mean `linger`?"), "{message}");
        let message = file_error("[collector]\nsched = true\nproces = true\n");
        assert!(
            message.starts_with("3:1: unknown field `proces`"),
            "{message}"
        );
        assert!(message.ends_with("did you mean `process`?"), "{message}");
    }

    #[test]
    fn wrong_types_are_told_line_and_type() {
        let message = file_error("[cgroup]\nmax = \"many\"\n");
        assert!(
            message.starts_with("2:7: invalid type: string \"many\", expected u32"),
            "{message}"
        );
        assert!(file_error("[log]\nlevel = \"loud\"\n").contains("expected one of"));
        assert!(file_error("[web\n").starts_with("1:"));
    }
}
