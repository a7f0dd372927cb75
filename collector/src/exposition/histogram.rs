//! Histograms and summaries: what an encoder gets of one series.

use std::sync::OnceLock;

use collector_common::histogram::{BUCKETS, LONG_SHIFT, MIN_EXPONENT};

use super::Value;

/// How the buckets of a log2 histogram are laid out. The text formats' bounds are made once.
#[derive(Debug)]
pub struct Layout {
    /// Bucket `i` ends at `2^(first_exponent + i)` seconds; the last one has no end.
    pub first_exponent: i32,
    bounds: OnceLock<Vec<f64>>,
    texts: OnceLock<Vec<BoundText>>,
}

/// A bucket's bound as `le` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BoundText {
    /// As Go prints it.
    pub(super) text: String,
    /// OpenMetrics': with a point.
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

/// Latencies from 1 µs on, see `collector_common::histogram`.
pub static LOG2: Layout = Layout::new(MIN_EXPONENT);
/// Durations from 1 ms on: a long histogram there.
pub static LOG2_LONG: Layout = Layout::new(MIN_EXPONENT + LONG_SHIFT as i32);

impl Layout {
    const fn new(first_exponent: i32) -> Self {
        Self {
            first_exponent,
            bounds: OnceLock::new(),
            texts: OnceLock::new(),
        }
    }

    /// Upper bounds of the buckets, seconds; the last is infinity.
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
    /// How its buckets are laid out.
    pub layout: &'static Layout,
    /// Events by bucket, not cumulative.
    pub buckets: &'a [u64; BUCKETS],
    /// Sum of the observed values.
    pub sum: Value,
}

/// A histogram or summary with bounds of its own: an application's, or the `prometheus` crate's.
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

/// Values of one series of an application.
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

/// A bound or quantile as Go's client library prints it (strconv's shortest `%g`), which is what
/// others compare it with.
pub fn bound_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    // The shortest digits that read back, d.ddde±x.
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
