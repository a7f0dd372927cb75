//! Syntax of values: durations, numbers, regular expressions, addresses, and so on.

use std::{
    ffi::OsString,
    fmt::Display,
    net::{SocketAddr, ToSocketAddrs},
    ops::RangeInclusive,
    time::Duration,
};

use clap::{ValueEnum, builder::PossibleValue};
use regex::Regex;

use crate::{
    cgroup::{AllowList, ContainerRule, ContainerRuleError},
    runtime::Choice,
    web,
};

/// The longest duration: times that are this far ahead can still be represented.
const LONGEST: Duration = Duration::from_secs(100 * 31_557_600);

/// A value that a setting can't have.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

/// A value, or why there is none.
pub type Result<T> = std::result::Result<T, Invalid>;

fn invalid(value: &str, expected: impl Display) -> Invalid {
    Invalid(format!("{value:?} is not {expected}"))
}

pub fn utf8(raw: &OsString) -> Result<String> {
    let text = raw.to_str().map(str::to_owned);
    text.ok_or_else(|| invalid(&raw.to_string_lossy(), "valid UTF-8"))
}

pub fn boolean(text: &str) -> Result<bool> {
    text.parse().map_err(|_| invalid(text, "true or false"))
}

pub fn number(text: &str, placeholder: &str, range: &RangeInclusive<u32>) -> Result<u32> {
    let found = text.parse().ok().filter(|number| range.contains(number));
    found.ok_or_else(|| {
        let noun = if placeholder == "PORT" {
            "port"
        } else {
            "number"
        };
        let expected = format!("a {noun} from {} to {}", range.start(), range.end());
        invalid(text, expected)
    })
}

pub fn duration(text: &str, least: Duration) -> Result<Duration> {
    let found = humantime::parse_duration(text)
        .map_err(|error| invalid(text, format!("a duration such as 5m or 250ms ({error})")))?;
    if found < least {
        let least = humantime::format_duration(least);
        return Err(invalid(text, format!("a duration of {least} or more")));
    }
    if found > LONGEST {
        return Err(invalid(text, "a duration of at most 100 years"));
    }
    Ok(found)
}

/// The words of an enumeration, for [`super::SettingKind::Choice`].
pub fn words<V: ValueEnum>() -> Vec<PossibleValue> {
    let variants = V::value_variants().iter();
    variants.filter_map(ValueEnum::to_possible_value).collect()
}

/// Parses one of [`words`].
pub fn word<V: ValueEnum>(text: &str) -> Result<V> {
    V::from_str(text, false).map_err(|_| {
        let words: Vec<_> = words::<V>()
            .iter()
            .map(|word| word.get_name().to_owned())
            .collect();
        invalid(text, format!("one of {}", words.join(", ")))
    })
}

pub fn regex(text: &str) -> Result<Regex> {
    Regex::new(text)
        .map_err(|error| invalid(text, format!("a regular expression ({})", reason(&error))))
}

/// The last line of what the parser of regular expressions says.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let line = text.lines().last().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}

/// Rules for containers, `FIELD=REGEX` each.
pub fn rules(texts: &[String]) -> Result<Vec<ContainerRule>> {
    let parse = |text: &String| {
        text.parse().map_err(|error| {
            let expected = match error {
                ContainerRuleError::Field => error.to_string(),
                ContainerRuleError::Regex(error) => {
                    format!("a regular expression ({})", reason(&error))
                }
            };
            invalid(text, expected)
        })
    };
    texts.iter().map(parse).collect()
}

/// Names of labels, and beginnings of names with `*` after them.
pub fn labels(patterns: &[String]) -> Result<AllowList> {
    AllowList::new(patterns.iter().map(String::as_str)).map_err(|error| {
        let expected = format!("a list of labels such as app,com.example.* ({error})");
        invalid(&patterns.join(","), expected)
    })
}

/// Container runtimes to follow.
pub fn runtimes(words: &[String]) -> Result<Choice> {
    let parsed = words.iter().map(|word| {
        word.parse().map_err(|()| {
            let expected = "auto, none, docker, podman, containerd or crio, or one of the last four \
                            with =unix:///PATH/OF/SOCKET";
            invalid(word, expected)
        })
    });
    Choice::new(parsed.collect::<Result<_>>()?)
        .ok_or_else(|| invalid(&words.join(","), "either none or a list without it"))
}

/// Addresses to listen on; a name may have several.
pub fn addresses(texts: &[String]) -> Result<Vec<SocketAddr>> {
    let expected = "ADDRESS:PORT, such as 127.0.0.1:10295";
    let mut found = Vec::new();
    for text in texts {
        // `:10295` means every address, as it does for Prometheus's exporters.
        let full = if text.starts_with(':') {
            format!("[::]{text}")
        } else {
            text.clone()
        };
        let resolved = full.to_socket_addrs();
        found.extend(resolved.map_err(|error| invalid(text, format!("{expected} ({error})")))?);
    }
    if found.is_empty() {
        let message = format!("the list is empty; expected at least one {expected}");
        return Err(Invalid(message));
    }
    Ok(found)
}

/// Path of a page that the agent serves, and that no other page has.
pub fn telemetry_path(text: &str) -> Result<String> {
    let legal = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#');
    if !text.starts_with('/') || text.len() < 2 {
        return Err(invalid(text, "a path such as /metrics"));
    }
    if !text.chars().all(legal) {
        let expected =
            "a path such as /metrics (expected printable ASCII characters without ? and #)";
        return Err(invalid(text, expected));
    }
    if web::is_reserved(text) {
        let expected = "a free path such as /metrics (the agent serves another page there)";
        return Err(invalid(text, expected));
    }
    Ok(text.to_owned())
}

/// Beginning of the names of metrics, which may be empty.
pub fn metric_prefix(text: &str) -> Result<String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if !text.chars().all(legal) || text.starts_with(|c: char| c.is_ascii_digit()) {
        let expected = "the beginning of a metric's name, such as custom_";
        return Err(invalid(text, expected));
    }
    Ok(text.to_owned())
}

/// Path of a request to an application's endpoint.
pub fn endpoint_path(text: &str) -> Result<String> {
    crate::source::custom::path_of(text).ok_or_else(|| invalid(text, "a path such as /metrics"))
}
