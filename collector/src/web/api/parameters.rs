//! Parameters of requests: which exist, and their values in a request.
//!
//! Nothing is guessed: a parameter that is unknown, repeated or out of range is an error that names
//! it.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::Refusal;

/// A parameter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) kind: ParameterKind,
}

/// Type of a parameter.
#[derive(Clone, Copy, Debug)]
pub(super) enum ParameterKind {
    /// Any text.
    Text,
    /// `true` or `false`. The default is `false`.
    Flag,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A whole number in a range, with a default.
    Number { min: u64, max: u64, default: u64 },
}

impl ParameterKind {
    fn check(self, name: &str, value: &str) -> Result<(), Refusal> {
        let expected = match self {
            Self::Text => return Ok(()),
            Self::Flag if matches!(value, "true" | "false") => return Ok(()),
            Self::Flag => "true or false".to_owned(),
            Self::OneOf(words) if words.contains(&value) => return Ok(()),
            Self::OneOf(words) => format!("one of {}", words.join(", ")),
            Self::Number { min, max, .. } => {
                let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                let number = value.parse::<u64>().ok().filter(|_| digits);
                if number.is_some_and(|number| (min..=max).contains(&number)) {
                    return Ok(());
                }
                format!("a whole number from {min} to {max}")
            }
        };
        Err(Refusal::bad(format!("{name}={value}: expected {expected}")))
    }

    /// Returns its JSON Schema.
    pub(super) fn schema(self) -> Value {
        match self {
            Self::Text => json!({ "type": "string", "minLength": 1 }),
            Self::Flag => json!({ "type": "boolean", "default": false }),
            Self::OneOf(words) => json!({ "type": "string", "enum": words }),
            Self::Number { min, max, default } => {
                json!({ "type": "integer", "minimum": min, "maximum": max, "default": default })
            }
        }
    }
}

/// The parameters of one request.
#[derive(Debug)]
pub(super) struct Query {
    known: &'static [Parameter],
    values: Vec<(&'static str, String)>,
}

impl Query {
    /// Parses a query string.
    pub(super) fn parse(text: &str, known: &'static [Parameter]) -> Result<Self, Refusal> {
        check_encoding(text)?;
        let mut query = Self {
            known,
            values: Vec::new(),
        };
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            let Some(parameter) = known.iter().find(|parameter| parameter.name == name) else {
                let names = known.iter().map(|parameter| parameter.name.to_owned());
                return Err(Refusal::bad(format!("there is no parameter {name:?}")).with(names));
            };
            if query.text(parameter.name).is_some() {
                return Err(Refusal::bad(format!("{name} is given twice")));
            }
            // Bytes that are not UTF-8 have become replacement characters.
            if value.is_empty() || value.contains(char::REPLACEMENT_CHARACTER) {
                return Err(Refusal::bad(format!(
                    "{name}: expected a non-empty text in UTF-8"
                )));
            }
            parameter.kind.check(parameter.name, &value)?;
            query.set(parameter.name, Cow::into_owned(value));
        }
        Ok(query)
    }

    pub(super) fn set(&mut self, name: &'static str, value: String) {
        self.values.push((name, value));
    }

    /// Returns a parameter's value.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let found = self.values.iter().find(|(found, _)| *found == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the value of a flag.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.text(name) == Some("true")
    }

    /// Returns a number, or its default.
    pub(super) fn number(&self, name: &str) -> usize {
        let sent = self.text(name).and_then(|text| text.parse().ok());
        let default = || {
            let kinds = self.known.iter().map(|known| (known.name, known.kind));
            kinds
                .filter(|(known, _)| *known == name)
                .find_map(|(_, kind)| match kind {
                    ParameterKind::Number { default, .. } => usize::try_from(default).ok(),
                    _ => None,
                })
        };
        sent.or_else(default).unwrap_or_default()
    }
}

/// Refuses a `%` that isn't followed by two hexadecimal digits.
pub(super) fn check_encoding(text: &str) -> Result<(), Refusal> {
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('%') {
        let digits = bytes.get(at + 1..at + 3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            let end = text[at..].char_indices().nth(3);
            let end = end.map_or(text.len(), |(end, _)| at + end);
            return Err(Refusal::bad(format!(
                "{:?} is not a percent-encoded byte; write a percent sign as %25",
                &text[at..end]
            )));
        }
    }
    Ok(())
}
