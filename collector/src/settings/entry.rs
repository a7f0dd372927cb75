//! What the configuration file says of a setting, and where.

use std::ffi::OsString;

use super::Setting;

/// A byte of the file, and what is wrong there.
pub type Wrong = (usize, String);

/// What a file says of the keys of one table.
pub type Entries<T> = Vec<(&'static Setting<T>, FileValue)>;

/// The value of a key.
#[derive(Debug)]
pub struct FileValue {
    /// Byte at which it begins.
    pub at: usize,
    /// One value, or those of a list, as on the command line.
    pub values: Vec<OsString>,
}
