//! Identity by the path: how runtimes, Kubernetes, LXC and systemd name cgroups.
//!
//! Invariant: a path is read from the root down. What is below a container, a machine or a unit and is
//! none itself is *nested*, so that no identity is given twice. Checked by the table of paths beside
//! the runtimes' descriptors (`runtime::descriptor`).

use super::runtime::{Naming, Runtime};
use crate::cgroup::label::printable;

/// What a cgroup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlaceKind {
    /// The root of the hierarchy.
    Root,
    /// A container's own cgroup.
    Container,
    /// A system container or virtual machine that systemd-machined knows.
    Machine,
    /// A Kubernetes pod's own cgroup.
    Pod,
    /// A systemd unit that has processes: a service, a scope, and so on.
    Unit,
    /// A group of units or containers: a slice, a user's service manager, a QoS class of
    /// Kubernetes, a pod of Podman.
    Group,
    /// Below one of the above, made by its processes.
    Nested,
    /// Anything else.
    #[default]
    Other,
}

impl PlaceKind {
    /// Whether it is a container, a pod or a machine.
    pub fn is_contained(self) -> bool {
        matches!(self, Self::Container | Self::Machine | Self::Pod)
    }
}

/// Quality of service that Kubernetes gives a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container has limits, and its requests equal them.
    Guaranteed,
    /// A container has a request or a limit, but the pod is not guaranteed.
    Burstable,
    /// No container has a request or a limit.
    BestEffort,
}

impl Qos {
    /// The name of the class, as Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// What a path says about its cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// What kind of cgroup it is.
    pub kind: PlaceKind,
    /// The runtime, if the path has it.
    pub runtime: Option<Runtime>,
    /// Full id of the container, as its runtime has it.
    pub container: Option<Box<str>>,
    /// Name, if the path has one: of a machine, an LXC container, or a container whose name
    /// is its id.
    pub name: Option<Box<str>>,
    /// UID of its pod, for a pod and for the pod's containers.
    pub pod: Option<Box<str>>,
    /// QoS class of the pod, or of the group of pods.
    pub qos: Option<Qos>,
    /// The systemd unit that it is or lies in.
    pub unit: Option<Box<str>>,
}

/// Folders of LXC's containers.
const LXC: [&str; 2] = ["lxc", "lxc.payload"];

/// Suffixes of units that have cgroups.
const UNITS: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

impl Place {
    /// Reads a path below the root of the hierarchy, on a host that may have these runtimes.
    pub fn of(path: &[u8], runtimes: &[Runtime]) -> Self {
        let mut place = Self {
            kind: if path == b"/" {
                PlaceKind::Root
            } else {
                PlaceKind::Other
            },
            ..Self::default()
        };
        if !path.starts_with(b"/") {
            return place;
        }
        let mut above = String::new();
        let mut kubepods = false;
        let segments = path.split(|&byte| byte == b'/').filter(|s| !s.is_empty());
        for (depth, segment) in segments.enumerate() {
            let segment = printable(segment);
            let below = Below {
                runtimes,
                place: &place,
                above: &above,
                top: depth == 1,
                kubepods,
            };
            let next = below.step(&segment);
            kubepods = match next.kind {
                PlaceKind::Group | PlaceKind::Pod => kubepods || segment == "kubepods",
                _ => false,
            };
            place = next;
            above = segment;
        }
        place
    }

    /// Whether it is where the host makes containers, pods or units: a slice, a pod, a folder of a runtime. What
    /// is below a user's service manager isn't, because there the user makes what it likes.
    pub fn is_for_known(&self, path: &[u8], runtimes: &[Runtime]) -> bool {
        let segments = path.split(|&byte| byte == b'/').filter(|s| !s.is_empty());
        let segments: Vec<&[u8]> = segments.collect();
        match self.kind {
            PlaceKind::Pod | PlaceKind::Group => !is_users_own(path),
            PlaceKind::Other => {
                let folder = |name: &&str| segments == [name.as_bytes()];
                let mut folders = runtimes.iter().flat_map(|runtime| runtime.naming().folders);
                folders.any(folder) || LXC.iter().any(folder)
            }
            _ => false,
        }
    }

    /// Whether cgroups below it may be units of the host's systemd.
    fn is_open(&self) -> bool {
        matches!(
            self.kind,
            PlaceKind::Root | PlaceKind::Other | PlaceKind::Group
        )
    }
}

/// What the path above a segment has shown, from which the segment is read.
struct Below<'a> {
    runtimes: &'a [Runtime],
    place: &'a Place,
    above: &'a str,
    /// Whether the folder above is at the top.
    top: bool,
    /// Whether a cgroupfs name of Kubernetes is above.
    kubepods: bool,
}

impl Below<'_> {
    fn step(&self, segment: &str) -> Place {
        self.kubernetes(segment)
            .or_else(|| self.container(segment))
            .or_else(|| self.system_container(segment))
            .or_else(|| self.unit(segment))
            .unwrap_or_else(|| self.rest())
    }

    /// A pod, or a group of pods.
    fn kubernetes(&self, segment: &str) -> Option<Place> {
        let group = |qos, pod: Option<String>| Place {
            kind: if pod.is_some() {
                PlaceKind::Pod
            } else {
                PlaceKind::Group
            },
            pod: pod.map(Into::into),
            qos,
            ..Place::default()
        };
        if let Some((qos, pod)) = slice_of_pods(segment) {
            let unit = Some(segment.into());
            return Some(Place {
                unit,
                ..group(qos, pod)
            });
        }
        if segment == "kubepods" && !self.kubepods {
            return Some(group(None, None));
        }
        let within = self.kubepods && self.place.kind == PlaceKind::Group;
        match (segment, segment.strip_prefix("pod")) {
            ("burstable", _) if within => Some(group(Some(Qos::Burstable), None)),
            ("besteffort", _) if within => Some(group(Some(Qos::BestEffort), None)),
            (_, Some(uid)) if within && is_uid(uid) => {
                let qos = self.place.qos.unwrap_or(Qos::Guaranteed);
                Some(group(Some(qos), Some(uid.to_owned())))
            }
            // The agent's root may be below `kubepods`.
            (_, Some(uid)) if self.place.is_open() && is_uuid(uid) => {
                Some(group(None, Some(uid.to_owned())))
            }
            _ => None,
        }
    }

    /// The runtime that has a name among those that `names` selects.
    fn runtime(
        &self,
        names: fn(&Naming) -> &'static [&'static str],
        name: &str,
    ) -> Option<Runtime> {
        let has = |runtime: &&Runtime| names(runtime.naming()).contains(&name);
        self.runtimes.iter().find(has).copied()
    }

    /// A container of one of the runtimes.
    fn container(&self, segment: &str) -> Option<Place> {
        let mut pod =
            (self.place.kind == PlaceKind::Pod).then(|| (self.place.qos, self.place.pod.clone()));
        let mut named = None;
        let (runtime, id) = if let Some((slice, rest)) = segment.split_once(':') {
            // A name meant for systemd, used by a runtime that makes its cgroups itself.
            let (prefix, id) = rest.split_once(':')?;
            let runtime = self.runtime(|naming| naming.prefixes, prefix)?;
            if let Some((qos, Some(uid))) = slice_of_pods(slice) {
                pod = Some((qos, Some(uid.into())));
            }
            (Some(runtime), Some(id).filter(|id| is_id(id))?)
        } else if is_id(segment) {
            if self.runtime(|naming| naming.groups, self.above).is_some() {
                return Some(Place {
                    kind: PlaceKind::Group,
                    ..Place::default()
                });
            }
            (self.runtime(|naming| naming.folders, self.above), segment)
        } else if let Some((prefix, id)) = prefixed(segment) {
            match self.runtime(|naming| naming.prefixes, prefix) {
                Some(runtime) => (Some(runtime), id),
                None => {
                    self.runtime(|naming| naming.monitors, prefix)?;
                    return Some(self.rest());
                }
            }
        } else if self.top
            && let Some(runtime) = self.runtime(|naming| naming.namespaces, self.above)
        {
            named = Some(segment.into());
            (Some(runtime), segment)
        } else {
            return None;
        };
        let (qos, pod) = pod.unwrap_or_default();
        Some(Place {
            kind: PlaceKind::Container,
            runtime,
            container: Some(id.into()),
            name: named,
            pod,
            qos,
            unit: segment.ends_with(".scope").then(|| segment.into()),
        })
    }

    /// LXC's containers, and machines of systemd-machined.
    fn system_container(&self, segment: &str) -> Option<Place> {
        let named = |kind, name: &str, unit: Option<&str>| {
            Some(Place {
                kind,
                name: Some(name.into()),
                unit: unit.map(Into::into),
                ..Place::default()
            })
        };
        let lxc = match self.above {
            above if LXC.contains(&above) && self.place.kind == PlaceKind::Other => Some(segment),
            _ => segment.strip_prefix("lxc.payload."),
        };
        if let Some(name) = lxc.filter(|name| !name.is_empty()) {
            return named(PlaceKind::Container, name, None);
        }
        if !self.place.is_open() {
            return None;
        }
        let scope = segment
            .strip_prefix("machine-")
            .and_then(|rest| rest.strip_suffix(".scope"))
            .filter(|_| self.above == "machine.slice");
        let service = segment
            .strip_prefix("systemd-nspawn@")
            .and_then(|rest| rest.strip_suffix(".service"));
        let name = scope.or(service).filter(|name| !name.is_empty())?;
        named(PlaceKind::Machine, &unescape_unit(name), Some(segment))
    }

    /// A unit of the host's systemd, or of a user's.
    fn unit(&self, segment: &str) -> Option<Place> {
        if !self.place.is_open() {
            return None;
        }
        // systemd puts a `_` before a name that the kernel might use for a file of its own.
        let bare = segment.strip_prefix('_').unwrap_or(segment);
        let is = |suffix: &str| bare.len() > suffix.len() && bare.ends_with(suffix);
        UNITS.into_iter().find(|suffix| is(suffix))?;
        let unit = unescape_unit(bare);
        // A slice groups units, and so does a user's service manager: neither is a unit with a name.
        let manager = unit.starts_with("user@") && unit.ends_with(".service");
        let group = unit.ends_with(".slice") || manager;
        Some(Place {
            kind: if group {
                PlaceKind::Group
            } else {
                PlaceKind::Unit
            },
            unit: Some(unit.into()),
            ..Place::default()
        })
    }

    /// A cgroup without a name.
    fn rest(&self) -> Place {
        if self.place.is_open() {
            return Place::default();
        }
        // What is nested in a unit belongs to it; what is nested in a container has no unit.
        let within_unit = matches!(self.place.kind, PlaceKind::Unit | PlaceKind::Nested);
        Place {
            kind: PlaceKind::Nested,
            unit: self.place.unit.clone().filter(|_| within_unit),
            ..Place::default()
        }
    }
}

/// Whether a path is a user's service manager, or below one.
pub fn is_users_own(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/')
        .any(|segment| segment.starts_with(b"user@"))
}

/// Undoes systemd's `\xNN`, unless the result is unprintable.
fn unescape_unit(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((before, after)) = rest.split_once("\\x") {
        bytes.extend_from_slice(before.as_bytes());
        let hex = after
            .get(..2)
            .filter(|hex| hex.bytes().all(|c| c.is_ascii_hexdigit()));
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.extend_from_slice(b"\\x");
                rest = after;
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    match String::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text,
        _ => name.to_owned(),
    }
}

/// QoS class and pod by a slice's name: `[…-]kubepods[-burstable|-besteffort][-podUID].slice`.
fn slice_of_pods(segment: &str) -> Option<(Option<Qos>, Option<String>)> {
    let stem = segment.strip_suffix(".slice")?;
    let (before, rest) = stem.split_once("kubepods")?;
    if !(before.is_empty() || before.ends_with('-')) {
        return None;
    }
    let (qos, rest) = if let Some(rest) = rest.strip_prefix("-burstable") {
        (Some(Qos::Burstable), rest)
    } else if let Some(rest) = rest.strip_prefix("-besteffort") {
        (Some(Qos::BestEffort), rest)
    } else {
        (None, rest)
    };
    if rest.is_empty() {
        return Some((qos, None));
    }
    // A dash in a slice's name separates levels; UIDs have underscores instead.
    let uid = rest.strip_prefix("-pod")?.replace('_', "-");
    is_uid(&uid).then_some((qos.or(Some(Qos::Guaranteed)), Some(uid)))
}

/// A pod's UID: a UUID, or, of a static pod, the hash of its file.
fn is_uid(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (8..=64).contains(&text.len()) && text.bytes().all(legal)
}

fn is_uuid(text: &str) -> bool {
    let groups = text.split('-').map(str::len);
    groups.eq([8, 4, 4, 4, 12]) && text.bytes().all(|c| c == b'-' || c.is_ascii_hexdigit())
}

/// `PREFIX-ID` or `PREFIX-ID.scope`.
fn prefixed(segment: &str) -> Option<(&str, &str)> {
    let bare = segment.strip_suffix(".scope").unwrap_or(segment);
    bare.rsplit_once('-').filter(|(_, id)| is_id(id))
}

/// A container's id, as runtimes make them.
fn is_id(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
