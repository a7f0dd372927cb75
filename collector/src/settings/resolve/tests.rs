//! Settings as the user gives them: command line, environment, and files.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use super::{super::flags::Given, *};
use crate::source::{SOURCES, custom::Endpoint};

fn cli(line: &str) -> Flags {
    let command = clap::Command::new("cgmeter").args(super::super::arguments());
    let matches = command.try_get_matches_from(line.split(' ')).unwrap();
    Flags::of(&matches)
}

fn error(line: &str) -> String {
    Settings::resolve(&cli(line)).unwrap_err().to_string()
}

/// Settings of a configuration file with this text.
fn of_file(text: &str) -> Result<Settings, ConfigError> {
    of_file_and(text, [])
}

/// Settings of a configuration file with this text, and of flags or environment variables.
fn of_file_and(
    text: &str,
    flags: impl IntoIterator<Item = (&'static str, Given)>,
) -> Result<Settings, ConfigError> {
    static FILES: AtomicUsize = AtomicUsize::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let name = format!("cgmeter-settings-{}-{number}.toml", std::process::id());
    let path = env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    let file = Given {
        variable: false,
        values: vec![path.clone().into()],
    };
    let flags = flags.into_iter().chain([("config.file", file)]).collect();
    let resolved = Settings::resolve(&flags);
    std::fs::remove_file(&path).unwrap();
    resolved
}

#[test]
fn defaults() {
    let settings = Settings::resolve(&cli("cgmeter")).unwrap();
    assert_eq!(settings.listen, ["127.0.0.1:10295".parse().unwrap()]);
    assert_eq!(settings.agent.linger, Duration::from_secs(300));
    assert_eq!(settings.agent.min_interval, Duration::from_millis(250));
    assert_eq!(settings.agent.sources.len(), SOURCES.len());
}

#[test]
fn a_flag_wins_over_the_file() {
    let path = env::temp_dir().join(format!("cgmeter-config-{}.toml", std::process::id()));
    std::fs::write(
        &path,
        "[web]\nlisten-address = [\"[::1]:1\", \"127.0.0.1:2\"]\n[cgroup]\nmax = 7\n\
         linger = \"1h30m\"\n[collector]\nsched = false\n",
    )
    .unwrap();
    let line = format!("cgmeter --cgroup.max 9 --config.file {}", path.display());
    let settings = Settings::resolve(&cli(&line)).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(settings.agent.max_slots, 9);
    assert_eq!(settings.agent.linger, Duration::from_secs(5400));
    assert_eq!(settings.listen.len(), 2);
    assert!(!settings.agent.sources.contains(&"sched"));
    assert!(settings.agent.sources.contains(&"cpu"));
}

#[test]
fn a_source_s_variable_stands_between_flag_and_file() {
    let environment = |name: &str| (name == "CGMETER_COLLECTOR_SCHED").then(|| "false".into());
    let sources = |line| {
        Settings::resolve_in(&cli(line), environment)
            .unwrap()
            .agent
            .sources
    };
    assert!(!sources("cgmeter").contains(&"sched"));
    assert!(sources("cgmeter --collector.sched").contains(&"sched"));
    let error = Settings::resolve_in(&cli("cgmeter"), |_| Some("perhaps".into()));
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("CGMETER_COLLECTOR_")
    );
}

#[test]
fn a_switch_s_variable_wins_over_the_file() {
    let switch = |variable: Option<&str>| {
        let given = variable.map(|text| Given {
            variable: true,
            values: vec![text.into()],
        });
        let flags = given.map(|given| ("custom.host-network", given));
        of_file_and("[custom]\nhost-network = true\n", flags)
    };
    let on = |variable| switch(variable).unwrap().agent.custom.host_network;
    assert!(on(None));
    assert!(!on(Some("false")));
    let error = switch(Some("1")).unwrap_err().to_string();
    assert_eq!(
        error,
        "CGMETER_CUSTOM_HOST_NETWORK: \"1\" is not true or false"
    );
}

#[test]
fn defaults_can_be_switched_off() {
    let settings =
        Settings::resolve(&cli("cgmeter --collector.disable-defaults --collector.cpu")).unwrap();
    assert_eq!(settings.agent.sources, ["cpu"]);
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
        rule.contains("--container.include: \"web\" is not name=REGEX, unit=REGEX, image=REGEX"),
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
    let export = |line| Settings::resolve(&cli(line)).unwrap().agent.export;
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
    let text = "[container]\nlabel = [\"x\"]\nexclude = [\"name=y\"]\n[cgroup]\nexport-max = 5\n";
    let export = of_file(text).unwrap().agent.export;
    assert!(export.labels.allows("x") && export.max == 5);
    assert_eq!(export.filter.containers.exclude.len(), 1);
}

#[test]
fn custom_metrics() {
    let defaults = Settings::resolve(&cli("cgmeter")).unwrap().agent.custom;
    assert_eq!(defaults.prefix, "custom_");
    assert_eq!(
        (defaults.interval, defaults.timeout),
        (Duration::from_secs(15), Duration::from_secs(5))
    );
    assert_eq!((defaults.max_body, defaults.max_samples), (1 << 20, 1000));
    assert_eq!(defaults.max_bytes, 8 << 20);
    assert!(defaults.max_age.is_none() && !defaults.host_network && defaults.rules.is_empty());
    assert_eq!(defaults.file_age(), Duration::from_secs(300));
    assert_eq!(
        defaults.endpoint_age(defaults.interval),
        Duration::from_secs(45)
    );
    let line = "cgmeter --custom.prefix app: --custom.max-age 1m --custom.host-network \
                --custom.textfile-directory /x";
    let custom = Settings::resolve(&cli(line)).unwrap().agent.custom;
    assert_eq!(custom.prefix, "app:");
    assert_eq!(custom.endpoint_age(custom.interval), custom.file_age());
    assert!(custom.host_network && custom.textfile_directory.is_some());
    for (line, expected) in [
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
        (
            "--custom.max-bytes 1000",
            "--custom.max-bytes: \"1000\" is not a number from 65536 to",
        ),
    ] {
        let error = error(&format!("cgmeter {line}"));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_linger_of_500_billion_years_does_not_end_the_events_thread() {
    for line in [
        "--cgroup.linger 500000000000y",
        "--web.min-interval 500000000000y",
        "--custom.interval 500000000000y",
        "--custom.timeout 500000000000y",
        "--custom.max-age 500000000000y",
    ] {
        let error = error(&format!("cgmeter {line}"));
        let named = error.starts_with(line.split(' ').next().unwrap());
        assert!(named && error.contains("at most 100 years"), "{error}");
    }
}

#[test]
fn more_requests_at_a_time_than_a_semaphore_has_permits_is_no_panic() {
    let error = error("cgmeter --web.max-requests 2305843009213693952");
    assert!(error.contains("a number from 1 to 1000000"), "{error}");
}

#[test]
fn an_empty_list_of_addresses_is_refused_instead_of_serving_nothing() {
    let error = of_file("[web]\nlisten-address = []\n")
        .unwrap_err()
        .to_string();
    assert!(error.contains("web.listen-address"), "{error}");
    assert!(error.contains("at least one ADDRESS:PORT"), "{error}");
}

#[test]
fn a_telemetry_path_that_hides_another_page_is_refused() {
    for path in [
        "/-/ready",
        "/-/healthy",
        "/api/v1/status",
        "/api/v1/containers/x",
        "/metrics?a=b",
        "/metrics#a",
        "/m\u{e9}trique",
    ] {
        let error = error(&format!("cgmeter --web.telemetry-path {path}"));
        assert!(error.contains("such as /metrics"), "{error}");
    }
}

#[test]
fn a_fifo_as_configuration_does_not_hang() {
    let path = env::temp_dir().join(format!("cgmeter-fifo-{}", std::process::id()));
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    let (send, receive) = std::sync::mpsc::channel();
    let line = format!("cgmeter --config.file {}", path.display());
    std::thread::spawn(move || send.send(error(&line)));
    let answer = receive.recv_timeout(Duration::from_secs(5));
    std::fs::remove_file(&path).unwrap();
    let error = answer.expect("no answer: it waits for a writer");
    assert!(error.contains("regular file"), "{error}");
}

#[test]
fn dev_zero_as_configuration_does_not_eat_the_memory() {
    let error = error("cgmeter --config.file /dev/zero");
    assert!(error.contains("regular file"), "{error}");
}

#[test]
fn endpoints_of_custom_metrics() {
    let rules = |text: &str| of_file(text).map(|settings| settings.agent.custom.rules);
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
    for (keys, expected) in [
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
        let (place, error) = error.split_once(": ").unwrap();
        assert!(place.contains(".toml:"), "{place}");
        assert!(
            error.starts_with("custom.endpoint[1]") && error.contains(expected),
            "{error}"
        );
    }
    let error = rules("[[custom.endpoint]]\nid = \"a\"\n").unwrap_err();
    assert!(
        error.to_string().contains("missing field `port`"),
        "{error}"
    );
}
