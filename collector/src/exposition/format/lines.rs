//! Text formats made of lines: the common part of text 0.0.4 and OpenMetrics.

use super::Exposition;
use crate::exposition::{
    Body, Distribution, Encoder, Histogram, Labels, Metadata, MetricKind, Value, body::ChunkWriter,
    histogram::BoundText,
};

/// Differences between the text formats. They are resolved at compile time.
pub(super) trait Dialect {
    /// Appends HELP, TYPE and other metadata of a family.
    fn heading(metadata: &Metadata<'_>, to: &mut Vec<u8>);
    /// Returns the text of a bound or quantile.
    fn bound(bound: &BoundText) -> &str;
    /// Whether the format allows this quantile's value in a summary.
    fn has_quantile(value: f64) -> bool;
    /// Whether the format allows the sum of this distribution, and its count.
    fn has_sum_and_count(kind: MetricKind, distribution: &Distribution) -> (bool, bool);
    /// End of the exposition.
    const END: &'static [u8];
}

/// Encodes one exposition.
///
/// Invariant: a line is appended in as few pieces as possible; this is the hot path of a scrape.
pub(super) struct Lines<D> {
    out: ChunkWriter,
    /// Metadata of the family last begun, until its first sample.
    heading: Vec<u8>,
    /// Name of the family last begun, and an opening brace.
    opening: Vec<u8>,
    kind: MetricKind,
    /// Common start of the lines of one histogram. Reused.
    prefix: Vec<u8>,
    dialect: std::marker::PhantomData<D>,
}

impl<D: Dialect> Lines<D> {
    pub(super) fn new() -> Self {
        Self {
            out: ChunkWriter::new(),
            heading: Vec::new(),
            opening: Vec::new(),
            kind: MetricKind::Untyped,
            prefix: Vec::new(),
            dialect: std::marker::PhantomData,
        }
    }

    /// Writes the metadata of a family before its first sample.
    #[inline]
    fn flush_heading(&mut self) {
        if !self.heading.is_empty() {
            self.out.buffer().append(&mut self.heading);
        }
    }

    /// Adds a line whose metric name is that of the family.
    #[inline]
    fn line(&mut self, labels: Labels<'_>, value: Value) {
        if labels.is_empty() {
            return self.suffixed_line("", labels, value);
        }
        self.flush_heading();
        let buffer = self.out.buffer();
        buffer.extend_from_slice(&self.opening);
        labels.write(buffer);
        buffer.extend_from_slice(b"} ");
        value.write(buffer);
        buffer.push(b'\n');
        self.out.end_line();
    }

    /// Adds a line whose metric name is that of the family and a suffix.
    fn suffixed_line(&mut self, suffix: &str, labels: Labels<'_>, value: Value) {
        self.flush_heading();
        let name = self.opening.strip_suffix(b"{").unwrap_or_default();
        let buffer = self.out.buffer();
        buffer.extend_from_slice(name);
        buffer.extend_from_slice(suffix.as_bytes());
        if !labels.is_empty() {
            buffer.push(b'{');
            labels.write(buffer);
            buffer.push(b'}');
        }
        buffer.push(b' ');
        value.write(buffer);
        buffer.push(b'\n');
        self.out.end_line();
    }

    /// Prepares the lines of a series that differ in one label: everything up to the label's value.
    fn begin_steps(&mut self, suffix: &str, labels: Labels<'_>, label: &str) {
        let prefix = &mut self.prefix;
        prefix.clear();
        prefix.extend_from_slice(self.opening.strip_suffix(b"{").unwrap_or_default());
        prefix.extend_from_slice(suffix.as_bytes());
        prefix.push(b'{');
        labels.write(prefix);
        if !labels.is_empty() {
            prefix.push(b',');
        }
        prefix.extend_from_slice(label.as_bytes());
        prefix.extend_from_slice(b"=\"");
    }

    #[inline]
    fn step(&mut self, bound: &BoundText, value: Value) {
        self.flush_heading();
        let buffer = self.out.buffer();
        buffer.extend_from_slice(&self.prefix);
        buffer.extend_from_slice(D::bound(bound).as_bytes());
        buffer.extend_from_slice(b"\"} ");
        value.write(buffer);
        buffer.push(b'\n');
        self.out.end_line();
    }
}

impl<D: Dialect> Encoder for Lines<D> {
    fn begin(&mut self, metadata: &Metadata<'_>) {
        self.opening.clear();
        self.opening.extend_from_slice(metadata.name.as_bytes());
        self.opening.push(b'{');
        self.kind = metadata.kind;
        self.heading.clear();
        D::heading(metadata, &mut self.heading);
    }

    fn sample(&mut self, labels: Labels<'_>, value: Value) {
        self.line(labels, value);
    }

    fn histogram(&mut self, labels: Labels<'_>, histogram: Histogram<'_>) {
        self.begin_steps("_bucket", labels, "le");
        let mut count = 0;
        for (bucket, bound) in histogram.buckets.iter().zip(histogram.layout.texts()) {
            count += bucket;
            self.step(bound, Value::Count(count));
        }
        self.suffixed_line("_sum", labels, histogram.sum);
        self.suffixed_line("_count", labels, Value::Count(count));
    }

    fn distribution(&mut self, labels: Labels<'_>, distribution: &Distribution) {
        let histogram = self.kind == MetricKind::Histogram;
        let (suffix, label) = if histogram {
            ("_bucket", "le")
        } else {
            ("", "quantile")
        };
        self.begin_steps(suffix, labels, label);
        for &(bound, value) in &distribution.steps {
            if histogram || D::has_quantile(value) {
                self.step(&BoundText::new(bound), Value::Float(value));
            }
        }
        let (has_sum, has_count) = D::has_sum_and_count(self.kind, distribution);
        if let Some(sum) = distribution.sum.filter(|_| has_sum) {
            self.suffixed_line("_sum", labels, Value::Float(sum));
        }
        if let Some(count) = distribution.count.filter(|_| has_count) {
            self.suffixed_line("_count", labels, Value::Float(count));
        }
    }
}

impl<D: Dialect> Exposition for Lines<D> {
    fn finish(mut self: Box<Self>) -> Body {
        self.out.buffer().extend_from_slice(D::END);
        self.out.finish()
    }
}

/// Appends `# HELP` and `# TYPE`. Escapes quotes in the help text if `escape_quotes` is set.
pub(super) fn help_and_type(
    to: &mut Vec<u8>,
    (name, help, kind): (&str, &str, &str),
    escape_quotes: bool,
) {
    to.extend_from_slice(b"# HELP ");
    to.extend_from_slice(name.as_bytes());
    to.push(b' ');
    for byte in help.bytes() {
        match byte {
            b'\\' => to.extend_from_slice(b"\\\\"),
            b'\n' => to.extend_from_slice(b"\\n"),
            b'"' if escape_quotes => to.extend_from_slice(b"\\\""),
            byte => to.push(byte),
        }
    }
    to.extend_from_slice(b"\n# TYPE ");
    to.extend_from_slice(name.as_bytes());
    to.push(b' ');
    to.extend_from_slice(kind.as_bytes());
    to.push(b'\n');
}
