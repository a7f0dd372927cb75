//! Sizes of what the text formats write, known before anything is written.
//!
//! Invariant: a size is never too small in any format, and it does not depend on the value unless
//! that has very many digits. Checked against the encoders.

use std::fmt::Write;

use super::Distribution;

/// Most bytes of a value that is neither very large nor very small.
const VALUE: usize = 24;
/// Most bytes of a bucket's bound or a quantile.
const BOUND: usize = 28;

/// Most bytes of the metadata of a family whose name has this length.
pub fn heading_size(name: usize, help: &str) -> usize {
    let escaped = help
        .bytes()
        .filter(|byte| matches!(byte, b'\\' | b'"' | b'\n'));
    "# HELP  \n# TYPE  histogram\n".len() + 2 * name + help.len() + escaped.count()
}

/// Most bytes of a line with a name and labels of these lengths.
pub fn line_size(name: usize, labels: usize, value: f64) -> usize {
    name + "{} \n".len() + labels + value_size(value)
}

/// Most bytes of the lines of a histogram or summary.
pub fn distribution_size(name: usize, labels: usize, distribution: &Distribution) -> usize {
    let name = name + "_bucket".len();
    let step = labels + ",quantile=\"\"".len() + BOUND;
    let steps = distribution.steps.iter();
    let others = distribution.sum.iter().chain(&distribution.count);
    steps
        .map(|(_, value)| line_size(name, step, *value))
        .sum::<usize>()
        + others
            .map(|value| line_size(name, labels, *value))
            .sum::<usize>()
}

fn value_size(value: f64) -> usize {
    let magnitude = value.abs();
    if magnitude == 0.0 || !magnitude.is_finite() || (1e-5..1e17).contains(&magnitude) {
        return VALUE;
    }
    let mut count = Count(0);
    // Counting does not fail.
    let _ = write!(count, "{value}");
    count.0.max(VALUE)
}

struct Count(usize);

impl Write for Count {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{Format, LabelSet, Labels, Metadata, MetricKind, Unit, Value};

    const VALUES: [f64; 14] = [
        0.0,
        -0.0,
        1.0,
        -1e-5 / 3.0 * 4.0,
        -1e-4 / 3.0 * 2.0,
        -1e17 + 16.0,
        0.1 + 0.2,
        -1e8 / 81.0,
        f64::MAX,
        f64::MIN_POSITIVE,
        -5e-324,
        f64::NAN,
        f64::NEG_INFINITY,
        1e17,
    ];

    #[test]
    fn no_encoder_writes_more() {
        let distribution = Distribution {
            steps: VALUES.iter().map(|&value| (value, value.abs())).collect(),
            sum: Some(f64::MIN_POSITIVE),
            count: Some(1e300),
        };
        let (set, own) = (
            LabelSet::new(&[("id", "/a\"\n")]),
            LabelSet::new(&[("k", "\\")]),
        );
        let help = "Some \"help\"\n\\.";
        for format in Format::ALL {
            let end = format.encoder().finish().len();
            for kind in [
                MetricKind::Counter,
                MetricKind::Gauge,
                MetricKind::Untyped,
                MetricKind::Histogram,
                MetricKind::Summary,
            ] {
                for value in VALUES {
                    for (set, own) in [(&set, &own), (&LabelSet::empty(), &LabelSet::empty())] {
                        let mut encoder = format.encoder();
                        encoder.begin(&Metadata {
                            name: "name_total",
                            help,
                            kind,
                            unit: Unit::None,
                            base_is_free: true,
                        });
                        let labels = Labels::with_own(set, own);
                        let size = set.text_len() + 1 + own.text_len();
                        let size = heading_size(10, help)
                            + if kind.is_plain() {
                                encoder.sample(labels, Value::Float(value));
                                line_size(10, size, value)
                            } else {
                                encoder.distribution(labels, &distribution);
                                distribution_size(10, size, &distribution)
                            };
                        let text = encoder.finish();
                        assert!(text.len() - end <= size, "{kind:?} {value} {text:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn ordinary_values_have_one_size() {
        for value in [0.0, 1.0, -123.456, 1e15, f64::NAN] {
            assert_eq!(line_size(3, 7, value), line_size(3, 7, 5.0));
        }
        assert!(line_size(3, 7, 1e300) > 300);
    }
}
