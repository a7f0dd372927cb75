//! Metric names in PromQL.
//!
//! Invariant: syntax is promtool's business; of an expression that it accepts, every metric is
//! found, and no function, keyword or label is taken for one.

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

/// The metrics that an expression names, in the order of their first use.
pub fn metrics(expression: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        match first {
            '"' | '\'' | '`' => rest = after_string(rest, first),
            '#' => rest = rest.find('\n').map_or("", |end| &rest[end..]),
            '{' => rest = after_selector(rest),
            '[' => rest = rest.find(']').map_or("", |end| &rest[end + 1..]),
            '0'..='9' => {
                rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.')
            }
            'a'..='z' | 'A'..='Z' | '_' | ':' => {
                let end = rest
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
                    .unwrap_or(rest.len());
                let word = &rest[..end];
                rest = rest[end..].trim_start();
                let lower = word.to_ascii_lowercase();
                if LISTS.contains(&lower.as_str()) {
                    if rest.starts_with('(') {
                        rest = rest.find(')').map_or("", |end| &rest[end + 1..]);
                    }
                    continue;
                }
                // An aggregation may have its labels before what it adds up.
                let aggregation = ["by", "without"].iter().any(|list| {
                    rest.strip_prefix(list)
                        .is_some_and(|rest| rest.trim_start().starts_with('('))
                });
                let known = rest.starts_with('(') || aggregation;
                let name = word.to_owned();
                if !known && !KEYWORDS.contains(&lower.as_str()) && !found.contains(&name) {
                    found.push(name);
                }
            }
            other => rest = &rest[other.len_utf8()..],
        }
    }
    found
}

/// What follows a string in such quotes.
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

/// What follows `{...}`, strings with braces in them respected.
fn after_selector(text: &str) -> &str {
    let mut rest = &text[1..];
    while let Some(first) = rest.chars().next() {
        match first {
            '}' => return &rest[1..],
            '"' | '\'' | '`' => rest = after_string(rest, first),
            other => rest = &rest[other.len_utf8()..],
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::metrics;

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
            assert_eq!(metrics(expression), expected, "{expression}");
        }
    }
}
