//! Flags and environment variables: clap's arguments, made from the table, and what they said.

use std::{collections::BTreeMap, ffi::OsString};

use clap::{
    Arg, ArgAction, ArgMatches,
    builder::{PossibleValuesParser, ValueParser},
    parser::ValueSource,
};

use super::{CONFIG, DefaultValue, SECTIONS, Setting, SettingKind, Settings, settings};

/// Settings that the command line or, where it is silent, the environment has.
#[derive(Clone, Debug, Default)]
pub struct Flags(BTreeMap<&'static str, Given>);

/// The values that a flag or an environment variable gives a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// They come from the environment variable, not from the flag.
    pub variable: bool,
    /// One value, or those of a list.
    pub values: Vec<OsString>,
}

/// clap's arguments for all settings. They are global: allowed before and after a command.
pub fn arguments() -> Vec<Arg> {
    settings().iter().flat_map(arguments_of).collect()
}

fn arguments_of(setting: &Setting<Settings>) -> Vec<Arg> {
    let name = setting.name;
    let base = Arg::new(name).long(name).global(true);
    let base = base.help_heading(heading(setting.section()));
    if let SettingKind::Source(source, _) = setting.kind {
        let variable = setting.variable();
        let (on, off) = (name, negated(name));
        return vec![
            base.action(ArgAction::SetTrue)
                .help(format!("{} (default) [env: {variable}=true]", setting.help)),
            Arg::new(off.clone())
                .long(off)
                .global(true)
                .help_heading(heading(setting.section()))
                .help(format!(
                    "Don't run the source {source} [env: {variable}=false]"
                ))
                .conflicts_with(on)
                .action(ArgAction::SetTrue),
        ];
    }
    let base = base.env(setting.variable()).help(help(setting));
    let valued = |parser: ValueParser| {
        let value_name = setting.kind.placeholder();
        base.clone().value_name(value_name).value_parser(parser)
    };
    let any = || valued(ValueParser::os_string());
    vec![match &setting.kind {
        SettingKind::Switch(_) | SettingKind::Source(..) => base.action(ArgAction::SetTrue),
        SettingKind::Choice(_, words, _) => valued(PossibleValuesParser::new(words()).into()),
        SettingKind::List(..) => any().action(ArgAction::Append),
        SettingKind::CommaList(..) => any().action(ArgAction::Append).value_delimiter(','),
        SettingKind::Text(..)
        | SettingKind::Path(..)
        | SettingKind::Number(..)
        | SettingKind::Duration(..) => any(),
    }]
}

fn negated(name: &str) -> String {
    format!("no-{name}")
}

fn help(setting: &Setting<Settings>) -> String {
    let several = match setting.kind {
        SettingKind::List(..) | SettingKind::CommaList(..) => "; may be given several times",
        _ => "",
    };
    let default = match (setting.default, &setting.kind) {
        (DefaultValue::Value(_), SettingKind::Switch(_)) | (DefaultValue::Required, _) => {
            String::new()
        }
        (DefaultValue::Value(text) | DefaultValue::Unset(text), _) => format!(" [default: {text}]"),
    };
    format!("{}{several}{default}", setting.help)
}

/// The heading of a section in `--help`; `config.file` is among the general options.
fn heading(section: &str) -> Option<&'static str> {
    let section = SECTIONS
        .iter()
        .find(|(name, _)| *name == section && *name != CONFIG);
    section.map(|(_, title)| *title)
}

impl Flags {
    /// What the command line and the environment gave.
    pub fn of(matches: &ArgMatches) -> Self {
        let given = |setting: &Setting<Settings>| {
            let given = match setting.kind {
                SettingKind::Source(..) => source(matches, setting.name),
                _ => given(matches, setting),
            };
            given.map(|given| (setting.name, given))
        };
        settings().iter().filter_map(given).collect()
    }

    /// What was given for a setting.
    pub fn get(&self, name: &str) -> Option<&Given> {
        self.0.get(name)
    }
}

impl FromIterator<(&'static str, Given)> for Flags {
    fn from_iter<I: IntoIterator<Item = (&'static str, Given)>>(given: I) -> Self {
        Self(given.into_iter().collect())
    }
}

fn given(matches: &ArgMatches, setting: &Setting<Settings>) -> Option<Given> {
    let variable = match matches.value_source(setting.name)? {
        ValueSource::CommandLine => false,
        ValueSource::EnvVariable => true,
        _ => return None,
    };
    let values = match setting.kind {
        SettingKind::Switch(_) => vec![matches.get_flag(setting.name).to_string().into()],
        _ => matches.get_raw(setting.name)?.map(Into::into).collect(),
    };
    Some(Given { variable, values })
}

/// The pair of flags of a source.
fn source(matches: &ArgMatches, name: &str) -> Option<Given> {
    let on = matches.get_flag(name);
    let off = matches.get_flag(&negated(name));
    (on || off).then(|| Given {
        variable: false,
        values: vec![on.to_string().into()],
    })
}
