//! Finds endpoints: by a container's labels and annotations, and by rules.

use std::time::Duration;

use regex::Regex;

use crate::cgroup::{Container, Names};

/// Where an application serves its metrics, in its network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// TCP port on which the application listens.
    pub port: u16,
    /// Path of the request; begins with a slash.
    pub path: String,
    /// Interval between requests.
    pub interval: Duration,
}

/// A rule of the configuration: the endpoint of every cgroup that matches.
#[derive(Clone, Debug)]
pub struct EndpointRule {
    /// Expression that has to match the cgroup's path.
    pub id: Option<Regex>,
    /// Expression that has to match the container's name.
    pub name: Option<Regex>,
    /// Expression that has to match the systemd unit's name.
    pub unit: Option<Regex>,
    /// Expression that has to match the container's image.
    pub image: Option<Regex>,
    /// Expression that has to match the container's Kubernetes namespace.
    pub namespace: Option<Regex>,
    /// The endpoint of the containers that match.
    pub endpoint: Endpoint,
}

impl EndpointRule {
    /// Whether the rule matches a cgroup with this path and these names. In a pod the name is that
    /// of the container within the pod. The sandbox matches no name, as it runs no application.
    pub fn fits(&self, path: &str, names: &Names<'_>) -> bool {
        let fits = |regex: &Option<Regex>, text: &str| {
            regex
                .as_ref()
                .is_none_or(|regex| !text.is_empty() && regex.is_match(text))
        };
        let (name, namespace) = match names.container {
            _ if names.is_sandbox => ("", ""),
            "" => (names.name, ""),
            container => (container, names.namespace),
        };
        fits(&self.id, path)
            && fits(&self.name, name)
            && fits(&self.unit, names.unit)
            && fits(&self.image, names.image)
            && fits(&self.namespace, namespace)
    }
}

/// Finds the endpoint in a container's annotations or labels, as is usual under Kubernetes:
/// `prometheus.io/scrape`, `port`, `path`, `scheme`. Also returns whether the endpoint is the
/// pod's, as it is with annotations.
///
/// # Errors
///
/// When they ask for scrapes but are invalid. The message says what is wrong and what is expected.
pub fn by_labels(
    container: &Container,
    interval: Duration,
) -> Result<Option<(Endpoint, bool)>, String> {
    let value = |name: &str| {
        let key = format!("prometheus.io/{name}");
        let found = container.annotations.get(&key);
        found
            .or_else(|| container.labels.get(&key))
            .map(|value| value.trim())
    };
    let pod = container.pod.as_ref().is_some_and(|pod| {
        pod.is_of_sandbox() || container.annotations.contains_key("prometheus.io/scrape")
    });
    if value("scrape") != Some("true") {
        return Ok(None);
    }
    if let Some(scheme) = value("scheme")
        && scheme != "http"
    {
        return Err(format!(
            "prometheus.io/scheme: {scheme:?} is not supported, only http is, inside a \
             container: remove it, or let Prometheus scrape the application directly"
        ));
    }
    let port =
        value("port").ok_or("prometheus.io/port is missing: set it to the port of the metrics")?;
    let port = port
        .parse()
        .ok()
        .filter(|&port| port != 0)
        .ok_or_else(|| format!("prometheus.io/port: {port:?} is not a port from 1 to 65535"))?;
    let path = path_of(value("path").unwrap_or("/metrics"))
        .ok_or("prometheus.io/path is not a valid path, such as /metrics")?;
    let endpoint = Endpoint {
        port,
        path,
        interval,
    };
    Ok(Some((endpoint, pod)))
}

/// Returns the path of a request. Adds the leading slash if it is missing.
pub fn path_of(text: &str) -> Option<String> {
    let legal = text.len() <= 1024 && text.chars().all(|c| c.is_ascii_graphic() && c != '#');
    let slash = if text.starts_with('/') { "" } else { "/" };
    legal.then(|| format!("{slash}{text}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cgroup::{Pod, Runtime, State};

    pub fn container(labels: &[(&str, &str)]) -> Container {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        Container {
            name: "shop".to_owned(),
            image: "shop:1".to_owned(),
            labels: map(labels),
            state: State::Running,
            ..Container::new("0123456789abcdef", Runtime::DOCKER)
        }
    }

    const SCRAPE: (&str, &str) = ("prometheus.io/scrape", "true");
    const PORT: (&str, &str) = ("prometheus.io/port", "8080");

    fn found(labels: &[(&str, &str)]) -> Result<Option<(u16, String)>, String> {
        let endpoint = by_labels(&container(labels), Duration::from_secs(1))?;
        Ok(endpoint.map(|(endpoint, _)| (endpoint.port, endpoint.path)))
    }

    #[test]
    fn by_label() {
        let some = |port, path: &str| Ok(Some((port, path.to_owned())));
        assert_eq!(found(&[]), Ok(None));
        assert_eq!(found(&[PORT]), Ok(None));
        assert_eq!(found(&[("prometheus.io/scrape", "false"), PORT]), Ok(None));
        assert_eq!(found(&[SCRAPE, PORT]), some(8080, "/metrics"));
        assert_eq!(
            found(&[SCRAPE, PORT, ("prometheus.io/path", "stats?a=b")]),
            some(8080, "/stats?a=b")
        );
        assert_eq!(
            found(&[SCRAPE, PORT, ("prometheus.io/scheme", "http")]),
            some(8080, "/metrics")
        );
    }

    #[test]
    fn annotations_take_precedence_over_labels() {
        let mut container = container(&[SCRAPE, PORT]);
        let annotation = ("prometheus.io/port".to_owned(), "9".to_owned());
        container.annotations.extend([annotation]);
        let found = |container: &Container| {
            let found = by_labels(container, Duration::from_secs(1)).unwrap();
            found.map(|(endpoint, pod)| (endpoint.port, pod))
        };
        assert_eq!(found(&container), Some((9, false)));
        // Annotations belong to the pod. Labels belong to the container, except the sandbox's.
        container.pod = Some(Pod::default());
        assert_eq!(found(&container), Some((9, false)));
        let annotation = ("prometheus.io/scrape".to_owned(), "true".to_owned());
        container.annotations.extend([annotation]);
        assert_eq!(found(&container), Some((9, true)));
    }

    #[test]
    fn invalid_labels_are_an_error() {
        for (labels, expected) in [
            (vec![SCRAPE], "prometheus.io/port is missing"),
            (vec![SCRAPE, ("prometheus.io/port", "0")], "1 to 65535"),
            (vec![SCRAPE, ("prometheus.io/port", "65536")], "1 to 65535"),
            (vec![SCRAPE, ("prometheus.io/port", "a\nb")], "\"a\\nb\""),
            (
                vec![SCRAPE, PORT, ("prometheus.io/scheme", "https")],
                "only http",
            ),
            (
                vec![SCRAPE, PORT, ("prometheus.io/path", "/a b")],
                "such as",
            ),
        ] {
            let error = found(&labels).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn rules() {
        let regex = |text: &str| Some(Regex::new(text).unwrap());
        let endpoint = Endpoint {
            port: 1,
            path: "/".to_owned(),
            interval: Duration::from_secs(1),
        };
        let rule = EndpointRule {
            id: None,
            name: None,
            unit: None,
            image: None,
            namespace: None,
            endpoint,
        };
        let docker = Names {
            name: "shop",
            image: "shop:1",
            ..Names::default()
        };
        let pod = Names {
            namespace: "prod",
            container: "web",
            ..docker
        };
        let sandbox = Names {
            container: "",
            is_sandbox: true,
            ..pod
        };
        let none = Names::default();
        let id = EndpointRule {
            id: regex("^/a$"),
            ..rule.clone()
        };
        assert!(id.fits("/a", &none) && !id.fits("/a/b", &docker));
        let name = EndpointRule {
            name: regex("^shop$"),
            ..rule.clone()
        };
        assert!(name.fits("/a", &docker));
        assert!(!name.fits("/a", &none) && !name.fits("/a", &pod));
        let namespace = EndpointRule {
            namespace: regex("prod"),
            ..rule.clone()
        };
        assert!(namespace.fits("/a", &pod));
        assert!(!namespace.fits("/a", &docker) && !namespace.fits("/a", &sandbox));
        let unit = EndpointRule {
            unit: regex("^ssh"),
            ..rule.clone()
        };
        let ssh = Names {
            unit: "ssh.service",
            ..none
        };
        assert!(unit.fits("/a", &ssh) && !unit.fits("/a", &docker));
        let image = EndpointRule {
            image: regex("^shop:"),
            ..rule
        };
        assert!(image.fits("/a", &docker) && !image.fits("/a", &none));
    }
}
