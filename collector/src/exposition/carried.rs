//! What applications define and the agent passes on.

/// Type of an application's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Type {
    /// Only rises.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets, sum and count.
    Histogram,
    /// Quantiles, sum and count.
    Summary,
    /// The application doesn't say.
    Untyped,
}

impl Type {
    /// As the text format has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
            Self::Untyped => "untyped",
        }
    }

    /// What may follow the family's name in names of samples.
    pub fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Counter | Self::Gauge | Self::Untyped => &[""],
            Self::Histogram => &["", "_bucket", "_sum", "_count"],
            Self::Summary => &["", "_sum", "_count"],
        }
    }

    /// Whether a series is one sample.
    pub fn is_plain(self) -> bool {
        matches!(self, Self::Counter | Self::Gauge | Self::Untyped)
    }
}

/// Values of one series.
#[derive(Clone, Debug, PartialEq)]
pub enum Points {
    /// One sample.
    Single(f64),
    /// A histogram or a summary.
    Distribution(Distribution),
}

impl Points {
    /// Number of samples.
    pub fn samples(&self) -> usize {
        match self {
            Self::Single(_) => 1,
            Self::Distribution(distribution) => {
                distribution.steps.len()
                    + usize::from(distribution.sum.is_some())
                    + usize::from(distribution.count.is_some())
            }
        }
    }
}

/// A histogram or a summary.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Of a histogram: upper bounds, rising up to infinity, and cumulative counts. Of a summary:
    /// quantiles and their values.
    pub steps: Vec<(f64, f64)>,
    /// Sum of what was observed.
    pub sum: Option<f64>,
    /// Number of observations.
    pub count: Option<f64>,
}
