//! The tree of cgroups, and what keeps it up to date: lifecycle events, names from the runtimes.

use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};

use super::identity::Identities;
use crate::cgroup::{Hierarchies, Tree};

/// The tree, and what keeps it up to date.
pub(super) struct Lifecycle {
    pub(super) hierarchies: Hierarchies,
    pub(super) events: RingBuf<MapData>,
    pub(super) tree: Tree,
    pub(super) identities: Identities,
    /// How long a removed cgroup is still served.
    pub(super) linger: Duration,
    /// Number of lost events that walks have already made up for.
    pub(super) lost_events: u64,
    /// Number of suppressed cgroups, as last logged.
    pub(super) suppressed: usize,
}

impl Lifecycle {
    /// Time until the next node is to be reaped.
    pub(super) fn next_round(&self) -> Duration {
        let at = self.tree.next_reaping(self.linger);
        at.map_or(Duration::MAX, |at| {
            at.saturating_duration_since(Instant::now())
        })
    }
    /// Chooses the cgroups to export. Logs when cgroups begin or cease to be suppressed.
    pub(super) fn settle(&mut self) {
        self.tree.settle();
        let suppressed = self.tree.suppressed();
        match (self.suppressed, suppressed) {
            (0, 1..) => tracing::warn!(
                suppressed,
                "more cgroups than --cgroup.export-max: the excess has no series of its own and \
                 counts in its parents"
            ),
            (1.., 0) => tracing::info!("every cgroup is exported again"),
            _ => {}
        }
        self.suppressed = suppressed;
    }
}
