//! Reads the configuration file, which has to be a regular file of at most 1 MiB.
//!
//! Errors name the file, the line and the column.

use std::{
    fs::OpenOptions,
    io::Read,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    Setting, Settings,
    entry::FileValue,
    parse::{FileContents, parse},
};

/// Longest configuration file, bytes.
const LONGEST: u64 = 1 << 20;

/// A configuration file that was read.
#[derive(Debug, Default)]
pub struct ConfigFile {
    path: PathBuf,
    text: String,
    pub contents: FileContents,
}

impl ConfigFile {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it can't be read or its TOML, keys or types are wrong: one line.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text =
            text(path).map_err(|error| format!("--config.file {}: {error}", path.display()))?;
        let mut file = Self {
            path: path.to_owned(),
            text,
            contents: FileContents::default(),
        };
        match parse(&file.text) {
            Ok(contents) => file.contents = contents,
            Err((at, message)) => return Err(format!("{}: {message}", file.place(at))),
        }
        Ok(file)
    }

    /// What the file says of a setting.
    pub fn entry(&self, setting: &Setting<Settings>) -> Option<&FileValue> {
        let mut entries = self.contents.settings.iter();
        let (_, entry) = entries.find(|(found, _)| found.name == setting.name)?;
        Some(entry)
    }

    /// `FILE:LINE:COLUMN` of a byte.
    pub fn place(&self, at: usize) -> String {
        let (line, column) = position(&self.text, at);
        format!("{}:{line}:{column}", self.path.display())
    }
}

/// The text of a regular file. Pipes and devices are refused: reading them may never end.
fn text(path: &Path) -> Result<String, String> {
    // A pipe without a writer must not block the call that opens it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        let kind = metadata.file_type();
        let kind = if kind.is_dir() {
            "a directory"
        } else if kind.is_fifo() {
            "a pipe"
        } else {
            "a device"
        };
        return Err(format!("this is {kind}; give the path of a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > LONGEST {
        return Err("the file is longer than 1 MiB; give the path of a TOML file".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| format!("the file is not UTF-8 ({error})"))
}

/// Line and column of a byte, both from 1.
pub(super) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(path: &str) -> String {
        ConfigFile::read(Path::new(path)).unwrap_err()
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused() {
        assert!(error("/nonexistent").contains("--config.file /nonexistent: No such file"));
        assert!(error("/").ends_with("this is a directory; give the path of a regular file"));
        assert!(error("/dev/null").ends_with("this is a device; give the path of a regular file"));
    }

    #[test]
    fn a_regular_file_without_an_end_is_refused() {
        let path = std::env::temp_dir().join(format!("cgmeter-long-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        // A sparse file of 1 TiB.
        file.set_len(1 << 40).unwrap();
        let error = error(path.to_str().unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("longer than 1 MiB"), "{error}");
    }
}
