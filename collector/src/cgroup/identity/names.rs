//! What a cgroup is called in the labels of its series.
//!
//! As the kubelet's cAdvisor does it: a container's own cgroup has name, image and, under
//! Kubernetes, namespace, pod and container (`POD` of a sandbox); a pod's own cgroup has namespace
//! and pod alone; what is nested in a container has none of these, so that a sum over names counts
//! nothing twice. Beyond cAdvisor, a systemd unit has its name.

use super::{
    allow::AllowList,
    container::{Container, Pod},
    path::{Place, PlaceKind},
};
use crate::exposition::LabelSet;

/// What a cgroup is called; what is not known is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names<'a> {
    /// Name of the container, the machine or the unit.
    pub name: &'a str,
    /// Image of the container, as it was requested.
    pub image: &'a str,
    /// Namespace of the pod in Kubernetes.
    pub namespace: &'a str,
    /// Name of the pod.
    pub pod: &'a str,
    /// Name of the container within the pod.
    pub container: &'a str,
}

impl<'a> Names<'a> {
    /// Names of a place, with the records of its container or pod.
    pub fn of(place: &'a Place, container: Option<&'a Container>, pod: Option<&'a Pod>) -> Self {
        let mut names = Self {
            name: place.name.as_deref().unwrap_or_default(),
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
        if let (Some(pod), PlaceKind::Container) = (own, place.kind) {
            names.container = &pod.container;
        }
        names
    }

    /// As labels: the path first, and the container's allowed labels last.
    pub fn labels(
        &self,
        path: &str,
        container: Option<&Container>,
        allowed: &AllowList,
    ) -> LabelSet {
        let set = LabelSet::new(&[
            ("id", path),
            ("name", self.name),
            ("image", self.image),
            ("namespace", self.namespace),
            ("pod", self.pod),
            ("container", self.container),
        ]);
        let selected = container.map(|container| allowed.select(&container.labels));
        match selected {
            Some(selected) if !selected.is_empty() => {
                set.with(selected.iter().map(|(name, value)| (name.as_str(), *value)))
            }
            _ => set,
        }
    }
}
