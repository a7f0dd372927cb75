//! Families of the `prometheus` crate's registry: the agent's own metrics.

use prometheus::proto;

use super::{Distribution, Encoder, LabelSet, Labels, Metadata, MetricKind, Unit, Value};

/// Encodes what a registry has gathered.
pub fn encode_registry(families: &[proto::MetricFamily], out: &mut dyn Encoder) {
    let none = LabelSet::empty();
    for family in families {
        let kind = match family.get_field_type() {
            proto::MetricType::COUNTER => MetricKind::Counter,
            proto::MetricType::HISTOGRAM => MetricKind::Histogram,
            _ => MetricKind::Gauge,
        };
        out.begin(&Metadata {
            name: family.name(),
            help: family.help(),
            kind,
            unit: Unit::of_name(family.name()),
            base_is_free: true,
        });
        for metric in family.get_metric() {
            let labels: Vec<(&str, &str)> = metric
                .get_label()
                .iter()
                .map(|pair| (pair.name(), pair.value()))
                .collect();
            let labels = Labels::new(&none, &labels);
            match kind {
                MetricKind::Counter => {
                    out.sample(labels, Value::Float(metric.get_counter().get_value()));
                }
                MetricKind::Histogram => {
                    out.distribution(labels, &distribution(metric.get_histogram()));
                }
                _ => out.sample(labels, Value::Float(metric.get_gauge().get_value())),
            }
        }
    }
}

fn distribution(histogram: &proto::Histogram) -> Distribution {
    let count = histogram.get_sample_count() as f64;
    let finite = histogram
        .get_bucket()
        .iter()
        .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count() as f64))
        .filter(|(bound, _)| bound.is_finite());
    Distribution {
        steps: finite.chain([(f64::INFINITY, count)]).collect(),
        sum: Some(histogram.get_sample_sum()),
        count: Some(count),
    }
}
