//! Keeps what the collector holds up to date: lifecycle events, walks of the hierarchy, names from the
//! runtimes, retired slots, reaped cgroups.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use collector_common::{
    cgroup_iterator::CgroupRecord,
    event::{CgroupEvent, CgroupEventKind},
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
        slots.end_quarantine(&mut lifecycle.tree, Instant::now());
        let reaped = lifecycle
            .tree
            .reap(Instant::now(), lifecycle.linger, |id| slots.is_pending(id));
        self.reaped(&reaped);
        self.identify();
        events
    }

    /// Reads which cgroups have slots and takes the last values of removed ones, then drops those that
    /// never counted anything. To be called under the slots' lock.
    ///
    /// # Errors
    ///
    /// When the kernel's map of slots can't be read.
    pub(in crate::agent) fn refresh_slots(&mut self) -> std::io::Result<()> {
        let Self {
            lifecycle,
            slots,
            sources,
            ..
        } = self;
        slots.refresh(&mut lifecycle.tree, sources)?;
        let discarded = lifecycle
            .tree
            .discard(|id| slots.has(id), |id| slots.is_pending(id));
        self.reaped(&discarded);
        Ok(())
    }

    /// Finds which cgroups got no slot.
    ///
    /// # Errors
    ///
    /// When a map of the kernel side can't be read.
    pub(super) fn find_borrowers(&mut self) -> anyhow::Result<()> {
        let borrowed = self.kernel.stat(Stat::Borrowed)?;
        Ok(self.slots.find_borrowers(borrowed)?)
    }

    /// What reaped nodes had counts in their parents.
    fn reaped(&mut self, nodes: &[Reaped]) {
        for &Reaped { node, into } in nodes {
            self.sources.notify(&Change::Reaped { node, into });
        }
    }

    /// Applies lifecycle events. Returns their number.
    fn drain(&mut self) -> usize {
        // Events carry monotonic time, the tree holds wall-clock time.
        let (monotonic, wall) = (monotonic_ns(), SystemTime::now());
        let mut events = 0;
        let mut threads_moved = false;
        while let Some(item) = self.lifecycle.events.next() {
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
            if event.hierarchy != self.lifecycle.hierarchies.unified.hierarchy {
                let made = (made || renamed).then_some((event.parent, name));
                let event = V1Event {
                    hierarchy: event.hierarchy,
                    id: event.id,
                    made,
                };
                let final_record = self
                    .sources
                    .statistics
                    .as_mut()
                    .and_then(|statistics| statistics.v1_event(&event, &self.lifecycle.tree));
                if let Some((node, record)) = final_record {
                    let record = &record;
                    self.sources.notify(&Change::RemovedV1 { node, record });
                }
            } else if made {
                let made = Event::Made {
                    id: event.id,
                    parent: event.parent,
                    name,
                    at,
                };
                if let Some((node, again)) = self.lifecycle.tree.apply(&made) {
                    self.lifecycle
                        .identities
                        .ask(&self.lifecycle.tree, node, Instant::now());
                    self.sources.notify(&Change::Made { node, again });
                }
            } else {
                let node = self
                    .lifecycle
                    .tree
                    .apply(&Event::Removed { id: event.id, at });
                let final_record = self
                    .sources
                    .statistics
                    .as_ref()
                    .and_then(|statistics| statistics.take_final_record(event.id, 0));
                let removed = Change::Removed {
                    id: event.id,
                    node: node.map(|(node, _)| node),
                    record: final_record.as_ref(),
                };
                self.sources.notify(&removed);
                self.slots.depart(event.id);
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
        let records = self.kernel_statistics_after_loss();
        match walk(&self.lifecycle.hierarchies.unified.path) {
            Ok(found) => {
                let walked = self.lifecycle.tree.merge(&found, SystemTime::now());
                for &id in &walked.removed {
                    self.slots.depart(id);
                    let removed = Change::Removed {
                        id,
                        node: self.lifecycle.tree.by_id(id),
                        record: records.get(&id),
                    };
                    self.sources.notify(&removed);
                }
                for &node in &walked.remade {
                    let tree = &self.lifecycle.tree;
                    self.lifecycle.identities.ask(tree, node, Instant::now());
                    self.sources.notify(&Change::Made { node, again: true });
                }
                for &node in &walked.born {
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
        if identities.wait(tree, Instant::now()) {
            self.identify();
        }
    }

    /// Reads the runtimes' new records.
    fn identify(&mut self) {
        let Lifecycle {
            tree, identities, ..
        } = &mut self.lifecycle;
        for node in identities.refresh(tree, Instant::now()) {
            self.sources.notify(&Change::Relabelled { node });
        }
    }
}
