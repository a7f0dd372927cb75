//! Results of the threads that read endpoints and files, and their errors.
//!
//! Invariant: all answers and files together have at most `--custom.max-bytes` of memory, which their
//! owners share fairly ([`StoreContents::fit`]). Whoever adds something makes it fit.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use super::{
    fair,
    measure::{self, MemorySize},
    series::{AppFamily, Owner},
};

/// Kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A container's labels or annotations are invalid.
    Discovery,
    /// The cgroup has no process, or its namespace can't be entered.
    Namespace,
    /// The network namespace is the host's.
    HostNetwork,
    /// The connection was refused or failed.
    Connect,
    /// The answer took too long.
    Timeout,
    /// The answer is not valid HTTP.
    Protocol,
    /// The status of the answer is not 200.
    Status,
    /// The answer is too large.
    Size,
    /// A line can't be parsed.
    Parse,
    /// A text file can't be read, or is not a regular file.
    File,
    /// A text file contains timestamps.
    Timestamp,
    /// There are more samples than allowed.
    Samples,
    /// There are more bytes than a container's share.
    Bytes,
    /// There are more endpoints than are requested.
    Endpoints,
    /// Another family has the name or another type, or the series already exists.
    Conflict,
    /// Samples of a text file belong to a cgroup or container that does not exist.
    Owner,
    /// The agent has a fault, which its log describes.
    Fault,
}

impl Reason {
    /// Returns the value of the label `reason`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discovery => "discovery",
            Self::Namespace => "namespace",
            Self::HostNetwork => "host_network",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Status => "status",
            Self::Size => "size",
            Self::Parse => "parse",
            Self::File => "file",
            Self::Timestamp => "timestamp",
            Self::Samples => "samples",
            Self::Bytes => "bytes",
            Self::Endpoints => "endpoints",
            Self::Conflict => "conflict",
            Self::Owner => "owner",
            Self::Fault => "fault",
        }
    }
}

/// Why an endpoint or a file could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// Kind of the error.
    pub reason: Reason,
    /// What went wrong, for the log.
    pub text: String,
}

impl Failure {
    /// Makes a failure of kind `reason`.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }
}

/// An endpoint of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    /// Id of the cgroup.
    pub cgroup: u64,
    /// TCP port of the endpoint.
    pub port: u16,
    /// Path of the endpoint's URL.
    pub path: String,
}

/// Families that are kept in memory.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The families.
    pub families: Arc<Vec<AppFamily>>,
    /// Number of samples that had no room.
    pub lost: usize,
    /// Bytes of memory.
    size: usize,
}

impl Kept {
    /// Keeps all of these families.
    pub fn new(families: Vec<AppFamily>) -> Self {
        Self {
            size: measure::size(&families, &MemorySize),
            families: Arc::new(families),
            lost: 0,
        }
    }

    /// Leaves out what is beyond a number of bytes.
    fn cut(&mut self, limit: usize) {
        if self.size <= limit {
            return;
        }
        let before = measure::samples(&self.families);
        self.families = measure::cut(&self.families, limit, &MemorySize);
        self.lost += before - measure::samples(&self.families);
        self.size = measure::size(&self.families, &MemorySize);
    }
}

/// Result of requesting an endpoint.
#[derive(Clone, Debug)]
pub struct RequestOutcome {
    /// Id of the cgroup that the endpoint's container has, for the container's share.
    pub owner: u64,
    /// Whether the last request was answered.
    pub up: bool,
    /// Duration of the last request.
    pub took: Duration,
    /// The last valid answer, and when it was requested.
    pub good: Option<(Instant, Kept)>,
    /// Number of samples in the last answer; 0 if the request failed.
    pub samples: usize,
    /// How long a valid answer is served.
    pub age: Duration,
}

/// Contents of a text file.
#[derive(Clone, Debug)]
pub struct TextFile {
    /// When the file was last modified.
    pub modified: SystemTime,
    /// The file's families by owner; `None` has the series that name no owner.
    pub families: Vec<(Option<Owner>, Kept)>,
}

impl TextFile {
    fn size(&self) -> usize {
        self.families.iter().map(|(_, kept)| kept.size).sum()
    }
}

/// Errors by reason, and requests by result.
#[derive(Clone, Debug, Default)]
pub struct CustomCounters {
    /// Errors by reason.
    pub errors: BTreeMap<Reason, u64>,
    /// Requests that succeeded.
    pub good: u64,
    /// Requests that failed.
    pub failed: u64,
}

impl CustomCounters {
    /// Counts errors.
    pub fn add(&mut self, reason: Reason, count: usize) {
        if count > 0 {
            *self.errors.entry(reason).or_default() += count as u64;
        }
    }
}

/// Everything behind the store's lock.
#[derive(Debug, Default)]
pub struct StoreContents {
    /// Results of the endpoints that were requested.
    pub outcomes: BTreeMap<EndpointKey, RequestOutcome>,
    /// Text files, by name.
    pub files: BTreeMap<String, TextFile>,
    /// Requests and errors so far.
    pub counters: CustomCounters,
    /// Incremented when outcomes or files change.
    pub changes: u64,
}

impl StoreContents {
    /// Bytes of memory of all answers and files.
    fn size(&self) -> usize {
        let answers = self
            .outcomes
            .values()
            .filter_map(|outcome| outcome.good.as_ref());
        let files = self.files.values().map(TextFile::size);
        answers.map(|(_, kept)| kept.size).chain(files).sum()
    }

    /// Leaves out what is beyond the share of a container, or of a text file, so that everything
    /// together has at most `total` bytes.
    ///
    /// All files together share like one container.
    pub fn fit(&mut self, total: usize) {
        if self.size() <= total {
            return;
        }
        let answers = self.outcomes.values().map(|outcome| {
            let size = outcome.good.as_ref().map_or(0, |(_, kept)| kept.size);
            (Some(outcome.owner), size)
        });
        let files = self.files.values().map(|file| (None, file.size()));
        let wanted: Vec<(Option<u64>, usize)> = answers.chain(files).collect();
        let mut shares = fair::shares(&wanted, total).into_iter();
        for (outcome, share) in self.outcomes.values_mut().zip(&mut shares) {
            if let Some((_, kept)) = &mut outcome.good {
                kept.cut(share);
            }
        }
        for (file, share) in self.files.values_mut().zip(shares) {
            let level = fair::level(file.families.iter().map(|(_, kept)| kept.size), share);
            for (_, kept) in &mut file.families {
                kept.cut(level);
            }
        }
    }
}

/// Shared results: the threads write them, the source reads them.
#[derive(Clone, Debug, Default)]
pub struct Store(Arc<Mutex<StoreContents>>);

impl Store {
    /// Locks the contents. Never wait for anything while the lock is held.
    pub fn lock(&self) -> MutexGuard<'_, StoreContents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::custom::parse::families;

    fn text(samples: usize) -> String {
        (0..samples)
            .map(|at| format!("some_metric{{k=\"{at:05}\"}} 1\n"))
            .collect()
    }

    fn answered(owner: u64, samples: usize) -> RequestOutcome {
        RequestOutcome {
            owner,
            up: true,
            took: Duration::ZERO,
            good: Some((Instant::now(), Kept::new(families(&text(samples))))),
            samples,
            age: Duration::from_secs(60),
        }
    }

    fn key(cgroup: u64, port: u16) -> EndpointKey {
        EndpointKey {
            cgroup,
            port,
            path: "/".to_owned(),
        }
    }

    /// Samples and lost samples of an endpoint.
    fn of(contents: &StoreContents, cgroup: u64, port: u16) -> (usize, usize) {
        let (_, kept) = contents.outcomes[&key(cgroup, port)].good.as_ref().unwrap();
        (measure::samples(&kept.families), kept.lost)
    }

    #[test]
    fn sixty_large_answers_stay_within_the_limit_and_a_small_one_is_whole() {
        let limit = 1 << 20;
        let mut contents = StoreContents::default();
        contents.outcomes.insert(key(1000, 1), answered(1000, 50));
        for cgroup in 0..60 {
            contents
                .outcomes
                .insert(key(cgroup, 1), answered(cgroup, 1000));
            contents.fit(limit);
            assert!(contents.size() <= limit);
        }
        assert_eq!(of(&contents, 1000, 1), (50, 0));
        let (first, lost) = of(&contents, 0, 1);
        assert!(first > 50 && first + lost == 1000, "{first} and {lost}");
        for cgroup in 0..60 {
            let (kept, _) = of(&contents, cgroup, 1);
            assert!(kept.abs_diff(first) <= 1, "{kept} instead of {first}");
        }
        assert!(contents.size() > limit - limit / 10);
        // Where the others end, one has more again with its next answer.
        contents.outcomes.retain(|key, _| key.cgroup == 5);
        contents.outcomes.insert(key(5, 1), answered(5, 1000));
        contents.fit(limit);
        assert_eq!(of(&contents, 5, 1), (1000, 0));
    }

    #[test]
    fn a_container_with_many_endpoints_has_one_share() {
        let mut contents = StoreContents::default();
        for port in 0..20 {
            contents.outcomes.insert(key(1, port), answered(1, 300));
        }
        contents.outcomes.insert(key(2, 1), answered(2, 1000));
        contents.fit(300_000);
        let many: usize = (0..20).map(|port| of(&contents, 1, port).0).sum();
        let (one, _) = of(&contents, 2, 1);
        assert!(
            one < 1000 && many.abs_diff(one) <= one / 10,
            "{many} and {one}"
        );
    }

    #[test]
    fn a_huge_text_file_takes_nothing_from_small_ones() {
        let file = |samples| TextFile {
            modified: SystemTime::now(),
            families: vec![(None, Kept::new(families(&text(samples))))],
        };
        let mut contents = StoreContents::default();
        contents.files.insert("a.prom".to_owned(), file(50_000));
        contents.files.insert("b.prom".to_owned(), file(10));
        contents.outcomes.insert(key(1, 1), answered(1, 1000));
        contents.fit(1_000_000);
        assert!(contents.size() <= 1_000_000);
        let lost = |name: &str| contents.files[name].families[0].1.lost;
        assert!(lost("a.prom") > 40_000);
        assert_eq!(lost("b.prom"), 0);
        assert_eq!(of(&contents, 1, 1), (1000, 0));
    }
}
