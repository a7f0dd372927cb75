//! Text files in a directory, as node_exporter's textfile collector reads them.
//!
//! Invariants: a thread of its own reads, so that a file system that hangs holds up nobody; only
//! regular files are read, no link is followed, no FIFO or device is waited for; a file is read
//! again only if it has changed. One that can't be used keeps what it said before until that is
//! too old. A file whose last line has no end is being written.

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

use super::{Failure, Family, File, Limits, Options, Owner, Reason, Series, Store, parse};

/// Most files that are read.
const FILES: usize = 256;
/// Most samples of a file, which may be of many containers.
const SAMPLES: usize = 50_000;
/// How long the start waits for the first reading.
const PATIENCE: Duration = Duration::from_millis(500);

/// What tells that a file is as it was.
type Stamp = (u64, u64, i64, i64, i64, i64);

/// What was told of a file, or of the directory, when it last changed.
#[derive(Debug, Default)]
struct Seen {
    stamp: Option<Stamp>,
    told: Option<String>,
}

/// The thread that reads; it ends when this is dropped.
#[derive(Debug)]
pub struct Reader {
    _stop: mpsc::Sender<()>,
}

impl Reader {
    /// Starts it, and gives it some time for a first reading.
    ///
    /// # Errors
    ///
    /// When there can't be a thread.
    pub fn start(directory: PathBuf, options: &Options, store: Store) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (first, read) = mpsc::sync_channel::<()>(1);
        let (interval, max) = (options.interval, options.max_body);
        let mut folder = Folder {
            directory,
            max,
            store,
            seen: BTreeMap::new(),
        };
        std::thread::Builder::new()
            .name("cgmeter-textfile".to_owned())
            .spawn(move || {
                loop {
                    folder.read();
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
    /// Reads what has changed.
    fn read(&mut self) {
        let names = match names(&self.directory) {
            Ok((names, excess)) => {
                let told = (excess > 0)
                    .then(|| format!(": {excess} files more than the {FILES} that are read"));
                self.tell("", told.map(|told| (Reason::File, 1, told)));
                names
            }
            Err(error) => {
                let told = format!(": the directory can't be read: {error}");
                self.tell("", Some((Reason::File, 1, told)));
                Vec::new()
            }
        };
        for name in &names {
            let stamp = self.seen.get(name).and_then(|seen| seen.stamp);
            match open(&self.directory.join(name), self.max, stamp) {
                Ok(None) => {}
                Ok(Some((stamp, modified, text))) => {
                    let told = self.take(name, modified, &text).err();
                    self.tell(name, told);
                    self.seen.entry(name.clone()).or_default().stamp = Some(stamp);
                }
                Err(failure) => self.tell(name, Some((failure.reason, 1, failure.text))),
            }
        }
        self.seen
            .retain(|name, _| name.is_empty() || names.contains(name));
        let mut contents = self.store.lock();
        let before = contents.files.len();
        contents.files.retain(|name, _| names.contains(name));
        contents.changes += u64::from(contents.files.len() != before);
    }

    /// Counts what is wrong with a file, and says so once.
    fn tell(&mut self, name: &str, told: Option<(Reason, usize, String)>) {
        let seen = self.seen.entry(name.to_owned()).or_default();
        let text = told.as_ref().map(|(_, _, text)| text.clone());
        if let Some((reason, count, _)) = told {
            self.store.lock().counters.add(reason, count);
        }
        if text == seen.told {
            return;
        }
        let file = self.directory.join(name);
        let file = file.display();
        match &text {
            Some(text) => tracing::warn!("custom metrics: {file}{text}"),
            None => tracing::info!("custom metrics: {file} is read without errors again"),
        }
        seen.told = text;
    }

    /// Takes a file's text in.
    fn take(
        &self,
        name: &str,
        modified: SystemTime,
        text: &[u8],
    ) -> Result<(), (Reason, usize, String)> {
        if !text.is_empty() && !text.ends_with(b"\n") {
            let told = ": its last line has no end; it should be written elsewhere and moved here";
            return Err((Reason::File, 1, told.to_owned()));
        }
        let limits = Limits {
            samples: SAMPLES,
            owners: true,
        };
        let parsed = parse(text, limits);
        if let Some(line) = parsed.timestamp {
            let told =
                format!(":{line}: a timestamp, which files must not have; the file is left out");
            return Err((Reason::Timestamp, 1, told));
        }
        let file = File {
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
            let told = format!("{} (bad lines: {})", lines.join(", "), parsed.bad.count);
            return Err((Reason::Parse, parsed.bad.count, told));
        }
        Ok(())
    }
}

/// Names of the files to be read, and how many more there are.
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

/// A file's text; `None` if the file is as it was.
fn open(path: &Path, max: usize, known: Option<Stamp>) -> Result<Option<Text>, Failure> {
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::ELOOP) => Failure::new(Reason::File, ": links are not followed"),
        _ => Failure::new(Reason::File, format!(": {error}")),
    };
    // Neither a FIFO nor a device is waited for; a terminal doesn't become the agent's.
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
        let told = format!(": more than {max} bytes, see --custom.max-body");
        return Err(Failure::new(Reason::Size, told));
    }
    let modified = metadata.modified().map_err(failed)?;
    Ok(Some((stamp, modified, text)))
}

/// A file's families, apart by whose they are.
fn by_owner(families: Vec<Family>) -> Vec<(Option<Owner>, Arc<Vec<Family>>)> {
    let mut apart: BTreeMap<Option<Owner>, Vec<Family>> = BTreeMap::new();
    for family in families {
        let mut series: BTreeMap<Option<Owner>, Vec<Series>> = BTreeMap::new();
        for one in family.series {
            series.entry(one.owner.clone()).or_default().push(one);
        }
        for (owner, series) in series {
            apart.entry(owner).or_default().push(Family {
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
