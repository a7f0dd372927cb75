//! Maps, programs and links that outlive the agent: pinned in a directory of bpffs (`--state.pin`).
//!
//! ```text
//! DIRECTORY/layout_N/map_SLOTS             a map of the object
//!                    chunk_SCHED_CELLS_0   a chunk of an array of maps
//!                    programs_0_ID/program_sched_switch
//!                                  link_sched_switch
//!                                  whole   everything of these programs is there
//!                    whole                 everything of a first start is there
//! ```
//!
//! Programs have a number, their *generation*; a map says which of them count. `ID` stands for the
//! object, and for the settings that go into programs. An agent that finds its own ID goes on with the
//! programs that are there. Otherwise it puts its own beside them, on the same maps, see [`super::load`].
//!
//! Invariants: one agent has the directory at a time, by a lock on it. What lacks its mark `whole` is of a
//! start that failed or was killed, and is thrown away. Whatever the layout's number covers
//! means the same to all agents with that number.

use std::{
    ffi::CString,
    fs::{self, File, TryLockError},
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use super::{bpf, filesystem_type, mount_bpffs};

/// How long to wait for another agent to end.
const WAIT: Duration = Duration::from_secs(10);
/// `f_type` of bpffs (include/uapi/linux/magic.h, BPF_FS_MAGIC).
const BPFFS: i64 = 0xcafe_4a11;
/// Where bpffs belongs.
const USUAL: &str = "/sys/fs/bpf";
/// The mark of what is complete.
const WHOLE: &str = "whole";

/// Why nothing can be kept in the directory.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Another agent has the directory.
    #[error(
        "another agent uses {0}: stop it, or give this one a directory of its own with --state.pin"
    )]
    Busy(PathBuf),
    /// The directory can't be made or used.
    #[error("{path} can't be used for --state.pin: {reason}")]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A directory of bpffs, which this agent has for itself.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    /// The layout's directory.
    layout: PathBuf,
    /// The directory, locked.
    _lock: File,
}

/// Programs that are pinned together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramSet {
    /// Their directory.
    path: PathBuf,
    /// Their generation.
    pub generation: u32,
    /// What they were made of.
    pub id: u64,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Number of maps.
    pub maps: usize,
    /// Number of programs.
    pub programs: usize,
}

impl Pins {
    /// Takes a directory, for maps of this layout (`collector_common::LAYOUT`). Makes it if it is missing, and
    /// mounts bpffs if its usual place has none. Waits a while for another agent to leave it.
    ///
    /// # Errors
    ///
    /// If it is not in bpffs, can't be made, or another agent keeps it.
    pub fn open(root: &Path, layout: u32) -> Result<Self, PinError> {
        let unusable = |reason: String| PinError::Unusable {
            path: root.to_owned(),
            reason,
        };
        if root.starts_with(USUAL) && !is_bpffs(Path::new(USUAL)) {
            if is_contained() {
                return Err(unusable(format!(
                    "there is no bpffs at {USUAL}, and one that was mounted in this container would end with it: \
                     mount the host's {USUAL} here"
                )));
            }
            mount_bpffs(Path::new(USUAL))
                .map_err(|error| unusable(format!("bpffs can't be mounted at {USUAL}: {error}")))?;
        }
        let above = root.ancestors().find(|path| path.exists());
        if !above.is_some_and(is_bpffs) {
            return Err(unusable(
                "it is in no bpffs (mount -t bpf bpf /sys/fs/bpf)".to_owned(),
            ));
        }
        fs::create_dir_all(root).map_err(|error| unusable(error.to_string()))?;
        writable(root).map_err(|error| unusable(format!("it can't be written: {error}")))?;
        let lock = File::open(root).map_err(|error| unusable(error.to_string()))?;
        let begin = Instant::now();
        while let Err(error) = lock.try_lock() {
            if let TryLockError::Error(error) = error {
                return Err(unusable(format!("it can't be locked: {error}")));
            }
            if begin.elapsed() >= WAIT {
                return Err(PinError::Busy(root.to_owned()));
            }
            sleep(Duration::from_millis(50));
        }
        Ok(Self {
            root: root.to_owned(),
            layout: root.join(format!("layout_{layout}")),
            _lock: lock,
        })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether maps of this layout are there, all of them.
    ///
    /// # Errors
    ///
    /// If it can't be said.
    pub fn has_maps(&self) -> io::Result<bool> {
        self.layout.join(WHOLE).try_exists()
    }

    /// Names of directories that an agent left which was killed while it started.
    ///
    /// # Errors
    ///
    /// If the directory can't be read.
    pub fn halves(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for name in self.layouts()? {
            if !self.root.join(&name).join(WHOLE).try_exists()? {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// Names of other layouts' directories.
    ///
    /// # Errors
    ///
    /// If the directory can't be read.
    pub fn others(&self) -> io::Result<Vec<String>> {
        let mut found = self.layouts()?;
        found.retain(|name| Some(name.as_ref()) != self.layout.file_name());
        Ok(found)
    }

    fn layouts(&self) -> io::Result<Vec<String>> {
        let mut found = names(&self.root)?;
        found.retain(|name| name.starts_with("layout_"));
        Ok(found)
    }

    /// Opens a map of another layout; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn map_of(&self, layout: &str, name: &str) -> io::Result<Option<OwnedFd>> {
        open(&self.root.join(layout).join(format!("map_{name}")))
    }

    /// Removes the pins of this layout.
    ///
    /// # Errors
    ///
    /// If something can't be removed.
    pub fn remove_own(&self) -> io::Result<()> {
        match remove(&self.layout, &mut Removed::default()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Removes the pins of every layout: whatever has no other holder ends.
    ///
    /// # Errors
    ///
    /// If something can't be removed.
    pub fn clear(&self) -> io::Result<Removed> {
        let mut removed = Removed::default();
        for name in names(&self.root)? {
            if name.starts_with("layout_") {
                remove(&self.root.join(name), &mut removed)?;
            }
        }
        Ok(removed)
    }

    /// Removes some layouts' pins.
    ///
    /// # Errors
    ///
    /// If something can't be removed.
    pub fn remove(&self, layouts: &[String]) -> io::Result<()> {
        let mut removed = Removed::default();
        layouts
            .iter()
            .try_for_each(|name| remove(&self.root.join(name), &mut removed))
    }

    /// Removes the directory itself, if it is empty.
    pub fn remove_root(self) {
        // What somebody else has put there stays, and so does the place where bpffs is mounted.
        let _ = fs::remove_dir(&self.root);
    }

    /// Where a map of the object is pinned. Names in bpffs have no dots.
    pub fn map(&self, name: &str) -> PathBuf {
        self.layout.join(format!("map_{}", name.replace('.', "")))
    }

    /// Where the chunks of an array of maps are pinned.
    pub fn chunks(&self, name: &str) -> ChunkPins {
        ChunkPins(self.layout.join(format!("chunk_{name}_")))
    }

    /// Makes the layout's directory.
    ///
    /// # Errors
    ///
    /// Errors of mkdir(2).
    pub fn make_layout(&self) -> io::Result<()> {
        fs::create_dir_all(&self.layout)
    }

    /// Marks the maps as complete. Any map will do as a mark.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn mark_maps(&self, mark: BorrowedFd<'_>) -> io::Result<()> {
        bpf::pin(mark, &self.layout.join(WHOLE))
    }

    /// The programs that are there.
    ///
    /// # Errors
    ///
    /// If the directory can't be read.
    pub fn sets(&self) -> io::Result<Vec<ProgramSet>> {
        let parse = |name: &str| {
            let (generation, id) = name.strip_prefix("programs_")?.split_once('_')?;
            Some(ProgramSet {
                path: self.layout.join(name),
                generation: generation.parse().ok()?,
                id: u64::from_str_radix(id, 16).ok()?,
            })
        };
        let found = names(&self.layout)?;
        Ok(found.iter().filter_map(|name| parse(name)).collect())
    }

    /// Makes a directory for programs.
    ///
    /// # Errors
    ///
    /// Errors of mkdir(2).
    pub fn make_set(&self, generation: u32, id: u64) -> io::Result<ProgramSet> {
        let path = self.layout.join(format!("programs_{generation}_{id:x}"));
        fs::create_dir(&path)?;
        Ok(ProgramSet {
            path,
            generation,
            id,
        })
    }
}

impl Drop for Pins {
    /// After a start that failed, takes away what it has pinned: what lacks its mark.
    fn drop(&mut self) {
        // What can't be removed now, the next start removes.
        let tidy = || -> io::Result<()> {
            if !self.has_maps()? {
                return self.remove_own();
            }
            for set in self.sets()? {
                if !set.is_whole()? {
                    set.remove()?;
                }
            }
            Ok(())
        };
        if let Err(error) = tidy() {
            tracing::debug!(%error, "half of a start is left pinned");
        }
    }
}

impl ProgramSet {
    /// Whether all of them are there.
    ///
    /// # Errors
    ///
    /// If it can't be said.
    pub fn is_whole(&self) -> io::Result<bool> {
        self.path.join(WHOLE).try_exists()
    }

    /// Marks them as complete.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn mark(&self, mark: BorrowedFd<'_>) -> io::Result<()> {
        bpf::pin(mark, &self.path.join(WHOLE))
    }

    /// Where a program is pinned.
    pub fn program(&self, name: &str) -> PathBuf {
        self.path.join(format!("program_{name}"))
    }

    /// Where a program's link is pinned.
    pub fn link(&self, name: &str) -> PathBuf {
        self.path.join(format!("link_{name}"))
    }

    /// Takes another set's pin of a link: the link stays attached all the time.
    ///
    /// # Errors
    ///
    /// Errors of rename(2).
    pub fn take_link(&self, name: &str, from: &Self) -> io::Result<()> {
        fs::rename(from.link(name), self.link(name))
    }

    /// Removes their pins, so that they are detached.
    ///
    /// # Errors
    ///
    /// If something can't be removed.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.path, &mut Removed::default())
    }
}

/// Where the chunks of an array of maps are pinned.
#[derive(Clone, Debug)]
pub struct ChunkPins(PathBuf);

impl ChunkPins {
    fn path(&self, index: u32) -> PathBuf {
        let mut path = self.0.clone().into_os_string();
        path.push(index.to_string());
        path.into()
    }

    /// Pins a chunk.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub(super) fn pin(&self, index: u32, chunk: BorrowedFd<'_>) -> io::Result<()> {
        bpf::pin(chunk, &self.path(index))
    }

    /// Opens a chunk; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub(super) fn open(&self, index: u32) -> io::Result<Option<OwnedFd>> {
        open(&self.path(index))
    }
}

/// Opens what is pinned at a path; `None` if there is nothing.
///
/// # Errors
///
/// Errors of bpf(2).
pub fn open(path: &Path) -> io::Result<Option<OwnedFd>> {
    match bpf::open_pinned(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Fails if nothing can be put into a directory: EROFS, EACCES.
fn writable(directory: &Path) -> io::Result<()> {
    let directory = CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: a string that ends with 0.
    match unsafe {
        libc::faccessat(
            libc::AT_FDCWD,
            directory.as_ptr(),
            libc::W_OK | libc::X_OK,
            libc::AT_EACCESS,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether mounts of this process are its own, and not the host's. False where that can't be told.
fn is_contained() -> bool {
    let own = fs::read_link("/proc/self/ns/mnt");
    let hosts = fs::read_link("/proc/1/ns/mnt");
    matches!((own, hosts), (Ok(own), Ok(hosts)) if own != hosts)
}

fn is_bpffs(path: &Path) -> bool {
    CString::new(path.as_os_str().as_bytes())
        .is_ok_and(|path| filesystem_type(&path).is_ok_and(|found| found == BPFFS))
}

/// Names of what is in a directory.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        found.extend(entry?.file_name().into_string());
    }
    Ok(found)
}

/// Removes a pin, or a directory and what is in it. Its mark goes first, so that what is left after an
/// interruption is not taken for whole.
fn remove(path: &Path, removed: &mut Removed) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return fs::remove_file(path);
    }
    match fs::remove_file(path.join(WHOLE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Programs before the maps that they use.
    let mut found = names(path)?;
    found.sort_by_key(|name| !name.starts_with("programs_"));
    for name in found {
        remove(&path.join(&name), removed)?;
        removed.maps += usize::from(name.starts_with("map_") || name.starts_with("chunk_"));
        removed.programs += usize::from(name.starts_with("program_"));
    }
    fs::remove_dir(path)
}
