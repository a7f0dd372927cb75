//! Writing families that applications define: their names are not known beforehand.
//!
//! Invariant: whatever an application says, the text is one that the format's readers take.
//! OpenMetrics is stricter than the text format; what it has no word for is left out there, or
//! called unknown.

use super::Writer;
use crate::exposition::{Distribution, Format, LabelSet, Points, Type, Unit, Value};

/// A bound or quantile as Go's client library prints it, which is what others compare with.
fn go_float(value: f64, format: Format) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    // The shortest digits that read back, d.ddde±x.
    let text = format!("{value:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let text = format!("{value}");
    if format == Format::OpenMetrics && !text.contains('.') {
        return text + ".0";
    }
    text
}

impl Writer<'_> {
    /// Begins a family of applications. `name` is that of its samples; `alone` says that no other
    /// family is called as a counter is without its `_total`.
    pub fn carried(&mut self, name: &str, help: &str, kind: Type, alone: bool) {
        if let Some(sink) = &mut self.sink {
            self.taken = sink.family(name);
            return;
        }
        let (name, kind) = match (self.format, kind) {
            (Format::OpenMetrics, Type::Untyped) => (name, "unknown"),
            (Format::OpenMetrics, Type::Counter) => match name.strip_suffix("_total") {
                Some(base) if alone && !base.is_empty() => (base, "counter"),
                _ => (name, "unknown"),
            },
            (_, kind) => (name, kind.name()),
        };
        self.heading(name, help, kind, Unit::None);
    }

    /// One series of the family of applications last begun: labels of the cgroup, and its own.
    pub fn carried_series(
        &mut self,
        name: &str,
        labels: &LabelSet,
        own: &LabelSet,
        points: &Points,
        kind: Type,
    ) {
        let mut all = std::mem::take(&mut self.scratch);
        all.clear();
        all.extend_from_slice(labels.text());
        if !all.is_empty() && !own.text().is_empty() {
            all.push(b',');
        }
        all.extend_from_slice(own.text());
        match points {
            Points::Single(value) => self.line((name, ""), &all, &[], Value::Float(*value)),
            Points::Distribution(distribution) => {
                self.distribution(name, &all, distribution, kind == Type::Histogram);
            }
        }
        self.scratch = all;
    }

    fn distribution(
        &mut self,
        name: &str,
        labels: &[u8],
        distribution: &Distribution,
        histogram: bool,
    ) {
        let strict = self.format == Format::OpenMetrics;
        let (suffix, label) = if histogram {
            ("_bucket", "le")
        } else {
            ("", "quantile")
        };
        for &(bound, value) in &distribution.steps {
            if strict && !histogram && value < 0.0 {
                continue;
            }
            let bound = go_float(bound, self.format);
            self.line(
                (name, suffix),
                labels,
                &[(label, &bound)],
                Value::Float(value),
            );
        }
        // OpenMetrics has no sum of negative observations, and in a histogram no count without one.
        let negative = distribution.sum.is_some_and(|sum| sum < 0.0)
            || (histogram && distribution.steps.first().is_some_and(|step| step.0 < 0.0));
        let sum = distribution.sum.filter(|_| !(strict && negative));
        if let Some(sum) = sum {
            self.line((name, "_sum"), labels, &[], Value::Float(sum));
        }
        if let Some(count) = distribution.count
            && (sum.is_some() || !(strict && histogram))
        {
            self.line((name, "_count"), labels, &[], Value::Float(count));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    fn text(format: Format, write: impl Fn(&mut Writer)) -> String {
        let mut writer = Writer::new(format, BytesMut::new());
        write(&mut writer);
        String::from_utf8(writer.finish().to_vec()).unwrap()
    }

    #[test]
    fn bounds() {
        for (value, in_text, in_openmetrics) in [
            (0.005, "0.005", "0.005"),
            (1.0, "1", "1.0"),
            (100_000.0, "100000", "100000.0"),
            (1e6, "1e+06", "1e+06"),
            (2.5e-7, "2.5e-07", "2.5e-07"),
            (1e22, "1e+22", "1e+22"),
            (-1.0, "-1", "-1.0"),
            (f64::INFINITY, "+Inf", "+Inf"),
        ] {
            assert_eq!(go_float(value, Format::Text), in_text);
            assert_eq!(go_float(value, Format::OpenMetrics), in_openmetrics);
        }
    }

    fn series(writer: &mut Writer, name: &str, kind: Type, points: &Points) {
        let (of, own) = (LabelSet::new(&[("id", "/x")]), LabelSet::new(&[("a", "b")]));
        writer.carried(name, "Help.", kind, true);
        writer.carried_series(name, &of, &own, points, kind);
    }

    #[test]
    fn counters() {
        let write = |writer: &mut Writer| {
            series(writer, "a_total", Type::Counter, &Points::Single(1.5));
            series(writer, "b", Type::Counter, &Points::Single(2.0));
            series(writer, "c", Type::Untyped, &Points::Single(f64::NAN));
        };
        assert_eq!(
            text(Format::OpenMetrics, write),
            "# HELP a Help.\n# TYPE a counter\na_total{id=\"/x\",a=\"b\"} 1.5\n\
             # HELP b Help.\n# TYPE b unknown\nb{id=\"/x\",a=\"b\"} 2\n\
             # HELP c Help.\n# TYPE c unknown\nc{id=\"/x\",a=\"b\"} NaN\n# EOF\n"
        );
        assert!(text(Format::Text, write).contains("# TYPE b counter\n"));
        assert!(text(Format::Text, write).contains("# TYPE c untyped\n"));
    }

    #[test]
    fn a_negative_sum_is_no_openmetrics() {
        let points = Points::Distribution(Distribution {
            steps: vec![(-1.0, 1.0), (f64::INFINITY, 2.0)],
            sum: Some(-3.0),
            count: Some(2.0),
        });
        let write = |writer: &mut Writer| series(writer, "h", Type::Histogram, &points);
        assert_eq!(
            text(Format::OpenMetrics, write),
            "# HELP h Help.\n# TYPE h histogram\nh_bucket{id=\"/x\",a=\"b\",le=\"-1.0\"} 1\n\
             h_bucket{id=\"/x\",a=\"b\",le=\"+Inf\"} 2\n# EOF\n"
        );
        assert!(
            text(Format::Text, write)
                .ends_with("h_sum{id=\"/x\",a=\"b\"} -3\nh_count{id=\"/x\",a=\"b\"} 2\n")
        );
    }
}
