//! A snapshot as JSON: `cgmeter dump --format json`.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// The samples of a text exposition (the agent's own) as a JSON array of objects with `name`,
/// `labels` and `value`; values that JSON has no number for are strings.
///
/// # Errors
///
/// When the text isn't an exposition.
pub fn json(text: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(text).context("the exposition is not UTF-8")?;
    let samples = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| sample(line).with_context(|| format!("not a sample: {line}")))
        .collect::<Result<Vec<_>>>()?;
    Ok(format!("{}\n", serde_json::to_string_pretty(&samples)?))
}

fn sample(line: &str) -> Option<Value> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Map::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, after) = unescape(after)?;
            labels.insert(label.to_owned(), Value::String(value));
            rest = after;
        }
        rest = &rest[1..];
    }
    let text = rest.trim();
    let number = serde_json::from_str::<Value>(text)
        .ok()
        .filter(Value::is_number);
    let value = number.unwrap_or_else(|| Value::String(text.to_owned()));
    Some(json!({ "name": name, "labels": labels, "value": value }))
}

/// A label value up to its closing quote, and what follows.
fn unescape(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_survive() {
        let text = b"# TYPE a counter\na{id=\"/x \\\"y\\\",\\n}\",b=\"c\"} 1.5\nb NaN\nc +Inf\n";
        let value: Value = serde_json::from_str(&json(text).unwrap()).unwrap();
        assert_eq!(value[0]["labels"]["id"], "/x \"y\",\n}");
        assert_eq!(value[0]["labels"]["b"], "c");
        assert_eq!(value[0]["value"], 1.5);
        assert_eq!(value[1]["value"], "NaN");
        assert_eq!(value[2]["value"], "+Inf");
    }
}
