//! What a setting is: a name, a type, a default, help, and the field that holds its value.

use std::{ffi::OsString, fmt, ops::RangeInclusive, path::PathBuf, time::Duration};

use clap::builder::PossibleValue;

use super::value::{self, Result};

/// A setting, or a key of a table in the configuration file, whose value is stored in a `T`.
#[derive(Debug)]
pub struct Setting<T> {
    /// `SECTION.KEY`: the flag is `--SECTION.KEY`, the environment variable is
    /// `CGMETER_SECTION_KEY`, and the configuration file has `KEY` in `[SECTION]`.
    pub name: &'static str,
    /// What it does, without a full stop at the end, as shown by `--help`.
    pub help: &'static str,
    /// The value if nothing sets it.
    pub default: DefaultValue,
    /// Type of the value, and where it is stored.
    pub kind: SettingKind<T>,
}

/// The value of a setting that nothing sets.
#[derive(Clone, Copy, Debug)]
pub enum DefaultValue {
    /// As it would be given on the command line; lists have commas between their values.
    Value(&'static str),
    /// Nothing is stored. The text says what the agent does then.
    Unset(&'static str),
    /// The key must be there.
    Required,
}

/// Type of a setting, and how its value is stored. A text before it is the placeholder in `--help`.
pub enum SettingKind<T> {
    /// A string with a syntax of its own.
    Text(&'static str, fn(&mut T, &str) -> Result<()>),
    /// Several strings, each with a flag or key of its own.
    List(&'static str, fn(&mut T, &[String]) -> Result<()>),
    /// Several strings, which a flag or environment variable may also separate by commas.
    CommaList(&'static str, fn(&mut T, &[String]) -> Result<()>),
    /// A path of the file system.
    Path(&'static str, fn(&mut T, PathBuf)),
    /// A whole number within a range.
    Number(&'static str, RangeInclusive<u32>, fn(&mut T, u32)),
    /// A duration, at least as long as the first one.
    Duration(Duration, fn(&mut T, Duration)),
    /// One of several words.
    Choice(
        &'static str,
        fn() -> Vec<PossibleValue>,
        fn(&mut T, &str) -> Result<()>,
    ),
    /// On or off: `--SECTION.KEY` switches it on.
    Switch(fn(&mut T, bool)),
    /// A source, on or off: `--collector.NAME` and `--no-collector.NAME`. `None`: as the default
    /// says.
    Source(&'static str, fn(&mut T, &'static str, Option<bool>)),
}

impl<T> fmt::Debug for SettingKind<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.placeholder())
    }
}

impl<T> SettingKind<T> {
    /// What stands for the value in help and documentation.
    pub fn placeholder(&self) -> String {
        match self {
            Self::Text(text, _)
            | Self::List(text, _)
            | Self::CommaList(text, _)
            | Self::Path(text, _)
            | Self::Number(text, _, _)
            | Self::Choice(text, _, _) => (*text).to_owned(),
            Self::Duration(..) => "DURATION".to_owned(),
            Self::Switch(_) | Self::Source(..) => "true|false".to_owned(),
        }
    }

    /// The type in the configuration file, in the words of error messages.
    pub(super) fn expected(&self) -> &'static str {
        match self {
            Self::Text(..) | Self::Path(..) | Self::Duration(..) | Self::Choice(..) => "a string",
            Self::List(..) | Self::CommaList(..) => "a list of strings",
            Self::Number(_, range, _) if *range.end() <= u16::MAX.into() => "u16",
            Self::Number(..) => "u32",
            Self::Switch(_) | Self::Source(..) => "a boolean",
        }
    }
}

impl<T> Setting<T> {
    /// `SECTION` of `SECTION.KEY`.
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(section, _)| section)
    }

    /// `KEY` of `SECTION.KEY`.
    pub fn key(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, key)| key)
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        let name = self.name.to_uppercase().replace(['.', '-'], "_");
        format!("CGMETER_{name}")
    }

    /// Stores the default.
    pub(super) fn apply_default(&self, target: &mut T) -> Result<()> {
        match (&self.kind, self.default) {
            (SettingKind::Source(name, set), _) => set(target, name, None),
            (_, DefaultValue::Unset(_) | DefaultValue::Required) => {}
            (SettingKind::CommaList(..), DefaultValue::Value(texts)) => {
                let texts: Vec<OsString> = texts.split(',').map(Into::into).collect();
                self.apply(target, &texts)?;
            }
            (_, DefaultValue::Value(text)) => self.apply(target, &[text.into()])?,
        }
        Ok(())
    }

    /// Stores what was given: one value, or those of a list.
    ///
    /// # Errors
    ///
    /// When the setting can't have that value.
    pub(super) fn apply(&self, target: &mut T, values: &[OsString]) -> Result<()> {
        let raw = values.first().cloned().unwrap_or_default();
        match &self.kind {
            SettingKind::List(_, set) | SettingKind::CommaList(_, set) => {
                let texts = values.iter().map(value::utf8).collect::<Result<Vec<_>>>()?;
                return set(target, &texts);
            }
            SettingKind::Path(_, set) => set(target, raw.into()),
            SettingKind::Text(_, set) | SettingKind::Choice(_, _, set) => {
                return set(target, &value::utf8(&raw)?);
            }
            SettingKind::Number(placeholder, range, set) => {
                set(
                    target,
                    value::number(&value::utf8(&raw)?, placeholder, range)?,
                );
            }
            SettingKind::Duration(least, set) => {
                set(target, value::duration(&value::utf8(&raw)?, *least)?);
            }
            SettingKind::Switch(set) => set(target, value::boolean(&value::utf8(&raw)?)?),
            SettingKind::Source(name, set) => {
                set(target, name, Some(value::boolean(&value::utf8(&raw)?)?));
            }
        }
        Ok(())
    }
}
