//! Reads text files in a directory, as node_exporter's textfile collector does.
//!
//! Invariants: a separate thread reads, so that a file system that hangs delays nobody. Only
//! regular files are read: no link is followed, and the thread never waits for a FIFO or a device.
//! A file is read again only if it has changed. If a file becomes unusable, its last contents are
//! served until they are too old. A file whose last line has no newline counts as incomplete.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, SystemTime},
};

use super::{
    options::CustomOptions,
    parse::{TextLimits, parse},
    series::{AppFamily, AppSeries, Owner},
    store::{Failure, Reason, Store, TextFile},
};
use crate::threads;

/// Maximum number of files that are read.
const FILES: usize = 256;
/// Maximum number of samples in a file, which may belong to many containers.
const SAMPLES: usize = 50_000;
/// How long the start waits for the first reading.
const PATIENCE: Duration = Duration::from_millis(500);

/// Metadata by which a change of a file is detected.
type Stamp = (u64, u64, i64, i64, i64, i64);

/// State of a file, or of the directory, as of its last change.
#[derive(Debug, Default)]
struct Seen {
    stamp: Option<Stamp>,
    reported: Option<String>,
}

/// The thread that reads. It ends when this value is dropped.
#[derive(Debug)]
pub struct TextFileReader {
    _stop: mpsc::Sender<()>,
}

impl TextFileReader {
    /// Starts the thread, and waits a limited time for its first reading.
    ///
    /// # Errors
    ///
    /// When the thread can't be created.
    pub fn start(directory: PathBuf, options: &CustomOptions, store: Store) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (first, read) = mpsc::sync_channel::<()>(1);
        let (interval, max) = (options.interval, options.max_body);
        let mut folder = Folder {
            directory,
            max,
            store,
            seen: BTreeMap::new(),
        };
        threads::spawn("cgmeter-textfile", move || {
            loop {
                // After a panic the files are tried again: what is known of them is replaced file
                // by file.
                let _ = threads::caught(|| folder.read());
                let _ = first.try_send(());
                if stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        let _ = read.recv_timeout(PATIENCE);
        Ok(Self { _stop: stop })
    }
}

struct Folder {
    directory: PathBuf,
    max: usize,
    store: Store,
    seen: BTreeMap<String, Seen>,
}

impl Folder {
    /// Reads the files that have changed.
    fn read(&mut self) {
        let names = match names(&self.directory) {
            Ok((names, excess)) => {
                let message = (excess > 0)
                    .then(|| format!(": {excess} files are left out, as at most {FILES} are read"));
                self.report("", message.map(|message| (Reason::File, 1, message)));
                names
            }
            Err(error) => {
                let message = format!(": the directory can't be read: {error}");
                self.report("", Some((Reason::File, 1, message)));
                Vec::new()
            }
        };
        for name in &names {
            let stamp = self.seen.get(name).and_then(|seen| seen.stamp);
            match open(&self.directory.join(name), self.max, stamp) {
                Ok(None) => {}
                Ok(Some((stamp, modified, text))) => {
                    let error = self.take(name, modified, &text).err();
                    self.report(name, error);
                    self.seen.entry(name.clone()).or_default().stamp = Some(stamp);
                }
                Err(failure) => self.report(name, Some((failure.reason, 1, failure.text))),
            }
        }
        self.seen
            .retain(|name, _| name.is_empty() || names.contains(name));
        let mut contents = self.store.lock();
        let before = contents.files.len();
        contents.files.retain(|name, _| names.contains(name));
        contents.changes += u64::from(contents.files.len() != before);
    }

    /// Counts the errors of a file, and logs them when they change.
    fn report(&mut self, name: &str, error: Option<(Reason, usize, String)>) {
        let seen = self.seen.entry(name.to_owned()).or_default();
        let text = error.as_ref().map(|(_, _, text)| text.clone());
        if let Some((reason, count, _)) = error {
            self.store.lock().counters.add(reason, count);
        }
        if text == seen.reported {
            return;
        }
        let file = self.directory.join(name);
        let file = file.display();
        match &text {
            Some(text) => tracing::warn!("custom metrics: {file}{text}"),
            None => tracing::info!("custom metrics: {file} is read without errors again"),
        }
        seen.reported = text;
    }

    /// Parses and stores the text of a file.
    fn take(
        &self,
        name: &str,
        modified: SystemTime,
        text: &[u8],
    ) -> Result<(), (Reason, usize, String)> {
        if !text.is_empty() && !text.ends_with(b"\n") {
            let message = ": its last line has no end; write the file elsewhere and rename it into this directory";
            return Err((Reason::File, 1, message.to_owned()));
        }
        let limits = TextLimits {
            samples: SAMPLES,
            owners: true,
        };
        let parsed = parse(text, limits);
        if let Some(line) = parsed.timestamp {
            let message = format!(
                ":{line}: a timestamp; files must not have timestamps; the file is left out"
            );
            return Err((Reason::Timestamp, 1, message));
        }
        let file = TextFile {
            modified,
            families: by_owner(parsed.families),
        };
        let mut contents = self.store.lock();
        contents.files.insert(name.to_owned(), file);
        contents.changes += 1;
        contents.counters.add(Reason::Samples, parsed.excess);
        if parsed.bad.count > 0 {
            let lines: Vec<String> = parsed
                .bad
                .first
                .iter()
                .map(|(line, what)| format!(":{line}: {what}"))
                .collect();
            let message = format!("{} (bad lines: {})", lines.join(", "), parsed.bad.count);
            return Err((Reason::Parse, parsed.bad.count, message));
        }
        Ok(())
    }
}

/// Returns the names of the files to read, and how many are left out.
fn names(directory: &Path) -> io::Result<(Vec<String>, usize)> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        if let Ok(name) = entry?.file_name().into_string()
            && name.ends_with(".prom")
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    let excess = names.len().saturating_sub(FILES);
    names.truncate(FILES);
    Ok((names, excess))
}

type Text = (Stamp, SystemTime, Vec<u8>);

/// Reads a file. Returns `None` if it has not changed.
fn open(path: &Path, max: usize, known: Option<Stamp>) -> Result<Option<Text>, Failure> {
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::ELOOP) => Failure::new(Reason::File, ": links are not followed"),
        _ => Failure::new(Reason::File, format!(": {error}")),
    };
    // Opening must not wait for a FIFO or a device, and must not acquire a controlling terminal.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(Failure::new(Reason::File, ": not a regular file"));
    }
    let stamp = (
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    );
    if Some(stamp) == known {
        return Ok(None);
    }
    let mut text = Vec::new();
    let limit = max as u64 + 1;
    file.take(limit).read_to_end(&mut text).map_err(failed)?;
    if text.len() > max {
        let message = format!(": more than {max} bytes, see --custom.max-body");
        return Err(Failure::new(Reason::Size, message));
    }
    let modified = metadata.modified().map_err(failed)?;
    Ok(Some((stamp, modified, text)))
}

/// Splits the families of a file by owner.
fn by_owner(families: Vec<AppFamily>) -> Vec<(Option<Owner>, Arc<Vec<AppFamily>>)> {
    let mut apart: BTreeMap<Option<Owner>, Vec<AppFamily>> = BTreeMap::new();
    for family in families {
        let mut series: BTreeMap<Option<Owner>, Vec<AppSeries>> = BTreeMap::new();
        for one in family.series {
            series.entry(one.owner.clone()).or_default().push(one);
        }
        for (owner, series) in series {
            apart.entry(owner).or_default().push(AppFamily {
                name: family.name.clone(),
                help: family.help.clone(),
                kind: family.kind,
                series,
            });
        }
    }
    apart
        .into_iter()
        .map(|(owner, families)| (owner, Arc::new(families)))
        .collect()
}
