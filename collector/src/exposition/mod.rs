//! Metric families and their encoding.
//!
//! Invariant: this module knows nothing of kernels, cgroups or HTTP servers. Sources describe their
//! families as [`Family`] constants and hand samples to an [`Encoder`] in family order; an encoder
//! alone knows its format, and is chosen once, by [`Format`]. No allocation is made for a sample.
//!
//! A new format is a file with its encoder, and its line in `format.rs`.

mod body;
mod encoder;
mod family;
mod format;
mod histogram;
mod labels;
mod lines;
mod number;
mod openmetrics;
mod registry;
#[cfg(test)]
mod tests;
mod text;

pub use body::Body;
pub use encoder::Encoder;
pub use family::{Family, Kind, Metadata, Unit};
pub use format::{Exposition, Format};
pub use histogram::{Distribution, Histogram, LOG2, LOG2_LONG, Layout, Points, bound_text};
pub use labels::{LabelSet, Labels};
pub use number::Value;
pub use registry::encode_registry;
