//! What only a container's runtime knows: identity, health, exit, restarts, and the size of the
//! writable layer.
//!
//! No program: the followers of the runtimes have put the records into the tree, and a scrape sends
//! no request. Values are the container's own and are not summed. Oracle: the runtimes' own command
//! lines (tests/live/runtimes.rs).

use anyhow::Result;

use super::{Change, Inputs, Reading, Registration, Source, values::PerNode};
use crate::{
    cgroup::{Container, Health, Node, Nodes, PlaceKind, State},
    exposition::{Encoder, Family, Labels, MetricKind, Unit, Value},
    kernel::programs::Requirement,
};

const fn family(name: &'static str, help: &'static str, kind: MetricKind) -> Family {
    Family {
        name,
        help,
        kind,
        unit: Unit::None,
        labels: &[],
        origin: "the runtime",
        oracle: "docker inspect, podman inspect, crictl inspect",
    }
}

const INFO: Family = Family {
    labels: &["container_id", "runtime", "image_id", "pod_uid", "state"],
    origin: "the path; the runtime",
    ..family(
        "container_info",
        "1 for each container, with labels that identify it in addition to those of all its series; also for an ended container while it is reported.",
        MetricKind::Gauge,
    )
};

const HEALTH: Family = family(
    "container_health_state",
    "Result of the container's health check: 1 healthy, 0 unhealthy or not known yet, -1 without a check.",
    MetricKind::Gauge,
);

const EXIT_CODE: Family = family(
    "container_exit_code",
    "Exit code of the container's last run that ended; also for an ended container while it is reported.",
    MetricKind::Gauge,
);

const LAST_EXIT: Family = Family {
    labels: &["reason"],
    ..family(
        "container_last_exit_info",
        "1, with the reason that the runtime reports for the end of the container's last run, such as OOMKilled or Error.",
        MetricKind::Gauge,
    )
};

const RESTARTS: Family = family(
    "container_restarts_total",
    "Number of times that the runtime has restarted the container.",
    MetricKind::Counter,
);

const LAYER_BYTES: Family = Family {
    unit: Unit::Bytes,
    ..family(
        "container_fs_writable_layer_bytes",
        "Size of the container's writable layer, as last reported by its runtime.",
        MetricKind::Gauge,
    )
};

const LAYER_INODES: Family = family(
    "container_fs_writable_layer_inodes",
    "Inodes of the container's writable layer, as last reported by its runtime.",
    MetricKind::Gauge,
);

/// How a family's value is read; `None` leaves the series out.
type Reader = fn(&Node, &Container) -> Option<Value>;

/// Families without labels of their own.
const VALUES: &[(&Family, Reader)] = &[
    (&HEALTH, |node, container| {
        node.died.is_none().then_some(match container.health {
            Some(Health::Healthy) => Value::Count(1),
            Some(Health::Starting | Health::Unhealthy) => Value::Count(0),
            None => Value::Float(-1.0),
        })
    }),
    // Ended containers are the ones that have an exit code.
    (&EXIT_CODE, |_, container| {
        container.exit_code.map(|code| Value::Float(code as f64))
    }),
    (&RESTARTS, |_, container| {
        container.restarts.map(Value::Count)
    }),
    (&LAYER_BYTES, |node, container| {
        let layer = container.writable.filter(|_| node.died.is_none());
        layer.map(|layer| Value::Count(layer.bytes))
    }),
    (&LAYER_INODES, |node, container| {
        let layer = container.writable.filter(|_| node.died.is_none());
        layer?.inodes.map(Value::Count)
    }),
];

/// Registers the source `containers` in [`super::SOURCES`].
pub const SOURCE: Registration = Registration {
    requirement: Requirement {
        source: "containers",
        required: &[],
        optional: &[],
    },
    families: || {
        let values = VALUES.iter().map(|(family, _)| *family);
        [&INFO, &LAST_EXIT].into_iter().chain(values).collect()
    },
    build: |_| Ok(Box::new(Containers)),
};

#[derive(Debug)]
struct Containers;

/// State of a container. It takes the end of the cgroup into account, which the runtime may not
/// have reported yet.
fn state(node: &Node) -> &'static str {
    let reported = node.container.as_ref().map(|container| container.state);
    match (reported, node.died) {
        (Some(State::Running | State::Paused | State::Unknown), Some(_)) => "exited",
        (Some(state), _) => state.name(),
        (None, _) => "",
    }
}

/// Values of the labels of [`INFO`], in its order.
fn identity(node: &Node) -> [&str; 5] {
    let (place, reported) = (&node.place, node.container.as_deref());
    let runtime = reported
        .map(|container| container.runtime)
        .or(place.runtime);
    let pod = reported.and_then(|container| container.pod.as_ref());
    let pod = pod
        .map(|pod| pod.uid.as_str())
        .filter(|uid| !uid.is_empty());
    [
        place.container.as_deref().unwrap_or_default(),
        runtime.map_or("", |runtime| runtime.name()),
        reported.map_or("", |container| container.image_id.as_str()),
        pod.or(place.pod.as_deref()).unwrap_or_default(),
        state(node),
    ]
}

impl Source for Containers {
    fn name(&self) -> &'static str {
        "containers"
    }

    fn values(&mut self) -> Vec<&mut dyn PerNode> {
        Vec::new()
    }

    fn change(&mut self, _: &Change<'_>) {}

    fn collect(&mut self, _inputs: &Inputs<'_>) -> Result<()> {
        Ok(())
    }

    fn reading(&self) -> Box<dyn Reading> {
        Box::new(ContainersReading)
    }
}

/// What the source serves in one frame.
struct ContainersReading;

impl Reading for ContainersReading {
    fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
        let containers: Vec<&Node> = nodes
            .exported()
            .map(|(_, node)| node)
            .filter(|node| node.place.kind == PlaceKind::Container)
            .collect();
        out.family(&INFO);
        for node in &containers {
            let mut extra = [("", ""); 5];
            let mut used = 0;
            for (&name, value) in INFO.labels.iter().zip(identity(node)) {
                if !value.is_empty() {
                    extra[used] = (name, value);
                    used += 1;
                }
            }
            out.sample(Labels::new(&node.labels, &extra[..used]), Value::Count(1));
        }
        out.family(&LAST_EXIT);
        for node in &containers {
            let reason = node
                .container
                .as_ref()
                .map(|container| container.exit_reason.as_str());
            if let Some(reason) = reason.filter(|reason| !reason.is_empty()) {
                out.sample(
                    Labels::new(&node.labels, &[("reason", reason)]),
                    Value::Count(1),
                );
            }
        }
        for (family, read) in VALUES {
            out.family(family);
            for node in &containers {
                let reported = node.container.as_deref();
                if let Some(value) = reported.and_then(|container| read(node, container)) {
                    out.sample(Labels::new(&node.labels, &[]), value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, SystemTime},
    };

    use super::*;
    use crate::{
        cgroup::{Event, Filter, Pod, Runtime, Tree, Writable, found},
        exposition::Format,
    };

    const A: &str = "3f8a0c1d9e2b4a5f6071829304a5b6c7d8e9f00112233445566778899aabbccd";

    fn tree() -> Tree {
        let found = [
            found(1, 0, ""),
            found(2, 1, "docker"),
            found(3, 2, A),
            found(4, 3, "init"),
            found(5, 1, "lxc.payload.old"),
        ];
        Tree::new(&found, Filter::default())
    }

    fn container() -> Container {
        Container {
            name: "web".to_owned(),
            image: "nginx:1".to_owned(),
            image_id: "sha256:12".to_owned(),
            pod: Some(Pod {
                namespace: "shop".to_owned(),
                name: "web-0".to_owned(),
                uid: "u-1".to_owned(),
                container: "web".to_owned(),
            }),
            state: State::Running,
            health: Some(Health::Healthy),
            restarts: Some(2),
            writable: Some(Writable {
                bytes: 4096,
                inodes: None,
            }),
            ..Container::new(A, Runtime::DOCKER)
        }
    }

    fn samples(tree: &mut Tree) -> Vec<String> {
        let mut encoder = Format::Text.encoder();
        ContainersReading.encode(&tree.nodes(), &mut *encoder);
        let text = String::from_utf8(encoder.finish().to_vec()).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.replace(A, "A")).collect()
    }

    #[test]
    fn a_container_is_served_before_its_runtime_reports_it() {
        assert_eq!(
            samples(&mut tree()),
            [
                "container_info{id=\"/docker/A\",container_id=\"A\",runtime=\"docker\"} 1",
                "container_info{id=\"/lxc.payload.old\",name=\"old\"} 1",
            ]
        );
    }

    #[test]
    fn a_runtime_s_record_is_served_also_after_the_end() {
        let mut tree = tree();
        let number = tree.by_id(3).unwrap();
        tree.set_container(number, &Arc::new(container()));
        let own = "id=\"/docker/A\",name=\"web\",image=\"nginx:1\",namespace=\"shop\",pod=\"web-0\",container=\"web\"";
        let info = |state| {
            format!(
                "container_info{{{own},container_id=\"A\",runtime=\"docker\",image_id=\"sha256:12\",pod_uid=\"u-1\",state=\"{state}\"}} 1"
            )
        };
        let lxc = "container_info{id=\"/lxc.payload.old\",name=\"old\"} 1".to_owned();
        assert_eq!(
            samples(&mut tree),
            [
                info("running"),
                lxc.clone(),
                format!("container_health_state{{{own}}} 1"),
                format!("container_restarts_total{{{own}}} 2"),
                format!("container_fs_writable_layer_bytes{{{own}}} 4096"),
            ]
        );
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        tree.apply(&Event::Removed { id: 3, at });
        let restarts = format!("container_restarts_total{{{own}}} 2");
        assert_eq!(
            samples(&mut tree),
            [info("exited"), lxc.clone(), restarts.clone()]
        );
        let ended = Container {
            state: State::Exited,
            exit_code: Some(137),
            exit_reason: "OOMKilled".to_owned(),
            ..container()
        };
        tree.set_container(number, &Arc::new(ended));
        assert_eq!(
            samples(&mut tree),
            [
                info("exited"),
                lxc,
                format!("container_last_exit_info{{{own},reason=\"OOMKilled\"}} 1"),
                format!("container_exit_code{{{own}}} 137"),
                restarts,
            ]
        );
    }

    #[test]
    fn health_is_numbered_as_cadvisor_does() {
        for (health, value) in [
            (None, "-1"),
            (Some(Health::Starting), "0"),
            (Some(Health::Unhealthy), "0"),
            (Some(Health::Healthy), "1"),
        ] {
            let mut tree = tree();
            let number = tree.by_id(3).unwrap();
            let reported = Container {
                health,
                ..container()
            };
            tree.set_container(number, &Arc::new(reported));
            let samples = samples(&mut tree);
            let line = samples
                .iter()
                .find(|line| line.starts_with("container_health_state"));
            assert!(
                line.unwrap().ends_with(&format!("}} {value}")),
                "{health:?}"
            );
        }
    }
}
