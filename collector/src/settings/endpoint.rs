//! `[[custom.endpoint]]`: endpoints of applications that have no labels to announce them.

use std::time::Duration;

use regex::Regex;

use super::{
    DefaultValue::{Required, Unset, Value},
    Setting,
    SettingKind::{Duration as Time, Number, Text},
    entry::{Entries, Wrong},
    table::LEAST_INTERVAL,
    value,
};
use crate::source::custom::{Endpoint, EndpointRule};

/// What one table says.
#[derive(Debug, Default)]
pub struct EndpointDraft {
    id: Option<Regex>,
    name: Option<Regex>,
    unit: Option<Regex>,
    image: Option<Regex>,
    namespace: Option<Regex>,
    port: u16,
    path: String,
    interval: Option<Duration>,
}

/// The keys of a table. At least one of the expressions must be there, and all that are must match.
pub const ENDPOINT_KEYS: &[Setting<EndpointDraft>] = &[
    Setting {
        name: "id",
        help: "Matches the cgroup's path",
        default: Unset("any"),
        kind: Text("REGEX", |draft, text| {
            value::regex(text).map(|regex| draft.id = Some(regex))
        }),
    },
    Setting {
        name: "name",
        help: "Matches the name of the container or machine; in a pod, the container's name there",
        default: Unset("any"),
        kind: Text("REGEX", |draft, text| {
            value::regex(text).map(|regex| draft.name = Some(regex))
        }),
    },
    Setting {
        name: "unit",
        help: "Matches the name of the systemd unit",
        default: Unset("any"),
        kind: Text("REGEX", |draft, text| {
            value::regex(text).map(|regex| draft.unit = Some(regex))
        }),
    },
    Setting {
        name: "image",
        help: "Matches the container's image",
        default: Unset("any"),
        kind: Text("REGEX", |draft, text| {
            value::regex(text).map(|regex| draft.image = Some(regex))
        }),
    },
    Setting {
        name: "namespace",
        help: "Matches the container's Kubernetes namespace",
        default: Unset("any"),
        kind: Text("REGEX", |draft, text| {
            value::regex(text).map(|regex| draft.namespace = Some(regex))
        }),
    },
    Setting {
        name: "port",
        help: "TCP port in the network namespace of the cgroup",
        default: Required,
        kind: Number("PORT", 1..=65_535, |draft, port| draft.port = port as u16),
    },
    Setting {
        name: "path",
        help: "Path of the request",
        default: Value("/metrics"),
        kind: Text("PATH", |draft, text| {
            value::endpoint_path(text).map(|path| draft.path = path)
        }),
    },
    Setting {
        name: "interval",
        help: "How often it is asked",
        default: Unset("custom.interval"),
        kind: Time(LEAST_INTERVAL, |draft, time| draft.interval = Some(time)),
    },
];

/// The rule that table `number` (from 1), which begins at byte `at`, describes.
pub fn rule(
    number: usize,
    at: usize,
    table: &Entries<EndpointDraft>,
    interval: Duration,
) -> Result<EndpointRule, Wrong> {
    let mut draft = EndpointDraft::default();
    for setting in ENDPOINT_KEYS {
        let entry = table.iter().find(|(found, _)| found.name == setting.name);
        let (at, applied) = match entry {
            Some((_, entry)) => (entry.at, setting.apply(&mut draft, &entry.values)),
            None => (at, setting.apply_default(&mut draft)),
        };
        applied.map_err(|error| {
            (
                at,
                format!("custom.endpoint[{number}].{}: {error}", setting.name),
            )
        })?;
    }
    let EndpointDraft {
        id,
        name,
        unit,
        image,
        namespace,
        port,
        path,
        interval: own,
    } = draft;
    if [&id, &name, &unit, &image, &namespace]
        .iter()
        .all(|regex| regex.is_none())
    {
        let message = format!(
            "custom.endpoint[{number}] is for no cgroup: expected a regular expression as id, name, \
             unit, image or namespace"
        );
        return Err((at, message));
    }
    Ok(EndpointRule {
        id,
        name,
        unit,
        image,
        namespace,
        endpoint: Endpoint {
            port,
            path,
            interval: own.unwrap_or(interval),
        },
    })
}
