//! Histograms and summaries, as an encoder receives them.

use std::sync::OnceLock;

use collector_common::histogram::{BUCKETS, LONG_SHIFT, MIN_EXPONENT};

use super::Value;

/// Layout of the buckets of a log2 histogram. The text of the bounds is made once.
#[derive(Debug)]
pub struct BucketLayout {
    /// Bucket `i` ends at `2^(first_exponent + i)` seconds; the last one is unbounded.
    pub first_exponent: i32,
    bounds: OnceLock<Vec<f64>>,
    texts: OnceLock<Vec<BoundText>>,
}

/// A bucket's bound as text for the label `le`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BoundText {
    /// The bound as Go formats it, for the label `le`.
    pub(super) text: String,
    /// For OpenMetrics: always with a decimal point.
    pub(super) openmetrics: String,
}

impl BoundText {
    pub(super) fn new(bound: f64) -> Self {
        let text = bound_text(bound);
        let is_float = text.contains(['.', 'e', 'I']);
        let openmetrics = if is_float {
            text.clone()
        } else {
            format!("{text}.0")
        };
        Self { text, openmetrics }
    }
}

/// Latencies from 1 µs; see `collector_common::histogram`.
pub static LOG2: BucketLayout = BucketLayout::new(MIN_EXPONENT);
/// Durations from 1 ms; a long histogram there.
pub static LOG2_LONG: BucketLayout = BucketLayout::new(MIN_EXPONENT + LONG_SHIFT as i32);

impl BucketLayout {
    const fn new(first_exponent: i32) -> Self {
        Self {
            first_exponent,
            bounds: OnceLock::new(),
            texts: OnceLock::new(),
        }
    }

    /// Returns the upper bounds of the buckets in seconds; the last is infinity.
    pub fn bounds(&self) -> &[f64] {
        self.bounds.get_or_init(|| {
            let finite = (0..BUCKETS as i32 - 1).map(|at| 2f64.powi(self.first_exponent + at));
            finite.chain([f64::INFINITY]).collect()
        })
    }

    pub(super) fn texts(&self) -> &[BoundText] {
        self.texts
            .get_or_init(|| self.bounds().iter().map(|&b| BoundText::new(b)).collect())
    }
}

/// A log2 histogram of the agent.
#[derive(Clone, Copy, Debug)]
pub struct Histogram<'a> {
    /// Layout of its buckets.
    pub layout: &'static BucketLayout,
    /// Events by bucket, not cumulative.
    pub buckets: &'a [u64; BUCKETS],
    /// Sum of the observed values.
    pub sum: Value,
}

/// A histogram or summary with its own bounds, from an application or the `prometheus` crate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// For a histogram: upper bounds, ascending up to infinity, and cumulative counts. For a
    /// summary: quantiles and their values.
    pub steps: Vec<(f64, f64)>,
    /// Sum of the observed values.
    pub sum: Option<f64>,
    /// Number of observations.
    pub count: Option<f64>,
}

/// Values of one series of an application.
#[derive(Clone, Debug, PartialEq)]
pub enum Points {
    /// One sample.
    Single(f64),
    /// A histogram or a summary.
    Distribution(Distribution),
}

impl Points {
    /// Returns the number of samples.
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

/// Formats a bound or quantile as Go's client library does (strconv's shortest `%g`), because other
/// programs compare it with such text.
pub fn bound_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    // The shortest digits that parse to the same value, as d.ddde±x.
    let text = format!("{value:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    format!("{value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_printed_as_go_does() {
        for (value, text, openmetrics) in [
            (0.005, "0.005", "0.005"),
            (1.0, "1", "1.0"),
            (100_000.0, "100000", "100000.0"),
            (1e6, "1e+06", "1e+06"),
            (2.5e-7, "2.5e-07", "2.5e-07"),
            (1e22, "1e+22", "1e+22"),
            (-1.0, "-1", "-1.0"),
            (f64::INFINITY, "+Inf", "+Inf"),
            (2f64.powi(-20), "9.5367431640625e-07", "9.5367431640625e-07"),
            (2f64.powi(-10), "0.0009765625", "0.0009765625"),
        ] {
            let bound = BoundText::new(value);
            assert_eq!(
                (bound.text.as_str(), bound.openmetrics.as_str()),
                (text, openmetrics)
            );
        }
    }

    #[test]
    fn a_layout_ends_at_infinity() {
        for (layout, first) in [(&LOG2, -20), (&LOG2_LONG, -10)] {
            let bounds = layout.bounds();
            assert_eq!(bounds.len(), BUCKETS);
            assert_eq!(bounds[0], 2f64.powi(first));
            assert_eq!(bounds[1], 2.0 * bounds[0]);
            assert_eq!(bounds[BUCKETS - 1], f64::INFINITY);
        }
    }
}
