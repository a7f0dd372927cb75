//! Labels of a series: structured for readers, and escaped once for the text formats.

use std::{
    borrow::Cow,
    hash::{Hash, Hasher},
    ops::Range,
    sync::{Arc, LazyLock},
};

/// Labels that are made once and used for many samples, such as those of a cgroup. A clone shares
/// them.
#[derive(Clone)]
pub struct LabelSet {
    /// As in the text formats: `id="/a",name="b"`. An encoder reads nothing else of the set.
    text: Arc<str>,
    labels: Arc<[Span]>,
}

/// Position of a label in the text.
#[derive(Clone, Copy, Debug)]
struct Span {
    name: u32,
    /// Index of the first byte after the opening quote.
    value: u32,
    /// Index of the closing quote.
    end: u32,
}

impl Span {
    fn name(self) -> Range<usize> {
        self.name as usize..self.value as usize - "=\"".len()
    }

    fn value(self) -> Range<usize> {
        self.value as usize..self.end as usize
    }
}

impl LabelSet {
    /// Makes a set of labels. Empty values are left out, as Prometheus does.
    pub fn new(pairs: &[(&str, &str)]) -> Self {
        Self::empty().with(pairs.iter().copied())
    }

    /// Returns these labels and some more. Empty values are left out.
    pub fn with<'a>(&self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.append(pairs.into_iter().filter(|(_, value)| !value.is_empty()))
    }

    /// Returns these labels, and those of `names` that are not among them with an empty value. To Prometheus that
    /// is no label, but one of its target does not take the place.
    pub fn with_empty(&self, names: &[&str]) -> Self {
        let missing = |name: &&&str| !self.iter().any(|(found, _)| found == **name);
        self.append(names.iter().filter(missing).map(|&name| (name, "")))
    }

    fn append<'a>(&self, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut text = self.text.as_bytes().to_vec();
        let mut labels = self.labels.to_vec();
        for (name, value) in pairs {
            if !text.is_empty() {
                text.push(b',');
            }
            let start = offset(&text);
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(b"=\"");
            let begin = offset(&text);
            escape(value, &mut text);
            labels.push(Span {
                name: start,
                value: begin,
                end: offset(&text),
            });
            text.push(b'"');
        }
        Self {
            // Names and values are UTF-8, and escaping adds only ASCII.
            text: String::from_utf8(text).unwrap_or_default().into(),
            labels: labels.into(),
        }
    }

    /// Returns the empty set.
    pub fn empty() -> Self {
        static EMPTY: LazyLock<LabelSet> = LazyLock::new(|| LabelSet {
            text: Arc::default(),
            labels: Arc::default(),
        });
        EMPTY.clone()
    }

    /// Returns the text between the braces of a sample.
    pub(super) fn text(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// Returns the length of the text between the braces of a sample.
    pub fn text_len(&self) -> usize {
        self.text.len()
    }

    /// Returns the bytes of memory that hold the labels, without what the allocator adds.
    pub fn size(&self) -> usize {
        self.text.len() + size_of_val(&*self.labels)
    }

    /// Returns names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        let text = &self.text;
        self.labels.iter().map(|span| {
            let value = text.get(span.value()).unwrap_or_default();
            (text.get(span.name()).unwrap_or_default(), unescape(value))
        })
    }
}

impl Default for LabelSet {
    fn default() -> Self {
        Self::empty()
    }
}

impl std::fmt::Debug for LabelSet {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{{{}}}", self.text)
    }
}

impl PartialEq for LabelSet {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text) || self.text == other.text
    }
}

impl Eq for LabelSet {}

impl Hash for LabelSet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// Converts a length for a span. No label set comes near 4 GiB: its contents are bounded at their
/// source.
fn offset(text: &[u8]) -> u32 {
    u32::try_from(text.len()).unwrap_or(u32::MAX)
}

/// The labels of one sample: a node's set, perhaps a second set that other nodes or samples share,
/// and labels made for this sample.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    pub(super) set: &'a LabelSet,
    pub(super) own: Option<&'a LabelSet>,
    pub(super) extra: &'a [(&'a str, &'a str)],
}

impl<'a> Labels<'a> {
    /// Combines a set with labels of the sample.
    pub fn new(set: &'a LabelSet, extra: &'a [(&'a str, &'a str)]) -> Self {
        Self {
            set,
            own: None,
            extra,
        }
    }

    /// Combines a cgroup's set with another one: an application's, or that of a family's series.
    pub fn with_own(set: &'a LabelSet, own: &'a LabelSet) -> Self {
        Self {
            set,
            own: Some(own),
            extra: &[],
        }
    }

    /// Returns names and values.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> {
        let kept = self
            .set
            .iter()
            .chain(self.own.into_iter().flat_map(LabelSet::iter));
        let extra = self.extra.iter();
        kept.chain(extra.map(|&(name, value)| (name, Cow::Borrowed(value))))
    }

    /// Returns the value of a label.
    pub fn get(self, name: &str) -> Option<Cow<'a, str>> {
        self.iter()
            .find_map(|(found, value)| (found == name).then_some(value))
    }

    /// Appends the text between the braces of a sample.
    #[inline]
    pub(super) fn write(self, to: &mut Vec<u8>) {
        let set = self.set.text();
        to.extend_from_slice(set);
        let mut first = set.is_empty();
        if let Some(own) = self.own.map(LabelSet::text).filter(|own| !own.is_empty()) {
            if !first {
                to.push(b',');
            }
            first = false;
            to.extend_from_slice(own);
        }
        for (name, value) in self.extra {
            if !first {
                to.push(b',');
            }
            first = false;
            to.extend_from_slice(name.as_bytes());
            to.extend_from_slice(b"=\"");
            escape(value, to);
            to.push(b'"');
        }
    }

    /// Whether there are no labels.
    pub(super) fn is_empty(self) -> bool {
        self.extra.is_empty()
            && self.set.text().is_empty()
            && self.own.is_none_or(|own| own.text().is_empty())
    }
}

/// Escapes a label value: backslash, quote and newline, the same in all text formats.
pub(super) fn escape(value: &str, to: &mut Vec<u8>) {
    let mut rest = value.as_bytes();
    // Most values need no escape and are copied at once.
    while let Some(at) = rest
        .iter()
        .position(|byte| matches!(byte, b'\\' | b'"' | b'\n'))
    {
        to.extend_from_slice(&rest[..at]);
        to.extend_from_slice(match rest[at] {
            b'\n' => b"\\n",
            b'"' => b"\\\"",
            _ => b"\\\\",
        });
        rest = &rest[at + 1..];
    }
    to.extend_from_slice(rest);
}

/// Undoes [`escape`].
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
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
    Cow::Owned(plain)
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

    #[test]
    fn empty_ones_are_there_if_they_are_asked_for() {
        let set = LabelSet::new(&[("id", "/"), ("pod", "p")]).with_empty(&["namespace", "pod"]);
        assert_eq!(set.text(), b"id=\"/\",pod=\"p\",namespace=\"\"");
    }

    #[test]
    fn escaped_values_are_read_back_unchanged() {
        let hostile = [
            "/plain",
            "\\",
            "\\n",
            "\n",
            "\"",
            "a=\"b\",c=\"d\"",
            "\u{e4}\\",
        ];
        let pairs: Vec<(String, &str)> = hostile
            .iter()
            .enumerate()
            .map(|(at, value)| (format!("l{at}"), *value))
            .collect();
        let pairs = pairs.iter().map(|(name, value)| (name.as_str(), *value));
        let set = LabelSet::empty().with(pairs.clone());
        let own = LabelSet::new(&[("own", "x\"y")]);
        let labels = Labels {
            set: &set,
            own: Some(&own),
            extra: &[("extra", "\\z")],
        };
        let found: Vec<(&str, String)> = labels
            .iter()
            .map(|(name, value)| (name, value.into_owned()))
            .collect();
        let expected: Vec<(&str, String)> = pairs
            .chain([("own", "x\"y"), ("extra", "\\z")])
            .map(|(name, value)| (name, value.to_owned()))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(labels.get("l4").as_deref(), Some("\""));
        assert_eq!(labels.get("absent"), None);
    }

    #[test]
    fn labels_are_written_in_order() {
        let (set, own) = (LabelSet::new(&[("id", "/x")]), LabelSet::new(&[("a", "b")]));
        let text = |labels: Labels<'_>| {
            let mut text = Vec::new();
            labels.write(&mut text);
            String::from_utf8(text).unwrap()
        };
        assert_eq!(text(Labels::with_own(&set, &own)), "id=\"/x\",a=\"b\"");
        assert_eq!(text(Labels::with_own(&LabelSet::empty(), &own)), "a=\"b\"");
        assert_eq!(
            text(Labels::new(&set, &[("q", "\"")])),
            "id=\"/x\",q=\"\\\"\""
        );
        assert!(Labels::new(&LabelSet::empty(), &[]).is_empty());
    }
}
