//! What a cgroup is called in the labels of its series.
//!
//! As the kubelet's cAdvisor does it: a container's own cgroup has name, image and, under
//! Kubernetes, namespace, pod and container (of a sandbox `POD`, or none, by runtime); a pod's own cgroup has namespace
//! and pod alone; what is nested in a container has none of these, so that a sum over names counts
//! nothing twice. Beyond cAdvisor, a systemd unit has `unit`, and never a `name`: cAdvisor's raw cgroups have none, and
//! people take a name for that of a container.

use super::{
    allow::AllowList,
    container::{Container, Pod},
    path::{Place, PlaceKind},
};
use crate::exposition::LabelSet;

/// The labels that say what a cgroup is called, in the order of the exposition. Beside them its series have `id`.
pub const NAME_LABELS: [&str; 6] = ["name", "unit", "image", "namespace", "pod", "container"];
/// Those that a scraper under Kubernetes may have for its target.
const POD_LABELS: [&str; 3] = ["namespace", "pod", "container"];

/// What a cgroup is called; what is not known is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names<'a> {
    /// Name of the container or the machine.
    pub name: &'a str,
    /// Name of the unit, of a cgroup that is one and nothing else.
    pub unit: &'a str,
    /// Image of the container, as it was requested.
    pub image: &'a str,
    /// Namespace of the pod in Kubernetes.
    pub namespace: &'a str,
    /// Name of the pod.
    pub pod: &'a str,
    /// Name of the container within the pod.
    pub container: &'a str,
    /// Whether it is the sandbox of a pod.
    pub is_sandbox: bool,
}

impl<'a> Names<'a> {
    /// Names of a place, with the records of its container or pod.
    pub fn of(place: &'a Place, container: Option<&'a Container>, pod: Option<&'a Pod>) -> Self {
        let mut names = Self {
            name: place.name.as_deref().unwrap_or_default(),
            unit: match place.kind {
                PlaceKind::Unit => place.unit.as_deref().unwrap_or_default(),
                _ => "",
            },
            ..Self::default()
        };
        if let Some(container) = container {
            if !container.name.is_empty() {
                names.name = &container.name;
            }
            names.image = &container.image;
        }
        let own = container.and_then(|container| container.pod.as_ref());
        if let Some(pod) = own.or(pod) {
            names.namespace = &pod.namespace;
            names.pod = &pod.name;
        }
        if let (Some(container), Some(pod), PlaceKind::Container) = (container, own, place.kind) {
            names.is_sandbox = pod.is_of_sandbox();
            names.container = match names.is_sandbox {
                true => container.runtime.naming().sandbox,
                false => &pod.container,
            };
        }
        names
    }

    /// As labels: the path first, and the container's allowed labels last. Under Kubernetes those that a scraper may
    /// have for its target are there even if they are empty, as the kubelet writes them: with `honor_labels` a
    /// scraper adds what is left out, and the series of the root or a slice would become those of the agent's pod.
    pub fn labels(
        &self,
        path: &str,
        container: Option<&Container>,
        allowed: &AllowList,
        is_kubernetes: bool,
    ) -> LabelSet {
        let values = [
            self.name,
            self.unit,
            self.image,
            self.namespace,
            self.pod,
            self.container,
        ];
        let names = NAME_LABELS.into_iter().zip(values);
        let mut set = LabelSet::empty().with([("id", path)].into_iter().chain(names));
        if is_kubernetes {
            set = set.with_empty(&POD_LABELS);
        }
        let selected = container.map(|container| allowed.select(&container.labels));
        match selected {
            Some(selected) if !selected.is_empty() => {
                set.with(selected.iter().map(|(name, value)| (name.as_str(), *value)))
            }
            _ => set,
        }
    }
}
