//! Writing families and samples in one of the formats.

mod carried;

use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};
use collector_common::histogram::{BUCKETS, LONG_SHIFT, MIN_EXPONENT};
use prometheus::proto;

use super::{Family, Format, Kind, LabelSet, Labels, Sink, Unit, Value, labels::escape};

/// A log2 histogram, see `collector_common::histogram`.
#[derive(Clone, Copy, Debug)]
pub struct Histogram<'a> {
    /// Events by bucket, not cumulative; the last bucket is unbounded.
    pub buckets: &'a [u64; BUCKETS],
    /// Sum of the observed values.
    pub sum: Value,
}

/// Writes one exposition, or hands its samples to a [`Sink`].
#[derive(Debug)]
pub struct Writer<'s> {
    /// Who takes the samples instead of the buffer.
    sink: Option<&'s mut dyn Sink>,
    /// Whether the sink takes those of the family last begun.
    taken: bool,
    format: Format,
    buffer: BytesMut,
    /// Metadata of the family last begun, until its first sample.
    pending: Vec<u8>,
    name: &'static str,
    series: u64,
    /// Reused from histogram to histogram.
    scratch: Vec<u8>,
}

/// Starts a line: name and labels, the closing brace left to the caller. Whether there is one.
#[inline]
fn open(
    to: &mut impl BufMut,
    (name, suffix): (&str, &str),
    labels: &[u8],
    extra: &[(&str, &str)],
) -> bool {
    to.put_slice(name.as_bytes());
    to.put_slice(suffix.as_bytes());
    if labels.is_empty() && extra.is_empty() {
        return false;
    }
    to.put_u8(b'{');
    to.put_slice(labels);
    let mut first = labels.is_empty();
    for (name, value) in extra {
        if !first {
            to.put_u8(b',');
        }
        first = false;
        to.put_slice(name.as_bytes());
        to.put_slice(b"=\"");
        escape(value, to);
        to.put_u8(b'"');
    }
    true
}

/// Bounds of log2 buckets as `le` values: text as Go prints floats, OpenMetrics with a point.
type Bounds = [(String, String); BUCKETS];

static BOUNDS: LazyLock<Bounds> = LazyLock::new(|| bounds(MIN_EXPONENT));
static LONG_BOUNDS: LazyLock<Bounds> = LazyLock::new(|| bounds(MIN_EXPONENT + LONG_SHIFT as i32));

fn bounds(first: i32) -> Bounds {
    std::array::from_fn(|bucket| {
        if bucket + 1 == BUCKETS {
            return ("+Inf".to_owned(), "+Inf".to_owned());
        }
        bound_texts(2f64.powi(first + bucket as i32))
    })
}

fn bound_texts(bound: f64) -> (String, String) {
    // Go's %g: an exponent of at least two digits below 1e-4.
    let text = if bound != 0.0 && bound < 1e-4 {
        let text = format!("{bound:e}");
        match text.split_once("e-") {
            Some((mantissa, exponent)) => format!("{mantissa}e-{exponent:0>2}"),
            None => text,
        }
    } else {
        format!("{bound}")
    };
    let open = if text.contains(['.', 'e']) {
        text.clone()
    } else {
        format!("{text}.0")
    };
    (text, open)
}

impl<'s> Writer<'s> {
    /// A writer into `buffer`.
    pub fn new(format: Format, buffer: BytesMut) -> Self {
        Self {
            sink: None,
            taken: false,
            format,
            buffer,
            pending: Vec::new(),
            name: "",
            series: 0,
            scratch: Vec::new(),
        }
    }

    /// A writer of no text: the samples of those families that `sink` asks for go there.
    pub fn to_sink(sink: &'s mut dyn Sink) -> Self {
        Self {
            sink: Some(sink),
            ..Self::new(Format::Text, BytesMut::new())
        }
    }

    /// Hands a sample to the sink, if it takes those of this family.
    #[cold]
    fn hand_over(&mut self, labels: &[u8], extra: &[(&str, &str)], value: Value) {
        if let Some(sink) = self.sink.as_mut().filter(|_| self.taken) {
            sink.sample(Labels::new(labels, extra), value);
        }
    }

    /// Begins a family. Nothing is written before its first sample: a family without one is absent.
    pub fn family(&mut self, family: &Family) {
        self.name = family.name;
        self.metadata(family.name, family.help, family.kind, family.unit);
    }

    fn metadata(&mut self, name: &str, help: &str, kind: Kind, unit: Unit) {
        if let Some(sink) = &mut self.sink {
            self.taken = sink.family(name);
            return;
        }
        let has_suffix = name.ends_with("_total");
        let name = match self.format {
            Format::OpenMetrics if kind == Kind::Counter => {
                name.strip_suffix("_total").unwrap_or(name)
            }
            _ => name,
        };
        let kind = match kind {
            // OpenMetrics has no counter of which a sample's name doesn't end in `_total`
            // (cAdvisor's failcnt); in the text format it is one.
            Kind::Counter if self.format == Format::OpenMetrics && !has_suffix => "unknown",
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.heading(name, help, kind, unit);
    }

    fn heading(&mut self, name: &str, help: &str, kind: &str, unit: Unit) {
        use std::io::Write;
        self.pending.clear();
        // Writing to a Vec does not fail.
        let _ = write!(self.pending, "# HELP {name} ");
        for byte in help.bytes() {
            match byte {
                b'\\' => self.pending.extend_from_slice(b"\\\\"),
                b'\n' => self.pending.extend_from_slice(b"\\n"),
                b'"' if self.format == Format::OpenMetrics => {
                    self.pending.extend_from_slice(b"\\\"");
                }
                byte => self.pending.push(byte),
            }
        }
        let _ = write!(self.pending, "\n# TYPE {name} {kind}\n");
        if self.format == Format::OpenMetrics {
            let unit = match unit {
                Unit::Seconds => "seconds",
                Unit::Bytes => "bytes",
                Unit::None => return,
            };
            if name.ends_with(unit) {
                let _ = writeln!(self.pending, "# UNIT {name} {unit}");
            }
        }
    }

    /// Before a family's first sample: its metadata.
    #[inline]
    fn flush_metadata(&mut self) {
        if !self.pending.is_empty() {
            self.buffer.extend_from_slice(&self.pending);
            self.pending.clear();
        }
    }

    /// One line of a series.
    #[inline]
    fn line(
        &mut self,
        (name, suffix): (&str, &str),
        labels: &[u8],
        extra: &[(&str, &str)],
        value: Value,
    ) {
        if self.sink.is_some() {
            return self.hand_over(labels, extra, value);
        }
        self.flush_metadata();
        self.series += 1;
        self.buffer
            .reserve(name.len() + suffix.len() + labels.len() + 96);
        if open(&mut self.buffer, (name, suffix), labels, extra) {
            self.buffer.put_u8(b'}');
        }
        self.buffer.put_u8(b' ');
        value.write(&mut self.buffer);
        self.buffer.put_u8(b'\n');
    }

    /// One sample of the family last begun.
    #[inline]
    pub fn sample(&mut self, labels: &LabelSet, extra: &[(&str, &str)], value: Value) {
        self.line((self.name, ""), labels.text(), extra, value);
    }

    /// One histogram of the family last begun.
    pub fn histogram(
        &mut self,
        labels: &LabelSet,
        extra: &[(&str, &str)],
        histogram: Histogram<'_>,
    ) {
        self.buckets(labels, extra, histogram, &BOUNDS);
    }

    /// One long histogram of the family last begun, see `collector_common::histogram`.
    pub fn long_histogram(
        &mut self,
        labels: &LabelSet,
        extra: &[(&str, &str)],
        histogram: Histogram<'_>,
    ) {
        self.buckets(labels, extra, histogram, &LONG_BOUNDS);
    }

    fn buckets(
        &mut self,
        labels: &LabelSet,
        extra: &[(&str, &str)],
        histogram: Histogram<'_>,
        bounds: &Bounds,
    ) {
        if let Some(sink) = &mut self.sink {
            if self.taken {
                sink.histogram(Labels::new(labels.text(), extra), histogram);
            }
            return;
        }
        self.flush_metadata();
        // All but the bound is the same in each bucket's line.
        let mut prefix = std::mem::take(&mut self.scratch);
        prefix.clear();
        let braced = open(&mut prefix, (self.name, "_bucket"), labels.text(), extra);
        prefix.extend_from_slice(if braced { b",le=\"" } else { b"{le=\"" });
        self.buffer.reserve(BUCKETS * (prefix.len() + 48));
        let mut count = 0;
        for (bucket, (text, open)) in histogram.buckets.iter().zip(bounds) {
            count += bucket;
            let bound = match self.format {
                Format::OpenMetrics => open,
                Format::Text => text,
            };
            self.buffer.put_slice(&prefix);
            self.buffer.put_slice(bound.as_bytes());
            self.buffer.put_slice(b"\"} ");
            Value::Count(count).write(&mut self.buffer);
            self.buffer.put_u8(b'\n');
        }
        self.scratch = prefix;
        self.series += BUCKETS as u64;
        for (suffix, value) in [("_sum", histogram.sum), ("_count", Value::Count(count))] {
            self.line((self.name, suffix), labels.text(), extra, value);
        }
    }

    /// Families of the `prometheus` crate's registry: the agent's own metrics.
    pub fn registry(&mut self, families: &[proto::MetricFamily]) {
        for family in families {
            let kind = match family.get_field_type() {
                proto::MetricType::COUNTER => Kind::Counter,
                proto::MetricType::HISTOGRAM => Kind::Histogram,
                _ => Kind::Gauge,
            };
            let name = family.name();
            let unit = if name.trim_end_matches("_total").ends_with("_seconds") {
                Unit::Seconds
            } else if name.trim_end_matches("_total").ends_with("_bytes") {
                Unit::Bytes
            } else {
                Unit::None
            };
            self.metadata(name, family.help(), kind, unit);
            for metric in family.get_metric() {
                self.registry_metric(name, kind, metric);
            }
        }
        self.pending.clear();
    }

    fn registry_metric(&mut self, name: &str, kind: Kind, metric: &proto::Metric) {
        let labels: Vec<(&str, &str)> = metric
            .get_label()
            .iter()
            .map(|pair| (pair.name(), pair.value()))
            .collect();
        let line = |writer: &mut Self, suffix: &str, extra: &[(&str, &str)], value: f64| {
            let mut all = labels.clone();
            all.extend_from_slice(extra);
            writer.line((name, suffix), &[], &all, Value::Float(value));
        };
        match kind {
            Kind::Counter => line(self, "", &[], metric.get_counter().get_value()),
            Kind::Gauge => line(self, "", &[], metric.get_gauge().get_value()),
            Kind::Histogram => {
                let histogram = metric.get_histogram();
                for bucket in histogram.get_bucket() {
                    let (text, open) = bound_texts(bucket.upper_bound());
                    let bound = if self.format == Format::OpenMetrics {
                        open
                    } else {
                        text
                    };
                    line(
                        self,
                        "_bucket",
                        &[("le", &bound)],
                        bucket.cumulative_count() as f64,
                    );
                }
                let count = histogram.get_sample_count() as f64;
                line(self, "_bucket", &[("le", "+Inf")], count);
                line(self, "_sum", &[], histogram.get_sample_sum());
                line(self, "_count", &[], count);
            }
        }
    }

    /// Samples written so far.
    pub fn series_written(&self) -> u64 {
        self.series
    }

    /// Ends the exposition.
    pub fn finish(mut self) -> Bytes {
        if self.format == Format::OpenMetrics {
            self.buffer.put_slice(b"# EOF\n");
        }
        self.buffer.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER: Family = Family {
        name: "a_seconds_total",
        help: "With \"quotes\", a \\ and\na newline.",
        kind: Kind::Counter,
        unit: Unit::Seconds,
        labels: &["type"],
        origin: "",
        oracle: "",
    };

    fn text(format: Format, write: impl Fn(&mut Writer)) -> String {
        let mut writer = Writer::new(format, BytesMut::new());
        write(&mut writer);
        String::from_utf8(writer.finish().to_vec()).unwrap()
    }

    fn counter(writer: &mut Writer) {
        writer.family(&COUNTER);
        let labels = LabelSet::new(&[("id", "/x")]);
        writer.sample(&labels, &[("type", "a")], Value::Nanos(1_500_000_000));
        writer.sample(&LabelSet::empty(), &[], Value::Count(7));
        // No samples: not there.
        writer.family(&Family {
            name: "absent",
            ..COUNTER
        });
    }

    #[test]
    fn counter_as_text() {
        assert_eq!(
            text(Format::Text, counter),
            "# HELP a_seconds_total With \"quotes\", a \\\\ and\\na newline.\n\
             # TYPE a_seconds_total counter\n\
             a_seconds_total{id=\"/x\",type=\"a\"} 1.5\n\
             a_seconds_total 7\n"
        );
    }

    #[test]
    fn counter_as_openmetrics() {
        assert_eq!(
            text(Format::OpenMetrics, counter),
            "# HELP a_seconds With \\\"quotes\\\", a \\\\ and\\na newline.\n\
             # TYPE a_seconds counter\n\
             # UNIT a_seconds seconds\n\
             a_seconds_total{id=\"/x\",type=\"a\"} 1.5\n\
             a_seconds_total 7\n\
             # EOF\n"
        );
    }

    #[test]
    fn histograms_are_cumulative_in_both_formats() {
        let mut buckets = [0; BUCKETS];
        buckets[0] = 2;
        buckets[20] = 3;
        buckets[BUCKETS - 1] = 1;
        let write = |writer: &mut Writer| {
            writer.family(&Family {
                name: "h_seconds",
                kind: Kind::Histogram,
                ..COUNTER
            });
            for labels in [LabelSet::new(&[("id", "/\n\"")]), LabelSet::empty()] {
                writer.histogram(
                    &labels,
                    &[],
                    Histogram {
                        buckets: &buckets,
                        sum: Value::Nanos(5),
                    },
                );
            }
            assert_eq!(writer.series_written(), 2 * (BUCKETS as u64 + 2));
        };
        let lines = text(Format::Text, write);
        assert!(lines.contains(
            "# TYPE h_seconds histogram\nh_seconds_bucket{id=\"/\\n\\\"\",le=\"9.5367431640625e-07\"} 2\n"
        ));
        assert!(lines.contains("h_seconds_bucket{id=\"/\\n\\\"\",le=\"1\"} 5\n"));
        assert!(lines.contains("h_seconds_bucket{id=\"/\\n\\\"\",le=\"+Inf\"} 6\n"));
        assert!(lines.contains("h_seconds_sum{id=\"/\\n\\\"\"} 0.000000005\n"));
        assert!(lines.contains("\nh_seconds_bucket{le=\"0.5\"} 2\nh_seconds_bucket{le=\"1\"} 5\n"));
        assert!(lines.ends_with("h_seconds_count 6\n"));
        assert_eq!(lines.lines().count(), 2 + 2 * (BUCKETS + 2));
        assert!(text(Format::OpenMetrics, write).contains("le=\"1.0\"} 5\n"));
    }

    #[test]
    fn bounds_of_a_long_histogram() {
        let lines = text(Format::Text, |writer| {
            writer.family(&Family {
                name: "h_seconds",
                kind: Kind::Histogram,
                ..COUNTER
            });
            let histogram = Histogram {
                buckets: &[1; BUCKETS],
                sum: Value::Nanos(5),
            };
            writer.long_histogram(&LabelSet::empty(), &[], histogram);
        });
        assert!(lines.contains("h_seconds_bucket{le=\"0.0009765625\"} 1\n"));
        assert!(lines.contains("h_seconds_bucket{le=\"4096\"} 23\n"));
        assert!(lines.contains("h_seconds_bucket{le=\"+Inf\"} 24\n"));
    }

    #[test]
    fn registries_are_written_too() {
        let registry = prometheus::Registry::new();
        let counter =
            prometheus::IntCounterVec::new(prometheus::Opts::new("own_total", "Own."), &["code"])
                .unwrap();
        counter.with_label_values(&["200"]).inc_by(3);
        registry.register(Box::new(counter)).unwrap();
        let lines = text(Format::OpenMetrics, |writer| {
            writer.registry(&registry.gather())
        });
        assert_eq!(
            lines,
            "# HELP own Own.\n# TYPE own counter\nown_total{code=\"200\"} 3\n# EOF\n"
        );
    }
}
