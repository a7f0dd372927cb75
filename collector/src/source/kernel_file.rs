//! A small file of the kernel that is read at each scrape.
//!
//! Invariant: it stays open, so that reading it takes no descriptor.

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::PathBuf,
};

use anyhow::{Context, Result};

/// The file. It is opened when it is first read, and again if reading fails.
#[derive(Debug)]
pub struct KernelFile {
    path: PathBuf,
    file: Option<File>,
    text: String,
}

impl KernelFile {
    /// The file at a path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            file: None,
            text: String::new(),
        }
    }

    /// What the file says now.
    ///
    /// # Errors
    ///
    /// If it can't be opened or read, or is not text.
    pub fn read(&mut self) -> Result<&str> {
        let read = match self.file.take() {
            Some(file) => self.read_from(file),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        read.or_else(|_| self.read_from(File::open(&self.path)?))
            .with_context(|| format!("reading {}", self.path.display()))?;
        Ok(&self.text)
    }

    fn read_from(&mut self, mut file: File) -> io::Result<()> {
        self.text.clear();
        file.rewind()?;
        file.read_to_string(&mut self.text)?;
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_stays_open_and_is_read_anew() {
        let path = std::env::temp_dir().join(format!("cgmeter-file-{}", std::process::id()));
        fs::write(&path, "one").unwrap();
        let mut file = KernelFile::new(&path);
        assert_eq!(file.read().unwrap(), "one");
        fs::write(&path, "another").unwrap();
        assert_eq!(file.read().unwrap(), "another");
        // It needs its path no more.
        fs::remove_file(&path).unwrap();
        assert_eq!(file.read().unwrap(), "another");
        let error = KernelFile::new(&path).read().unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()));
        // A file of many lines, which the kernel gives out in pieces.
        let mut own = KernelFile::new("/proc/self/smaps");
        assert!(own.read().unwrap().len() > 4096);
        let last = own.read().unwrap().lines().last().unwrap().to_owned();
        assert!(last.starts_with("VmFlags"), "{last}");
    }
}
