//! OpenMetrics 1.0. It is stricter than the text format: what it does not allow is left out, or its
//! type is `unknown`.

use super::lines::{Dialect, Lines, help_and_type};
use crate::exposition::{Distribution, Metadata, MetricKind, histogram::BoundText};

/// Encodes a frame as OpenMetrics.
pub(super) type OpenMetrics = Lines<OpenMetricsDialect>;

pub(super) enum OpenMetricsDialect {}

impl Dialect for OpenMetricsDialect {
    fn heading(metadata: &Metadata<'_>, to: &mut Vec<u8>) {
        let (name, kind) = match metadata.kind {
            // A counter's samples end in `_total`, its family does not. cAdvisor's `failcnt` lacks
            // the suffix and is not a counter here.
            MetricKind::Counter => match metadata.name.strip_suffix("_total") {
                Some(base) if metadata.base_is_free && !base.is_empty() => (base, "counter"),
                _ => (metadata.name, "unknown"),
            },
            MetricKind::Gauge => (metadata.name, "gauge"),
            MetricKind::Histogram => (metadata.name, "histogram"),
            MetricKind::Summary => (metadata.name, "summary"),
            MetricKind::Untyped => (metadata.name, "unknown"),
        };
        help_and_type(to, (name, metadata.help, kind), true);
        if let Some(unit) = metadata.unit.name()
            && name.ends_with(unit)
        {
            for part in ["# UNIT ", name, " ", unit, "\n"] {
                to.extend_from_slice(part.as_bytes());
            }
        }
    }

    fn bound(bound: &BoundText) -> &str {
        &bound.openmetrics
    }

    fn has_quantile(value: f64) -> bool {
        // NaN is allowed: it is the quantile of no observations.
        value.is_nan() || value >= 0.0
    }

    fn has_sum_and_count(kind: MetricKind, distribution: &Distribution) -> (bool, bool) {
        let histogram = kind == MetricKind::Histogram;
        // A histogram with negative observations has no sum, and without a sum no count.
        let negative = distribution.sum.is_some_and(|sum| sum < 0.0)
            || (histogram && distribution.steps.first().is_some_and(|step| step.0 < 0.0));
        let has_sum = !negative;
        let has_count = (distribution.sum.is_some() && has_sum) || !histogram;
        (has_sum, has_count)
    }

    const END: &'static [u8] = b"# EOF\n";
}
