//! What a metric family is called, means and is measured in.

/// Type of a family, as the exposition formats name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets, sum and count.
    Histogram,
}

/// Unit of a family's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A plain number.
    None,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

/// One metric family. Its description is written once, here, and read by the encoder, by
/// `cgmeter metrics`, by the generated reference and by the tests.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Name as it is served in the text format, `_total` included.
    pub name: &'static str,
    /// One sentence for `# HELP`.
    pub help: &'static str,
    /// Type.
    pub kind: Kind,
    /// Unit.
    pub unit: Unit,
    /// Names of the labels that its series have beside those of the cgroup.
    pub labels: &'static [&'static str],
    /// Where the number comes from: program and kernel field.
    pub origin: &'static str,
    /// The independent source that a test compares it with.
    pub oracle: &'static str,
}
