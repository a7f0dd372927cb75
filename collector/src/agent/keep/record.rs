//! What is kept of a cgroup besides its values: its path, when it was made and removed, and what a runtime has said of
//! it. So the next agent knows who was removed while no agent ran, and what removed containers were called.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    cgroup::{Container, ContainerLimits, Pod, Runtime, State},
    source::values::{Words, digest_of},
};

/// Most words of labels: 4 KiB. Who sets more has none of them after a restart.
const MOST_LABELS: usize = 512;

/// A cgroup. A word for each number; paths and texts are their length, and eight bytes a word.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) path: Vec<u8>,
    pub(super) created: Option<SystemTime>,
    /// `None` while it lives.
    pub(super) removed: Option<Removed>,
    pub(super) container: Option<Arc<Container>>,
}

/// The end of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Removed {
    pub(super) at: SystemTime,
    /// Whether a scrape has shown it.
    pub(super) shown: bool,
    /// Whether it is known to have counted an event.
    pub(super) counted: bool,
    /// Whether its last values are beside this. Otherwise they are still in its slot.
    pub(super) read: bool,
    /// Its CPU time, ns.
    pub(super) activity: u64,
}

/// States in the order of their numbers.
const STATES: [State; 6] = [
    State::Unknown,
    State::Created,
    State::Running,
    State::Paused,
    State::Restarting,
    State::Exited,
];

impl Record {
    /// Says what the words are. Another number stands for another layout.
    const SHAPE: u64 = digest_of("cgroup 1");

    pub(super) fn words(&self) -> Vec<u64> {
        let mut words = vec![Self::SHAPE];
        self.path.put(&mut words);
        put_time(self.created, &mut words);
        self.removed.is_some().put(&mut words);
        if let Some(removed) = &self.removed {
            put_time(Some(removed.at), &mut words);
            removed.shown.put(&mut words);
            removed.counted.put(&mut words);
            removed.read.put(&mut words);
            removed.activity.put(&mut words);
        }
        self.container.is_some().put(&mut words);
        if let Some(container) = &self.container {
            put_container(container, &mut words);
        }
        words
    }

    /// `None` if the words are something else.
    pub(super) fn read(words: &[u64], runtimes: &[Runtime]) -> Option<Self> {
        let (shape, mut words) = words.split_first()?;
        if *shape != Self::SHAPE {
            return None;
        }
        let words = &mut words;
        Some(Self {
            path: Words::take(words)?,
            created: take_time(words)?,
            removed: match bool::take(words)? {
                false => None,
                true => Some(Removed {
                    at: take_time(words)??,
                    shown: Words::take(words)?,
                    counted: Words::take(words)?,
                    read: Words::take(words)?,
                    activity: Words::take(words)?,
                }),
            },
            container: match bool::take(words)? {
                false => None,
                true => Some(Arc::new(take_container(words, runtimes)?)),
            },
        })
    }
}

/// ns since 1970; 0 stands for an unknown time.
fn put_time(time: Option<SystemTime>, words: &mut Vec<u64>) {
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    words.push(since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0)));
}

fn take_time(words: &mut &[u64]) -> Option<Option<SystemTime>> {
    let ns = u64::take(words)?;
    Some((ns > 0).then(|| UNIX_EPOCH + Duration::from_nanos(ns)))
}

/// Without what changes while it runs, and without annotations.
fn put_container(container: &Container, words: &mut Vec<u64>) {
    let Container {
        id,
        runtime,
        name,
        image,
        image_id,
        labels,
        annotations: _,
        pod,
        state,
        health: _,
        exit_code,
        exit_reason,
        restarts,
        created,
        started,
        finished,
        pid: _,
        limits,
        writable: _,
    } = container;
    runtime.name().to_owned().put(words);
    for text in [id, name, image, image_id, exit_reason] {
        text.put(words);
    }
    let mut pairs: Vec<(String, String)> = Vec::new();
    pairs.extend(
        labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    let mut all = Vec::new();
    pairs.put(&mut all);
    if all.len() > MOST_LABELS {
        all = vec![0];
    }
    words.append(&mut all);
    pod.is_some().put(words);
    if let Some(pod) = pod {
        for text in [&pod.namespace, &pod.name, &pod.uid, &pod.container] {
            text.put(words);
        }
    }
    let number = STATES.iter().position(|other| other == state);
    (number.unwrap_or(0) as u64).put(words);
    exit_code.map(i64::cast_unsigned).put(words);
    restarts.put(words);
    for time in [created, started, finished] {
        put_time(*time, words);
    }
    for limit in [
        limits.memory,
        limits.cpu_quota,
        limits.cpu_period,
        limits.cpu_shares,
        limits.pids,
    ] {
        limit.put(words);
    }
}

fn take_container(words: &mut &[u64], runtimes: &[Runtime]) -> Option<Container> {
    let runtime = String::take(words)?;
    let runtime = runtimes.iter().find(|other| other.name() == runtime)?;
    let id = String::take(words)?;
    Some(Container {
        name: Words::take(words)?,
        image: Words::take(words)?,
        image_id: Words::take(words)?,
        exit_reason: Words::take(words)?,
        labels: BTreeMap::from_iter(Vec::<(String, String)>::take(words)?),
        pod: match bool::take(words)? {
            false => None,
            true => Some(Pod {
                namespace: Words::take(words)?,
                name: Words::take(words)?,
                uid: Words::take(words)?,
                container: Words::take(words)?,
            }),
        },
        state: *STATES.get(usize::try_from(u64::take(words)?).ok()?)?,
        exit_code: <Option<u64> as Words>::take(words)?.map(u64::cast_signed),
        restarts: Words::take(words)?,
        created: take_time(words)?,
        started: take_time(words)?,
        finished: take_time(words)?,
        limits: ContainerLimits {
            memory: Words::take(words)?,
            cpu_quota: Words::take(words)?,
            cpu_period: Words::take(words)?,
            cpu_shares: Words::take(words)?,
            pids: Words::take(words)?,
        },
        ..Container::new(id, *runtime)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> Container {
        let second = |n| Some(UNIX_EPOCH + Duration::from_secs(n));
        Container {
            name: "web-1".to_owned(),
            image: "nginx:1.29".to_owned(),
            image_id: "sha256:abc".to_owned(),
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            pod: Some(Pod {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
                uid: "u".to_owned(),
                container: "nginx".to_owned(),
            }),
            state: State::Exited,
            exit_code: Some(-137),
            exit_reason: "OOMKilled".to_owned(),
            restarts: Some(3),
            created: second(100),
            started: second(200),
            finished: None,
            limits: ContainerLimits {
                memory: Some(1 << 30),
                cpu_shares: Some(512),
                ..ContainerLimits::default()
            },
            ..Container::new("3f8a", Runtime::DOCKER)
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let end = Removed {
            at: UNIX_EPOCH + Duration::from_nanos(7),
            shown: true,
            counted: true,
            read: false,
            activity: 9,
        };
        for (removed, container) in [(None, None), (Some(end), Some(Arc::new(container())))] {
            let record = Record {
                path: b"/a/\xff".to_vec(),
                created: removed.map(|end: Removed| end.at),
                removed,
                container,
            };
            let words = record.words();
            assert_eq!(
                Record::read(&words, &[Runtime::DOCKER]),
                Some(record.clone())
            );
            for length in 0..words.len() {
                assert_eq!(Record::read(&words[..length], &[Runtime::DOCKER]), None);
            }
            let mut other = words.clone();
            other[0] += 1;
            assert_eq!(Record::read(&other, &[Runtime::DOCKER]), None);
        }
    }

    #[test]
    fn labels_are_bounded() {
        let labels = (0..100).map(|n| (format!("label-{n}"), "x".repeat(100)));
        let container = Container {
            labels: labels.collect(),
            ..container()
        };
        let record = Record {
            path: b"/a".to_vec(),
            created: None,
            removed: None,
            container: Some(Arc::new(container)),
        };
        let words = record.words();
        assert!(words.len() < 100, "{}", words.len());
        let read = Record::read(&words, &[Runtime::DOCKER]).unwrap();
        let container = read.container.unwrap();
        assert_eq!(
            (container.name.as_str(), container.labels.len()),
            ("web-1", 0)
        );
    }
}
