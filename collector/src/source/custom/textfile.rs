//! Reads text files in a directory, as node_exporter's textfile collector does.
//!
//! Invariants: a separate thread reads, so that a file system that hangs delays nobody. Only
//! regular files are read: no link is followed, and the thread never waits for a FIFO or a device.
//! A file is read again only if it has changed. If a file becomes unusable, its last contents are
//! served until they are too old. A file whose last line has no newline counts as incomplete.
//!
//! No file is left out because of its name: where there are more than [`FILES`], their owners (users)
//! share that number fairly, and files that are written come before those that are not, and known
//! ones before new ones. A reading of the directory ends after [`PASS`] bytes; the next one goes on
//! with the files that have waited longest.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, SystemTime},
};

use super::{
    fair,
    options::CustomOptions,
    parse::{TextLimits, parse},
    series::{AppFamily, AppSeries, Owner},
    store::{Failure, Kept, Reason, Store, TextFile},
};
use crate::threads;

/// Maximum number of files that are read.
const FILES: usize = 1024;
/// Maximum number of files among which those are chosen.
const LISTED: usize = 16_384;
/// Number of bytes after which a reading of the directory ends.
const PASS: usize = 32 << 20;
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
    /// Whether it was too old then.
    old: bool,
    /// Number of the last reading that came to it.
    pass: u64,
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
        let interval = options.interval;
        let mut folder = Folder::new(directory, options, store);
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
    max_body: usize,
    max_bytes: usize,
    age: Duration,
    store: Store,
    seen: BTreeMap<String, Seen>,
    pass: u64,
}

impl Folder {
    fn new(directory: PathBuf, options: &CustomOptions, store: Store) -> Self {
        Self {
            directory,
            max_body: options.max_body,
            max_bytes: options.max_bytes,
            age: options.file_age(),
            store,
            seen: BTreeMap::new(),
            pass: 0,
        }
    }

    /// Reads the files that have changed.
    fn read(&mut self) {
        self.pass += 1;
        let files = match listed(&self.directory, self.age) {
            Ok((files, unlisted)) => {
                let known = |name: &str| self.seen.get(name).is_some_and(|seen| seen.pass > 0);
                let (files, first) = chosen(files, FILES, known);
                let message = match (first, unlisted) {
                    (None, 0) => None,
                    (Some(name), _) => Some(format!(
                        ": at most {FILES} files are read; others are left out, such as {name}"
                    )),
                    (None, _) => Some(format!(": has more than {LISTED} files")),
                };
                self.report("", message.map(|message| (Reason::File, 1, message)));
                files
            }
            Err(error) => {
                let message = format!(": the directory can't be read: {error}");
                self.report("", Some((Reason::File, 1, message)));
                Vec::new()
            }
        };
        let mut order: Vec<(u64, &Listed)> = files
            .iter()
            .map(|file| (self.seen.get(&file.name).map_or(0, |seen| seen.pass), file))
            .collect();
        order.sort_by(|left, right| (left.0, &left.1.name).cmp(&(right.0, &right.1.name)));
        let mut bytes = 0;
        for (_, Listed { name, old, .. }) in order {
            if bytes >= PASS {
                break;
            }
            let seen = self.seen.entry(name.clone()).or_default();
            seen.pass = self.pass;
            // What has become too old is read again, to be forgotten.
            let stamp = seen.stamp.filter(|_| seen.old == *old);
            match open(&self.directory.join(name), self.max_body, stamp) {
                Ok(None) => {}
                Ok(Some((stamp, modified, text))) => {
                    bytes += text.len();
                    let error = self.take(name, modified, &text, *old).err();
                    self.report(name, error);
                    let seen = self.seen.entry(name.clone()).or_default();
                    (seen.stamp, seen.old) = (Some(stamp), *old);
                }
                Err(failure) => self.report(name, Some((failure.reason, 1, failure.text))),
            }
        }
        let names: BTreeSet<&String> = files.iter().map(|file| &file.name).collect();
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

    /// Parses and stores the text of a file. Of one that is too old, only its time is stored.
    fn take(
        &self,
        name: &str,
        modified: SystemTime,
        text: &[u8],
        old: bool,
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
            families: if old {
                Vec::new()
            } else {
                by_owner(parsed.families)
            },
        };
        let mut contents = self.store.lock();
        contents.files.insert(name.to_owned(), file);
        contents.fit(self.max_bytes);
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

/// A file in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    name: String,
    /// Id of the user whose file it is.
    user: u32,
    /// Whether what it says is too old to be served.
    old: bool,
}

/// Lists the files of the directory, and how many more there are.
fn listed(directory: &Path, age: Duration) -> io::Result<(Vec<Listed>, usize)> {
    let mut files = Vec::new();
    let mut more = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !name.ends_with(".prom") || name.starts_with('.') {
            continue;
        }
        if files.len() == LISTED {
            more += 1;
            continue;
        }
        // It may be gone.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let modified = metadata.modified()?;
        files.push(Listed {
            name,
            user: metadata.uid(),
            old: modified.elapsed().is_ok_and(|found| found >= age),
        });
    }
    Ok((files, more))
}

/// Chooses the files to read. Returns them, and the name of one that is left out.
fn chosen(
    mut files: Vec<Listed>,
    most: usize,
    known: impl Fn(&str) -> bool,
) -> (Vec<Listed>, Option<String>) {
    let mut users: HashMap<u32, usize> = HashMap::new();
    for file in &files {
        *users.entry(file.user).or_default() += 1;
    }
    let level = fair::level(users.into_values(), most);
    files.sort_by_cached_key(|file| (file.old, !known(&file.name), file.name.clone()));
    let mut taken: HashMap<u32, usize> = HashMap::new();
    let mut first = None;
    files.retain(|file| {
        let taken = taken.entry(file.user).or_default();
        *taken += 1;
        if *taken > level && first.is_none() {
            first = Some(file.name.clone());
        }
        *taken <= level
    });
    (files, first)
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
fn by_owner(families: Vec<AppFamily>) -> Vec<(Option<Owner>, Kept)> {
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
        .map(|(owner, families)| (owner, Kept::new(families)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, user: u32, old: bool) -> Listed {
        Listed {
            name: name.to_owned(),
            user,
            old,
        }
    }

    fn names(files: &[Listed]) -> Vec<&str> {
        files.iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn names_that_sort_first_do_not_displace_files_that_are_read_already() {
        let files: Vec<Listed> = ["a", "b", "m", "z"].map(|name| file(name, 0, false)).into();
        let (read, first) = chosen(files.clone(), 2, |name| name > "l");
        assert_eq!(names(&read), ["m", "z"]);
        assert_eq!(first.as_deref(), Some("a"));
        let (read, first) = chosen(files, 4, |_| false);
        assert_eq!((read.len(), first), (4, None));
    }

    #[test]
    fn a_user_with_many_files_leaves_others_theirs() {
        let mut files: Vec<Listed> = (0..256)
            .map(|at| file(&format!("a{at}"), 7, false))
            .collect();
        files.push(file("z", 8, false));
        let (read, _) = chosen(files, 20, |name| name != "z");
        assert_eq!(read.len(), 20);
        assert!(names(&read).contains(&"z"));
    }

    #[test]
    fn files_that_are_not_written_any_more_come_last() {
        let files = vec![file("a", 0, true), file("b", 0, true), file("c", 0, false)];
        let (read, first) = chosen(files, 1, |name| name != "c");
        assert_eq!(names(&read), ["c"]);
        assert_eq!(first.as_deref(), Some("a"));
    }

    /// A directory that is removed at the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let name = format!("cgmeter-textfile-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }

        fn folder(&self) -> Folder {
            let options = CustomOptions::for_tests();
            Folder::new(self.0.clone(), &options, Store::default())
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn three_hundred_files_are_all_read() {
        let directory = Directory::new("many");
        for at in 0..299 {
            directory.write(&format!("a{at}.prom"), "a 1\n");
        }
        directory.write("z.prom", "z 1\n");
        let mut folder = directory.folder();
        folder.read();
        let contents = folder.store.lock();
        assert_eq!(contents.files.len(), 300);
        assert_eq!(contents.files["z.prom"].families[0].1.families[0].name, "z");
        assert!(contents.counters.errors.is_empty());
    }

    #[test]
    fn large_files_that_change_all_the_time_do_not_keep_others_from_being_read() {
        let directory = Directory::new("large");
        let text = "# more\n".repeat(140_000);
        let write = |round: usize| {
            for at in 0..50 {
                directory.write(&format!("a{at}.prom"), &format!("{text}a {round}\n"));
            }
        };
        write(0);
        directory.write("z.prom", "z 1\n");
        let mut folder = directory.folder();
        folder.read();
        assert!(folder.store.lock().files.len() < 51);
        write(11);
        folder.read();
        assert!(folder.store.lock().files.contains_key("z.prom"));
    }

    #[test]
    fn what_is_too_old_is_not_kept_in_memory() {
        let directory = Directory::new("old");
        directory.write("a.prom", "a 1\n");
        let mut folder = directory.folder();
        folder.read();
        let parts = |folder: &Folder| folder.store.lock().files["a.prom"].families.len();
        assert_eq!(parts(&folder), 1);
        let file = fs::File::options()
            .write(true)
            .open(directory.0.join("a.prom"))
            .unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(250))
            .unwrap();
        folder.read();
        assert_eq!(parts(&folder), 1);
        folder.age = Duration::from_secs(200);
        folder.read();
        assert_eq!(parts(&folder), 0);
        folder.age = Duration::from_secs(600);
        folder.read();
        assert_eq!(parts(&folder), 1, "the clock was set back");
    }
}
