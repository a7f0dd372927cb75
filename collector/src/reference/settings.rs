//! `cgmeter settings`: the reference of all settings, from their table, and docs/configuration.md.

use std::fmt::Write as _;

use crate::{
    cli::ReferenceFormat,
    settings::{
        CONFIG, DefaultValue, ENDPOINT_KEYS, SECTIONS, Setting, SettingKind, Settings, settings,
    },
};

/// What follows the table of a section's settings: Markdown whose links begin at docs/.
fn notes(section: &str) -> &'static str {
    match section {
        CONFIG => include_str!("settings/config.txt"),
        "web" => include_str!("settings/web.txt"),
        "cgroup" => include_str!("settings/cgroup.txt"),
        "container" => include_str!("settings/container.txt"),
        "collector" => include_str!("settings/collector.txt"),
        "custom" => include_str!("settings/custom.txt"),
        _ => "",
    }
}

/// The reference as text.
pub fn render(format: ReferenceFormat) -> String {
    match format {
        ReferenceFormat::Text => text(),
        ReferenceFormat::Markdown => markdown(),
    }
}

fn members(section: &str) -> impl Iterator<Item = &'static Setting<Settings>> {
    settings()
        .iter()
        .filter(move |setting| setting.section() == section)
}

fn text() -> String {
    let mut page = String::new();
    for (section, title) in SECTIONS {
        // Writing to a String does not fail.
        let _ = writeln!(page, "{title}");
        for setting in members(section) {
            let name = setting.name;
            let flags = match &setting.kind {
                SettingKind::Source(..) => format!("--{name}, --no-{name}"),
                SettingKind::Switch(_) => format!("--{name}"),
                kind => format!("--{name} {}", kind.placeholder()),
            };
            let _ = writeln!(page, "  {flags}\n      {}", setting.help);
            let _ = writeln!(page, "      default: {}", default(setting.default));
            let _ = writeln!(page, "      environment variable: {}", setting.variable());
        }
    }
    page
}

fn markdown() -> String {
    let mut page = include_str!("settings/introduction.txt").to_owned();
    for (section, title) in SECTIONS {
        let _ = write!(
            page,
            "\n## {title}\n\n| flag | environment variable | file | value | default | meaning |\n\
             | --- | --- | --- | --- | --- | --- |\n"
        );
        for setting in members(section) {
            if let SettingKind::Source(..) = setting.kind {
                continue;
            }
            let file = match *section {
                CONFIG => String::new(),
                section => format!("`{}` in `[{section}]`", setting.key()),
            };
            let _ = writeln!(
                page,
                "| `--{}` | `{}` | {file} | {} | {} | {} |",
                setting.name,
                setting.variable(),
                value(&setting.kind),
                markdown_default(setting.default),
                setting.help
            );
        }
        if *section == "collector" {
            page.push_str(SOURCE_ROW);
            let sources: Vec<_> = members(section)
                .filter(|setting| matches!(setting.kind, SettingKind::Source(..)))
                .map(|setting| format!("`{}`", setting.key()))
                .collect();
            let _ = write!(page, "\nThe sources are {}.\n", sources.join(", "));
        }
        let notes = notes(section);
        if !notes.is_empty() {
            let _ = write!(page, "\n{notes}");
        }
        if *section == "custom" {
            page.push_str("\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n");
            for key in ENDPOINT_KEYS {
                let (value, default) = (value(&key.kind), markdown_default(key.default));
                let _ = writeln!(
                    page,
                    "| `{}` | {value} | {default} | {} |",
                    key.name, key.help
                );
            }
        }
    }
    page
}

/// All sources, in one row.
const SOURCE_ROW: &str = "| `--collector.NAME`, `--no-collector.NAME` | `CGMETER_COLLECTOR_NAME` | `NAME` in \
                          `[collector]` | true or false | true, or false with `collector.disable-defaults` | Run \
                          the source NAME |\n";

/// A type as documentation says it.
fn value<T>(kind: &SettingKind<T>) -> String {
    match kind {
        SettingKind::Text(placeholder, _) | SettingKind::Path(placeholder, _) => {
            (*placeholder).to_owned()
        }
        SettingKind::List(placeholder, _) | SettingKind::CommaList(placeholder, _) => {
            format!("list of {placeholder}")
        }
        SettingKind::Number(placeholder, range, _) => {
            format!("{placeholder}, {} to {}", range.start(), range.end())
        }
        SettingKind::Duration(least, _) if least.is_zero() => kind.placeholder(),
        SettingKind::Duration(least, _) => {
            format!(
                "{}, at least {}",
                kind.placeholder(),
                humantime::format_duration(*least)
            )
        }
        SettingKind::Choice(_, words, _) => {
            let words = words();
            let words: Vec<_> = words
                .iter()
                .map(|word| format!("`{}`", word.get_name()))
                .collect();
            words.join(", ")
        }
        SettingKind::Switch(_) | SettingKind::Source(..) => "true or false".to_owned(),
    }
}

fn default(default: DefaultValue) -> &'static str {
    match default {
        DefaultValue::Value(text) | DefaultValue::Unset(text) => text,
        DefaultValue::Required => "none, must be set",
    }
}

fn markdown_default(value: DefaultValue) -> String {
    match value {
        DefaultValue::Value(text) => format!("`{}`", text.replace(',', "`, `")),
        other => default(other).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    #[test]
    fn every_setting_is_in_both_pages() {
        let (text, markdown) = (text(), markdown());
        for setting in settings() {
            assert!(
                text.contains(&format!("  --{}", setting.name)),
                "{}",
                setting.name
            );
            let markdown_has = match setting.kind {
                SettingKind::Source(name, _) => markdown.contains(&format!("`{name}`")),
                _ => markdown.contains(&format!(
                    "| `--{}` | `{}`",
                    setting.name,
                    setting.variable()
                )),
            };
            assert!(markdown_has, "{}", setting.name);
            assert!(
                !setting.help.contains('|') && !setting.help.ends_with('.'),
                "{}",
                setting.help
            );
        }
    }

    #[test]
    fn the_documented_example_is_a_configuration_file() {
        let page = markdown();
        let examples: Vec<_> = page.split("```toml\n").skip(1).collect();
        assert!(!examples.is_empty());
        for (number, example) in examples.iter().enumerate() {
            let example = example.split("```").next().unwrap();
            let name = format!("cgmeter-example-{number}-{}.toml", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, example).unwrap();
            let line = [
                "cgmeter".into(),
                "--config.file".into(),
                path.clone().into_os_string(),
            ];
            let resolved = Settings::resolve(&cli::parse(line).unwrap().flags);
            std::fs::remove_file(&path).unwrap();
            resolved.unwrap();
        }
    }
}
