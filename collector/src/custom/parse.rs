//! Reading Prometheus's text format 0.0.4 and OpenMetrics 1.0, as applications write them.
//!
//! Invariants: total and bounded: any bytes give a result, its size is limited by
//! [`Limits::samples`]; a bad line costs itself alone. What is wrong is told by line number and in
//! fixed words: what an application says never gets into the log. Timestamps, exemplars, units and
//! creation times are not taken over. Checked by the table and the properties in [`tests`].

use std::collections::HashMap;

use super::series::{Draft, Family, Labels, owner_of};
use crate::exposition::Kind;

/// Longest line that is read.
const LINE: usize = 16 << 10;
/// Most labels of a sample.
const LABELS: usize = 64;

/// How much is taken, and from whom.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most samples, and most families.
    pub samples: usize,
    /// Whether labels may say whose a sample is.
    pub owners: bool,
}

/// Bad lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bad {
    /// How many.
    pub count: usize,
    /// The first ones: number, from 1, and what is wrong.
    pub first: Vec<(usize, &'static str)>,
}

impl Bad {
    pub(super) fn add(&mut self, line: usize, what: &'static str) {
        self.count += 1;
        if self.first.len() < 3 {
            self.first.push((line, what));
        }
    }
}

/// What a text says.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Families in the order of their first lines, those without samples left out.
    pub families: Vec<Family>,
    /// Samples in them.
    pub samples: usize,
    /// Samples beyond the limit, left out.
    pub excess: usize,
    /// Lines left out.
    pub bad: Bad,
    /// First line with a timestamp.
    pub timestamp: Option<usize>,
}

/// One sample's line, taken apart.
#[derive(Debug, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    labels: Labels,
    value: f64,
    timestamp: bool,
}

fn is_name(text: &str, colons: bool) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    text.chars().all(legal) && text.starts_with(|c: char| !c.is_ascii_digit())
}

/// Splits at the first blank.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches([' ', '\t']);
    text.split_once([' ', '\t']).unwrap_or((text, ""))
}

/// Undoes escapes up to a quote, or to the end where nothing is quoted; returns what follows.
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
        return Err("a quote is not closed");
    }
    Ok((value, ""))
}

/// Labels and what follows their closing brace.
fn labels(mut rest: &str) -> Result<(Labels, &str), &'static str> {
    let mut labels = Labels::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, value) = rest.split_once('=').ok_or("no = after a label's name")?;
        let name = name.trim_matches([' ', '\t']);
        if !is_name(name, false) || name.starts_with("__") {
            return Err("not a label's name");
        }
        let value = value.trim_start_matches([' ', '\t']);
        let value = value
            .strip_prefix('"')
            .ok_or("a label's value is not quoted")?;
        let (value, after) = unescaped(value, true)?;
        if labels.len() == LABELS {
            return Err("more than 64 labels");
        }
        if labels.iter().any(|(found, _)| found == name) {
            return Err("a label twice");
        }
        labels.push((name.to_owned(), value));
        let after = after.trim_start_matches([' ', '\t']);
        rest = match after.strip_prefix(',') {
            Some(rest) => rest,
            None if after.starts_with('}') => after,
            None => return Err("neither a comma nor a brace after a label"),
        };
    }
}

fn sample(line: &str) -> Result<Sample<'_>, &'static str> {
    let end = line.find(['{', ' ', '\t']).ok_or("no value")?;
    let (name, rest) = line.split_at(end);
    if name.is_empty() || !is_name(name, true) {
        return Err("not a metric's name");
    }
    let rest = rest.trim_start_matches([' ', '\t']);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let (value, rest) = word(rest);
    // Rust's floats are a superset of the format's, hexadecimal ones excepted, which nobody writes.
    let value = value.parse().map_err(|_| "not a number")?;
    let rest = rest.trim_matches([' ', '\t']);
    let (timestamp, rest) = if rest.starts_with('#') {
        ("", rest)
    } else {
        word(rest)
    };
    if !timestamp.is_empty() && timestamp.parse::<f64>().is_err() {
        return Err("not a timestamp");
    }
    let rest = rest.trim_start_matches([' ', '\t']);
    if !rest.is_empty() && !rest.starts_with("# {") {
        return Err("something after the value");
    }
    Ok(Sample {
        name,
        labels,
        value,
        timestamp: !timestamp.is_empty(),
    })
}

/// The families that a text has told of so far.
struct Families {
    limits: Limits,
    drafts: Vec<Draft>,
    by_name: HashMap<String, usize>,
}

impl Families {
    fn entry(&mut self, name: &str) -> Option<&mut Draft> {
        let at = match self.by_name.get(name) {
            Some(&at) => at,
            None if self.drafts.len() >= self.limits.samples => return None,
            None => {
                self.by_name.insert(name.to_owned(), self.drafts.len());
                self.drafts.push(Draft::new(name));
                self.drafts.len() - 1
            }
        };
        self.drafts.get_mut(at)
    }

    fn kind(&self, name: &str) -> Option<Kind> {
        self.drafts.get(*self.by_name.get(name)?)?.kind
    }

    /// `# TYPE` and `# HELP`.
    fn comment(&mut self, line: &str) -> Result<(), &'static str> {
        let (keyword, rest) = word(&line[1..]);
        if !matches!(keyword, "TYPE" | "HELP") {
            return Ok(());
        }
        let (name, rest) = word(rest);
        if name.is_empty() || !is_name(name, true) {
            return Err("not a metric's name");
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
            return Err("the type is told twice, or after the first sample");
        }
        draft.kind = Some(match rest.trim() {
            "counter" => Kind::Counter,
            "gauge" | "info" | "stateset" => Kind::Gauge,
            "histogram" => Kind::Histogram,
            "summary" => Kind::Summary,
            "untyped" | "unknown" | "gaugehistogram" => Kind::Untyped,
            _ => return Err("not a type"),
        });
        Ok(())
    }

    /// Whether a sample is the time at which a counter, histogram or summary was made.
    fn is_creation_time(&self, name: &str) -> bool {
        let Some(base) = name.strip_suffix("_created") else {
            return false;
        };
        let counts = |kind| matches!(kind, Some(Kind::Counter | Kind::Histogram | Kind::Summary));
        counts(self.kind(base)) || self.kind(&format!("{base}_total")) == Some(Kind::Counter)
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
            if let Some(kind @ (Kind::Histogram | Kind::Summary)) = self.kind(base)
                && kind.suffixes().contains(&suffix)
                && let Some(draft) = self.entry(base)
            {
                return draft.part(number, suffix, sample.labels, owner, sample.value);
            }
        }
        // OpenMetrics names a counter without its suffix.
        let mut declared = None;
        if let Some(base) = sample.name.strip_suffix("_total")
            && self.kind(sample.name).is_none()
            && self.kind(base) == Some(Kind::Counter)
        {
            declared = self.entry(base).map(|draft| draft.help.clone());
        }
        let Some(draft) = self.entry(sample.name) else {
            return Ok(());
        };
        if let Some(help) = declared {
            draft.kind = Some(Kind::Counter);
            draft.help = help;
        }
        match *draft.kind.get_or_insert(Kind::Untyped) {
            Kind::Histogram => Err("a histogram's sample without _bucket, _sum or _count"),
            Kind::Summary => draft.part(number, "", sample.labels, owner, sample.value),
            _ => draft.single(number, sample.labels, owner, sample.value),
        }
    }
}

/// Reads a text.
pub fn parse(text: &[u8], limits: Limits) -> Parsed {
    let mut parsed = Parsed::default();
    let mut families = Families {
        limits,
        drafts: Vec::new(),
        by_name: HashMap::new(),
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

#[cfg(test)]
mod tests;
