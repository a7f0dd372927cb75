//! The inventory: all cgroups of one frame with their numbers, for the JSON API.
//!
//! Invariant: an inventory belongs to a frame that `/metrics` serves as well. Inventories are made
//! only while clients request them. Then there is one per frame, so that rates cover the time
//! between the last two frames.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use super::{
    frame::Frame,
    lock,
    record::{Capture, Families, Field, Measured, Numbers, Record, Subject},
    status::subjects,
};
use crate::exposition::Encoder;

/// The shortest prefix of a container id that is accepted as a key.
pub const SHORTEST_PREFIX: usize = 4;

/// A cgroup of the frame, and what the API says of it.
#[derive(Debug)]
pub struct InventoryEntry {
    /// The cgroup that the numbers belong to.
    pub subject: Subject,
    numbers: Numbers,
    change: Option<Numbers>,
}

impl InventoryEntry {
    /// Returns a label of its series: `name`, `image`, `namespace`, `pod`.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.numbers.identity.get(name).map(String::as_str)
    }
}

/// The cgroups of one frame.
#[derive(Debug)]
pub struct Inventory {
    /// When the frame was taken.
    pub time: SystemTime,
    taken: Instant,
    /// Time since the previous inventory's frame.
    pub interval: Option<Duration>,
    /// The cgroups, parents before children.
    pub entries: Vec<InventoryEntry>,
    by_path: HashMap<String, usize>,
    /// What had a family in the frame.
    served: Families,
}

/// How long inventories are made after the last request for one.
const INTEREST: Duration = Duration::from_secs(600);

/// The last inventory, and when one was last requested.
#[derive(Debug, Default)]
pub(super) struct Inventories {
    last: Mutex<Option<Arc<Inventory>>>,
    /// Held while an inventory is made.
    making: Mutex<()>,
    /// When an inventory was last requested.
    asked: Mutex<Option<Instant>>,
}

impl Inventories {
    /// Notes that the API was asked, so that the next frames have an inventory.
    pub(super) fn ask(&self) {
        *lock(&self.asked) = Some(Instant::now());
    }

    /// Makes the inventory of a new frame, if one was requested lately.
    pub(super) fn follow(&self, frame: &Frame) {
        if lock(&self.asked).is_none_or(|asked| asked.elapsed() >= INTEREST) {
            lock(&self.last).take();
        } else if let Ok(_making) = self.making.try_lock() {
            // A scrape does not wait while another thread makes one.
            self.make(frame);
        }
    }

    /// Returns the inventory of a frame. Its rates are relative to the last inventory.
    pub(super) fn of(&self, frame: &Frame) -> Arc<Inventory> {
        let _making = lock(&self.making);
        self.make(frame)
    }

    /// Like [`of`](Self::of). The caller holds `making`.
    fn make(&self, frame: &Frame) -> Arc<Inventory> {
        let before = lock(&self.last).clone();
        if let Some(made) = before.as_ref().filter(|made| made.taken == frame.read) {
            return Arc::clone(made);
        }
        let made = Inventory::new(
            frame.time,
            frame.read,
            subjects(frame.nodes()),
            before.as_deref(),
            |out| frame.encode_cgroups(out),
        );
        let made = Arc::new(made);
        // A late inventory of an older frame does not replace a newer one.
        let mut last = lock(&self.last);
        if last.as_ref().is_none_or(|last| last.taken < made.taken) {
            *last = Some(Arc::clone(&made));
        }
        made
    }
}

/// What a key matches.
#[derive(Debug)]
pub enum KeyMatch {
    /// The key matches one cgroup; this is its index.
    One(usize),
    /// The key matches no cgroup.
    Nothing,
    /// Several cgroups: ids of their containers, or paths.
    Several(Vec<String>),
}

impl Inventory {
    /// Makes the inventory of a frame's cgroups, given with parents before children. `encode`
    /// encodes their families; `before` is the inventory of the previous frame.
    pub fn new(
        time: SystemTime,
        taken: Instant,
        subjects: Vec<Subject>,
        before: Option<&Self>,
        encode: impl FnOnce(&mut dyn Encoder),
    ) -> Self {
        let ids = subjects.iter().map(|subject| subject.cgroup.as_str());
        let mut capture = Capture::new(ids);
        encode(&mut capture);
        let (by_path, numbers, served) = capture.finish();
        let before = before.filter(|before| before.taken < taken);
        let entries = subjects.into_iter().zip(numbers);
        let entries = entries
            .map(|(subject, numbers)| InventoryEntry {
                change: before.and_then(|before| before.growth(&subject.cgroup, &numbers)),
                subject,
                numbers,
            })
            .collect();
        Self {
            time,
            taken,
            interval: before.map(|before| taken.duration_since(before.taken)),
            entries,
            by_path,
            served,
        }
    }

    /// Growth of a cgroup's numbers since this inventory. A cgroup that was created later counts
    /// from 0; the growth of one that is missing here for another reason is unknown, and so is that of what
    /// was not served then.
    fn growth(&self, path: &str, numbers: &Numbers) -> Option<Numbers> {
        let earlier = self.by_path.get(path).and_then(|&at| self.entries.get(at));
        match earlier {
            Some(earlier) => Some(numbers.since(&earlier.numbers, &self.served)),
            None => {
                let created = numbers.float(Field::Created)?;
                let then = self.time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
                let new = created >= then.as_secs_f64();
                new.then(|| numbers.since(&Numbers::default(), &Families::ALL))
            }
        }
    }

    /// Returns the record of a cgroup.
    pub fn record(&self, entry: &InventoryEntry) -> Record {
        let measured = Measured {
            time: self.time,
            numbers: &entry.numbers,
            change: entry.change.as_ref().zip(self.interval),
        };
        Record::new(&entry.subject, measured)
    }

    /// Returns the index of the cgroup with a path.
    pub fn by_path(&self, path: &str) -> Option<usize> {
        self.by_path.get(path).copied()
    }

    /// Finds the cgroup of a path, a container's id, a name, a unit, or the beginning of an id, in that
    /// order. Of several cgroups with one name it prefers the one that is alive.
    pub fn find(&self, key: &str) -> KeyMatch {
        if let Some(at) = self.by_path(key) {
            return KeyMatch::One(at);
        }
        let id = |entry: &InventoryEntry| entry.subject.container_id.as_deref() == Some(key);
        let named = |entry: &InventoryEntry| entry.label("name") == Some(key);
        let unit = |entry: &InventoryEntry| entry.label("unit") == Some(key);
        let container = |entry: &InventoryEntry| entry.subject.is_container();
        let begins = |entry: &InventoryEntry| {
            let id = entry.subject.container_id.as_deref();
            key.len() >= SHORTEST_PREFIX && id.is_some_and(|id| id.starts_with(key))
        };
        for found in [
            self.those(id),
            self.those(|entry| container(entry) && named(entry)),
            self.those(named),
            self.those(unit),
            self.those(begins),
        ] {
            match found.as_slice() {
                [] => {}
                [one] => return KeyMatch::One(*one),
                several => return KeyMatch::Several(self.names(several)),
            }
        }
        KeyMatch::Nothing
    }

    /// Indices of the entries that `of` accepts. If some of them are alive, only those.
    fn those(&self, of: impl Fn(&InventoryEntry) -> bool) -> Vec<usize> {
        let all = self.entries.iter().enumerate().filter(|(_, e)| of(e));
        let all: Vec<usize> = all.map(|(at, _)| at).collect();
        let lives = |at: &usize| self.entries[*at].subject.died.is_none();
        let living: Vec<usize> = all.iter().copied().filter(lives).collect();
        if living.is_empty() { all } else { living }
    }

    fn names(&self, entries: &[usize]) -> Vec<String> {
        let name = |&at: &usize| {
            let subject = &self.entries[at].subject;
            subject.container_id.as_ref().unwrap_or(&subject.cgroup)
        };
        entries.iter().map(name).cloned().collect()
    }
}
