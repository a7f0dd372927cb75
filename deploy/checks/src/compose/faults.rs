//! Faults of compose.yaml, by the rules of [`super`].

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use super::{FOLDER, variables};
use crate::root;

/// Addresses of the host that only the host itself and its containers reach.
const INSIDE: [&str; 2] = ["127.0.0.1:", "172.30.95.1:"];

/// The faults of the file, a sentence each.
pub fn faults(text: &str) -> Vec<String> {
    let file: Value = match serde_saphyr::from_str(text) {
        Ok(file) => file,
        Err(error) => return vec![format!("compose.yaml is no YAML: {error}")],
    };
    let mut faults = wanting_variables(text);
    let empty = serde_json::Map::new();
    let services = file["services"].as_object().unwrap_or(&empty);
    if services.is_empty() {
        faults.push("there are no services".to_owned());
    }
    let once = run_once(&file);
    for (name, service) in services {
        let mut of_service = Vec::new();
        health(service, once.contains(name.as_str()), &mut of_service);
        limits(service, &mut of_service);
        image(service, &mut of_service);
        privileges(name, service, &mut of_service);
        addresses(service, &mut of_service);
        mounts(name, service, &mut of_service);
        state(name, service, &mut of_service);
        faults.extend(
            of_service
                .into_iter()
                .map(|fault| format!("{name}: {fault}")),
        );
    }
    faults
}

/// Faults of variables: they must have no default, and be in .env.example without a value.
fn wanting_variables(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for part in text.split("${").skip(1) {
        let inside = part.split('}').next().unwrap_or_default();
        let (name, rest) = inside.split_once(":?").unwrap_or((inside, ""));
        if rest != format!("set {name} in .env") {
            faults.push(format!(
                "${{{inside}}}: expected ${{NAME:?set NAME in .env}}, without a default"
            ));
        }
    }
    let path = root().join(FOLDER).join(".env.example");
    let example = fs::read_to_string(&path).unwrap_or_default();
    let lines = example
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let mut offered: Vec<&str> = Vec::new();
    for line in lines {
        match line.split_once('=') {
            Some((name, "")) => offered.push(name),
            _ => faults.push(format!(
                ".env.example: `{line}` is not NAME= without a value"
            )),
        }
    }
    offered.sort_unstable();
    let wanted = variables(text);
    if offered != wanted {
        faults.push(format!(
            ".env.example offers {offered:?}, wanted are {wanted:?}"
        ));
    }
    faults
}

/// Services whose end others wait for.
fn run_once(file: &Value) -> BTreeSet<&str> {
    let services = file["services"].as_object().into_iter().flatten();
    services
        .filter_map(|(_, service)| service["depends_on"].as_object())
        .flatten()
        .filter(|(_, how)| how["condition"] == "service_completed_successfully")
        .map(|(name, _)| name.as_str())
        .collect()
}

fn health(service: &Value, once: bool, faults: &mut Vec<String>) {
    if once {
        if service["restart"] != "no" {
            faults.push("runs once, yet is started again".to_owned());
        }
        return;
    }
    let test = &service["healthcheck"]["test"];
    let words = test.as_array().map_or(0, Vec::len);
    let kind = test[0].as_str().unwrap_or_default();
    if words < 2 || !["CMD", "CMD-SHELL"].contains(&kind) {
        faults.push("has no health check".to_owned());
    }
    if service["restart"] != "unless-stopped" {
        faults.push("is not started again after a failure".to_owned());
    }
}

fn limits(service: &Value, faults: &mut Vec<String>) {
    for key in ["mem_limit", "cpus", "pids_limit"] {
        if service[key].is_null() {
            faults.push(format!("has no {key}"));
        }
    }
    if service["logging"]["options"]["max-size"].is_null() {
        faults.push("its log may grow without end".to_owned());
    }
}

/// Faults of images: each needs a tag that is a version.
fn image(service: &Value, faults: &mut Vec<String>) {
    let image = service["image"].as_str().unwrap_or_default();
    let last = image.rsplit('/').next().unwrap_or_default();
    let tag = last.split_once(':').map_or("", |(_, tag)| tag);
    let numbers = tag.trim_start_matches('v').split(['.', '-']);
    let version = numbers.take(2).filter(|part| part.parse::<u32>().is_ok());
    if version.count() < 2 {
        faults.push(format!("image {image:?} has no version"));
    }
}

/// Faults of privileges: only the agent has some, and exactly those that its manual lists.
fn privileges(name: &str, service: &Value, faults: &mut Vec<String>) {
    for key in ["privileged", "devices", "userns_mode", "ipc"] {
        if !service[key].is_null() {
            faults.push(format!("has {key}"));
        }
    }
    let unconfined =
        |option: &&Value| option.as_str().unwrap_or_default() == "no-new-privileges:true";
    let options = service["security_opt"].as_array();
    if options.is_none_or(|options| options.iter().filter(unconfined).count() != options.len()) {
        faults.push("security_opt is not [no-new-privileges:true]".to_owned());
    }
    let added: BTreeSet<&str> = strings(&service["cap_add"]).collect();
    let allowed: BTreeSet<&str> = match name {
        "cgmeter" => MANUAL
            .split("--cap-add ")
            .skip(1)
            .filter_map(|rest| rest.split_whitespace().next())
            .collect(),
        // Docker's log files belong to root.
        "filebeat" => ["DAC_READ_SEARCH"].into(),
        _ => BTreeSet::new(),
    };
    if added != allowed {
        faults.push(format!("cap_add is {added:?} instead of {allowed:?}"));
    }
    if !added.is_empty() && !strings(&service["cap_drop"]).any(|word| word == "ALL") {
        faults.push("adds capabilities to Docker's instead of to none".to_owned());
    }
    for key in ["pid", "cgroup", "network_mode"] {
        let wanted = if name == "cgmeter" {
            Value::from("host")
        } else {
            Value::Null
        };
        if service[key] != wanted {
            faults.push(format!("{key} is {} instead of {wanted}", service[key]));
        }
    }
}

/// The manual of the agent's image.
const MANUAL: &str = include_str!("../../../docker/README.md");

/// Faults of addresses: ports must be published on loopback, and a service in the host's network must
/// listen on addresses that other hosts can't reach.
fn addresses(service: &Value, faults: &mut Vec<String>) {
    for port in service["ports"].as_array().into_iter().flatten() {
        let port = port.as_str().unwrap_or_default();
        if !port.starts_with("127.0.0.1:") || port.matches(':').count() != 2 {
            faults.push(format!("port {port:?} is not 127.0.0.1:PORT:PORT"));
        }
    }
    if service["network_mode"] == "host" {
        let listens = service["environment"]["CGMETER_WEB_LISTEN_ADDRESS"].as_str();
        let inside = |address: &str| INSIDE.iter().any(|prefix| address.starts_with(prefix));
        if !listens.is_some_and(|text| text.split(',').all(inside)) {
            faults.push(format!("listens on {listens:?}"));
        }
    }
}

/// Where the agent's counters outlive it. It has to be written.
const BPFFS: &str = "/sys/fs/bpf:/sys/fs/bpf";

/// Faults of the agent's state: its counters outlive its container where the image says.
fn state(name: &str, service: &Value, faults: &mut Vec<String>) {
    const VARIABLE: &str = "CGMETER_STATE_PIN";
    if !service["environment"][VARIABLE].is_null() {
        faults.push(format!("{VARIABLE} is the image's to set"));
    }
    let mounted = strings(&service["volumes"]).any(|volume| volume == BPFFS);
    if mounted != (name == "cgmeter") {
        faults.push(format!("has {BPFFS}: {mounted}"));
    }
}

/// Faults of mounts: files of the repository must exist and be read-only.
fn mounts(name: &str, service: &Value, faults: &mut Vec<String>) {
    for volume in strings(&service["volumes"]) {
        let mut parts = volume.split(':');
        let source = parts.next().unwrap_or_default();
        if !source.starts_with(['.', '/']) {
            continue;
        }
        if parts.next_back() != Some("ro") && (name, volume) != ("cgmeter", BPFFS) {
            faults.push(format!("{volume} can be written"));
        }
        if source.starts_with('.') && !root().join(FOLDER).join(source).exists() {
            faults.push(format!("{source} is not in the repository"));
        }
    }
    if let Some(folder) = service["build"].as_str()
        && !root()
            .join(FOLDER)
            .join(folder)
            .join("Dockerfile")
            .is_file()
    {
        faults.push(format!("{folder} has no Dockerfile"));
    }
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}
