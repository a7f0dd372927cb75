//! Metric families and their encoding.
//!
//! Invariant: this module knows nothing about kernels, cgroups or HTTP servers. Sources describe
//! their families as [`Family`] constants and pass samples to an [`Encoder`] in family order. Only
//! an encoder knows its format; it is chosen once, by [`Format`]. Encoding a sample allocates no
//! memory.
//!
//! A new format is one file in `format/` with its encoder, and its lines in `format.rs`.

mod body;
mod chunk;
mod encoder;
mod family;
mod format;
mod histogram;
mod labels;
mod number;
mod registry;
mod size;
#[cfg(test)]
mod tests;

pub use body::{Body, WeakBody};
pub use encoder::Encoder;
pub use family::{Family, Metadata, MetricKind, Unit};
pub use format::{Exposition, Format};
pub use histogram::{BucketLayout, Distribution, Histogram, LOG2, LOG2_LONG, Points, bound_text};
pub use labels::{LabelSet, Labels};
pub use number::Value;
pub use registry::encode_registry;
pub use size::{distribution_size, heading_size, line_size};
