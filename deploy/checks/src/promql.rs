//! Finds names in PromQL: metrics, labels in selectors, labels in groupings.
//!
//! Invariant: in an expression that Prometheus accepts, every metric is found, and no function, keyword or
//! label is taken for one. There is no grammar: the position of a name tells what it is.

use std::collections::BTreeSet;

/// A metric with the labels that it is selected by.
#[derive(Debug, PartialEq, Eq)]
pub struct Selector {
    /// The metric.
    pub metric: String,
    /// Labels in its braces.
    pub labels: Vec<String>,
}

/// The names in an expression.
#[derive(Debug, Default)]
pub struct Names {
    /// The selectors without repetition, in the order of their first use.
    pub selectors: Vec<Selector>,
    /// Labels that the expression groups or joins by.
    pub grouped: BTreeSet<String>,
}

/// Words that are operators, modifiers or numbers.
const KEYWORDS: [&str; 10] = [
    "and", "or", "unless", "bool", "offset", "start", "end", "inf", "nan", "atan2",
];
/// Words that a list of labels follows.
const LISTS: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];

impl Names {
    /// The metrics without repetition, in the order of their first use.
    pub fn into_metrics(self) -> Vec<String> {
        let mut found = Vec::new();
        for Selector { metric, .. } in self.selectors {
            if !found.contains(&metric) {
                found.push(metric);
            }
        }
        found
    }
}

/// Finds the names in an expression.
pub fn names(expression: &str) -> Names {
    let mut names = Names::default();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        match first {
            '"' | '\'' | '`' => rest = after_string(rest, first),
            '#' => rest = rest.find('\n').map_or("", |end| &rest[end..]),
            '{' => rest = braces(rest).1,
            '[' => rest = rest.find(']').map_or("", |end| &rest[end + 1..]),
            '0'..='9' => {
                rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.')
            }
            first if begins_name(first) => {
                let (word, after) = name(rest);
                rest = after.trim_start();
                let lower = word.to_ascii_lowercase();
                if LISTS.contains(&lower.as_str()) {
                    if let Some(list) = rest.strip_prefix('(') {
                        let (labels, after) = list.split_once(')').unwrap_or((list, ""));
                        let labels = labels.split(',').map(str::trim);
                        let labels = labels.filter(|label| !label.is_empty());
                        names.grouped.extend(labels.map(str::to_owned));
                        rest = after;
                    }
                    continue;
                }
                // An aggregation can have its labels before its argument.
                let aggregation = ["by", "without"].iter().any(|list| {
                    rest.strip_prefix(list)
                        .is_some_and(|rest| rest.trim_start().starts_with('('))
                });
                if rest.starts_with('(') || aggregation || KEYWORDS.contains(&lower.as_str()) {
                    continue;
                }
                let (labels, after) = braces(rest);
                rest = after;
                let selector = Selector {
                    metric: word.to_owned(),
                    labels,
                };
                if !names.selectors.contains(&selector) {
                    names.selectors.push(selector);
                }
            }
            other => rest = &rest[other.len_utf8()..],
        }
    }
    names
}

fn begins_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || c == ':'
}

/// The name that `text` begins with, and what follows.
fn name(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !begins_name(c) && !c.is_ascii_digit());
    text.split_at(end.unwrap_or(text.len()))
}

/// The text after a string in these quotes.
fn after_string(text: &str, quote: char) -> &str {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quote != '`' => escaped = true,
            c if c == quote => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

/// If `text` begins with braces: the labels in them, and the text after them. Braces within strings don't
/// count.
fn braces(text: &str) -> (Vec<String>, &str) {
    let (mut labels, Some(mut rest)) = (Vec::new(), text.strip_prefix('{')) else {
        return (Vec::new(), text);
    };
    while let Some(first) = rest.chars().next() {
        match first {
            '}' => return (labels, &rest[1..]),
            '"' | '\'' | '`' => rest = after_string(rest, first),
            first if begins_name(first) => {
                let (label, after) = name(rest);
                labels.push(label.to_owned());
                rest = after;
            }
            other => rest = &rest[other.len_utf8()..],
        }
    }
    (labels, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_and_nothing_else() {
        let cases: [(&str, &[&str]); 7] = [
            ("up == 0", &["up"]),
            (
                "sum by (a, b) (rate(x_total{c=~\"d}e\"}[5m])) > 1e3",
                &["x_total"],
            ),
            (
                "sum(rate(x[5m])) by (job) / on (a) group_left (b) max without (c) (y)",
                &["x", "y"],
            ),
            (
                "a:b:c and on (id) d unless e offset 5m or f atan2 g",
                &["a:b:c", "d", "e", "f", "g"],
            ),
            ("label_replace(m, \"dst\", \"$1\", 'src', `(.+)`)", &["m"]),
            (
                "topk by (i) (10, n) # o\n + count_values(\"l\", p) > bool Inf",
                &["n", "p"],
            ),
            (
                "histogram_quantile(0.99, q_bucket{le!=\"\\\"}\"}) - r",
                &["q_bucket", "r"],
            ),
        ];
        for (expression, expected) in cases {
            assert_eq!(names(expression).into_metrics(), expected, "{expression}");
        }
    }

    #[test]
    fn names_are_recognised_by_their_position() {
        let query = r#"topk(10, sum by (id, name) (rate(one_total{id!="/",a=~"x{}y\"z"}[$__rate_interval]))
            / on (id) group_left () (two > 0.5e3)) or vector(0) and job:three:rate5m offset 5m unless 4 * NaN"#;
        let Names { selectors, grouped } = names(query);
        let mut selectors: Vec<String> = selectors
            .iter()
            .map(|selector| format!("{} {:?}", selector.metric, selector.labels))
            .collect();
        selectors.sort();
        assert_eq!(
            selectors,
            ["job:three:rate5m []", r#"one_total ["id", "a"]"#, "two []"]
        );
        assert_eq!(grouped.into_iter().collect::<Vec<_>>(), ["id", "name"]);
    }
}
