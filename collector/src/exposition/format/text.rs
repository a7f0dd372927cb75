//! Prometheus text 0.0.4.

use super::lines::{Dialect, Lines, help_and_type};
use crate::exposition::{Distribution, Metadata, MetricKind, histogram::BoundText};

/// Encodes a frame as Prometheus text.
pub(super) type Text = Lines<TextDialect>;

pub(super) enum TextDialect {}

impl Dialect for TextDialect {
    fn heading(metadata: &Metadata<'_>, to: &mut Vec<u8>) {
        help_and_type(
            to,
            (metadata.name, metadata.help, metadata.kind.name()),
            false,
        );
    }

    fn bound(bound: &BoundText) -> &str {
        &bound.text
    }

    fn has_quantile(_: f64) -> bool {
        true
    }

    fn has_sum_and_count(_: MetricKind, _: &Distribution) -> (bool, bool) {
        (true, true)
    }

    const END: &'static [u8] = b"";
}
