//! A frame as JSON: `cgmeter dump --format json`.

use serde_json::{Map, Number, Value as Json, json};

use crate::exposition::{
    Distribution, Encoder, Histogram, Labels, Metadata, MetricKind, Value, bound_text,
};

/// Encodes samples as an array of objects with `name`, `labels` and `value`. Histograms and
/// summaries are the samples that the text format makes of them. Values that JSON has no number for
/// are strings: `NaN`, `+Inf`, `-Inf`.
#[derive(Debug, Default)]
pub struct Dump {
    name: String,
    histogram: bool,
    samples: Vec<Json>,
}

impl Dump {
    /// The array as text.
    ///
    /// # Errors
    ///
    /// None is known: serde_json's type says that there may be some.
    pub fn finish(self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&self.samples).map(|text| text + "\n")
    }

    fn push(&mut self, suffix: &str, labels: Labels<'_>, more: Option<(&str, f64)>, value: Value) {
        let mut object: Map<String, Json> = labels
            .iter()
            .map(|(name, value)| (name.to_owned(), Json::String(value.into_owned())))
            .collect();
        if let Some((name, bound)) = more {
            object.insert(name.to_owned(), Json::String(bound_text(bound)));
        }
        let name = format!("{}{suffix}", self.name);
        self.samples
            .push(json!({ "name": name, "labels": object, "value": number(value) }));
    }
}

/// Whole numbers below this are exact.
const WHOLE: f64 = (1_u64 << 53) as f64;

/// A value as JSON.
fn number(value: Value) -> Json {
    match value {
        Value::Count(count) => Json::from(count),
        Value::Nanos(ns) if ns % 1_000_000_000 == 0 => Json::from(ns / 1_000_000_000),
        Value::Nanos(ns) => number(Value::Float(ns as f64 / 1e9)),
        // A whole number has no point, as in the text format.
        Value::Float(float) if float.fract() == 0.0 && float.abs() < WHOLE => {
            Json::from(float as i64)
        }
        Value::Float(float) => match Number::from_f64(float) {
            Some(number) => Json::Number(number),
            None if float.is_nan() => Json::from("NaN"),
            None if float > 0.0 => Json::from("+Inf"),
            None => Json::from("-Inf"),
        },
    }
}

impl Encoder for Dump {
    fn begin(&mut self, metadata: &Metadata<'_>) {
        metadata.name.clone_into(&mut self.name);
        self.histogram = metadata.kind == MetricKind::Histogram;
    }

    fn sample(&mut self, labels: Labels<'_>, value: Value) {
        self.push("", labels, None, value);
    }

    fn histogram(&mut self, labels: Labels<'_>, histogram: Histogram<'_>) {
        let mut count = 0;
        for (bucket, &bound) in histogram.buckets.iter().zip(histogram.layout.bounds()) {
            count += bucket;
            self.push("_bucket", labels, Some(("le", bound)), Value::Count(count));
        }
        self.push("_sum", labels, None, histogram.sum);
        self.push("_count", labels, None, Value::Count(count));
    }

    fn distribution(&mut self, labels: Labels<'_>, distribution: &Distribution) {
        let (suffix, label) = if self.histogram {
            ("_bucket", "le")
        } else {
            ("", "quantile")
        };
        for &(bound, value) in &distribution.steps {
            self.push(suffix, labels, Some((label, bound)), Value::Float(value));
        }
        for (suffix, value) in [("_sum", distribution.sum), ("_count", distribution.count)] {
            if let Some(value) = value {
                self.push(suffix, labels, None, Value::Float(value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{LOG2, LabelSet, Unit};

    fn dump(encode: impl Fn(&mut dyn Encoder)) -> Vec<Json> {
        let mut dump = Dump::default();
        encode(&mut dump);
        serde_json::from_str(&dump.finish().unwrap()).unwrap()
    }

    fn begin(out: &mut dyn Encoder, name: &str, kind: MetricKind) {
        out.begin(&Metadata {
            name,
            help: "",
            kind,
            unit: Unit::None,
            base_is_free: true,
        });
    }

    #[test]
    fn samples_survive() {
        let set = LabelSet::new(&[("id", "/x \"y\",\n}"), ("b", "c")]);
        let none = LabelSet::empty();
        let values = [
            Value::Nanos(1_500_000_000),
            Value::Nanos(2_000_000_000),
            Value::Count(u64::MAX),
            Value::Float(7.0),
            Value::Float(f64::NAN),
            Value::Float(f64::INFINITY),
            Value::Float(f64::NEG_INFINITY),
        ];
        let samples = dump(|out| {
            begin(out, "a", MetricKind::Gauge);
            out.sample(Labels::new(&set, &[("d", "e")]), values[0]);
            for &value in &values[1..] {
                out.sample(Labels::new(&none, &[]), value);
            }
        });
        let labels = json!({ "id": "/x \"y\",\n}", "b": "c", "d": "e" });
        assert_eq!(
            samples[0],
            json!({ "name": "a", "labels": labels, "value": 1.5 })
        );
        let found: Vec<&Json> = samples.iter().map(|sample| &sample["value"]).collect();
        let expected = json!([1.5, 2, u64::MAX, 7, "NaN", "+Inf", "-Inf"]);
        assert_eq!(json!(found), expected);
    }

    #[test]
    fn histograms_and_summaries_are_as_in_the_text_format() {
        let none = LabelSet::empty();
        let mut buckets = [0; 24];
        (buckets[0], buckets[20]) = (2, 1);
        let histogram = Histogram {
            layout: &LOG2,
            buckets: &buckets,
            sum: Value::Nanos(5_000_000_000),
        };
        let summary = Distribution {
            steps: vec![(0.5, 3.5)],
            sum: Some(7.0),
            count: Some(2.0),
        };
        let samples = dump(|out| {
            begin(out, "h", MetricKind::Histogram);
            out.histogram(Labels::new(&none, &[]), histogram);
            begin(out, "s", MetricKind::Summary);
            out.distribution(Labels::new(&none, &[]), &summary);
        });
        let lines: Vec<String> = samples
            .iter()
            .map(|s| format!("{} {} {}", s["name"], s["labels"], s["value"]))
            .collect();
        assert_eq!(lines[0], r#""h_bucket" {"le":"9.5367431640625e-07"} 2"#);
        assert_eq!(lines[20], r#""h_bucket" {"le":"1"} 3"#);
        assert_eq!(lines[23], r#""h_bucket" {"le":"+Inf"} 3"#);
        assert_eq!(
            lines[24..],
            [
                r#""h_sum" {} 5"#,
                r#""h_count" {} 3"#,
                r#""s" {"quantile":"0.5"} 3.5"#,
                r#""s_sum" {} 7"#,
                r#""s_count" {} 2"#
            ]
        );
    }
}
