//! Which metrics and labels a PromQL query names.
//!
//! Not a parser: that a query is well-formed is Prometheus's to say (tests/live/panels.rs). What is
//! told apart here are names by where they stand.

use std::collections::BTreeSet;

/// A metric with the labels that it is selected by.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// The metric.
    pub metric: String,
    /// Labels in its braces.
    pub labels: Vec<String>,
}

/// What may stand where a metric may, and is none. `by` and the like take labels in parentheses.
const WORDS: [&str; 9] = [
    "and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end",
];
const WITH_LABELS: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];

/// All selectors of a query, and the labels that it groups or joins by.
pub fn names(query: &str) -> (BTreeSet<Selector>, BTreeSet<String>) {
    let (mut selectors, mut grouped) = (BTreeSet::new(), BTreeSet::new());
    let mut rest = query;
    while let Some(next) = rest.chars().next() {
        if next == '[' {
            rest = after(rest, ']');
        } else if next == '"' {
            rest = &rest[quoted(rest)..];
        } else if next.is_ascii_digit() || next == '.' {
            let number = |c: char| c.is_ascii_alphanumeric() || c == '.';
            rest = rest.trim_start_matches(number);
        } else if is_name(next) {
            let name = &rest[..rest
                .find(|c| !is_name(c) && !c.is_ascii_digit())
                .unwrap_or(rest.len())];
            rest = rest[name.len()..].trim_start();
            if WITH_LABELS.contains(&name) {
                let list = rest.trim_start_matches('(');
                let end = list.find(')').unwrap_or(list.len());
                let labels = list[..end].split(',').map(str::trim);
                grouped.extend(labels.filter(|label| !label.is_empty()).map(str::to_owned));
                rest = &list[end..];
            } else if !rest.starts_with('(')
                && !["by ", "without "]
                    .iter()
                    .any(|word| rest.starts_with(word))
                && !WORDS.contains(&name)
            {
                let (labels, left) = braces(rest);
                rest = left;
                selectors.insert(Selector {
                    metric: name.to_owned(),
                    labels,
                });
            }
        } else {
            rest = &rest[next.len_utf8()..];
        }
    }
    (selectors, grouped)
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || c == ':'
}

fn after(text: &str, end: char) -> &str {
    text.split_once(end).map_or("", |(_, rest)| rest)
}

/// Length of the quoted text that `text` begins with.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The labels in the braces that `text` begins with, if it does, and what follows.
fn braces(text: &str) -> (Vec<String>, &str) {
    let (mut labels, Some(mut rest)) = (Vec::new(), text.strip_prefix('{')) else {
        return (Vec::new(), text);
    };
    while let Some(next) = rest.chars().next() {
        if next == '}' {
            return (labels, &rest[1..]);
        } else if next == '"' {
            rest = &rest[quoted(rest)..];
        } else if is_name(next) {
            let end = rest
                .find(|c| !is_name(c) && !c.is_ascii_digit())
                .unwrap_or(rest.len());
            labels.push(rest[..end].to_owned());
            rest = &rest[end..];
        } else {
            rest = &rest[next.len_utf8()..];
        }
    }
    (labels, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_by_where_they_stand() {
        let query = r#"topk(10, sum by (id, name) (rate(one_total{id!="/",a=~"x{}y\"z"}[$__rate_interval]))
            / on (id) group_left () (two > 0.5e3)) or vector(0) and job:three:rate5m offset 5m unless 4 * NaN"#;
        let (selectors, grouped) = names(&query.replace("NaN", "nan"));
        let selectors: Vec<String> = selectors
            .iter()
            .map(|selector| format!("{} {:?}", selector.metric, selector.labels))
            .collect();
        assert_eq!(
            selectors,
            ["job:three:rate5m []", r#"one_total ["id", "a"]"#, "two []"]
        );
        assert_eq!(grouped.into_iter().collect::<Vec<_>>(), ["id", "name"]);
    }
}
