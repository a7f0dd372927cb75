//! Metric families: name, help, type and unit.

/// Type of a family, as the exposition formats name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MetricKind {
    /// Only increases; its name ends in `_total`.
    Counter,
    /// Can go up and down.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
    /// Quantiles, sum and count. Only applications have them.
    Summary,
    /// A family of an application that declares no type.
    Untyped,
}

impl MetricKind {
    /// Returns the type's name in the text format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
            Self::Untyped => "untyped",
        }
    }

    /// Returns the suffixes that names of its samples may have after the family's name.
    pub fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Counter | Self::Gauge | Self::Untyped => &[""],
            Self::Histogram => &["", "_bucket", "_sum", "_count"],
            Self::Summary => &["", "_sum", "_count"],
        }
    }

    /// Whether a series of the family is a single sample.
    pub fn is_plain(self) -> bool {
        matches!(self, Self::Counter | Self::Gauge | Self::Untyped)
    }
}

/// Unit of a family's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// The values are numbers without a unit.
    None,
    /// The values are seconds.
    Seconds,
    /// The values are bytes.
    Bytes,
}

impl Unit {
    /// Returns the unit as it appears in metric names; `None` for a plain number.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Seconds => Some("seconds"),
            Self::Bytes => Some("bytes"),
        }
    }

    /// Returns the unit that a metric's name ends in.
    pub fn of_name(name: &str) -> Self {
        let base = name.strip_suffix("_total").unwrap_or(name);
        [Self::Seconds, Self::Bytes]
            .into_iter()
            .find(|unit| {
                let suffix = unit.name().and_then(|unit| base.strip_suffix(unit));
                suffix.is_some_and(|rest| rest.ends_with('_'))
            })
            .unwrap_or(Self::None)
    }
}

/// One metric family of the agent. This is its only description: the encoders, `cgmeter metrics`,
/// the generated reference and the tests all read it.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Name in the text format, with `_total`.
    pub name: &'static str,
    /// One sentence for `# HELP`.
    pub help: &'static str,
    /// Type of the family.
    pub kind: MetricKind,
    /// Unit of the values.
    pub unit: Unit,
    /// Names of the labels that its series have in addition to the cgroup's.
    pub labels: &'static [&'static str],
    /// Origin of the number: program and kernel field.
    pub origin: &'static str,
    /// Independent source that a test compares it with.
    pub oracle: &'static str,
}

impl Family {
    /// Returns what an encoder needs to know about the family.
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata {
            name: self.name,
            help: self.help,
            kind: self.kind,
            unit: self.unit,
            base_is_free: true,
        }
    }
}

/// What an encoder needs to know about a family, the agent's own or an application's.
#[derive(Clone, Copy, Debug)]
pub struct Metadata<'a> {
    /// Name in the text format, with `_total`.
    pub name: &'a str,
    /// Text for `# HELP`.
    pub help: &'a str,
    /// Type of the family.
    pub kind: MetricKind,
    /// Unit of the values.
    pub unit: Unit,
    /// Whether no other family has the name that a counter has without `_total`.
    pub base_is_free: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_from_names() {
        for (name, unit) in [
            ("a_seconds_total", Unit::Seconds),
            ("a_seconds", Unit::Seconds),
            ("a_bytes", Unit::Bytes),
            ("a_total", Unit::None),
            ("milliseconds", Unit::None),
            ("seconds", Unit::None),
        ] {
            assert_eq!(Unit::of_name(name), unit, "{name}");
        }
    }
}
