//! Metric families and their encoding: text 0.0.4 and OpenMetrics 1.0.
//!
//! Invariant: this module knows nothing of kernels, cgroups or HTTP servers. A source describes
//! its families as [`Family`] constants and hands samples to a [`Writer`] in family order; the
//! writer alone knows formats. No allocation is made for a sample.

mod carried;
mod family;
mod format;
mod labels;
mod number;
mod sink;
mod writer;

pub use carried::{Distribution, Points, Type};
pub use family::{Family, Kind, Unit};
pub use format::Format;
pub use labels::LabelSet;
pub use number::Value;
pub use sink::{Labels, Sink};
pub use writer::{Histogram, Writer};
