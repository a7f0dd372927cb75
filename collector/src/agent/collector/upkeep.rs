//! Keeps what the collector holds up to date: lifecycle events, walks of the hierarchy, names from the
//! runtimes, retired slots, reaped cgroups.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant, SystemTime},
};

use collector_common::{
    cgroup_iterator::CgroupRecord,
    event::{CgroupEvent, CgroupEventKind, RemovedEvent},
    stat::Stat,
};

use super::Collector;
use crate::{
    agent::lifecycle::Lifecycle,
    cgroup::{Event, Reaped, walk},
    kernel::{events, system::monotonic_ns},
    source::{Change, FinalRecords, V1Event},
};

impl Collector {
    /// Applies lifecycle events, retires slots, reaps removed cgroups. Returns the number of
    /// events.
    pub(in crate::agent) fn housekeeping(&mut self) -> usize {
        if let Some(log) = &mut self.kernel_log {
            log.flush();
        }
        let events = self.drain();
        self.walk_if_events_were_lost();
        let Self {
            lifecycle, slots, ..
        } = self;
        slots.forget_departed(&mut lifecycle.tree, Instant::now());
        let reaped = lifecycle
            .tree
            .reap(Instant::now(), lifecycle.linger, |id| slots.is_pending(id));
        self.reaped(&reaped);
        self.identify();
        events
    }

    /// Reads which cgroups have slots and takes the last values of removed ones, then drops those that
    /// never counted anything or are too many. To be called under the slots' lock.
    pub(in crate::agent) fn refresh_slots(&mut self) {
        let Self {
            lifecycle, slots, ..
        } = self;
        let tree = &mut lifecycle.tree;
        slots.refresh();
        let mut gone = tree.discard(|id| slots.has(id), |id| slots.is_pending(id));
        gone.extend(tree.reap(Instant::now(), lifecycle.linger, |id| slots.is_pending(id)));
        self.reaped(&gone);
        let Self {
            lifecycle,
            slots,
            sources,
            ..
        } = self;
        slots.take_last_values(&mut lifecycle.tree, sources);
    }

    /// The same between scrapes. What costs as much as there are slots waits until enough cgroups were
    /// removed.
    pub(in crate::agent) fn refresh_removed(&mut self) {
        if self.lifecycle.tree.fresh() >= self.slots.price() {
            return self.refresh_slots();
        }
        let Self {
            lifecycle,
            slots,
            sources,
            ..
        } = self;
        slots.refresh_retired();
        slots.take_last_values(&mut lifecycle.tree, sources);
    }

    /// Notes removed containers for the next agent.
    pub(in crate::agent) fn keep_removed(&mut self) {
        let Self {
            keeper: Some(keeper),
            lifecycle,
            slots,
            sources,
            ..
        } = self
        else {
            return;
        };
        let unread = slots.unread();
        if let Err(error) = keeper.save_removed(&lifecycle.tree, sources, &unread) {
            tracing::warn!(%error, "a removed container may have no series after a restart");
        }
    }

    /// Finds which cgroups got no slot.
    ///
    /// # Errors
    ///
    /// When a map of the kernel side can't be read.
    pub(super) fn find_borrowers(&mut self) -> anyhow::Result<()> {
        self.slots.doubt_borrowers();
        let borrowed = self.kernel.stat(Stat::Borrowed)?;
        Ok(self.slots.find_borrowers(&self.lifecycle.tree, borrowed)?)
    }

    /// What reaped nodes had counts in their parents.
    fn reaped(&mut self, nodes: &[Reaped]) {
        self.work_done += nodes.len() as u64;
        for &Reaped { node, into } in nodes {
            self.sources.notify(&Change::Reaped { node, into });
        }
    }

    /// Applies lifecycle events. Returns their number.
    fn drain(&mut self) -> usize {
        // Events carry monotonic time, the tree holds wall-clock time.
        let (monotonic, wall) = (monotonic_ns(), SystemTime::now());
        let wall_time = |time_ns| {
            let age = Duration::from_nanos(monotonic.saturating_sub(time_ns));
            wall.checked_sub(age).unwrap_or(wall)
        };
        let mut events = 0;
        let mut threads_moved = false;
        while let Some(message) = self.lifecycle.events.next().map(|item| read(&item)) {
            events += 1;
            match message {
                Some(Message::Removed(event, has_record)) => {
                    self.removed(&event, has_record, wall_time(event.time_ns));
                }
                Some(Message::Other(event)) if event.kind == THREADS_MOVED => threads_moved = true,
                Some(Message::Other(event)) => self.made(&event, wall_time(event.time_ns)),
                None => {}
            }
        }
        // The kernel program updates the clocks of the group leader alone. The running time of its
        // other threads is read now, before they run for long in the cgroup that they have entered.
        if threads_moved && let Err(error) = self.kernel.take_in_flight() {
            tracing::warn!(
                error = format!("{error:#}"),
                "the running time of moved threads could not be read"
            );
        }
        events
    }

    /// A cgroup was made, or renamed (v1 only).
    fn made(&mut self, event: &CgroupEvent, at: SystemTime) {
        let name = event
            .name
            .get(..event.name_len as usize)
            .unwrap_or_default()
            .to_vec();
        if event.hierarchy != self.lifecycle.hierarchies.unified.hierarchy {
            let event = V1Event {
                hierarchy: event.hierarchy,
                id: event.id,
                made: Some((event.parent, name)),
                record: None,
            };
            self.v1_event(&event);
        } else if event.kind == CgroupEventKind::Made as u32 {
            let made = Event::Made {
                id: event.id,
                parent: event.parent,
                name,
                at,
            };
            if let Some((node, again)) = self.lifecycle.tree.apply(&made) {
                let tree = &self.lifecycle.tree;
                self.lifecycle.identities.ask(tree, node, Instant::now());
                self.slots.favour(tree, node);
                self.sources.notify(&Change::Made { node, again });
            }
        }
    }

    /// A cgroup was removed.
    fn removed(&mut self, event: &RemovedEvent, has_record: bool, at: SystemTime) {
        let record = has_record.then_some(&event.record);
        let id = event.id;
        if event.hierarchy != self.lifecycle.hierarchies.unified.hierarchy {
            return self.v1_event(&V1Event {
                hierarchy: event.hierarchy,
                id,
                made: None,
                record: record.copied(),
            });
        }
        let node = self.lifecycle.tree.apply(&Event::Removed { id, at });
        if let Some(record) = record {
            self.lifecycle.tree.note_activity(id, record.usage_ns);
        }
        self.sources.notify(&Change::Removed {
            id,
            node: node.map(|(node, _)| node),
            record,
        });
        self.departed(id);
    }

    fn departed(&mut self, id: u64) {
        self.slots.depart(id);
        if let Some(keeper) = &mut self.keeper {
            keeper.note_removed(id);
        }
    }

    fn v1_event(&mut self, event: &V1Event) {
        let Some(statistics) = &mut self.sources.statistics else {
            return;
        };
        if let Some((node, record)) = statistics.v1_event(event, &self.lifecycle.tree) {
            let record = &record;
            self.sources.notify(&Change::RemovedV1 { node, record });
        }
    }

    fn walk_if_events_were_lost(&mut self) {
        let Ok(lost) = self.kernel.stat(Stat::LostEvents) else {
            return;
        };
        if lost == self.lifecycle.lost_events {
            return;
        }
        tracing::warn!(
            lost = lost - self.lifecycle.lost_events,
            "cgroup events were lost; walking the hierarchy"
        );
        self.lifecycle.lost_events = lost;
        self.compare = true;
        let records = self.kernel_statistics_after_loss();
        match walk(&self.lifecycle.hierarchies.unified.path) {
            Ok(found) => {
                let walked = self.lifecycle.tree.merge(&found, SystemTime::now());
                for &id in &walked.removed {
                    self.departed(id);
                    if let Some(record) = records.get(&id) {
                        let tree = &mut self.lifecycle.tree;
                        tree.note_activity(id, record.usage_ns);
                    }
                    let removed = Change::Removed {
                        id,
                        node: self.lifecycle.tree.by_id(id),
                        record: records.get(&id),
                    };
                    self.sources.notify(&removed);
                }
                // Those that were known to be gone already: an agent that has just started finds them so.
                let gone: HashSet<u64> = walked.removed.iter().copied().collect();
                for (&id, record) in records.iter().filter(|(id, _)| !gone.contains(id)) {
                    let removed = Change::Removed {
                        id,
                        node: self.lifecycle.tree.of_path(id),
                        record: Some(record),
                    };
                    self.sources.notify(&removed);
                }
                for &node in &walked.remade {
                    let tree = &self.lifecycle.tree;
                    self.lifecycle.identities.ask(tree, node, Instant::now());
                    self.slots.favour(tree, node);
                    self.sources.notify(&Change::Made { node, again: true });
                }
                for &node in &walked.born {
                    self.slots.favour(&self.lifecycle.tree, node);
                    self.sources.notify(&Change::Made { node, again: false });
                }
                self.lifecycle
                    .identities
                    .ask_all(&self.lifecycle.tree, Instant::now());
            }
            Err(error) => tracing::error!(%error, "the hierarchy could not be walked"),
        }
    }

    /// After lost events: takes the final records of removed cgroups, and walks the v1 hierarchies.
    /// Passes the records of v1 cgroups to the sources. Returns those of cgroup2 by id; they are
    /// used once the walk has found which cgroups are gone.
    fn kernel_statistics_after_loss(&mut self) -> HashMap<u64, CgroupRecord> {
        let Some(statistics) = &mut self.sources.statistics else {
            return HashMap::new();
        };
        let FinalRecords { unified, v1 } = statistics.take_final_records(&self.lifecycle.tree);
        statistics.walk_again();
        for (node, record) in &v1 {
            let node = *node;
            self.sources.notify(&Change::RemovedV1 { node, record });
        }
        unified
    }

    /// Waits a short time for the names of containers that have just started, and reads their
    /// records. Runs before a frame is taken.
    pub(super) fn await_names(&mut self) {
        let Lifecycle {
            tree, identities, ..
        } = &mut self.lifecycle;
        let waited = identities.wait(tree, Instant::now());
        if identities.is_behind() || waited {
            self.identify();
        }
    }

    /// Reads the runtimes' new records.
    fn identify(&mut self) {
        let Lifecycle {
            tree, identities, ..
        } = &mut self.lifecycle;
        for node in identities.refresh(tree, Instant::now()) {
            self.slots.favour(tree, node);
            self.sources.notify(&Change::Relabelled { node });
        }
    }
}

/// A message of the ring buffer.
enum Message {
    /// A removal, and whether it has a record.
    Removed(Box<RemovedEvent>, bool),
    /// Anything else.
    Other(Box<CgroupEvent>),
}

const THREADS_MOVED: u32 = CgroupEventKind::ThreadsMoved as u32;

fn read(message: &[u8]) -> Option<Message> {
    match RemovedEvent::read(message) {
        Some((event, has_record)) => Some(Message::Removed(Box::new(event), has_record)),
        None => events::read_value(message).map(|event| Message::Other(Box::new(event))),
    }
}
