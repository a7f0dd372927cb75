//! Settings: flags, environment variables and the configuration file.
//!
//! `table.rs` defines each setting once: its name, help, type, default, and the field that it sets.
//! The command line ([`arguments`]), the environment variables, the keys of the TOML file and
//! docs/configuration.md are derived from it. [`Settings::resolve`] puts the values together: a
//! flag wins over its environment variable, that over the file, that over the default.
//!
//! Invariants: settings are validated here and can be used as they are. This module fills the
//! options of the other modules; none of them imports it.

mod endpoint;
mod entry;
mod file;
mod flags;
mod parse;
mod resolve;
mod setting;
mod table;
mod value;

pub use endpoint::ENDPOINT_KEYS;
pub use flags::{Flags, arguments};
pub use resolve::{ConfigError, unknown_variables};
pub use setting::{DefaultValue, Setting, SettingKind};
pub use table::{CONFIG, RELOADED, SECTIONS, Settings, settings};
