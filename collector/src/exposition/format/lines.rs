//! Text formats made of lines: the common part of text 0.0.4 and OpenMetrics.

use bytes::{BufMut, BytesMut};
use collector_common::histogram::BUCKETS;

use super::Exposition;
use crate::exposition::{
    Body, Distribution, Encoder, Histogram, Kind, Labels, Metadata, Value, body::Chunks,
    histogram::BoundText,
};

/// Differences between the text formats. They are resolved at compile time.
pub(super) trait Dialect {
    /// Appends HELP, TYPE and other metadata of a family.
    fn heading(metadata: &Metadata<'_>, to: &mut BytesMut);
    /// Returns the text of a bound or quantile.
    fn bound(bound: &BoundText) -> &str;
    /// Whether the format allows this quantile's value in a summary.
    fn has_quantile(value: f64) -> bool;
    /// Whether the format allows the sum of this distribution, and its count.
    fn has_sum_and_count(kind: Kind, distribution: &Distribution) -> (bool, bool);
    /// End of the exposition.
    const END: &'static [u8];
}

/// Encodes one exposition.
pub(super) struct Lines<D> {
    out: Chunks,
    /// Metadata of the family last begun, until its first sample.
    heading: BytesMut,
    name: String,
    kind: Kind,
    series: u64,
    /// Common start of the lines of one histogram. Reused.
    prefix: Vec<u8>,
    dialect: std::marker::PhantomData<D>,
}

impl<D: Dialect> Lines<D> {
    pub(super) fn new() -> Self {
        Self {
            out: Chunks::new(),
            heading: BytesMut::new(),
            name: String::new(),
            kind: Kind::Untyped,
            series: 0,
            prefix: Vec::new(),
            dialect: std::marker::PhantomData,
        }
    }

    /// Writes the metadata of a family before its first sample.
    #[inline]
    fn flush_heading(&mut self) {
        if !self.heading.is_empty() {
            self.out.buffer.extend_from_slice(&self.heading);
            self.heading.clear();
        }
    }

    #[inline]
    fn line(&mut self, suffix: &str, labels: Labels<'_>, value: Value) {
        self.flush_heading();
        self.series += 1;
        let buffer = &mut self.out.buffer;
        buffer.reserve(self.name.len() + suffix.len() + labels.size() + 96);
        buffer.put_slice(self.name.as_bytes());
        buffer.put_slice(suffix.as_bytes());
        if !labels.is_empty() {
            buffer.put_u8(b'{');
            labels.write(buffer);
            buffer.put_u8(b'}');
        }
        buffer.put_u8(b' ');
        value.write(buffer);
        buffer.put_u8(b'\n');
        self.out.end_line();
    }

    /// Prepares the lines of a series that differ in one label: everything up to the label's value.
    fn begin_steps(&mut self, suffix: &str, labels: Labels<'_>, label: &str) {
        let prefix = &mut self.prefix;
        prefix.clear();
        prefix.put_slice(self.name.as_bytes());
        prefix.put_slice(suffix.as_bytes());
        prefix.put_u8(b'{');
        labels.write(prefix);
        if !labels.is_empty() {
            prefix.put_u8(b',');
        }
        prefix.put_slice(label.as_bytes());
        prefix.put_slice(b"=\"");
    }

    fn step(&mut self, bound: &BoundText, value: Value) {
        self.flush_heading();
        let bound = D::bound(bound);
        let buffer = &mut self.out.buffer;
        buffer.reserve(self.prefix.len() + bound.len() + 48);
        buffer.put_slice(&self.prefix);
        buffer.put_slice(bound.as_bytes());
        buffer.put_slice(b"\"} ");
        value.write(buffer);
        buffer.put_u8(b'\n');
        self.series += 1;
        self.out.end_line();
    }
}

impl<D: Dialect> Encoder for Lines<D> {
    fn begin(&mut self, metadata: &Metadata<'_>) {
        self.name.clear();
        self.name.push_str(metadata.name);
        self.kind = metadata.kind;
        self.heading.clear();
        D::heading(metadata, &mut self.heading);
    }

    fn sample(&mut self, labels: Labels<'_>, value: Value) {
        self.line("", labels, value);
    }

    fn histogram(&mut self, labels: Labels<'_>, histogram: Histogram<'_>) {
        self.begin_steps("_bucket", labels, "le");
        self.out.buffer.reserve(BUCKETS * (self.prefix.len() + 48));
        let mut count = 0;
        for (bucket, bound) in histogram.buckets.iter().zip(histogram.layout.texts()) {
            count += bucket;
            self.step(bound, Value::Count(count));
        }
        self.line("_sum", labels, histogram.sum);
        self.line("_count", labels, Value::Count(count));
    }

    fn distribution(&mut self, labels: Labels<'_>, distribution: &Distribution) {
        let histogram = self.kind == Kind::Histogram;
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
            self.line("_sum", labels, Value::Float(sum));
        }
        if let Some(count) = distribution.count.filter(|_| has_count) {
            self.line("_count", labels, Value::Float(count));
        }
    }
}

impl<D: Dialect> Exposition for Lines<D> {
    fn series(&self) -> u64 {
        self.series
    }

    fn finish(mut self: Box<Self>) -> Body {
        self.out.buffer.put_slice(D::END);
        self.out.finish()
    }
}

/// Appends `# HELP` and `# TYPE`. Escapes quotes in the help text if `escape_quotes` is set.
pub(super) fn help_and_type(
    to: &mut BytesMut,
    (name, help, kind): (&str, &str, &str),
    escape_quotes: bool,
) {
    to.put_slice(b"# HELP ");
    to.put_slice(name.as_bytes());
    to.put_u8(b' ');
    for byte in help.bytes() {
        match byte {
            b'\\' => to.put_slice(b"\\\\"),
            b'\n' => to.put_slice(b"\\n"),
            b'"' if escape_quotes => to.put_slice(b"\\\""),
            byte => to.put_u8(byte),
        }
    }
    to.put_slice(b"\n# TYPE ");
    to.put_slice(name.as_bytes());
    to.put_u8(b' ');
    to.put_slice(kind.as_bytes());
    to.put_u8(b'\n');
}
