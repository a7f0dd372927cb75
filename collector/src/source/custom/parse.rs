//! Parses Prometheus text 0.0.4 and OpenMetrics 1.0, as applications write them.
//!
//! Invariants: any bytes give a result, and its size is bounded by [`TextLimits::samples`] and
//! [`FAMILIES`]. A bad line
//! affects nothing else. Errors consist of a line number and a fixed text, so nothing that an
//! application sends reaches the log. Timestamps, exemplars, units and creation times are ignored.
//! Checked by the table and the properties in [`tests`].

use std::collections::HashMap;

use super::series::{AppFamily, Bad, FamilyDraft, LabelPairs, owner_of};
use crate::exposition::MetricKind;

/// Longest line that is parsed, bytes.
const LINE: usize = 16 << 10;
/// Maximum number of families of a text.
const FAMILIES: usize = 5000;
/// Maximum number of labels of a sample.
const LABELS: usize = 64;

/// Limits of a text.
#[derive(Clone, Copy, Debug)]
pub struct TextLimits {
    /// Maximum number of samples.
    pub samples: usize,
    /// Whether labels may name the owner of a sample.
    pub owners: bool,
}

/// Contents of a text.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Families in the order of their first lines, without those that have no samples.
    pub families: Vec<AppFamily>,
    /// Number of samples in them.
    pub samples: usize,
    /// Number of samples left out because of the limit.
    pub excess: usize,
    /// Lines left out.
    pub bad: Bad,
    /// First line with a timestamp.
    pub timestamp: Option<usize>,
}

/// The parts of a sample's line.
#[derive(Debug, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    labels: LabelPairs,
    value: f64,
    timestamp: bool,
}

fn is_name(text: &str, colons: bool) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    text.chars().all(legal) && text.starts_with(|c: char| !c.is_ascii_digit())
}

/// Splits a text at the first blank.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches([' ', '\t']);
    text.split_once([' ', '\t']).unwrap_or((text, ""))
}

/// Undoes escapes up to the closing quote, or up to the end of an unquoted text. Returns the value
/// and the rest.
fn unescaped(text: &str, quoted: bool) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' if quoted => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, c @ ('\\' | '"'))) => value.push(c),
                Some((_, c)) => value.extend(['\\', c]),
                None => return Err("a backslash at the end"),
            },
            c => value.push(c),
        }
    }
    if quoted {
        return Err("missing closing quote");
    }
    Ok((value, ""))
}

/// Parses labels. Returns them and the text after their closing brace.
fn labels(mut rest: &str) -> Result<(LabelPairs, &str), &'static str> {
    let mut labels = LabelPairs::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, value) = rest.split_once('=').ok_or("missing = after a label name")?;
        let name = name.trim_matches([' ', '\t']);
        if !is_name(name, false) || name.starts_with("__") {
            return Err("invalid label name");
        }
        let value = value.trim_start_matches([' ', '\t']);
        let value = value
            .strip_prefix('"')
            .ok_or("a label value is not quoted")?;
        let (value, after) = unescaped(value, true)?;
        if labels.len() == LABELS {
            return Err("more than 64 labels");
        }
        if labels.iter().any(|(found, _)| found == name) {
            return Err("duplicate label");
        }
        labels.push((name.to_owned(), value));
        let after = after.trim_start_matches([' ', '\t']);
        rest = match after.strip_prefix(',') {
            Some(rest) => rest,
            None if after.starts_with('}') => after,
            None => return Err("expected a comma or a closing brace after a label"),
        };
    }
}

fn sample(line: &str) -> Result<Sample<'_>, &'static str> {
    let end = line.find(['{', ' ', '\t']).ok_or("missing value")?;
    let (name, rest) = line.split_at(end);
    if name.is_empty() || !is_name(name, true) {
        return Err("invalid metric name");
    }
    let rest = rest.trim_start_matches([' ', '\t']);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let (value, rest) = word(rest);
    // Rust's floats are a superset of the format's, except hexadecimal ones, which are not used in
    // practice.
    let value = value.parse().map_err(|_| "the value is not a number")?;
    let rest = rest.trim_matches([' ', '\t']);
    let (timestamp, rest) = if rest.starts_with('#') {
        ("", rest)
    } else {
        word(rest)
    };
    if !timestamp.is_empty() && timestamp.parse::<f64>().is_err() {
        return Err("invalid timestamp");
    }
    let rest = rest.trim_start_matches([' ', '\t']);
    if !rest.is_empty() && !rest.starts_with("# {") {
        return Err("unexpected text after the value");
    }
    Ok(Sample {
        name,
        labels,
        value,
        timestamp: !timestamp.is_empty(),
    })
}

/// The families found so far.
struct Families {
    limits: TextLimits,
    drafts: Vec<FamilyDraft>,
    by_name: HashMap<String, usize>,
    /// Number of samples of families beyond the limit.
    excess: usize,
}

impl Families {
    fn entry(&mut self, name: &str) -> Option<&mut FamilyDraft> {
        let at = match self.by_name.get(name) {
            Some(&at) => at,
            None if self.drafts.len() >= self.limits.samples.min(FAMILIES) => return None,
            None => {
                self.by_name.insert(name.to_owned(), self.drafts.len());
                self.drafts.push(FamilyDraft::new(name));
                self.drafts.len() - 1
            }
        };
        self.drafts.get_mut(at)
    }

    fn kind(&self, name: &str) -> Option<MetricKind> {
        self.drafts.get(*self.by_name.get(name)?)?.kind
    }

    /// Parses `# TYPE` and `# HELP`.
    fn comment(&mut self, line: &str) -> Result<(), &'static str> {
        let (keyword, rest) = word(&line[1..]);
        if !matches!(keyword, "TYPE" | "HELP") {
            return Ok(());
        }
        let (name, rest) = word(rest);
        if name.is_empty() || !is_name(name, true) {
            return Err("invalid metric name");
        }
        let Some(draft) = self.entry(name) else {
            return Ok(());
        };
        if keyword == "HELP" {
            if draft.help.is_empty() {
                draft.help = unescaped(rest, false)?.0;
            }
            return Ok(());
        }
        if draft.kind.is_some() {
            return Err("repeated type, or type after the first sample");
        }
        draft.kind = Some(match rest.trim() {
            "counter" => MetricKind::Counter,
            "gauge" | "info" | "stateset" => MetricKind::Gauge,
            "histogram" => MetricKind::Histogram,
            "summary" => MetricKind::Summary,
            "untyped" | "unknown" | "gaugehistogram" => MetricKind::Untyped,
            _ => return Err("unknown type"),
        });
        Ok(())
    }

    /// Whether a sample is the creation time of a counter, histogram or summary.
    fn is_creation_time(&self, name: &str) -> bool {
        let Some(base) = name.strip_suffix("_created") else {
            return false;
        };
        let counts = |kind| {
            matches!(
                kind,
                Some(MetricKind::Counter | MetricKind::Histogram | MetricKind::Summary)
            )
        };
        counts(self.kind(base)) || self.kind(&format!("{base}_total")) == Some(MetricKind::Counter)
    }

    fn sample(&mut self, number: usize, sample: Sample<'_>) -> Result<(), &'static str> {
        if self.is_creation_time(sample.name) {
            return Ok(());
        }
        let owner = if self.limits.owners {
            owner_of(&sample.labels)
        } else {
            None
        };
        for suffix in ["_bucket", "_sum", "_count"] {
            let Some(base) = sample.name.strip_suffix(suffix) else {
                continue;
            };
            if let Some(kind @ (MetricKind::Histogram | MetricKind::Summary)) = self.kind(base)
                && kind.suffixes().contains(&suffix)
                && let Some(draft) = self.entry(base)
            {
                return draft.part(number, suffix, sample.labels, owner, sample.value);
            }
        }
        // OpenMetrics declares a counter without its suffix.
        let mut declared = None;
        if let Some(base) = sample.name.strip_suffix("_total")
            && self.kind(sample.name).is_none()
            && self.kind(base) == Some(MetricKind::Counter)
        {
            declared = self.entry(base).map(|draft| draft.help.clone());
        }
        let Some(draft) = self.entry(sample.name) else {
            self.excess += 1;
            return Ok(());
        };
        if let Some(help) = declared {
            draft.kind = Some(MetricKind::Counter);
            draft.help = help;
        }
        match *draft.kind.get_or_insert(MetricKind::Untyped) {
            MetricKind::Histogram => Err("a sample of a histogram without _bucket, _sum or _count"),
            MetricKind::Summary => draft.part(number, "", sample.labels, owner, sample.value),
            _ => draft.single(number, sample.labels, owner, sample.value),
        }
    }
}

/// Parses a text.
pub fn parse(text: &[u8], limits: TextLimits) -> Parsed {
    let mut parsed = Parsed::default();
    let mut families = Families {
        limits,
        drafts: Vec::new(),
        by_name: HashMap::new(),
        excess: 0,
    };
    let mut taken = 0;
    for (at, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let number = at + 1;
        if line.len() > LINE {
            parsed.bad.add(number, "longer than 16 KiB");
            continue;
        }
        let Ok(line) = std::str::from_utf8(line) else {
            parsed.bad.add(number, "not UTF-8");
            continue;
        };
        let line = line.trim_matches([' ', '\t', '\r']);
        if line == "# EOF" {
            break;
        }
        let result = if line.is_empty() {
            Ok(())
        } else if line.starts_with('#') {
            families.comment(line)
        } else {
            sample(line).and_then(|sample| {
                if sample.timestamp {
                    parsed.timestamp.get_or_insert(number);
                }
                if taken == limits.samples {
                    parsed.excess += 1;
                    return Ok(());
                }
                taken += 1;
                families.sample(number, sample)
            })
        };
        if let Err(what) = result {
            parsed.bad.add(number, what);
        }
    }
    let made: Vec<bool> = families
        .drafts
        .iter()
        .map(|draft| families.is_creation_time(&draft.name))
        .collect();
    parsed.excess += families.excess;
    for (draft, made) in families.drafts.into_iter().zip(made) {
        if made {
            continue;
        }
        let family = draft.finish(&mut parsed.bad);
        if !family.series.is_empty() {
            parsed.samples += family.samples();
            parsed.families.push(family);
        }
    }
    parsed
}

/// Families of a text without mistakes, for tests.
#[cfg(test)]
pub fn families(text: &str) -> Vec<AppFamily> {
    let limits = TextLimits {
        samples: usize::MAX,
        owners: true,
    };
    let parsed = parse(text.as_bytes(), limits);
    assert_eq!(parsed.bad, Bad::default(), "{text}");
    parsed.families
}

#[cfg(test)]
mod tests;
