//! What is measured, and by what: cAdvisor's `cadvisor_version_info`, which fills variables of dashboards.
//!
//! Oracle: uname(2), /etc/os-release, `docker version` (tests/live/machine.rs, docker.rs).

use std::{fs, path::Path, sync::LazyLock};

use super::runtimes::RuntimesReport;
use crate::exposition::{Encoder, Family, LabelSet, Labels, MetricKind, Unit, Value};

/// The labels' names are cAdvisor's.
pub(super) const INFO: Family = Family {
    name: "cadvisor_version_info",
    help: "1, with the versions of the kernel, the host's system, Docker and the agent as labels.",
    kind: MetricKind::Gauge,
    unit: Unit::None,
    labels: &[
        "kernelVersion",
        "osVersion",
        "dockerVersion",
        "cadvisorVersion",
        "cadvisorRevision",
    ],
    origin: "/proc/sys/kernel/osrelease, the host's os-release, Docker's API",
    oracle: "uname(2), /etc/os-release, docker version",
};

/// The versions that don't change while the agent runs.
struct Host {
    kernel: String,
    system: String,
}

static HOST: LazyLock<Host> = LazyLock::new(|| Host::read(Path::new("/")));

impl Host {
    /// Reads the host whose files are below `root`. What can't be read is empty.
    fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        let kernel = text("proc/sys/kernel/osrelease").unwrap_or_default();
        // The first one may be denied. In a container the others are its own, if it has any.
        let system = ["proc/1/root/", ""]
            .iter()
            .flat_map(|root| ["etc/os-release", "usr/lib/os-release"].map(|file| (root, file)))
            .find_map(|(root, file)| text(&format!("{root}{file}")));
        Self {
            kernel: kernel.trim_end().to_owned(),
            system: system.as_deref().and_then(pretty_name).unwrap_or_default(),
        }
    }
}

/// The name for people in an os-release file (os-release(5)): a shell assignment.
fn pretty_name(text: &str) -> Option<String> {
    let value = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("PRETTY_NAME="))?;
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
    let inner = match quote {
        Some(quote) => value.strip_prefix(quote)?.strip_suffix(quote)?,
        None => value,
    };
    let mut name = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(next) = chars.next() {
        // Within single quotes a backslash is itself.
        let escaped = next == '\\' && quote != Some('\'');
        name.extend(if escaped { chars.next() } else { Some(next) });
    }
    Some(name)
}

/// Encodes the family.
pub(super) fn encode(runtimes: &RuntimesReport, out: &mut dyn Encoder) {
    let agent = format!("cgmeter {}", crate::VERSION);
    let labels = [
        ("kernelVersion", HOST.kernel.as_str()),
        ("osVersion", HOST.system.as_str()),
        (
            "dockerVersion",
            runtimes.version("docker").unwrap_or_default(),
        ),
        ("cadvisorVersion", agent.as_str()),
        ("cadvisorRevision", ""),
    ];
    out.family(&INFO);
    out.sample(Labels::new(&LabelSet::empty(), &labels), Value::Count(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_systems() {
        for (text, name) in [
            (
                "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
                Some("Debian GNU/Linux 12 (bookworm)"),
            ),
            ("PRETTY_NAME='A \\ B'\n", Some("A \\ B")),
            ("PRETTY_NAME=Arch\n", Some("Arch")),
            (
                "PRETTY_NAME=\"one \\\"two\\\" \\$3\"\n",
                Some("one \"two\" $3"),
            ),
            ("PRETTY_NAME=\"\n", None),
            ("PRETTY_NAME=\n", Some("")),
            ("NAME=x\n", None),
        ] {
            assert_eq!(pretty_name(text).as_deref(), name, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_empty() {
        let host = Host::read(Path::new("/nonexistent"));
        assert_eq!((host.kernel.as_str(), host.system.as_str()), ("", ""));
    }
}
