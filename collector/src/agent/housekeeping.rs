//! Between scrapes: cgroups that come and go, slots that come back.

use std::{
    collections::{HashMap, HashSet},
    os::fd::AsRawFd,
    sync::{Arc, Weak},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use collector_common::{
    event::{CgroupEvent, CgroupEventKind},
    pass::CgroupRecord,
    stat::Stat,
};

use super::{Agent, Core, Disowned};
use crate::{
    cgroup::{Event, walk},
    kernel::{cells::SlotMemory, events, load::monotonic_ns, slots},
    source::{Change, FinalRecords, ForeignEvent, Source, notify},
};

/// How long a dead cgroup keeps its slot: the last of its tasks may still be on their way out.
const QUARANTINE: Duration = Duration::from_secs(2);
/// How long a disowned slot's numbers are still read before it is recycled: far longer than a
/// program runs.
const GRACE: Duration = Duration::from_millis(500);

impl Agent {
    /// Starts the thread that follows lifecycle events. It ends with the agent.
    ///
    /// # Errors
    ///
    /// When there can't be another thread.
    pub fn follow(self: &Arc<Self>) -> std::io::Result<()> {
        let agent = Arc::downgrade(self);
        let descriptors = {
            let core = self.core();
            let mut descriptors = vec![core.events.as_raw_fd()];
            descriptors.extend(core.kernel_log.as_ref().map(AsRawFd::as_raw_fd));
            descriptors
        };
        let run = move || {
            while let Some(timeout) = tidy(&agent) {
                events::wait_readable(&descriptors, timeout);
            }
        };
        std::thread::Builder::new()
            .name("cgmeter-events".to_owned())
            .spawn(run)
            .map(drop)
    }
}

/// One round; `None` once the agent is gone, else how long there is nothing to do.
fn tidy(agent: &Weak<Agent>) -> Option<Duration> {
    let agent = agent.upgrade()?;
    let mut core = agent.core();
    let came = core.housekeeping();
    if came > 0
        && let Err(error) = core.slots.refresh()
    {
        tracing::warn!(%error, "slots could not be read");
    }
    core.provide_slots();
    let idle = core.idle();
    Some(core.next_round().min(idle))
}

impl Core {
    /// Takes in lifecycle events, retires slots, reaps dead cgroups. Returns the number of events.
    pub(super) fn housekeeping(&mut self) -> usize {
        if let Some(log) = &mut self.kernel_log {
            log.flush();
        }
        let events = self.drain();
        self.walk_if_events_were_lost();
        self.retire(Instant::now());
        let sources = &mut self.sources;
        let (departed, slots) = (&self.departed, &self.slots);
        // A cgroup's sockets may outlive it and take a slot once more.
        let pending = |id| slots.has(id) || departed.iter().any(|&(found, _)| found == id);
        self.tree
            .reap(SystemTime::now(), self.linger, pending, |from, into| {
                notify(sources.iter_mut(), &Change::Reaped { node: from, into });
                // A slot of a node that is reaped counts for the node that takes it over.
                for slot in self
                    .disowned
                    .iter_mut()
                    .filter(|slot| slot.node == Some(from))
                {
                    slot.node = Some(into);
                }
            });
        self.identify();
        events
    }

    fn drain(&mut self) -> usize {
        // Events carry the monotonic clock; the tree has wall-clock times.
        let (monotonic, wall) = (monotonic_ns(), SystemTime::now());
        let mut events = 0;
        let mut threads_moved = false;
        while let Some(item) = self.events.next() {
            events += 1;
            let Some(event) = events::read_value::<CgroupEvent>(&item) else {
                continue;
            };
            drop(item);
            if event.kind == CgroupEventKind::ThreadsMoved as u32 {
                threads_moved = true;
                continue;
            }
            let age = Duration::from_nanos(monotonic.saturating_sub(event.time_ns));
            let at = wall.checked_sub(age).unwrap_or(wall);
            let name = event
                .name
                .get(..event.name_len as usize)
                .unwrap_or_default()
                .to_vec();
            let made = event.kind == CgroupEventKind::Made as u32;
            let renamed = event.kind == CgroupEventKind::Renamed as u32;
            if event.hierarchy != self.hierarchies.unified.hierarchy {
                let made = (made || renamed).then_some((event.parent, name));
                let event = ForeignEvent {
                    hierarchy: event.hierarchy,
                    id: event.id,
                    made,
                };
                let last = self
                    .books
                    .as_mut()
                    .and_then(|books| books.foreign(&event, &self.tree));
                if let Some((node, record)) = last {
                    let record = &record;
                    notify(&mut self.sources, &Change::RemovedV1 { node, record });
                }
            } else if made {
                let made = Event::Made {
                    id: event.id,
                    parent: event.parent,
                    name,
                    at,
                };
                if let Some((node, again)) = self.tree.apply(&made) {
                    self.identities.ask(&self.tree, node, Instant::now());
                    notify(&mut self.sources, &Change::Made { node, again });
                }
            } else {
                let node = self.tree.apply(&Event::Removed { id: event.id, at });
                let last = self
                    .books
                    .as_ref()
                    .and_then(|books| books.take_last(event.id, 0));
                let removed = Change::Removed {
                    id: event.id,
                    node: node.map(|(node, _)| node),
                    record: last.as_ref(),
                };
                notify(&mut self.sources, &removed);
                self.departed.push((event.id, Instant::now()));
            }
        }
        // The kernel marks the clocks of the leader alone; its threads' running time is taken in
        // now, before they run for long in the cgroup that they have entered.
        if threads_moved && let Err(error) = self.kernel.take_in_flight() {
            tracing::warn!(
                error = format!("{error:#}"),
                "moved threads could not be taken in"
            );
        }
        events
    }

    fn walk_if_events_were_lost(&mut self) {
        let Ok(stats) = self.kernel.stats() else {
            return;
        };
        let lost = stats.get(Stat::LostEvents);
        if lost == self.lost_events {
            return;
        }
        tracing::warn!(
            lost = lost - self.lost_events,
            "cgroup events were lost; walking the hierarchy"
        );
        self.lost_events = lost;
        let records = self.kernel_statistics_after_loss();
        match walk(&self.hierarchies.unified.path) {
            Ok(found) => {
                let walked = self.tree.merge(&found, SystemTime::now());
                for &id in &walked.removed {
                    self.departed.push((id, Instant::now()));
                    let removed = Change::Removed {
                        id,
                        node: self.tree.by_id(id),
                        record: records.get(&id),
                    };
                    notify(&mut self.sources, &removed);
                }
                let again = |&node| (node, true);
                let new = |&node| (node, false);
                let made = walked.remade.iter().map(again);
                for (node, again) in made.chain(walked.born.iter().map(new)) {
                    self.identities.ask(&self.tree, node, Instant::now());
                    notify(&mut self.sources, &Change::Made { node, again });
                }
                self.identities.ask_all(&self.tree, Instant::now());
            }
            Err(error) => tracing::error!(%error, "the hierarchy could not be walked"),
        }
        // Cgroups that came and went meanwhile are in no walk and had no event, but had slots.
        if self.slots.refresh().is_ok() {
            let unknown = self
                .slots
                .used()
                .map(|(id, _)| id)
                .filter(|&id| !self.tree.knows(id));
            self.departed.extend(unknown.map(|id| (id, Instant::now())));
        }
    }

    /// After lost events: takes the final records of removed cgroups, and walks the v1 hierarchies.
    /// Sources hear of the records of v1 cgroups here; those of cgroup2 are returned by id, for when
    /// the walk has found out which cgroups are gone.
    fn kernel_statistics_after_loss(&mut self) -> HashMap<u64, CgroupRecord> {
        let Some(books) = &mut self.books else {
            return HashMap::new();
        };
        let FinalRecords { unified, v1 } = books.take_all_last(&self.tree);
        books.walk_again();
        for (node, record) in &v1 {
            let node = *node;
            notify(&mut self.sources, &Change::RemovedV1 { node, record });
        }
        unified
    }

    /// Takes slots from cgroups that are long enough dead, and recycles those taken before.
    fn retire(&mut self, now: Instant) {
        let due = |since: &Instant, delay| now.duration_since(*since) >= delay;
        if self
            .departed
            .iter()
            .any(|(_, since)| due(since, QUARANTINE))
        {
            if self.slots.refresh().is_err() {
                return;
            }
            let (over, waiting): (Vec<_>, Vec<_>) = self
                .departed
                .drain(..)
                .partition(|(_, since)| due(since, QUARANTINE));
            self.departed = waiting;
            for &(id, _) in &over {
                // It only seemed to be gone: it took a slot before its birth was told.
                if self.tree.living(id).is_some() {
                    continue;
                }
                let node = self.tree.by_id(id);
                if let Some(slot) = self.slots.disown(id, &mut memories(&mut self.sources)) {
                    self.disowned.push(Disowned {
                        slot,
                        node,
                        since: now,
                    });
                }
            }
            // A node may have been reaped already: the alias leads to where its numbers belong.
            let tree = &self.tree;
            notify(&mut self.sources, &Change::QuarantineOver { tree });
            for (id, _) in over {
                self.tree.forget_alias(id);
            }
        }
        let (over, waiting): (Vec<_>, Vec<_>) = self
            .disowned
            .drain(..)
            .partition(|slot| due(&slot.since, GRACE));
        self.disowned = waiting;
        for Disowned { slot, node, .. } in over {
            if let Some(node) = node {
                notify(&mut self.sources, &Change::SlotRecycled { slot, node });
            }
            self.slots.recycle(slot, &mut memories(&mut self.sources));
        }
    }

    /// Has slots retired that were taken for cgroups which are not in the tree any more.
    pub(super) fn depart_left_behind(&mut self) {
        let departed: HashSet<u64> = self.departed.iter().map(|&(id, _)| id).collect();
        let left_behind = self
            .slots
            .used()
            .map(|(id, _)| id)
            .filter(|id| self.tree.left_behind(*id) && !departed.contains(id));
        self.departed
            .extend(left_behind.map(|id| (id, Instant::now())));
    }

    /// Keeps a slot free for each live cgroup that has none, and some more.
    pub(super) fn provide_slots(&mut self) {
        let (used, _, _) = self.slots.states();
        let (live, _) = self.tree.counts();
        let free = live.saturating_sub(used) + self.reserve;
        if let Err(error) = self.slots.top_up(free, &mut memories(&mut self.sources)) {
            tracing::warn!(
                error = format!("{error:#}"),
                "fewer slots are free than wanted"
            );
        }
    }

    /// Makes the cells of the overflow slot.
    pub(super) fn provide_overflow(&mut self) -> anyhow::Result<()> {
        slots::provide(&mut memories(&mut self.sources), 1)
            .context("making the cells of the overflow slot")
    }

    /// Has sources do what must not wait for a scrape; returns how long there is nothing to do.
    fn idle(&mut self) -> Duration {
        let tree = &self.tree;
        self.sources
            .iter_mut()
            .filter_map(|source| source.idle(tree))
            .min()
            .map_or(Duration::MAX, |next| next.max(Duration::from_millis(100)))
    }

    fn next_round(&self) -> Duration {
        let mut next = Duration::from_secs(3600);
        if let Some((_, since)) = self.departed.first() {
            next = next.min(QUARANTINE.saturating_sub(since.elapsed()));
        }
        if let Some(slot) = self.disowned.first() {
            next = next.min(GRACE.saturating_sub(slot.since.elapsed()));
        }
        if let Some(at) = self.tree.next_reaping(self.linger) {
            next = next.min(at.duration_since(SystemTime::now()).unwrap_or_default());
        }
        // Not more often than this, whatever is due: a node may wait for its children.
        next.max(Duration::from_millis(100))
    }
}

fn memories(sources: &mut [Box<dyn Source>]) -> Vec<&mut dyn SlotMemory> {
    sources
        .iter_mut()
        .filter_map(|source| source.cells())
        .collect()
}
