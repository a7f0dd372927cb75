//! The configuration file's syntax: TOML whose tables and keys are those of the settings.
//!
//! Errors are one line; for a key that does not exist they name the nearest one that does.

use std::ffi::OsString;

use serde::de::Unexpected;
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{
    CONFIG, DefaultValue, ENDPOINT_KEYS, SECTIONS, Setting, SettingKind, Settings,
    endpoint::EndpointDraft,
    entry::{Entries, FileValue, Wrong},
    settings,
};

/// Key of `[custom]` for tables of endpoints.
const ENDPOINT: &str = "endpoint";

/// What a file says.
#[derive(Debug, Default)]
pub struct FileContents {
    pub settings: Entries<Settings>,
    /// `[[custom.endpoint]]`, and the byte at which each begins.
    pub endpoints: Vec<(usize, Entries<EndpointDraft>)>,
}

impl FileContents {
    /// The tables of endpoints as the values of one setting, if there are any.
    pub fn endpoints_given(&self) -> Option<(&'static str, Vec<OsString>)> {
        let mut values = Vec::new();
        for (_, table) in &self.endpoints {
            for (setting, entry) in table {
                values.push(setting.name.into());
                values.extend(entry.values.iter().cloned());
            }
            // The end of a table.
            values.push(OsString::new());
        }
        (!values.is_empty()).then_some(("custom.endpoint", values))
    }
}

/// Checks syntax, keys and types.
pub fn parse(text: &str) -> Result<FileContents, Wrong> {
    let root = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        (at, one_line(error.message()))
    })?;
    let sections = sections();
    let mut contents = FileContents::default();
    for (section, value) in in_order(root.get_ref()) {
        if !sections.contains(&section.get_ref().as_ref()) {
            return Err((section.span().start, unknown(section.get_ref(), &sections)));
        }
        let members = settings()
            .iter()
            .filter(|setting| setting.section() == *section.get_ref());
        let mut table = as_table(value)?.clone();
        if *section.get_ref() == "custom"
            && let Some(endpoints) = table.remove(ENDPOINT)
        {
            contents.endpoints = tables(&endpoints)?;
        }
        let also = (*section.get_ref() == "custom").then_some(ENDPOINT);
        contents.settings.extend(entries(&table, members, also)?);
    }
    Ok(contents)
}

/// Names of the tables.
fn sections() -> Vec<&'static str> {
    let names = SECTIONS.iter().map(|(name, _)| *name);
    names.filter(|name| *name != CONFIG).collect()
}

/// Reads the tables `[[custom.endpoint]]`.
fn tables(value: &Spanned<DeValue<'_>>) -> Result<Vec<(usize, Entries<EndpointDraft>)>, Wrong> {
    let Some(tables) = value.get_ref().as_array() else {
        return Err(mistyped(value, "a list of tables"));
    };
    let endpoint = |value: &Spanned<DeValue<'_>>| {
        let at = value.span().start;
        let table = as_table(value)?;
        let missing = ENDPOINT_KEYS.iter().find(|setting| {
            matches!(setting.default, DefaultValue::Required) && !table.contains_key(setting.name)
        });
        let entries = entries(table, ENDPOINT_KEYS.iter(), None)?;
        match missing {
            Some(setting) => Err((at, format!("missing field `{}`", setting.name))),
            None => Ok((at, entries)),
        }
    };
    tables.iter().map(endpoint).collect()
}

/// The keys of a table, which `members` defines. `also` is a further key that error messages list.
fn entries<T>(
    table: &DeTable<'_>,
    members: impl Iterator<Item = &'static Setting<T>> + Clone,
    also: Option<&'static str>,
) -> Result<Entries<T>, Wrong> {
    let entry = |(key, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
        let name = key.get_ref();
        let Some(setting) = members.clone().find(|setting| setting.key() == *name) else {
            let known: Vec<_> = members.clone().map(Setting::key).chain(also).collect();
            return Err((key.span().start, unknown(name, &known)));
        };
        let values = values(value, &setting.kind)?;
        let at = value.span().start;
        Ok((setting, FileValue { at, values }))
    };
    in_order(table).into_iter().map(entry).collect()
}

/// The entries of a table in the order of the file, so that the first mistake is reported.
fn in_order<'t, 'i>(
    table: &'t DeTable<'i>,
) -> Vec<(&'t Spanned<DeString<'i>>, &'t Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn values<T>(value: &Spanned<DeValue<'_>>, kind: &SettingKind<T>) -> Result<Vec<OsString>, Wrong> {
    let wrong = || mistyped(value, kind.expected());
    let single = match (value.get_ref(), kind) {
        (DeValue::Array(items), SettingKind::List(..) | SettingKind::CommaList(..)) => {
            let text = |item: &Spanned<DeValue<'_>>| {
                let text = item.get_ref().as_str().map(Into::into);
                text.ok_or_else(|| mistyped(item, "a string"))
            };
            return items.iter().map(text).collect();
        }
        (DeValue::String(_), SettingKind::List(..) | SettingKind::CommaList(..)) => {
            return Err(wrong());
        }
        (DeValue::String(text), SettingKind::Choice(_, words, _)) => {
            let words = words();
            let names: Vec<_> = words.iter().map(|word| word.get_name()).collect();
            if !names.contains(&text.as_ref()) {
                let message = format!("unknown variant `{text}`, {}", one_of(&names));
                return Err((value.span().start, with_nearest(message, text, &names)));
            }
            text.to_string()
        }
        (
            DeValue::String(text),
            SettingKind::Text(..) | SettingKind::Path(..) | SettingKind::Duration(..),
        ) => text.to_string(),
        (DeValue::Integer(number), SettingKind::Number(..)) => {
            match i128::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => number.to_string(),
                Err(_) => number.to_string(),
            }
        }
        (DeValue::Boolean(on), SettingKind::Switch(_) | SettingKind::Source(..)) => on.to_string(),
        _ => return Err(wrong()),
    };
    Ok(vec![single.into()])
}

fn as_table<'t, 'i>(value: &'t Spanned<DeValue<'i>>) -> Result<&'t DeTable<'i>, Wrong> {
    let table = value.get_ref().as_table();
    table.ok_or_else(|| mistyped(value, "a table"))
}

fn mistyped(value: &Spanned<DeValue<'_>>, expected: &str) -> Wrong {
    let number;
    let found = match value.get_ref() {
        DeValue::String(text) => Unexpected::Str(text),
        DeValue::Boolean(on) => Unexpected::Bool(*on),
        DeValue::Integer(integer) => {
            number = format!("integer `{integer}`");
            Unexpected::Other(&number)
        }
        DeValue::Float(float) => {
            number = format!("floating point `{float}`");
            Unexpected::Other(&number)
        }
        DeValue::Datetime(_) => Unexpected::Other("a date"),
        DeValue::Array(_) => Unexpected::Seq,
        DeValue::Table(_) => Unexpected::Map,
    };
    let message = format!("invalid type: {found}, expected {expected}");
    (value.span().start, one_line(&message))
}

fn unknown(key: &str, known: &[&str]) -> String {
    let message = format!("unknown field `{key}`, {}", one_of(known));
    with_nearest(one_line(&message), key, known)
}

fn one_of(names: &[&str]) -> String {
    format!("expected one of `{}`", names.join("`, `"))
}

/// Adds the nearest of the names that are known.
fn with_nearest(message: String, unknown: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().div_ceil(2));
    match nearest {
        Some((_, known)) => format!("{message}; did you mean `{known}`?"),
        None => message,
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{super::file::position, *};

    fn file_error(text: &str) -> String {
        let (at, message) = parse(text).unwrap_err();
        let (line, column) = position(text, at);
        format!("{line}:{column}: {message}")
    }

    #[test]
    fn unknown_keys_are_reported_with_line_and_nearest() {
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
    fn wrong_types_are_reported_with_line_and_type() {
        let message = file_error("[cgroup]\nmax = \"many\"\n");
        assert!(
            message.starts_with("2:7: invalid type: string \"many\", expected u32"),
            "{message}"
        );
        assert!(file_error("[log]\nlevel = \"loud\"\n").contains("expected one of"));
        assert!(file_error("[web\n").starts_with("1:"));
    }
}
