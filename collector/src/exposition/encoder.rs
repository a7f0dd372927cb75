//! What a source hands its families to.

use super::{Distribution, Family, Histogram, Labels, Metadata, Value};

/// Takes families and their samples, in the order of the families.
///
/// The implementation is chosen once, before the first family: a text format, the records of the
/// JSON API. Whoever encodes says everything about a family before its first sample; a family
/// without a sample is absent.
pub trait Encoder {
    /// Begins a family.
    fn begin(&mut self, metadata: &Metadata<'_>);

    /// Begins a family of the agent.
    fn family(&mut self, family: &Family) {
        self.begin(&family.metadata());
    }

    /// One sample of the family last begun.
    fn sample(&mut self, labels: Labels<'_>, value: Value);

    /// One histogram of the family last begun.
    fn histogram(&mut self, labels: Labels<'_>, histogram: Histogram<'_>);

    /// One histogram or summary with bounds of its own, as the type of the family last begun says.
    fn distribution(&mut self, labels: Labels<'_>, distribution: &Distribution);
}
