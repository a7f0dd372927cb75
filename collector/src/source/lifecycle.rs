//! When a cgroup was created and last seen, from the tree itself.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Change, Inputs, Reading, Source, values::PerNode};
use crate::{
    cgroup::Nodes,
    exposition::{Encoder, Family, Labels, MetricKind, Unit, Value},
};

const LAST_SEEN: Family = Family {
    name: "container_last_seen",
    help: "Unix time at which the cgroup was last seen; constant once the cgroup is removed.",
    kind: MetricKind::Gauge,
    unit: Unit::None,
    labels: &[],
    origin: "cgroup_rmdir",
    oracle: "the time of rmdir(2)",
};

const CREATION_TIME: Family = Family {
    name: "container_creation_time_seconds",
    help: "Unix time at which the cgroup was created or, if that was before the agent's start, the container; absent if unknown.",
    kind: MetricKind::Gauge,
    unit: Unit::Seconds,
    labels: &[],
    origin: "cgroup_mkdir; the runtime",
    oracle: "the time of mkdir(2)",
};

/// The source's families.
pub const LIFECYCLE_FAMILIES: &[&Family] = &[&LAST_SEEN, &CREATION_TIME];

/// The source; always on.
#[derive(Clone, Debug, Default)]
pub struct LifecycleSource {
    time: Option<SystemTime>,
}

impl Source for LifecycleSource {
    fn name(&self) -> &'static str {
        "cgroups"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        Vec::new()
    }

    fn change(&mut self, _: &Change<'_>) {}

    fn collect(&mut self, inputs: &Inputs<'_>) -> anyhow::Result<()> {
        self.time = Some(inputs.time);
        Ok(())
    }

    fn reading(&self) -> Box<dyn Reading> {
        Box::new(self.clone())
    }
}

impl Reading for LifecycleSource {
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
        let Some(now) = self.time else {
            return;
        };
        out.family(&LAST_SEEN);
        for (_, node) in nodes.exported() {
            // Also for removed cgroups: "container killed" alerts compare it with time().
            let seen = seconds(node.died.unwrap_or(now)).floor();
            out.sample(Labels::new(&node.labels, &[]), Value::Float(seen));
        }
        out.family(&CREATION_TIME);
        for (_, node) in nodes.exported().filter(|(_, node)| node.died.is_none()) {
            let reported = node.container.as_ref();
            let created = node.created.or_else(|| reported?.created);
            if let Some(created) = created {
                out.sample(
                    Labels::new(&node.labels, &[]),
                    Value::Float(seconds(created)),
                );
            }
        }
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
