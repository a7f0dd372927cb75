//! The encoder trait, which receives the families of all sources.

use super::{Distribution, Family, Histogram, Labels, Metadata, Value};

/// Receives families and their samples, in the order of the families.
///
/// The implementation is chosen once, before the first family: a text format, or the records of the
/// JSON API. The caller describes a family before its first sample. A family without samples is
/// left out.
pub trait Encoder {
    /// Begins a family.
    fn begin(&mut self, metadata: &Metadata<'_>);

    /// Begins a family of the agent.
    fn family(&mut self, family: &Family) {
        self.begin(&family.metadata());
    }

    /// Adds a sample to the family last begun.
    fn sample(&mut self, labels: Labels<'_>, value: Value);

    /// Adds a histogram to the family last begun.
    fn histogram(&mut self, labels: Labels<'_>, histogram: Histogram<'_>);

    /// Adds a histogram or summary with its own bounds, according to the type of the family last
    /// begun.
    fn distribution(&mut self, labels: Labels<'_>, distribution: &Distribution);
}
