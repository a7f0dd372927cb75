//! Puts the settings together: a flag wins over its environment variable, that over the
//! configuration file, that over the default.

use std::{collections::BTreeSet, env, ffi::OsString, path::Path};

use super::{Flags, Setting, SettingKind, Settings, endpoint, file::ConfigFile, settings};

/// A setting that can't be used: one line that says where it stands and what was expected.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Settings {
    /// Puts the settings together.
    ///
    /// # Errors
    ///
    /// At the first setting that can't be used.
    pub fn resolve(flags: &Flags) -> Result<Self, ConfigError> {
        Self::resolve_in(flags, |name| env::var_os(name))
    }

    /// `environment` is asked for the sources' variables. [`Flags`] has those of the other settings.
    fn resolve_in(
        flags: &Flags,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let file = match flags
            .get("config.file")
            .and_then(|given| given.values.first())
        {
            Some(path) => Some(ConfigFile::read(Path::new(path)).map_err(ConfigError)?),
            None => None,
        };
        let mut resolved = Self::default();
        for setting in settings() {
            let variable = setting.variable();
            let (place, values) = if let Some(given) = flags.get(setting.name) {
                let place = match given.variable {
                    true => variable,
                    false => format!("--{}", setting.name),
                };
                (place, Some(given.values.clone()))
            } else if let SettingKind::Source(..) = setting.kind
                && let Some(value) = environment(&variable)
            {
                (variable, Some(vec![value]))
            } else if let Some((file, entry)) = file
                .as_ref()
                .and_then(|file| Some((file, file.entry(setting)?)))
            {
                let place = format!("{}: {}", file.place(entry.at), setting.name);
                (place, Some(entry.values.clone()))
            } else {
                (format!("--{}", setting.name), None)
            };
            let applied = match &values {
                Some(values) => setting.apply(&mut resolved, values),
                None => setting.apply_default(&mut resolved),
            };
            applied.map_err(|error| ConfigError(format!("{place}: {error}")))?;
            resolved
                .given
                .extend(values.map(|values| (setting.name, values)));
        }
        if let Some(file) = &file {
            let interval = resolved.agent.custom.interval;
            let tables = file.contents.endpoints.iter().zip(1..);
            let rules = tables.map(|((at, table), number)| {
                endpoint::rule(number, *at, table, interval)
                    .map_err(|(at, message)| ConfigError(format!("{}: {message}", file.place(at))))
            });
            resolved.agent.custom.rules = rules.collect::<Result<_, _>>()?;
            resolved.given.extend(file.contents.endpoints_given());
        }
        Ok(resolved)
    }
}

impl Settings {
    /// Names of the settings that differ.
    pub fn changes(&self, other: &Self) -> Vec<&'static str> {
        let names: BTreeSet<_> = self.given.keys().chain(other.given.keys()).collect();
        let differs = |name: &&&'static str| self.given.get(**name) != other.given.get(**name);
        names.into_iter().filter(differs).copied().collect()
    }
}

/// Environment variables that look like settings and are none.
pub fn unknown_variables() -> Vec<String> {
    let known: Vec<String> = settings().iter().map(Setting::variable).collect();
    let mut unknown: Vec<String> = env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("CGMETER_") && !known.contains(name))
        .collect();
    unknown.sort();
    unknown
}

#[cfg(test)]
mod tests;
