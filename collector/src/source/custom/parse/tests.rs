use super::*;
use crate::exposition::Points;

fn read(text: &str) -> Parsed {
    parse(
        text.as_bytes(),
        TextLimits {
            samples: 100,
            owners: false,
        },
    )
}

/// Parses one bad line between two good ones. Returns its error; nothing else may be lost.
fn bad(line: &str) -> &'static str {
    let parsed = read(&format!("before 1\n{line}\nafter 2\n"));
    let names: Vec<&str> = parsed
        .families
        .iter()
        .map(|family| family.name.as_str())
        .collect();
    assert_eq!(names, ["before", "after"], "{line}");
    assert_eq!(parsed.bad.count, 1, "{line}: {:?}", parsed.bad);
    assert_eq!(parsed.bad.first[0].0, 2, "{line}");
    parsed.bad.first[0].1
}

fn labels(text: &str) -> LabelText {
    let parsed = read(text);
    assert_eq!(parsed.bad, Bad::default(), "{text}");
    let series = &parsed.families[0].series[0];
    let Points::Single(value) = series.points else {
        panic!("not one sample: {text}");
    };
    let mut encoder = Format::Text.encoder();
    encoder.begin(&Metadata {
        name: "x",
        help: "",
        kind: MetricKind::Gauge,
        unit: Unit::None,
        base_is_free: true,
    });
    encoder.sample(Labels::new(&series.labels, &[]), Value::Float(value));
    let text = String::from_utf8(encoder.finish().to_vec()).unwrap();
    text.lines().last().unwrap().to_owned()
}

type LabelText = String;
use crate::exposition::{Format, Labels, Metadata, Unit, Value};

#[test]
fn plain_samples() {
    let parsed = read(
        "# a comment\n\n# HELP a Some \\\\ help,\\ntwo lines.\n# TYPE a counter\n\
         a{x=\"1\"} 5\na{x=\"2\",} +Inf\n  b\t{ y = \"z\" }\t-1e3  \nc NaN\n",
    );
    assert_eq!(parsed.bad, Bad::default());
    assert_eq!(parsed.samples, 4);
    let [a, b, c] = &parsed.families[..] else {
        panic!("{:?}", parsed.families);
    };
    assert_eq!(
        (a.kind, a.help.as_str()),
        (MetricKind::Counter, "Some \\ help,\ntwo lines.")
    );
    assert_eq!(a.series[1].points, Points::Single(f64::INFINITY));
    assert_eq!(
        (b.kind, &b.series[0].points),
        (MetricKind::Untyped, &Points::Single(-1000.0))
    );
    assert!(matches!(c.series[0].points, Points::Single(value) if value.is_nan()));
}

#[test]
fn escapes_and_names_of_labels() {
    assert_eq!(
        labels("m{a=\"\\\\ \\\" \\n \\x }, \u{e4}\"} 1\n"),
        "x{a=\"\\\\ \\\" \\n \\\\x }, \u{e4}\"} 1"
    );
    // Labels with the cgroup's names are renamed, empty ones are left out, and they are sorted.
    assert_eq!(
        labels("m{z=\"1\",name=\"n\",empty=\"\",id=\"i\",exported_id=\"e\"} 1\n"),
        "x{exported_exported_id=\"i\",exported_id=\"e\",exported_name=\"n\",z=\"1\"} 1"
    );
}

#[test]
fn openmetrics() {
    let parsed = read(
        "# TYPE a_seconds counter\n# UNIT a_seconds seconds\n# HELP a_seconds Help.\n\
         a_seconds_total 1 # {trace=\"x\"} 0.5 1.5\na_seconds_created 1.7e9\n\
         # TYPE i info\ni_info{v=\"1\"} 1\n# EOF\nnot read\n",
    );
    assert_eq!(parsed.bad, Bad::default());
    let found: Vec<(&str, MetricKind, &str)> = parsed
        .families
        .iter()
        .map(|family| (family.name.as_str(), family.kind, family.help.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            ("a_seconds_total", MetricKind::Counter, "Help."),
            ("i_info", MetricKind::Untyped, "")
        ]
    );
    assert_eq!(parsed.timestamp, None);
    assert_eq!(read("a 1 1700000000000\n").timestamp, Some(1));
}

#[test]
fn histograms_and_summaries() {
    let parsed = read(
        "# TYPE h histogram\nh_bucket{le=\"+Inf\",k=\"a\"} 3\nh_bucket{k=\"a\",le=\"1\"} 2\n\
         h_sum{k=\"a\"} 4\nh_count{k=\"a\"} 3\nh_bucket{le=\"1\"} 1\nh_count 1\n\
         # TYPE s summary\ns{quantile=\"0.5\"} 7\ns_sum 9\ns_count 2\n\
         # TYPE h_created gauge\nh_created 1.7e9\n",
    );
    assert_eq!(parsed.bad, Bad::default());
    let [h, s] = &parsed.families[..] else {
        panic!("{:?}", parsed.families);
    };
    let Points::Distribution(with) = &h.series[0].points else {
        panic!("{h:?}");
    };
    assert_eq!(with.steps, [(1.0, 2.0), (f64::INFINITY, 3.0)]);
    assert_eq!((with.sum, with.count), (Some(4.0), Some(3.0)));
    // Missing parts of a histogram follow from its count.
    let Points::Distribution(without) = &h.series[1].points else {
        panic!("{h:?}");
    };
    assert_eq!(without.steps, [(1.0, 1.0), (f64::INFINITY, 1.0)]);
    let Points::Distribution(summary) = &s.series[0].points else {
        panic!("{s:?}");
    };
    assert_eq!(summary.steps, [(0.5, 7.0)]);
    assert_eq!(parsed.samples, 4 + 3 + 3);
}

#[test]
fn bad_lines() {
    for (line, what) in [
        ("x", "missing value"),
        ("x ", "missing value"),
        ("x y", "the value is not a number"),
        ("1x 1", "invalid metric name"),
        ("{a=\"b\"} 1", "invalid metric name"),
        ("{\"x\"} 1", "invalid metric name"),
        ("x{a} 1", "missing = after a label name"),
        ("x{a=b} 1", "a label value is not quoted"),
        ("x{a=\"b} 1", "missing closing quote"),
        ("x{a=\"b\\", "a backslash at the end"),
        (
            "x{a=\"b\" c=\"d\"} 1",
            "expected a comma or a closing brace after a label",
        ),
        ("x{a=\"b\",a=\"c\"} 1", "duplicate label"),
        ("x{__name__=\"b\"} 1", "invalid label name"),
        ("x{a:b=\"b\"} 1", "invalid label name"),
        ("x 1 soon", "invalid timestamp"),
        ("x 1 2 3", "unexpected text after the value"),
        ("# TYPE x number", "unknown type"),
        (
            "# TYPE before gauge",
            "repeated type, or type after the first sample",
        ),
        ("before 1", "duplicate series"),
    ] {
        assert_eq!(bad(line), what, "{line}");
    }
    let long = format!("x{{a=\"{}\"}} 1", "b".repeat(LINE));
    assert_eq!(bad(&long), "longer than 16 KiB");
    let parsed = parse(
        b"a 1\nb{c=\"\xff\"} 1\n",
        TextLimits {
            samples: 9,
            owners: false,
        },
    );
    assert_eq!(parsed.bad.first, [(2, "not UTF-8")]);
}

#[test]
fn bad_values() {
    for (text, what) in [
        (
            "# TYPE x counter\nx -1\n",
            "the value of a counter is negative or not a number",
        ),
        (
            "# TYPE x counter\nx NaN\n",
            "the value of a counter is negative or not a number",
        ),
        (
            "# TYPE x histogram\nx_bucket{le=\"1\"} 1\n",
            "a histogram without the bucket +Inf",
        ),
        (
            "# TYPE x histogram\nx_bucket{le=\"y\"} 1\n",
            "the label le or quantile is not a number",
        ),
        (
            "# TYPE x histogram\nx_bucket 1\n",
            "missing label le or quantile",
        ),
        (
            "# TYPE x histogram\nx 1\n",
            "a sample of a histogram without _bucket, _sum or _count",
        ),
        (
            "# TYPE x histogram\nx_bucket{le=\"+Inf\"} 1.5\n",
            "the value of a bucket is not a count",
        ),
        (
            "# TYPE x histogram\nx_bucket{le=\"+Inf\"} 1\nx_count 2\n",
            "_count differs from the last bucket",
        ),
        (
            "# TYPE x histogram\nx_bucket{le=\"1\"} 2\nx_bucket{le=\"+Inf\"} 1\n",
            "a histogram's buckets are not cumulative",
        ),
        (
            "# TYPE x histogram\nx_bucket{le=\"1\"} 1\nx_bucket{le=\"1.0\"} 1\nx_count 1\n",
            "duplicate bucket or quantile",
        ),
        (
            "# TYPE x summary\nx{quantile=\"2\"} 1\n",
            "the label le or quantile is out of range",
        ),
        ("# TYPE x summary\nx_count -1\n", "_count is not a count"),
    ] {
        let parsed = read(text);
        assert!(parsed.families.is_empty(), "{text}");
        assert_eq!(parsed.bad.first[0].1, what, "{text}");
    }
}

#[test]
fn limits() {
    let text: String = (0..150).map(|n| format!("x{{n=\"{n}\"}} 1\n")).collect();
    let parsed = read(&text);
    assert_eq!((parsed.samples, parsed.excess), (100, 50));
    let text: String = (0..150).map(|n| format!("# TYPE x{n} gauge\n")).collect();
    assert!(read(&text).families.is_empty());
    // Declared families take the room of those that have samples.
    let parsed = read(&format!("{text}y 1\n"));
    assert_eq!((parsed.samples, parsed.excess), (0, 1));
    let text: String = (0..FAMILIES + 7).map(|n| format!("x{n} 1\n")).collect();
    let limits = TextLimits {
        samples: 50_000,
        owners: true,
    };
    let parsed = parse(text.as_bytes(), limits);
    assert_eq!((parsed.samples, parsed.excess), (FAMILIES, 7));
}

#[test]
fn series_are_found_again_however_many_there_are() {
    let line = |at: usize| format!("x{{id=\"/{}\",n=\"{}\"}} 1\n", at % 7, at % 1000);
    let text: String = (0..14_000).map(line).collect();
    let limits = TextLimits {
        samples: 50_000,
        owners: true,
    };
    let parsed = parse(text.as_bytes(), limits);
    assert_eq!((parsed.samples, parsed.bad.count), (7000, 7000));
    for count in 1..20 {
        let text: String = (0..count).map(|n| format!("x{{n=\"{n}\"}} 1\n")).collect();
        let parsed = read(&format!("{text}{text}"));
        assert_eq!(
            (parsed.samples, parsed.bad.count),
            (count, count),
            "{count}"
        );
    }
}

#[test]
fn owners() {
    use super::super::series::Owner;
    let text = "a{id=\"/x\",container=\"c\",k=\"v\"} 1\na{container_id=\"0123\"} 1\n\
                a{container=\"c\"} 1\na{name=\"n\"} 1\na{id=\"/x\",k=\"v\"} 1\n";
    let limits = TextLimits {
        samples: 9,
        owners: true,
    };
    let parsed = parse(text.as_bytes(), limits);
    let owners: Vec<Option<Owner>> = parsed.families[0]
        .series
        .iter()
        .map(|series| series.owner.clone())
        .collect();
    assert_eq!(
        owners,
        [
            Some(Owner::Path("/x".to_owned())),
            Some(Owner::ContainerId("0123".to_owned())),
            Some(Owner::Container("c".to_owned())),
            None
        ]
    );
    // The last line repeats the first: the owner's label is not a label of the series.
    assert_eq!(parsed.bad.first, [(5, "duplicate series")]);
}

/// A random generator with a fixed seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % below
    }
}

/// Fragments that are nearly valid, joined at random, with bytes changed: there is always a result,
/// it stays within the limits, and no series is there twice.
#[test]
fn any_text_gives_a_bounded_result() {
    const PIECES: &[&str] = &[
        "# TYPE ",
        "# HELP ",
        "# EOF",
        "h",
        "h_bucket",
        "h_sum",
        "h_count",
        "c_total",
        "c",
        " counter",
        " histogram",
        " summary",
        " gauge",
        "{",
        "}",
        "le=\"",
        "quantile=\"",
        "id=\"/a\"",
        "\"",
        ",",
        "=",
        "\\",
        "\n",
        "\n",
        "\n",
        " ",
        " 1",
        " 1.5",
        " -2",
        " NaN",
        " +Inf",
        " 1e400",
        "_created",
        "\u{e4}",
        "\nc_total{a=\"b\"} 1\n",
        "\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_count 2\n",
        "\t",
        "\r",
        "#",
        " # {a=\"b\"} 1",
        "0x1",
        "-",
    ];
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut families = 0;
    for _ in 0..20_000 {
        let mut text: Vec<u8> = Vec::new();
        for _ in 0..random.next(60) {
            text.extend_from_slice(PIECES[random.next(PIECES.len())].as_bytes());
        }
        if !text.is_empty() && random.next(4) == 0 {
            let at = random.next(text.len());
            text[at] = random.next(256) as u8;
        }
        let limits = TextLimits {
            samples: 1 + random.next(5),
            owners: random.next(2) == 0,
        };
        let parsed = parse(&text, limits);
        let lines = text.split(|&byte| byte == b'\n').count();
        // The last bucket of a histogram, and its count, may be added.
        assert!(parsed.samples <= 3 * limits.samples, "{text:?}");
        assert!(parsed.bad.count + parsed.excess <= 2 * lines, "{text:?}");
        assert!(
            parsed
                .bad
                .first
                .iter()
                .all(|(line, _)| (1..=lines).contains(line))
        );
        families += parsed.families.len();
    }
    assert!(
        families > 1000,
        "{families}: the texts are too bad to test anything"
    );
}
