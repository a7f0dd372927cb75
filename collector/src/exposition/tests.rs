//! Output of both text formats.

use collector_common::histogram::BUCKETS;

use super::*;

const COUNTER: Family = Family {
    name: "a_seconds_total",
    help: "With \"quotes\", a \\ and\na newline.",
    kind: MetricKind::Counter,
    unit: Unit::Seconds,
    labels: &["type"],
    origin: "",
    oracle: "",
};

const HISTOGRAM: Family = Family {
    name: "h_seconds",
    kind: MetricKind::Histogram,
    ..COUNTER
};

fn text(format: Format, encode: impl Fn(&mut dyn Encoder)) -> String {
    let mut encoder = format.encoder();
    encode(&mut *encoder);
    String::from_utf8(encoder.finish().to_vec()).unwrap()
}

fn counter(out: &mut dyn Encoder) {
    out.family(&COUNTER);
    let labels = LabelSet::new(&[("id", "/x")]);
    out.sample(
        Labels::new(&labels, &[("type", "a")]),
        Value::Nanos(1_500_000_000),
    );
    out.sample(Labels::new(&LabelSet::empty(), &[]), Value::Count(7));
    // A family without samples is left out.
    out.family(&Family {
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
    let encode = |out: &mut dyn Encoder| {
        out.family(&HISTOGRAM);
        for labels in [LabelSet::new(&[("id", "/\n\"")]), LabelSet::empty()] {
            let histogram = Histogram {
                layout: &LOG2,
                buckets: &buckets,
                sum: Value::Nanos(5),
            };
            out.histogram(Labels::new(&labels, &[]), histogram);
        }
    };
    let lines = text(Format::Text, encode);
    assert!(lines.contains(
        "# TYPE h_seconds histogram\nh_seconds_bucket{id=\"/\\n\\\"\",le=\"9.5367431640625e-07\"} 2\n"
    ));
    assert!(lines.contains("h_seconds_bucket{id=\"/\\n\\\"\",le=\"1\"} 5\n"));
    assert!(lines.contains("h_seconds_bucket{id=\"/\\n\\\"\",le=\"+Inf\"} 6\n"));
    assert!(lines.contains("h_seconds_sum{id=\"/\\n\\\"\"} 0.000000005\n"));
    assert!(lines.contains("\nh_seconds_bucket{le=\"0.5\"} 2\nh_seconds_bucket{le=\"1\"} 5\n"));
    assert!(lines.ends_with("h_seconds_count 6\n"));
    assert_eq!(lines.lines().count(), 2 + 2 * (BUCKETS + 2));
    assert!(text(Format::OpenMetrics, encode).contains("le=\"1.0\"} 5\n"));
}

#[test]
fn bounds_of_a_long_histogram() {
    let lines = text(Format::Text, |out| {
        out.family(&HISTOGRAM);
        let histogram = Histogram {
            layout: &LOG2_LONG,
            buckets: &[1; BUCKETS],
            sum: Value::Nanos(5),
        };
        out.histogram(Labels::new(&LabelSet::empty(), &[]), histogram);
    });
    assert!(lines.contains("h_seconds_bucket{le=\"0.0009765625\"} 1\n"));
    assert!(lines.contains("h_seconds_bucket{le=\"4096\"} 23\n"));
    assert!(lines.contains("h_seconds_bucket{le=\"+Inf\"} 24\n"));
}

#[test]
fn registries_are_encoded_too() {
    let registry = prometheus::Registry::new();
    let counter =
        prometheus::IntCounterVec::new(prometheus::Opts::new("own_total", "Own."), &["code"])
            .unwrap();
    counter.with_label_values(&["200"]).inc_by(3);
    registry.register(Box::new(counter)).unwrap();
    let options = prometheus::HistogramOpts::new("own_seconds", "Own.").buckets(vec![1.0, 2.5]);
    let histogram = prometheus::Histogram::with_opts(options).unwrap();
    histogram.observe(2.0);
    registry.register(Box::new(histogram)).unwrap();
    let lines = text(Format::OpenMetrics, |out| {
        encode_registry(&registry.gather(), out);
    });
    assert_eq!(
        lines,
        "# HELP own_seconds Own.\n# TYPE own_seconds histogram\n# UNIT own_seconds seconds\n\
         own_seconds_bucket{le=\"1.0\"} 0\nown_seconds_bucket{le=\"2.5\"} 1\n\
         own_seconds_bucket{le=\"+Inf\"} 1\nown_seconds_sum 2\nown_seconds_count 1\n\
         # HELP own Own.\n# TYPE own counter\nown_total{code=\"200\"} 3\n# EOF\n"
    );
}

/// Encodes one series of an application.
fn series(out: &mut dyn Encoder, name: &str, kind: MetricKind, points: &Points) {
    let (of, own) = (LabelSet::new(&[("id", "/x")]), LabelSet::new(&[("a", "b")]));
    out.begin(&Metadata {
        name,
        help: "Help.",
        kind,
        unit: Unit::None,
        base_is_free: true,
    });
    let labels = Labels::with_own(&of, &own);
    match points {
        Points::Single(value) => out.sample(labels, Value::Float(*value)),
        Points::Distribution(distribution) => out.distribution(labels, distribution),
    }
}

#[test]
fn counters_of_applications() {
    let encode = |out: &mut dyn Encoder| {
        series(out, "a_total", MetricKind::Counter, &Points::Single(1.5));
        series(out, "b", MetricKind::Counter, &Points::Single(2.0));
        series(out, "c", MetricKind::Untyped, &Points::Single(f64::NAN));
    };
    assert_eq!(
        text(Format::OpenMetrics, encode),
        "# HELP a Help.\n# TYPE a counter\na_total{id=\"/x\",a=\"b\"} 1.5\n\
         # HELP b Help.\n# TYPE b unknown\nb{id=\"/x\",a=\"b\"} 2\n\
         # HELP c Help.\n# TYPE c unknown\nc{id=\"/x\",a=\"b\"} NaN\n# EOF\n"
    );
    assert!(text(Format::Text, encode).contains("# TYPE b counter\n"));
    assert!(text(Format::Text, encode).contains("# TYPE c untyped\n"));
}

#[test]
fn openmetrics_leaves_out_a_negative_sum() {
    let points = Points::Distribution(Distribution {
        steps: vec![(-1.0, 1.0), (f64::INFINITY, 2.0)],
        sum: Some(-3.0),
        count: Some(2.0),
    });
    let encode = |out: &mut dyn Encoder| series(out, "h", MetricKind::Histogram, &points);
    assert_eq!(
        text(Format::OpenMetrics, encode),
        "# HELP h Help.\n# TYPE h histogram\nh_bucket{id=\"/x\",a=\"b\",le=\"-1.0\"} 1\n\
         h_bucket{id=\"/x\",a=\"b\",le=\"+Inf\"} 2\n# EOF\n"
    );
    assert!(
        text(Format::Text, encode)
            .ends_with("h_sum{id=\"/x\",a=\"b\"} -3\nh_count{id=\"/x\",a=\"b\"} 2\n")
    );
}

#[test]
fn a_summary_keeps_what_the_format_allows() {
    let points = Points::Distribution(Distribution {
        steps: vec![(0.5, -1.0), (0.9, f64::NAN)],
        sum: None,
        count: Some(2.0),
    });
    let encode = |out: &mut dyn Encoder| series(out, "s", MetricKind::Summary, &points);
    assert!(text(Format::Text, encode).ends_with(
        "s{id=\"/x\",a=\"b\",quantile=\"0.5\"} -1\ns{id=\"/x\",a=\"b\",quantile=\"0.9\"} NaN\n\
         s_count{id=\"/x\",a=\"b\"} 2\n"
    ));
    assert!(text(Format::OpenMetrics, encode).ends_with(
        "# TYPE s summary\ns{id=\"/x\",a=\"b\",quantile=\"0.9\"} NaN\n\
         s_count{id=\"/x\",a=\"b\"} 2\n# EOF\n"
    ));
}
