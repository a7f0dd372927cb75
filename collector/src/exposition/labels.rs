//! Labels of a series, escaped once and copied into every sample.

use bytes::BufMut;

/// The labels that all series of a cgroup share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSet {
    /// `id="/a",name="b"`
    text: Vec<u8>,
}

impl LabelSet {
    /// Labels with the values given; empty values are left out, as Prometheus would.
    pub fn new(pairs: &[(&str, &str)]) -> Self {
        let pairs = pairs.iter().map(|&(name, value)| (name, value));
        Self::default().with(pairs)
    }

    /// These labels and some more; empty values are left out.
    pub fn with<'a>(&self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut set = self.clone();
        for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            if !set.text.is_empty() {
                set.text.push(b',');
            }
            set.text.extend_from_slice(name.as_bytes());
            set.text.extend_from_slice(b"=\"");
            escape(value, &mut set.text);
            set.text.push(b'"');
        }
        set
    }

    /// No labels.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The labels as they stand between the braces of a sample.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }
}

/// Escapes a label value: backslash, quote and newline, in both formats alike.
pub(super) fn escape(value: &str, to: &mut impl BufMut) {
    let mut rest = value.as_bytes();
    // Nearly always there is none, and the value is copied whole.
    while let Some(at) = rest
        .iter()
        .position(|byte| matches!(byte, b'\\' | b'"' | b'\n'))
    {
        to.put_slice(&rest[..at]);
        to.put_slice(match rest[at] {
            b'\n' => b"\\n",
            b'"' => b"\\\"",
            _ => b"\\\\",
        });
        rest = &rest[at + 1..];
    }
    to.put_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_and_empty_ones_left_out() {
        let set = LabelSet::new(&[("id", "/a \"b\"\n\\"), ("image", ""), ("name", "\u{e4}")]);
        assert_eq!(
            String::from_utf8_lossy(set.text()),
            "id=\"/a \\\"b\\\"\\n\\\\\",name=\"\u{e4}\""
        );
    }
}
