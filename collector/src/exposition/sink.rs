//! Samples for whoever wants numbers rather than text.
//!
//! Invariant: a sink gets what the text would say, sample by sample, from the same calls: what is
//! derived from it can't disagree with the exposition.

use std::{borrow::Cow, fmt};

use super::{Histogram, Value};

/// Takes the samples of some families.
pub trait Sink: fmt::Debug {
    /// A family begins. Whether its samples are wanted.
    fn family(&mut self, name: &str) -> bool;
    /// A sample of the family last begun.
    fn sample(&mut self, labels: Labels<'_>, value: Value);
    /// A histogram of the family last begun.
    fn histogram(&mut self, labels: Labels<'_>, histogram: Histogram<'_>);
}

/// The labels of one sample.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// Those that are escaped already, as they stand in a line.
    text: &'a [u8],
    extra: &'a [(&'a str, &'a str)],
}

impl<'a> Labels<'a> {
    pub(super) fn new(text: &'a [u8], extra: &'a [(&'a str, &'a str)]) -> Self {
        Self { text, extra }
    }

    /// Names and values.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> {
        let mut rest = self.text;
        let escaped = std::iter::from_fn(move || {
            let (name, value, after) = pair(rest)?;
            rest = after;
            Some((name, value))
        });
        let extra = self.extra.iter();
        escaped.chain(extra.map(|&(name, value)| (name, Cow::Borrowed(value))))
    }

    /// The value of a label.
    pub fn get(self, name: &str) -> Option<Cow<'a, str>> {
        self.iter()
            .find_map(|(found, value)| (found == name).then_some(value))
    }
}

/// The first label of `a="b",c="d"`, and what follows.
fn pair(text: &[u8]) -> Option<(&str, Cow<'_, str>, &[u8])> {
    let text = text.strip_prefix(b",").unwrap_or(text);
    let equals = text.iter().position(|&byte| byte == b'=')?;
    let (name, value) = (&text[..equals], text.get(equals + 2..)?);
    let mut end = 0;
    let mut escapes = false;
    loop {
        match value.get(end)? {
            b'"' => break,
            b'\\' => {
                escapes = true;
                end += 2;
            }
            _ => end += 1,
        }
    }
    // Labels are made from text.
    let (name, inside) = (
        std::str::from_utf8(name).ok()?,
        std::str::from_utf8(&value[..end]).ok()?,
    );
    let inside = if escapes {
        Cow::Owned(unescape(inside))
    } else {
        Cow::Borrowed(inside)
    };
    Some((name, inside, &value[end + 1..]))
}

/// Undoes `labels::escape`.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => plain.push('\n'),
                Some(other) => plain.push(other),
                None => plain.push('\\'),
            },
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use collector_common::histogram::BUCKETS;

    use super::*;
    use crate::exposition::{Family, Kind, LabelSet, Unit, Writer};

    #[derive(Debug, Default)]
    struct Seen(Vec<String>);

    impl Sink for Seen {
        fn family(&mut self, name: &str) -> bool {
            name == "wanted"
        }

        fn sample(&mut self, labels: Labels<'_>, value: Value) {
            let labels: Vec<_> = labels.iter().collect();
            self.0.push(format!("{labels:?} {value:?}"));
        }

        fn histogram(&mut self, labels: Labels<'_>, histogram: Histogram<'_>) {
            let total: u64 = histogram.buckets.iter().sum();
            self.0.push(format!("{:?} {total}", labels.get("id")));
        }
    }

    #[test]
    fn a_sink_gets_the_families_that_it_wants_and_their_labels_unescaped() {
        let family = |name| Family {
            name,
            help: "",
            kind: Kind::Counter,
            unit: Unit::None,
            labels: &[],
            origin: "",
            oracle: "",
        };
        let labels = LabelSet::new(&[("id", "/a \"b\"\n\\,c=\"d"), ("name", "\u{e4}")]);
        let mut seen = Seen::default();
        let mut writer = Writer::to_sink(&mut seen);
        for name in ["other", "wanted"] {
            writer.family(&family(name));
            writer.sample(&labels, &[("cpu", "total")], Value::Nanos(7));
            writer.sample(&LabelSet::empty(), &[], Value::Count(1));
            let histogram = Histogram {
                buckets: &[2; BUCKETS],
                sum: Value::Count(0),
            };
            writer.histogram(&LabelSet::new(&[("id", "/x")]), &[], histogram);
        }
        assert!(writer.finish().is_empty(), "no text");
        assert_eq!(
            seen.0,
            [
                "[(\"id\", \"/a \\\"b\\\"\\n\\\\,c=\\\"d\"), (\"name\", \"\u{e4}\"), (\"cpu\", \"total\")] Nanos(7)",
                "[] Count(1)",
                "Some(\"/x\") 48",
            ]
        );
    }
}
